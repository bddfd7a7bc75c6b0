"""The network that tells kinds of defect apart: shapes, what freezing leaves alone, memory, and batch-norm statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.preprocess import IMAGENET_MEAN, IMAGENET_STD
from train.backbones import BACKBONES, build, build_tail
from train.kindnet import KindNet, bytes_to_train, freeze, make_kindnet, take_statistics

RESNET18 = BACKBONES["resnet18"]
CLASSES = 7


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Batches this small gain nothing from threads, which wait for each other on a busy machine."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


@pytest.fixture(scope="module")
def original() -> KindNet:
    """An untrained ResNet18; not to be changed."""
    return make_kindnet(RESNET18, None, CLASSES, seed=3)[0].eval()


@pytest.fixture
def network(original: KindNet) -> KindNet:
    """A copy, for a test to train."""
    return copy.deepcopy(original)


def pictures(count: int, side: int = 64, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def whole_state(name: str) -> dict[str, Tensor]:
    """A state dict of trunk and tail, other than what a seed of 3 draws."""
    spec = BACKBONES[name]
    return {**build(spec, None, seed=11).state_dict(), **build_tail(spec, None, seed=12)[0].state_dict()}


def state_of(part: nn.Module) -> dict[str, Tensor]:
    """Parameters and batch-norm statistics, copied."""
    return {name: tensor.clone() for name, tensor in part.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# ---- the network


@pytest.mark.parametrize("name", BACKBONES)
def test_pictures_become_one_logit_a_class(name: str) -> None:
    spec = BACKBONES[name]
    with torch.device("meta"):  # the wide nets are large
        network = KindNet(spec.build(), spec.build_tail(), spec.tail_channels, CLASSES)
        given = torch.zeros(3, 64, 96, 3, dtype=torch.uint8)
        fine, coarse = network.taps(given)
        assert network(given).shape == (3, CLASSES)
        assert network.tail(coarse).shape == (3, spec.tail_channels, 2, 3)
    assert fine.shape == (3, spec.channels[0], 8, 12)
    assert coarse.shape == (3, spec.channels[1], 4, 6)


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 512), ("wide_resnet50_2", 2048)])
def test_the_head_is_an_mlp_of_512_and_256(name: str, channels: int) -> None:
    spec = BACKBONES[name]
    with torch.device("meta"):
        head = KindNet(spec.build(), spec.build_tail(), spec.tail_channels, CLASSES).head
    kinds = [type(layer) for layer in head]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    shapes = [tuple(layer.weight.shape) for layer in head if isinstance(layer, nn.Linear)]
    assert shapes == [(512, channels), (256, 512), (CLASSES, 256)]


def test_pictures_are_normalised_as_the_stations_are(original: KindNet) -> None:
    given = pictures(2)
    unit = given.permute(0, 3, 1, 2).float() / 255
    normalised = (unit - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.inference_mode():
        for got, expected in zip(original.taps(given), build(RESNET18, None, seed=3)(normalised), strict=True):
            assert torch.allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_normalisation_is_no_part_of_the_weights(original: KindNet) -> None:
    assert {name.split(".")[0] for name in original.state_dict()} == {"trunk", "tail", "head"}
    assert original.trunk.state_dict().keys() == build(RESNET18, None, 0).state_dict().keys()


def test_the_seed_makes_the_network_and_the_global_generator_stays() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, again, other = (make_kindnet(RESNET18, None, CLASSES, seed)[0].state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(first, again)
    for name in ("trunk.conv1.weight", "tail.layer4.0.conv1.weight", "head.0.weight"):
        assert not torch.equal(first[name], other[name]), name


def test_weights_are_loaded_and_the_flag_says_whether_the_tails_were_among_them() -> None:
    state = whole_state("resnet18")
    network, tail_loaded = make_kindnet(RESNET18, state, CLASSES, seed=3)
    assert tail_loaded
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.trunk.state_dict().items())
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.tail.state_dict().items())
    trunk_alone = {name: tensor for name, tensor in state.items() if not name.startswith("layer4")}
    network, tail_loaded = make_kindnet(RESNET18, trunk_alone, CLASSES, seed=3)
    assert not tail_loaded
    assert torch.equal(network.trunk.state_dict()["conv1.weight"], state["conv1.weight"])
    assert not torch.equal(network.tail.state_dict()["layer4.0.conv1.weight"], state["layer4.0.conv1.weight"])


# ---- freezing


@pytest.mark.parametrize(("trunk", "tail"), [(True, True), (True, False), (False, False)])
def test_what_is_frozen_stays_bit_for_bit_and_the_rest_learns(network: KindNet, trunk: bool, tail: bool) -> None:
    freeze(network, trunk=False, tail=False, statistics=False)
    freeze(network, trunk=trunk, tail=tail, statistics=False)  # what went before does not matter
    parts = {"trunk": network.trunk, "tail": network.tail, "head": network.head}
    frozen = {"trunk": trunk, "tail": tail, "head": False}
    before = {name: state_of(part) for name, part in parts.items()}
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for step in range(2):  # the second finds momentum
        optimiser.zero_grad(set_to_none=True)
        network(pictures(6, seed=step)).square().sum().backward()
        optimiser.step()
    for name, part in parts.items():
        after = state_of(part)
        if frozen[name]:
            assert same(before[name], after), name
        else:
            assert all(not torch.equal(before[name][key], after[key]) for key in after), name
        norms = [module for module in part.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert norms
        assert {norm.training for norm in norms} == {not frozen[name]}


@pytest.mark.parametrize("backbone", ["resnet18", "vgg11_bn", "wide_resnet50_2"])
def test_early_layers_end_at_a_quarter_of_the_resolution(backbone: str) -> None:
    network, _ = make_kindnet(BACKBONES[backbone], None, CLASSES, seed=0)
    freeze(network, trunk=False, tail=False, statistics=True, early=True)
    early = {id(parameter) for module in network.trunk.early() for parameter in module.parameters()}
    assert early
    for parameter in network.parameters():
        assert parameter.requires_grad == (id(parameter) not in early)
    sizes: list[torch.Size] = []
    last = [*network.trunk.early()[-1].modules()][-1]
    last.register_forward_hook(lambda _module, _given, result: sizes.append(result.shape[2:]))
    network.taps(pictures(1))
    assert sizes == [torch.Size(side // 4 for side in pictures(1).shape[1:3])]


def test_kept_statistics_stay_while_the_weights_of_the_trunk_learn(network: KindNet) -> None:
    freeze(network, trunk=False, tail=False, statistics=True)
    before = state_of(network.trunk)
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    network(pictures(6)).square().sum().backward()
    optimiser.step()
    after = state_of(network.trunk)
    of_batches = {name for name in after if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert of_batches
    for name in after:
        assert torch.equal(before[name], after[name]) == (name in of_batches), name


def test_freezing_ends(network: KindNet) -> None:
    freeze(network, trunk=True, tail=True, statistics=False)
    freeze(network, trunk=False, tail=False, statistics=False)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in network.modules())


# ---- memory


def test_memory_grows_with_the_pictures_and_covers_what_convolutions_keep(original: KindNet) -> None:
    few, twice, four_times = (bytes_to_train(original, pictures(count)) for count in (4, 8, 16))
    assert four_times - twice == pytest.approx(2 * (twice - few), rel=0.01)
    kept: dict[int, int] = {}
    probe = copy.deepcopy(original).train()
    held: list[Tensor] = []

    def note(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        held.append(arguments[0])  # so that no storage is used twice
        kept[arguments[0].untyped_storage().data_ptr()] = arguments[0].untyped_storage().nbytes()

    for module in probe.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            module.register_forward_pre_hook(note)
    held.append(probe(pictures(8)))
    assert 1.0 <= twice / sum(kept.values()) < 1.5


def test_measuring_memory_changes_nothing(network: KindNet) -> None:
    freeze(network, trunk=True, tail=False, statistics=False)
    before, modes = state_of(network), [module.training for module in network.modules()]
    assert bytes_to_train(network, pictures(4)) > 0
    assert same(before, state_of(network))
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in network.trunk.parameters())


# ---- statistics


def test_statistics_are_those_of_the_images(network: KindNet) -> None:
    given = pictures(8)
    network.trunk.get_submodule("bn1").running_mean.fill_(1000)  # type: ignore[operator]  # to be forgotten
    tail, head = state_of(network.tail), state_of(network.head)
    weights = [parameter.clone() for parameter in network.trunk.parameters()]
    take_statistics(network, given)
    trunk = network.trunk.state_dict()
    normalised = (given.permute(0, 3, 1, 2).float() - network.mean) / network.std
    convolved = functional.conv2d(normalised, trunk["conv1.weight"], stride=2, padding=3)
    channels = convolved.permute(1, 0, 2, 3).flatten(1)  # (64, images * positions)
    assert torch.allclose(trunk["bn1.running_mean"], channels.mean(dim=1), rtol=1e-4, atol=1e-4)
    assert torch.allclose(trunk["bn1.running_var"], channels.var(dim=1, unbiased=True), rtol=1e-4)
    assert all(torch.equal(one, other) for one, other in zip(network.trunk.parameters(), weights, strict=True))
    assert same(tail, state_of(network.tail))
    assert same(head, state_of(network.head))
    assert not network.trunk.training


def test_statistics_make_the_trunk_see_in_eval_what_it_saw_in_training(network: KindNet) -> None:
    given = pictures(8)
    take_statistics(network, given)
    with torch.inference_mode():
        judged = network.taps(given)[0]
        network.trunk.train()
        trained = network.taps(given)[0]
    assert torch.allclose(judged, trained, rtol=0.02, atol=0.02)
    momenta = {module.momentum for module in network.trunk.modules() if isinstance(module, nn.BatchNorm2d)}
    assert momenta == {0.1}  # as torch has it
