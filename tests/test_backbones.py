"""The backbones must be torchvision's, name by name and number by number, or its checkpoints are not what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from train import TrainError
from train.backbones import BACKBONES, backbone_spec, build, build_tail
from train.weights import find_weights


def batch_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


# torchvision's resnet18 from conv1 through layer3, less num_batches_tracked
RESNET18: dict[str, tuple[int, ...]] = {
    "conv1.weight": (64, 3, 7, 7),
    **batch_norm("bn1", 64),
    "layer1.0.conv1.weight": (64, 64, 3, 3),
    **batch_norm("layer1.0.bn1", 64),
    "layer1.0.conv2.weight": (64, 64, 3, 3),
    **batch_norm("layer1.0.bn2", 64),
    "layer1.1.conv1.weight": (64, 64, 3, 3),
    **batch_norm("layer1.1.bn1", 64),
    "layer1.1.conv2.weight": (64, 64, 3, 3),
    **batch_norm("layer1.1.bn2", 64),
    "layer2.0.conv1.weight": (128, 64, 3, 3),
    **batch_norm("layer2.0.bn1", 128),
    "layer2.0.conv2.weight": (128, 128, 3, 3),
    **batch_norm("layer2.0.bn2", 128),
    "layer2.0.downsample.0.weight": (128, 64, 1, 1),
    **batch_norm("layer2.0.downsample.1", 128),
    "layer2.1.conv1.weight": (128, 128, 3, 3),
    **batch_norm("layer2.1.bn1", 128),
    "layer2.1.conv2.weight": (128, 128, 3, 3),
    **batch_norm("layer2.1.bn2", 128),
    "layer3.0.conv1.weight": (256, 128, 3, 3),
    **batch_norm("layer3.0.bn1", 256),
    "layer3.0.conv2.weight": (256, 256, 3, 3),
    **batch_norm("layer3.0.bn2", 256),
    "layer3.0.downsample.0.weight": (256, 128, 1, 1),
    **batch_norm("layer3.0.downsample.1", 256),
    "layer3.1.conv1.weight": (256, 256, 3, 3),
    **batch_norm("layer3.1.bn1", 256),
    "layer3.1.conv2.weight": (256, 256, 3, 3),
    **batch_norm("layer3.1.bn2", 256),
}

# torchvision's vgg11_bn through features.22: configuration A, convolutions at 0, 4, 8, 11, 15, 18 and 22
VGG11_BN: dict[str, tuple[int, ...]] = {
    "features.0.weight": (64, 3, 3, 3),
    "features.0.bias": (64,),
    **batch_norm("features.1", 64),
    "features.4.weight": (128, 64, 3, 3),
    "features.4.bias": (128,),
    **batch_norm("features.5", 128),
    "features.8.weight": (256, 128, 3, 3),
    "features.8.bias": (256,),
    **batch_norm("features.9", 256),
    "features.11.weight": (256, 256, 3, 3),
    "features.11.bias": (256,),
    **batch_norm("features.12", 256),
    "features.15.weight": (512, 256, 3, 3),
    "features.15.bias": (512,),
    **batch_norm("features.16", 512),
    "features.18.weight": (512, 512, 3, 3),
    "features.18.bias": (512,),
    **batch_norm("features.19", 512),
    "features.22.weight": (512, 512, 3, 3),
    "features.22.bias": (512,),
}

# what follows the last tap, less the classifier
RESNET18_TAIL: dict[str, tuple[int, ...]] = {
    "layer4.0.conv1.weight": (512, 256, 3, 3),
    **batch_norm("layer4.0.bn1", 512),
    "layer4.0.conv2.weight": (512, 512, 3, 3),
    **batch_norm("layer4.0.bn2", 512),
    "layer4.0.downsample.0.weight": (512, 256, 1, 1),
    **batch_norm("layer4.0.downsample.1", 512),
    "layer4.1.conv1.weight": (512, 512, 3, 3),
    **batch_norm("layer4.1.bn1", 512),
    "layer4.1.conv2.weight": (512, 512, 3, 3),
    **batch_norm("layer4.1.bn2", 512),
}
VGG11_BN_TAIL: dict[str, tuple[int, ...]] = {
    **batch_norm("features.23", 512),
    "features.25.weight": (512, 512, 3, 3),
    "features.25.bias": (512,),
    **batch_norm("features.26", 512),
}

# a few of each wide net's; its blocks are counted below
WIDE: dict[str, tuple[int, ...]] = {
    "conv1.weight": (64, 3, 7, 7),
    "layer1.0.conv1.weight": (128, 64, 1, 1),
    "layer1.0.conv2.weight": (128, 128, 3, 3),
    "layer1.0.conv3.weight": (256, 128, 1, 1),
    "layer1.0.downsample.0.weight": (256, 64, 1, 1),
    "layer1.2.conv1.weight": (128, 256, 1, 1),
    "layer2.0.conv1.weight": (256, 256, 1, 1),
    "layer2.0.conv2.weight": (256, 256, 3, 3),
    "layer2.0.downsample.0.weight": (512, 256, 1, 1),
    "layer2.3.conv3.weight": (512, 256, 1, 1),
    "layer3.0.conv1.weight": (512, 512, 1, 1),
    "layer3.0.downsample.1.running_var": (1024,),
    "layer3.5.conv2.weight": (512, 512, 3, 3),
    "layer3.5.bn3.bias": (1024,),
}


# three bottlenecks of inner width 1024 from 1024 to 2048 channels: convolutions, then two numbers a channel of batch norm
WIDE_LAYER4 = (
    (1024 * 1024 + 2 * 1024 * 2048) + 2 * (2 * 2048 * 1024) + 3 * (9 * 1024 * 1024) + 3 * 2 * (1024 + 1024 + 2048) + 2 * 2048
)


def on_paper(name: str) -> nn.Module:
    """The network without memory for its weights: the wide ones are large."""
    with torch.device("meta"):
        return BACKBONES[name].build()


def names_and_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape) for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")
    }


def random_state(name: str) -> dict[str, Tensor]:
    """A state dict of the whole trunk that shows where each number ends up."""
    rng = torch.Generator().manual_seed(5)
    shapes = names_and_shapes(on_paper(name))
    return {key: torch.rand(shape, generator=rng) + 0.1 for key, shape in shapes.items()}


@pytest.mark.parametrize(("name", "expected"), [("resnet18", RESNET18), ("vgg11_bn", VGG11_BN)])
def test_every_name_and_shape_is_torchvisions(name: str, expected: dict[str, tuple[int, ...]]) -> None:
    assert names_and_shapes(build(BACKBONES[name], None, 0)) == expected


@pytest.mark.parametrize(("name", "blocks"), [("wide_resnet50_2", (3, 4, 6)), ("wide_resnet101_2", (3, 4, 23))])
def test_wide_nets_have_torchvisions_blocks(name: str, blocks: tuple[int, int, int]) -> None:
    shapes = names_and_shapes(on_paper(name))
    assert WIDE.items() <= shapes.items()
    for layer, count in enumerate(blocks, start=1):
        assert {key.split(".")[1] for key in shapes if key.startswith(f"layer{layer}.")} == {str(n) for n in range(count)}
    assert {key.rsplit(".", 2)[0] for key in shapes if "downsample" in key} == {f"layer{n}.0.downsample" for n in (1, 2, 3)}
    # stem 1 convolution, 3 a block, a shortcut a layer; a batch norm with four entries behind each
    convolutions = 1 + 3 * sum(blocks) + 3
    assert len(shapes) == 5 * convolutions


@pytest.mark.parametrize(
    ("name", "published", "cut_off"),
    [
        # torchvision's whole networks, less what is cut off behind the last tap
        ("resnet18", 11_689_512, 8_393_728 + 512 * 1000 + 1000),
        # batch norm 23, the convolution at 25 with its batch norm, and the classifier
        (
            "vgg11_bn",
            132_868_840,
            2 * 512 + (512 * 512 * 9 + 512) + 2 * 512 + 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000,
        ),
        ("wide_resnet50_2", 68_883_240, WIDE_LAYER4 + 2048 * 1000 + 1000),
        ("wide_resnet101_2", 126_886_696, WIDE_LAYER4 + 2048 * 1000 + 1000),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, published: int, cut_off: int) -> None:
    assert sum(parameter.numel() for parameter in on_paper(name).parameters()) == published - cut_off


@pytest.mark.parametrize("name", BACKBONES)
def test_taps_are_at_strides_8_and_16_with_the_channels_stated(name: str) -> None:
    spec = BACKBONES[name]
    with torch.inference_mode():
        fine, coarse = on_paper(name)(torch.zeros(2, 3, 48, 64, device="meta"))
    assert fine.shape == (2, spec.channels[0], 6, 8)
    assert coarse.shape == (2, spec.channels[1], 3, 4)


def reference_resnet18(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """ResNet18 from its paper and torchvision's state dict, with nothing but functions."""

    def convolved(x: Tensor, convolution: str, norm: str, stride: int, padding: int) -> Tensor:
        x = functional.conv2d(x, state[f"{convolution}.weight"], stride=stride, padding=padding)
        mean, var, weight, bias = (state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, mean, var, weight, bias, training=False, eps=1e-5)

    x = functional.max_pool2d(convolved(x, "conv1", "bn1", 2, 3).relu(), 3, 2, 1)
    taps = []
    for layer in (1, 2, 3):
        for block in (0, 1):
            at, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = convolved(x, f"{at}.conv1", f"{at}.bn1", stride, 1).relu()
            y = convolved(y, f"{at}.conv2", f"{at}.bn2", 1, 1)
            x = convolved(x, f"{at}.downsample.0", f"{at}.downsample.1", 2, 0) if stride == 2 else x
            x = (x + y).relu()
        taps.append(x)
    return taps[1], taps[2]


