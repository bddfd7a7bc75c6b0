"""Running counts of one run and how long its parts took, in memory that stays flat."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from edge.verdict import Outcome, Verdict

RECENT = 10_000  # parts kept for the percentiles
PERCENTS = (50, 95, 99)
_MINUTE_NS = 60 * 10**9
_Number = TypeVar("_Number", int, float)


@dataclass
class Statistics:
    """Counts and times. The deciding loop adds to them; any thread may read them.

    Attributes:
        begun_ns: when the run began, monotonic.
        outcomes: parts by outcome.
        by_folder: (folder of the source, outcome) counts, for replays of sorted folders.
        latencies_ms: of the latest parts, from trigger to decision.
        stages_ms: of the latest parts, by stage.
        decided_ns: when the latest parts were decided, monotonic.
    """

    begun_ns: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    by_folder: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)
    decided_ns: list[int] = field(default_factory=list)

    def add(self, verdict: Verdict, now_ns: int = 0, after_ms: Mapping[str, float] = MappingProxyType({})) -> None:
        """Count one verdict, given at `now_ns`, and the stages that came after it."""
        self.outcomes[verdict.outcome] += 1
        folder = verdict.source.rpartition("/")[0] if "/" in verdict.source else "."
        self.by_folder[folder, verdict.outcome] += 1
        _keep(self.latencies_ms, verdict.latency_ms)
        _keep(self.decided_ns, now_ns)
        for stage, took_ms in (*verdict.stages_ms.items(), *after_ms.items()):
            _keep(self.stages_ms.setdefault(stage, []), took_ms)

    @property
    def parts(self) -> int:
        """All parts."""
        return sum(self.outcomes[outcome] for outcome in Outcome)

    def latency_ms(self, percent: float) -> float:
        """A percentile of the latest latencies; NaN before the first part."""
        return _percentile(self.latencies_ms, percent)

    def stage_ms(self, stage: str, percent: float) -> float:
        """A percentile of what a stage took, of the latest parts."""
        return _percentile(self.stages_ms[stage], percent)

    def rate_per_minute(self, now_ns: int) -> float:
        """Parts a minute over the last minute, or over the run where that is shorter."""
        since_ns = max(self.begun_ns, now_ns - _MINUTE_NS)
        parts = sum(at_ns > since_ns for at_ns in self.decided_ns[:])
        return parts * _MINUTE_NS / max(now_ns - since_ns, 1) if parts else 0.0

    def as_dict(self, now_ns: int) -> dict[str, object]:
        """All of it as plain JSON types; None where there is no number yet."""
        stages = list(self.stages_ms.items())
        return {
            "parts": self.parts,
            "outcomes": {outcome.value: self.outcomes[outcome] for outcome in Outcome},
            "rate_per_minute": round(self.rate_per_minute(now_ns), 2),
            "seconds": round((now_ns - self.begun_ns) / 1e9, 3),
            "latency_ms": _percentiles(self.latencies_ms),
            "stages_ms": {stage: _percentiles(times) for stage, times in stages},
        }


def _keep(values: list[_Number], value: _Number) -> None:
    if len(values) >= RECENT:
        del values[: RECENT // 2]
    values.append(value)


def _percentile(values: list[float], percent: float) -> float:
    recent = values[:]  # another thread may add to them
    return float(np.percentile(recent, percent)) if recent else math.nan


def _percentiles(values: list[float]) -> dict[str, float | None]:
    found = {f"p{percent}": _percentile(values, percent) for percent in PERCENTS}
    return {name: round(value, 3) if math.isfinite(value) else None for name, value in found.items()}
