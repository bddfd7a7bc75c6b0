"""What the station works on: frames, and one verdict for each."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engines.images import Image


class Outcome(enum.Enum):
    """PASS lets a part go; REJECT and FAULT both pull the reject line."""

    PASS = "PASS"
    REJECT = "REJECT"
    FAULT = "FAULT"

    @property
    def rejects(self) -> bool:
        """Whatever is not a PASS rejects."""
        return self is not Outcome.PASS


@dataclass(frozen=True)
class Frame:
    """One part's picture.

    Attributes:
        image: uint8 RGB (H, W, 3), read-only.
        part: number of the part, from 1, in the order of triggers.
        captured_ns: when the picture was taken, monotonic.
        trigger_ns: when the part triggered, monotonic; its deadline counts from here.
        source: file or device it came from, for people.
        part_ref: the factory's own name for the part, such as its serial number.
    """

    image: Image
    part: int
    captured_ns: int
    trigger_ns: int
    source: str
    part_ref: str | None = None


@dataclass(frozen=True)
class Missing:
    """A part that triggered but has no usable picture; it becomes a FAULT."""

    part: int
    trigger_ns: int
    source: str
    reason: str
    part_ref: str | None = None


Arrival = Frame | Missing


@dataclass(frozen=True)
class Verdict:
    """What was decided about one part.

    Attributes:
        score: None where there was none to compare.
        threshold_method: how the threshold came about, as its record has it: `manual` where a person set it.
        latency_ms: from trigger to decision.
        reason: in words, for the operator.
        stages_ms: how long each stage took that was over when this was written, in their order.
        appearance: float64 (6,), what the picture looked like; None where nobody measured it.
    """

    part: int
    outcome: Outcome
    score: float | None
    threshold: float
    latency_ms: float
    reason: str
    source: str
    threshold_method: str
    stages_ms: Mapping[str, float] = field(default_factory=dict, compare=False)
    appearance: npt.NDArray[np.float64] | None = field(default=None, compare=False, repr=False)


def compare(score: float, threshold: float) -> tuple[Outcome, str]:
    """REJECT if and only if score > threshold; a score that is not finite is a FAULT."""
    if not math.isfinite(score):
        return Outcome.FAULT, f"score is {score}, not a finite number"
    if score > threshold:
        return Outcome.REJECT, f"score {score:.6g} is above the threshold {threshold:.6g}"
    return Outcome.PASS, f"score {score:.6g} is at or below the threshold {threshold:.6g}"