def test_resnet18_computes_what_its_definition_does() -> None:
    state = {
        name: tensor / tensor[0].numel() if tensor.ndim == 4 else tensor for name, tensor in random_state("resnet18").items()
    }
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        got = build(BACKBONES["resnet18"], state, 0)(x)
        expected = reference_resnet18(state, x)
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
        assert one.std() > 0


def test_vgg_taps_are_the_convolutions_own_outputs() -> None:
    network = build(BACKBONES["vgg11_bn"], None, 0)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        fine, coarse = network(x)
        after: list[Tensor] = []
        for module in network.features:  # type: ignore[union-attr]
            x = module(x)
            after.append(x)
    assert torch.equal(fine, after[15])
    assert torch.equal(coarse, after[22])
    assert (fine < 0).any()  # before batch norm and ReLU


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_whole_and_trunk_only_state_dicts_load(name: str) -> None:
    state = random_state(name)
    whole = {**state, "fc.weight": torch.zeros(1000, 512), "bn1.num_batches_tracked": torch.tensor(7)}
    for given in (state, whole):
        network = build(BACKBONES[name], given, 0)
        loaded = network.state_dict()
        assert all(torch.equal(loaded[key], state[key]) for key in state)
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_half_precision_weights_are_widened() -> None:
    state = {name: tensor.half() for name, tensor in random_state("resnet18").items()}
    assert {tensor.dtype for tensor in build(BACKBONES["resnet18"], state, 0).parameters()} == {torch.float32}


