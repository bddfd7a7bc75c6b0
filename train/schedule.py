"""How long and how hard an adaptation trains: the shape of its schedule, and how an update is cut into passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from train import TrainError


@dataclass(frozen=True)
class Schedule:
    """SGD with a cosine learning rate over updates of many images.

    Attributes:
        name: of the preset.
        updates: steps of the optimiser.
        images: an update; each good image of it is accompanied by one image of every kind of defect made from it.
        passes: how many forward passes share an update; their gradients are averaged, and batch norm sees one pass.
        warmup: first updates that train the head alone (and a tail that had to start at random).
        cosine: the update at which the cosine would end.
        learning_rate, final_learning_rate: at update 0 and at update `cosine`.
        weight_decay, momentum: of SGD.
        window_px: side of the square window of the network input that is trained on; None takes the whole input.
        turns: quarter turns too; else pictures are only flipped, as most products keep the direction of their grain.
        keep_early: leave the layers before the stage of the finer tap as they were: edges and lines that any product has.
        share: of the trained weights in what is kept; the rest is the weights that training began from (Wortsman et al.,
            "Robust fine-tuning of zero-shot models", arXiv 2109.01903). 1 keeps the trained ones alone.
    """

    name: str
    updates: int
    images: int
    passes: int
    warmup: int
    cosine: int
    learning_rate: float = 0.03
    final_learning_rate: float = 1e-5
    weight_decay: float = 3e-5
    momentum: float = 0.9
    window_px: int | None = None
    turns: bool = True
    keep_early: bool = False
    share: float = 1.0

    def rate(self, update: int) -> float:
        """Learning rate of an update, counted from 0 (Loshchilov and Hutter, arXiv 1608.03983, without restarts)."""
        swing = (self.learning_rate - self.final_learning_rate) / 2
        return self.final_learning_rate + swing * (1 + math.cos(math.pi * update / self.cosine))

    def plan(self, classes: int, processes: int, most_normals: int) -> Plan:
        """Cut an update into equal passes, a multiple of `processes` of them, of at most `most_normals` normals each.

        Args:
            classes: images that a normal yields: itself and its defects.
            processes: that share an update.
            most_normals: that a pass has memory for.

        Raises:
            TrainError: fewer than two normals fit into a pass: batch norm has nothing to normalise with.
        """
        if most_normals < 2:
            raise TrainError("memory for fewer than 2 normals a pass; use a smaller --size or a machine with more memory")
        normals = round(self.images / classes)
        passes = max(self.passes, math.ceil(normals / most_normals))
        passes = math.ceil(passes / processes) * processes
        return Plan(passes, max(2, math.ceil(normals / passes)))


@dataclass(frozen=True)
class Plan:
    """Passes an update, and normals a pass."""

    passes: int
    normals: int


# the authors' schedule: 3 sub-batches of 336 images, 300 updates, 39 of them with a frozen backbone
PAPER = Schedule("paper", updates=300, images=1008, passes=3, warmup=39, cosine=330)
# minutes on a CPU. So few images teach the kinds of defect that are drawn and cost some of what the network knew of others;
# so early layers stay, grain keeps its direction, and most of what is kept is what training began from. Chosen on synthetic
# defects over held-out good images, half of their kinds from makers that were not trained on
QUICK = Schedule(
    "quick",
    updates=280,
    images=168,
    passes=1,
    warmup=80,
    cosine=308,
    learning_rate=0.02,
    window_px=128,
    turns=False,
    keep_early=True,
    share=0.25,
)
PRESETS = {schedule.name: schedule for schedule in (PAPER, QUICK)}


def preset(name: str) -> Schedule:
    """Look a preset up. Raises TrainError for an unknown name."""
    if name not in PRESETS:
        raise TrainError(f"adaptation preset '{name}', expected one of: {', '.join(PRESETS)}")
    return PRESETS[name]
