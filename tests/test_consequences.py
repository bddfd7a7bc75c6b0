"""What a proposed threshold would do, in words: a score at the threshold passes, as at the station."""

from __future__ import annotations

from calibration.intervals import Estimate
from calibration.propose import Proposal
from calibration.scores import Scored
from edge.consequences import against, caught, consequences
from tests.fakes import tiny_calibration

PARTS = [Scored(name=name, score=score) for name, score in (("a", 1.0), ("b", 2.0), ("c", 3.0))]


def test_a_bad_part_at_the_threshold_would_have_passed_and_the_lowest_are_named_first() -> None:
    bad = [one.model_copy(update={"good": False}) for one in reversed(PARTS)]
    assert caught(bad, 2.0) == ("of 3 confirmed bad parts 1 would have been rejected and 2 would have passed: a 1, b 2")
    assert caught(bad, 0.5) == "of 3 confirmed bad parts 3 would have been rejected and 0 would have passed"
    assert "nobody confirmed one" in caught([], 2.0)


def test_what_two_thresholds_reject_of_the_same_parts() -> None:
    said = against(tiny_calibration(1.0), tiny_calibration(2.0), PARTS)
    assert "the new one is +1; of these 3 pictures the one in force rejects 2, the new one 1" in said
    assert "that can be read" in against(None, tiny_calibration(), PARTS)
    other = tiny_calibration(1.0).model_copy(update={"engine_digest": "f" * 64})
    assert "the two do not compare" in against(other, tiny_calibration(2.0), PARTS)


def test_a_shift_and_the_least_rate_that_so_many_parts_can_bound() -> None:
    rate = Estimate(expected=0.01, low=0.0025, high=0.02)
    said = consequences(Proposal("conformal", 1.0, rate, None, 199, 0, 199, ()), 8000)
    assert said[-2] == "in a shift of 8,000 good parts about 80 (95 % confidence: 20 to 160) are rejected"
    assert said[-1].startswith("199 parts can bound the rate of false rejects at 0.5 % at best")
    assert len(consequences(Proposal("conformal", 1.0, rate, None, 199, 0, 199, ()), None)) == len(said) - 1