def test_a_missing_entry_is_named() -> None:
    state = random_state("resnet18")
    del state["layer2.0.downsample.1.running_mean"]
    with pytest.raises(TrainError, match=r"lack 1 of 75 entries that resnet18 needs, first layer2.0.downsample.1.running_mean"):
        build(BACKBONES["resnet18"], state, 0)


def test_weights_of_another_backbone_are_refused() -> None:
    with pytest.raises(TrainError, match=r"wide_resnet50_2 needs, first layer1.0.conv3.weight; expected torchvision's"):
        build(BACKBONES["wide_resnet50_2"], random_state("resnet18"), 0)


def test_a_wrong_shape_is_named() -> None:
    state = random_state("resnet18")
    state["layer1.0.conv1.weight"] = torch.zeros(128, 64, 1, 1)
    with pytest.raises(TrainError, match=r"weight layer1.0.conv1.weight is \(128, 64, 1, 1\), expected \(64, 64, 3, 3\)"):
        build(BACKBONES["resnet18"], state, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    state = random_state("resnet18")
    state["layer3.1.bn2.running_var"][17] = value
    with pytest.raises(TrainError, match=r"weight layer3.1.bn2.running_var holds numbers that are not finite"):
        build(BACKBONES["resnet18"], state, 0)


def test_untrained_weights_come_of_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first, again, other = (build(BACKBONES["resnet18"], None, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    # He initialisation, fan out: variance 2 / (64 * 3 * 3)
    assert float(first["layer1.0.conv1.weight"].std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)


# ---- what follows the taps


def tail_on_paper(name: str) -> nn.Module:
    with torch.device("meta"):
        return BACKBONES[name].build_tail()


def random_tail(name: str) -> dict[str, Tensor]:
    """A state dict of the tail as a file would hold it."""
    rng = torch.Generator().manual_seed(6)
    return {key: torch.rand(shape, generator=rng) + 0.1 for key, shape in names_and_shapes(tail_on_paper(name)).items()}


@pytest.mark.parametrize(("name", "expected"), [("resnet18", RESNET18_TAIL), ("vgg11_bn", VGG11_BN_TAIL)])
def test_every_name_and_shape_of_the_tail_is_torchvisions(name: str, expected: dict[str, tuple[int, ...]]) -> None:
    assert names_and_shapes(tail_on_paper(name)) == expected


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 8_393_728),
        ("vgg11_bn", 2 * 512 + (512 * 512 * 9 + 512) + 2 * 512),
        ("wide_resnet50_2", WIDE_LAYER4),
        ("wide_resnet101_2", WIDE_LAYER4),
    ],
)
def test_the_tail_is_what_was_cut_off_but_the_classifier(name: str, parameters: int) -> None:
    tail = tail_on_paper(name)
    assert sum(parameter.numel() for parameter in tail.parameters()) == parameters
    assert not tail.state_dict().keys() & on_paper(name).state_dict().keys()


