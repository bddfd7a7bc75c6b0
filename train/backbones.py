"""The backbones as small torch modules that carry torchvision's state-dict names, cut in two after the last tap.

The trunk gives the taps; the tail, what is left up to the global pooling, serves the adaptation alone.

Architectures: ResNet (He et al., arXiv 1512.03385), Wide ResNet (Zagoruyko and Komodakis, arXiv 1605.07146) and VGG with
batch norm (Simonyan and Zisserman, arXiv 1409.1556), as torchvision builds them, so that its checkpoints load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from train import TrainError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, width, h/stride, w/stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class WideBottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut, with the inner width doubled (torchvision's width_per_group=128)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, 2 * width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, 2 * width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, 4 width, h/stride, w/stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A ResNet through `layer3`; its taps are the outputs of `layer2` and `layer3`."""

    def __init__(self, block: type[BasicBlock] | type[WideBottleneck], blocks: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        stages: list[nn.Sequential] = []
        for stride, width, count in zip((1, 2, 2), (64, 128, 256), blocks, strict=True):
            layers: list[nn.Module] = []
            for number in range(count):
                layers.append(block(inputs, width, stride if number == 0 else 1))
                inputs = width * block.expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3 = stages

    def early(self) -> tuple[nn.Module, ...]:
        """The layers at a quarter of the resolution and above."""
        return self.conv1, self.bn1, self.layer1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (b, 3, h, w) to the taps (b, c, h/8, w/8) and (b, 2c, h/16, w/16)."""
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        fine = self.layer2(self.layer1(x))
        return fine, self.layer3(fine)


class VGG11(nn.Module):
    """VGG11 with batch norm through `features.22`; its taps are the outputs of `features.15` and `features.22`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width, pooled in ((64, True), (128, True), (256, False), (256, True), (512, False), (512, True)):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.MaxPool2d(2, 2)] if pooled else []
            inputs = width
        layers.append(nn.Conv2d(inputs, 512, 3, padding=1))
        self.features = nn.Sequential(*layers)

    def early(self) -> tuple[nn.Module, ...]:
        """The layers above a quarter of the resolution, up to the pooling that leaves it."""
        return (self.features[:8],)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (b, 3, h, w) to the taps (b, 512, h/8, w/8) and (b, 512, h/16, w/16)."""
        fine = self.features[:16](x)
        return fine, self.features[16:](fine)


class ResNetTail(nn.Module):
    """`layer4` of a ResNet."""

    def __init__(self, block: type[BasicBlock] | type[WideBottleneck], inputs: int, blocks: int) -> None:
        super().__init__()
        outputs = 512 * block.expansion
        self.layer4 = nn.Sequential(block(inputs, 512, 2), *(block(outputs, 512, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map the coarser tap (b, c, h, w) to (b, c', h/2, w/2)."""
        return self.layer4(x)


class VGG11Tail(nn.Module):
    """What follows `features.22` in VGG11 with batch norm, without the classifier."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.BatchNorm2d(512), nn.ReLU(), nn.Conv2d(512, 512, 3, padding=1), nn.BatchNorm2d(512), nn.ReLU()]
        layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.ModuleDict({str(number): layer for number, layer in enumerate(layers, 23)})

    def forward(self, x: Tensor) -> Tensor:
        """Map the coarser tap (b, 512, h, w) to (b, 512, h/2, w/2)."""
        for layer in self.features.values():
            x = layer(x)
        return x


Trunk: TypeAlias = ResNet | VGG11
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class BackboneSpec:
    """One backbone: how to build it, what its taps give, and where ImageNet weights are published.

    Attributes:
        build, build_tail: make the trunk up to the taps, and what follows it.
        channels: of the finer and the coarser tap; their strides are 8 and 16.
        tail_channels: that the tail gives.
        dim: width D of the embedding.
        parts: top-level names of torchvision's whole state dict, to name what a file lacks.
        url: torchvision's checkpoint; the eight hex digits in its name begin its SHA-256.
    """

    name: str
    build: Callable[[], Trunk]
    build_tail: Callable[[], nn.Module]
    channels: tuple[int, int]
    tail_channels: int
    dim: int
    parts: tuple[str, ...]
    url: str


_RESNET_PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc")
_PUBLISHED = "https://download.pytorch.org/models/"
BACKBONES = {
    spec.name: spec
    for spec in (
        BackboneSpec(
            "resnet18",
            lambda: ResNet(BasicBlock, (2, 2, 2)),
            lambda: ResNetTail(BasicBlock, 256, 2),
            (128, 256),
            512,
            512,
            _RESNET_PARTS,
            _PUBLISHED + "resnet18-f37072fd.pth",
        ),
        BackboneSpec(
            "vgg11_bn",
            VGG11,
            VGG11Tail,
            (512, 512),
            512,
            512,
            ("features", "classifier"),
            _PUBLISHED + "vgg11_bn-6002323d.pth",
        ),
        BackboneSpec(
            "wide_resnet50_2",
            lambda: ResNet(WideBottleneck, (3, 4, 6)),
            lambda: ResNetTail(WideBottleneck, 1024, 3),
            (512, 1024),
            2048,
            1024,
            _RESNET_PARTS,
            _PUBLISHED + "wide_resnet50_2-95faca4d.pth",
        ),
        BackboneSpec(
            "wide_resnet101_2",
            lambda: ResNet(WideBottleneck, (3, 4, 23)),
            lambda: ResNetTail(WideBottleneck, 1024, 3),
            (512, 1024),
            2048,
            1024,
            _RESNET_PARTS,
            _PUBLISHED + "wide_resnet101_2-32ee1156.pth",
        ),
    )
}


def backbone_spec(name: str) -> BackboneSpec:
    """Look a backbone up. Raises TrainError for an unknown name."""
    if name not in BACKBONES:
        raise TrainError(f"backbone '{name}', expected one of: {', '.join(BACKBONES)}")
    return BACKBONES[name]


def build(spec: BackboneSpec, state: dict[str, Tensor] | None, seed: int) -> Trunk:
    """Build a backbone in eval mode with the weights given, or with He-initialised ones drawn from `seed`.

    Args:
        spec: which one.
        state: torchvision's state dict or the part of it up to the taps; None leaves the network untrained.
        seed: of the untrained weights; the global generator is left as it was.

    Raises:
        TrainError: weights that are missing or have another shape, named.
    """
    network = _draw(spec.build, seed)
    if state is not None:
        _load(network, state, spec)
    return network.eval().requires_grad_(False)


def build_tail(spec: BackboneSpec, state: dict[str, Tensor] | None, seed: int) -> tuple[nn.Module, bool]:
    """Build what follows the taps, and say whether its weights came from `state`.

    A file that holds none of it leaves it He-initialised from `seed`.

    Raises:
        TrainError: a file that holds only some of it, or other shapes.
    """
    tail = _draw(spec.build_tail, seed)
    if state is None or not any(name in state for name in tail.state_dict()):
        return tail, False
    _load(tail, state, spec)
    return tail, True


def _draw(make: Callable[[], Network], seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make()
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _load(network: nn.Module, state: dict[str, Tensor], spec: BackboneSpec) -> None:
    wanted = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in state]
    if missing:
        raise TrainError(
            f"the weights lack {len(missing)} of {len(wanted)} entries that {spec.name} needs, first {missing[0]};"
            " expected torchvision's state-dict names"
        )
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise TrainError(f"weight {name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)} for {spec.name}")
        if not torch.isfinite(state[name]).all():
            raise TrainError(f"weight {name} holds numbers that are not finite; get the file again")
    network.load_state_dict({name: state[name].float() for name in wanted}, strict=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
