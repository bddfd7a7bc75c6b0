"""All methods side by side: what each promises and what it warns of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calibration import CalibrationError
from calibration.parts import parts_of
from calibration.propose import METHODS, Wishes, check_needs, propose

RANDOM = np.random.default_rng(1)
GOOD = parts_of(RANDOM.gamma(3, 1, 200))
BAD = parts_of(RANDOM.gamma(3, 1, 30) + 12)
COSTS = Wishes(escape_cost=100, overkill_cost=1, defects=0.02)


def test_every_method_gives_a_threshold_with_both_rates() -> None:
    comparison = propose(GOOD, COSTS, BAD)
    assert tuple(proposal.method for proposal in comparison.proposals) == METHODS
    assert not comparison.refused
    for proposal in comparison.proposals:
        assert (proposal.good, proposal.bad, proposal.pictures) == (200, 30, 200)
        assert 0 <= proposal.false_reject.low <= proposal.false_reject.expected <= proposal.false_reject.high <= 1
        assert proposal.escape is not None
        assert 0 <= proposal.escape.low <= proposal.escape.expected <= proposal.escape.high <= 1


def test_without_bad_parts_three_methods_are_left_and_the_others_say_what_they_need() -> None:
    comparison = propose(GOOD, COSTS)
    assert [proposal.method for proposal in comparison.proposals] == ["conformal", "pareto", "sigma"]
    assert set(comparison.refused) == {"f-beta", "cost", "zero-escape"}
    assert all(proposal.escape is None for proposal in comparison.proposals)
    with pytest.raises(CalibrationError, match="no bad parts; give some"):
        comparison.of("cost")
    with pytest.raises(CalibrationError, match="method 'guess', expected one of: conformal"):
        comparison.of("guess")


def test_what_further_good_parts_cannot_bring_is_asked_for_first() -> None:
    for method in METHODS:
        if method in ("f-beta", "cost", "zero-escape"):
            with pytest.raises(CalibrationError, match="no bad parts"):
                check_needs(method, Wishes(), bad=False)
        else:
            check_needs(method, Wishes(), bad=False)
    for method in METHODS:
        if method != "cost":
            check_needs(method, Wishes(), bad=True)
    with pytest.raises(CalibrationError, match="costs are not known"):
        check_needs("cost", Wishes(escape_cost=9.0, overkill_cost=1.0), bad=True)
    check_needs("cost", Wishes(escape_cost=9.0, overkill_cost=1.0, defects=0.1), bad=True)


def test_a_method_that_refuses_keeps_no_other_from_its_threshold() -> None:
    comparison = propose(parts_of(GOOD.scores[:50]), Wishes(rate=0.01), BAD)
    assert "50 good images, expected at least 99" in comparison.refused["conformal"]
    assert "at least 100" in comparison.refused["pareto"]
    assert "costs are not known" in comparison.refused["cost"]
    assert [proposal.method for proposal in comparison.proposals] == ["sigma", "f-beta", "zero-escape"]


def test_conformal_says_what_so_few_parts_leave_open() -> None:
    (warnings,) = [
        one.warnings for one in propose(parts_of(GOOD.scores[-99:]), Wishes()).proposals if one.method == "conformal"
    ]
    assert any("the highest score of all" in warning for warning in warnings)
    assert any("may be as high as 3.66 %" in warning for warning in warnings)
    assert propose(parts_of(np.random.default_rng(0).random(3000)), Wishes(rate=0.05)).of("conformal").warnings == ()


def test_sigma_is_marked_as_a_comparison_and_told_off_where_scores_are_skewed() -> None:
    warnings = propose(parts_of(np.random.default_rng(0).lognormal(0, 1, 500)), Wishes()).of("sigma").warnings
    assert "for comparison alone" in warnings[0]
    assert "they are not" in warnings[1]
    assert len(propose(parts_of(np.random.default_rng(0).normal(0, 1, 500)), Wishes()).of("sigma").warnings) == 1


@pytest.mark.parametrize("method", ["f-beta", "cost", "zero-escape"])
def test_few_bad_parts_and_thresholds_inside_the_noise_are_warned_of(method: str) -> None:
    few = propose(GOOD, COSTS, parts_of(BAD.scores[:6])).of(method)
    assert any("6 bad parts say little" in warning for warning in few.warnings)
    assert not any("say little" in warning for warning in propose(GOOD, COSTS, BAD).of(method).warnings)
    near = propose(GOOD, Wishes(escape_cost=1, overkill_cost=1, defects=0.1, margin=0), parts_of(GOOD.scores[-40:] + 0.01))
    assert any("inside the noise" in warning for warning in near.of(method).warnings)
    far = propose(GOOD, COSTS, parts_of(np.linspace(40, 60, 30)))
    assert not any("inside the noise" in warning for warning in far.of(method).warnings)


def test_a_threshold_that_half_of_the_bad_parts_pass_is_warned_of_by_every_method() -> None:
    like_good = parts_of([*RANDOM.gamma(3, 1, 15), *(RANDOM.gamma(3, 1, 15) + 40)])
    said = propose(GOOD, Wishes(rate=0.01), like_good).of("conformal").warnings
    assert any("15 of 30 bad parts would pass" in line for line in said)
    # the cheapest is to let all pass
    dear = propose(GOOD, Wishes(escape_cost=1, overkill_cost=1e6, defects=0.001), parts_of(GOOD.scores[-30:] - 1)).of("cost")
    assert any("30 of 30 bad parts would pass" in line for line in dear.warnings)
    more = parts_of([*like_good.scores, 50.0])
    assert not any("bad parts would pass" in line for line in propose(GOOD, Wishes(rate=0.01), more).of("conformal").warnings)


def test_pictures_of_the_same_part_are_said() -> None:
    twice = parts_of(np.concatenate((GOOD.scores, GOOD.scores + 0.01)), [*range(200), *range(200)])
    proposal = propose(twice, Wishes()).of("conformal")
    assert (proposal.good, proposal.pictures) == (200, 400)
    assert "400 pictures are of 200 parts, and a part counts once" in proposal.warnings


def test_the_share_of_bad_parts_that_f_beta_takes_is_said() -> None:
    assert any("13 % of the line's parts" in warning for warning in propose(GOOD, Wishes(), BAD).of("f-beta").warnings)
    assert not any("line's parts" in warning for warning in propose(GOOD, COSTS, BAD).of("f-beta").warnings)


def test_consequences_in_plain_words() -> None:
    good, bad = propose(parts_of(np.arange(99.0)), Wishes(), parts_of([200.0, 300.0])).of("conformal").consequences()
    assert good == "of 1,000 further good parts about 10 (95 % confidence: 0 to 37) are rejected"
    assert bad == "of 1,000 bad parts like the 2 shown about 333 (95 % confidence: 0 to 842) pass"


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"rate": 0.0}, "false-reject rate 0"),
        ({"beta": -1.0}, "beta is -1"),
        ({"escape_cost": 0.0}, "cost of an escape is 0"),
        ({"defects": 1.0}, "share of bad parts is 1"),
        ({"margin": -0.5}, "margin is -0.5"),
    ],
)
def test_wishes_that_cannot_be_are_refused(wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        propose(GOOD, Wishes(**wishes))