@pytest.mark.parametrize("name", BACKBONES)
def test_the_tail_goes_on_from_the_coarser_tap(name: str) -> None:
    spec = BACKBONES[name]
    with torch.inference_mode():
        out = tail_on_paper(name)(torch.zeros(2, spec.channels[1], 4, 6, device="meta"))
    assert out.shape == (2, spec.tail_channels, 2, 3)


def test_vggs_tail_normalises_first_and_pools_last() -> None:
    state = random_tail("vgg11_bn")
    tail, _ = build_tail(BACKBONES["vgg11_bn"], state, 0)
    x = torch.randn(1, 512, 4, 4, generator=torch.Generator().manual_seed(0))

    def normalised(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, mean, var, weight, bias, training=False, eps=1e-5)

    y = functional.conv2d(
        normalised(x, "features.23").relu(), state["features.25.weight"], state["features.25.bias"], padding=1
    )
    expected = functional.max_pool2d(normalised(y, "features.26").relu(), 2, 2)
    with torch.inference_mode():
        assert torch.allclose(tail.eval()(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_a_tail_loads_where_the_file_holds_it(name: str) -> None:
    state = {**random_state(name), **random_tail(name)}
    tail, loaded = build_tail(BACKBONES[name], state, 0)
    assert loaded
    assert all(torch.equal(tensor, tail.state_dict()[key]) for key, tensor in random_tail(name).items())


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
@pytest.mark.parametrize("trunk_given", [True, False])
def test_a_tail_that_no_file_holds_comes_of_the_seed(name: str, trunk_given: bool) -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    given = random_state(name) if trunk_given else None
    (first, loaded), (again, _), (other, _) = (build_tail(BACKBONES[name], given, seed) for seed in (1, 1, 2))
    assert not loaded
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in first.state_dict().items())
    key = next(key for key in names_and_shapes(first) if names_and_shapes(first)[key][2:] == (3, 3))
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])
    # He initialisation, fan out: variance 2 / (512 * 3 * 3)
    assert float(first.state_dict()[key].std()) == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    ("name", "lost", "entries"), [("resnet18", "layer4.1.bn2.bias", 25), ("vgg11_bn", "features.26.running_var", 10)]
)
def test_half_a_tail_is_an_error(name: str, lost: str, entries: int) -> None:
    state = {**random_state(name), **random_tail(name)}
    del state[lost]
    with pytest.raises(TrainError, match=rf"the weights lack 1 of {entries} entries that {name} needs, first {lost};"):
        build_tail(BACKBONES[name], state, 0)


def test_a_tail_of_another_shape_is_an_error() -> None:
    state = random_tail("resnet18")
    state["layer4.0.conv1.weight"] = torch.zeros(512, 1024, 1, 1)
    with pytest.raises(TrainError, match=r"weight layer4.0.conv1.weight is \(512, 1024, 1, 1\), expected \(512, 256, 3, 3\)"):
        build_tail(BACKBONES["resnet18"], state, 0)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_url_carries_the_name_and_a_hash(name: str) -> None:
    spec = backbone_spec(name)
    assert spec.name == name
    assert spec.url.startswith(f"https://download.pytorch.org/models/{name}-")
    assert len(spec.url.removesuffix(".pth").rsplit("-", 1)[1]) == 8


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(TrainError, match="backbone 'resnet34', expected one of: resnet18, vgg11_bn"):
        backbone_spec("resnet34")


@pytest.mark.realdata
def test_published_weights_load_and_see_an_edge(real_weights: Path) -> None:
    spec = BACKBONES["resnet18"]
    weights = find_weights(str(real_weights / "resnet18-trunk.npz"), spec)
    assert weights is not None
    assert weights.absent_parts(spec) == ("layer4", "fc")
    assert weights.state.keys() == RESNET18.keys()
    network = build(spec, weights.state, 0)
    assert torch.equal(network.state_dict()["conv1.weight"], weights.state["conv1.weight"])
    flat = torch.zeros(1, 3, 64, 64)
    edge = flat.clone()
    edge[:, :, :, 32:] = 2.0
    with torch.inference_mode():
        for tap in network(torch.cat([flat, edge])):
            assert torch.isfinite(tap).all()
            assert (tap[0] - tap[1]).abs().max() > 0.1
