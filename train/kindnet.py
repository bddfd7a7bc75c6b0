"""The network of the adaptation: a backbone whole, an MLP, one logit a class."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from engines.preprocess import IMAGENET_MEAN, IMAGENET_STD
from train.backbones import BackboneSpec, Trunk, build, build_tail

_HIDDEN = (512, 256)
_STATISTICS_BATCH = 16


class KindNet(nn.Module):
    """Trunk, tail, global average pooling and an MLP of two hidden layers."""

    def __init__(self, trunk: Trunk, tail: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.tail = tail
        layers: list[nn.Module] = []
        for width in _HIDDEN:
            layers += [nn.Linear(channels, width), nn.BatchNorm1d(width), nn.ReLU()]
            channels = width
        self.head = nn.Sequential(*layers, nn.Linear(channels, classes))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def taps(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 (b, h, w, 3) to the trunk's taps."""
        # a permuted view of NHWC is channels-last already
        return self.trunk((pictures.permute(0, 3, 1, 2).float() - self.mean) / self.std)

    def forward(self, pictures: Tensor) -> Tensor:
        """Map uint8 (b, h, w, 3) to logits (b, classes)."""
        return self.head(self.tail(self.taps(pictures)[1]).mean(dim=(2, 3)))


def make_kindnet(spec: BackboneSpec, state: dict[str, Tensor] | None, classes: int, seed: int) -> tuple[KindNet, bool]:
    """Build the network on a backbone's weights; the flag says whether the tail's came with them.

    Raises:
        TrainError: weights that do not fit.
    """
    tail, loaded = build_tail(spec, state, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return KindNet(build(spec, state, seed), tail, spec.tail_channels, classes), loaded


def freeze(network: KindNet, *, trunk: bool, tail: bool, statistics: bool, early: bool = False) -> None:
    """Train the head, and the other parts unless they are frozen: without gradients, batch norm in eval mode.

    Args:
        trunk, tail: freeze these parts.
        early: freeze the trunk's early layers.
        statistics: leave the trunk's batch-norm statistics as they are, also where its weights train.
    """
    network.train().requires_grad_(True)
    parts = [(network.trunk, trunk), (network.tail, tail), *((part, trunk or early) for part in network.trunk.early())]
    for part, frozen in parts:
        part.train(not frozen).requires_grad_(not frozen)
    if statistics:
        for module in network.trunk.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def bytes_to_train(network: KindNet, pictures: Tensor) -> int:
    """Bytes that one forward pass keeps for its backward pass where everything trains: activations, not weights."""
    probe = copy.deepcopy(network)
    freeze(probe, trunk=False, tail=False, statistics=False)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        probe(pictures)
    held = {parameter.untyped_storage().data_ptr() for parameter in probe.parameters()}
    return sum(size for pointer, size in kept.items() if pointer not in held)


@torch.no_grad()
def take_statistics(network: KindNet, clean: Tensor) -> None:
    """Set the trunk's batch-norm statistics to those of the images given, uint8 (n, h, w, 3), averaged over batches."""
    norms = [module for module in network.trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    network.trunk.train()
    for batch in clean.split(_STATISTICS_BATCH):
        network.taps(batch.to(network.mean.device))
    network.trunk.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
