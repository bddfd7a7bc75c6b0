"""All thresholds that scores of a station's parts allow, each with what to expect of it and what to beware of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from calibration import CalibrationError
from calibration.intervals import Estimate, counted, percent, realised
from calibration.labelled import FEW_BAD, Chosen, Objective, choose, escape_rate, expected_cost, f_beta, no_escape
from calibration.parts import Parts
from calibration.tail import fit_tail
from calibration.threshold import check_rate, conformal, sigma_threshold
from engines.bundle import Record

Method = Literal["conformal", "pareto", "sigma", "f-beta", "cost", "zero-escape"]
METHODS: tuple[Method, ...] = get_args(Method)
COMPARED_ONLY: Method = "sigma"
_WIDE = 3.0  # times the rate asked for: an upper limit beyond it deserves a word


class Wishes(Record):
    """What a threshold should reach; kept with it.

    Attributes:
        rate: false-reject rate, for methods that take their threshold from good parts alone.
        beta: of F-beta: how many times as much finding bad parts counts as rejects being bad.
        escape_cost, overkill_cost: of a bad part that passes and of a good one that is rejected, in any currency.
        defects: share of bad parts on the line; None is not known.
        margin: of `zero-escape`, in spreads of good scores below the lowest bad one.
    """

    rate: float = 0.01
    beta: float = 1.0
    escape_cost: float | None = None
    overkill_cost: float | None = None
    defects: float | None = None
    margin: float = 1.0

    def check(self) -> None:
        """Raises CalibrationError for what cannot be wished for."""
        check_rate(self.rate)
        above_0 = (("beta", self.beta), ("cost of an escape", self.escape_cost), ("cost of overkill", self.overkill_cost))
        for name, value in above_0:
            if value is not None and not 0 < value < math.inf:
                raise CalibrationError(f"{name} is {value:g}, expected a number above 0")
        if self.defects is not None and not 0 < self.defects < 1:
            raise CalibrationError(f"share of bad parts is {self.defects:g}, expected above 0 and below 1, such as 0.02")
        if not 0 <= self.margin < math.inf:
            raise CalibrationError(f"margin is {self.margin:g}, expected a number of 0 or more, such as 1")


@dataclass(frozen=True)
class Proposal:
    """One threshold and its consequences.

    Attributes:
        method: one of METHODS.
        threshold: a part is rejected if and only if its score is above it.
        false_reject: rate of good parts that are rejected, with a 95 % confidence interval.
        escape: rate of bad parts that pass, likewise; None without bad parts.
        good, bad: parts, not pictures, that it is from.
        pictures: of good parts.
        warnings: each a sentence for a person.
    """

    method: Method
    threshold: float
    false_reject: Estimate
    escape: Estimate | None
    good: int
    bad: int
    pictures: int
    warnings: tuple[str, ...]

    def consequences(self) -> tuple[str, ...]:
        """What will happen, in plain words."""
        said = [f"of 1,000 further good parts about {_of_thousand(self.false_reject)} are rejected"]
        if self.escape is not None:
            said.append(f"of 1,000 bad parts like the {self.bad} shown about {_of_thousand(self.escape)} pass")
        return tuple(said)


@dataclass(frozen=True)
class Comparison:
    """Thresholds of all methods that apply, in the order of METHODS, and why the others do not."""

    proposals: tuple[Proposal, ...]
    refused: Mapping[str, str]

    def of(self, method: str) -> Proposal:
        """The threshold of one method. Raises CalibrationError, with the reason, where it does not apply."""
        for proposal in self.proposals:
            if proposal.method == method:
                return proposal
        raise CalibrationError(self.refused.get(method, f"method '{method}', expected one of: {', '.join(METHODS)}"))


def propose(good: Parts, wishes: Wishes, bad: Parts | None = None, *, give_bad: str = "give some") -> Comparison:
    """Take a threshold by every method.

    Args:
        good: parts that this station has seen and the bank has not.
        wishes: what the threshold should reach.
        bad: defective parts, seen by this station.
        give_bad: how whoever asks can give some, for the reason why a method that needs them does not apply.

    Raises:
        CalibrationError: a wish out of range. A method that does not apply is no error here.
    """
    wishes.check()
    proposals: list[Proposal] = []
    refused: dict[str, str] = {}
    for method in METHODS:
        try:
            if method in _FROM_GOOD:
                proposals.append(_FROM_GOOD[method](good, wishes, bad))
                continue
            check_needs(method, wishes, bad=bad is not None, give_bad=give_bad)
            if bad is not None:
                proposals.append(_FROM_BOTH[method](good, wishes, bad))
        except CalibrationError as error:
            refused[method] = str(error)
    return Comparison(tuple(proposals), refused)


def check_needs(method: str, wishes: Wishes, *, bad: bool, give_bad: str = "give some") -> None:
    """Is everything there that further good parts cannot bring? To be asked before anybody shows them.

    Raises:
        CalibrationError: the method needs bad parts, or costs.
    """
    if method in _FROM_BOTH and not bad:
        raise CalibrationError(f"no bad parts; {give_bad}")
    if method == "cost":
        _cost_a_part(wishes)


def _conformal(good: Parts, wishes: Wishes, bad: Parts | None) -> Proposal:
    threshold = conformal(good, wishes.rate)
    rate = realised(good.above(threshold), good.count)
    warnings = []
    if threshold >= good.scores[-1]:
        warnings.append("the threshold is the highest score of all: one odd part among these sets it; look at that part")
    if rate.high > _WIDE * wishes.rate:
        warnings.append(
            f"{good.count} parts bound the rate on average over such calibrations; this one's may be as high as"
            f" {percent(rate.high)}"
        )
    return _proposal("conformal", threshold, rate, good, bad, warnings)


def _pareto(good: Parts, wishes: Wishes, bad: Parts | None) -> Proposal:
    tail = fit_tail(good.representatives())
    threshold, rate = tail.threshold(wishes.rate)
    warnings = [
        f"a tail was fitted to the highest {tail.excesses} scores (shape {tail.shape:.2g}) and the rate read from it; that it"
        f" fits (p {tail.p:.2g}) is no proof"
    ]
    if wishes.rate < 1 / (good.count + 1):
        warnings.append(f"a rate of {wishes.rate:g} is beyond what {good.count} parts show; conformal would need more")
    return _proposal("pareto", threshold, rate, good, bad, warnings)


def _sigma(good: Parts, wishes: Wishes, bad: Parts | None) -> Proposal:
    threshold = sigma_threshold(good, wishes.rate)
    rate = counted(good.above(threshold), good.count)
    warnings = ["for comparison alone: median and robust standard deviations keep their rate only if scores are normal"]
    if not rate.low <= wishes.rate <= rate.high:
        warnings.append(f"they are not: {percent(good.above(threshold) / good.count)} of these parts are above it")
    return _proposal("sigma", threshold, rate, good, bad, warnings)


def _f_beta(good: Parts, wishes: Wishes, bad: Parts) -> Proposal:
    defects = wishes.defects
    warnings = []
    if defects is None:
        defects = bad.count / (good.count + bad.count)
        warnings.append(
            f"F-beta takes {percent(defects)} of the line's parts for bad, as among these; give --defects if it is not so"
        )
    chosen = choose(good, bad, f_beta(wishes.beta, defects))
    return _labelled("f-beta", chosen, good, bad, warnings)


def _cost(good: Parts, wishes: Wishes, bad: Parts) -> Proposal:
    return _labelled("cost", choose(good, bad, _cost_a_part(wishes)), good, bad, [])


def _zero_escape(good: Parts, wishes: Wishes, bad: Parts) -> Proposal:
    return _labelled("zero-escape", no_escape(good, bad, wishes.margin), good, bad, [])


_FROM_GOOD: Mapping[Method, Callable[[Parts, Wishes, Parts | None], Proposal]] = {
    "conformal": _conformal,
    "pareto": _pareto,
    "sigma": _sigma,
}
_FROM_BOTH: Mapping[Method, Callable[[Parts, Wishes, Parts], Proposal]] = {
    "f-beta": _f_beta,
    "cost": _cost,
    "zero-escape": _zero_escape,
}


def _cost_a_part(wishes: Wishes) -> Objective:
    if wishes.escape_cost is None or wishes.overkill_cost is None or wishes.defects is None:
        raise CalibrationError("costs are not known; give --cost-escape, --cost-overkill and --defects, the share of bad parts")
    return expected_cost(wishes.escape_cost, wishes.overkill_cost, wishes.defects)


def _labelled(method: Method, chosen: Chosen, good: Parts, bad: Parts, warnings: list[str]) -> Proposal:
    """Add what few parts and near scores leave open."""
    if bad.count < FEW_BAD:
        none_of = counted(0, bad.count).high
        warnings.append(
            f"{bad.count} bad parts say little: even if none of them passes, {percent(none_of)} of such parts may; expected"
            f" {FEW_BAD} or more"
        )
    low, high = chosen.gap
    width = good.spread
    if high - low < width:
        warnings.append(
            f"the threshold is inside the noise: it lies between scores {low:.4g} and {high:.4g}, closer than good parts spread"
            f" ({width:.2g})"
        )
    if chosen.span[1] - chosen.span[0] > width:
        warnings.append(
            f"other parts of the same kind would have put it anywhere between {chosen.span[0]:.4g} and {chosen.span[1]:.4g}"
        )
    return _proposal(method, chosen.threshold, chosen.false_reject, good, bad, warnings, chosen.escape)


def _proposal(
    method: Method,
    threshold: float,
    rate: Estimate,
    good: Parts,
    bad: Parts | None,
    warnings: list[str],
    escape: Estimate | None = None,
) -> Proposal:
    if escape is None and bad is not None:
        escape = escape_rate(bad, threshold)
    if bad is not None and 2 * bad.above(threshold) <= bad.count:
        warnings = [
            *warnings,
            f"{bad.count - bad.above(threshold):.3g} of {bad.count} bad parts would pass: that is hardly an inspection; allow a"
            " higher rate, or train again",
        ]
    if len(good.scores) > good.count:
        warnings = [*warnings, f"{len(good.scores)} pictures are of {good.count} parts, and a part counts once"]
    return Proposal(
        method,
        threshold,
        rate,
        escape,
        good.count,
        bad.count if bad is not None else 0,
        len(good.scores),
        tuple(warnings),
    )


def _of_thousand(rate: Estimate) -> str:
    return f"{1000 * rate.expected:.0f} (95 % confidence: {1000 * rate.low:.0f} to {math.ceil(1000 * rate.high)})"
