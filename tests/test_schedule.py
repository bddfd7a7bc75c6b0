"""The shape of an adaptation: the authors' numbers, the cosine, and how an update is cut into passes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train import TrainError
from train.schedule import PAPER, PRESETS, Plan, Schedule, preset

PLENTY = 10**6  # normals that fit into memory


def test_the_papers_numbers() -> None:
    assert (PAPER.updates, PAPER.warmup, PAPER.cosine) == (300, 39, 330)
    assert (PAPER.learning_rate, PAPER.final_learning_rate) == (0.03, 1e-5)
    assert (PAPER.weight_decay, PAPER.momentum) == (3e-5, 0.9)
    assert PAPER.window_px is None
    assert PAPER.turns
    assert not PAPER.keep_early
    assert PAPER.share == 1
    # about 1024 images an update: 3 sub-batches of 336, each a good image and its six defects
    assert PAPER.plan(7, 1, PLENTY) == Plan(passes=3, normals=48)
    assert 7 * 48 == 336


def test_presets_are_found_by_name_and_no_other() -> None:
    assert all(preset(name).name == name for name in PRESETS)
    assert preset("paper") is PAPER
    with pytest.raises(TrainError, match="adaptation preset 'slow', expected one of: paper, quick"):
        preset("slow")


@pytest.mark.parametrize("schedule", PRESETS.values(), ids=PRESETS)
def test_every_preset_trains_more_than_the_head_at_a_rate_above_its_last(schedule: Schedule) -> None:
    assert 0 <= schedule.warmup < schedule.updates <= schedule.cosine
    rates = [schedule.rate(update) for update in range(schedule.updates)]
    assert rates[0] == pytest.approx(schedule.learning_rate)
    assert all(one > other > schedule.final_learning_rate for one, other in pairwise(rates))


def test_the_rate_by_hand() -> None:
    assert PAPER.rate(0) == pytest.approx(0.03, rel=1e-12)
    assert PAPER.rate(165) == pytest.approx((0.03 + 1e-5) / 2, rel=1e-12)  # half way, where the cosine is 0
    assert PAPER.rate(110) == pytest.approx(1e-5 + 0.75 * (0.03 - 1e-5), rel=1e-12)  # cos 60 degrees is 1/2
    assert PAPER.rate(330) == pytest.approx(1e-5, rel=1e-9)


@given(st.integers(1, 1000), st.floats(1e-4, 1), st.floats(0, 1e-5))
def test_the_rate_never_rises_and_stays_between_its_ends(cosine: int, first: float, last: float) -> None:
    schedule = Schedule("any", cosine, 8, 1, 0, cosine, learning_rate=first, final_learning_rate=last)
    rates = [schedule.rate(update) for update in range(cosine + 1)]
    assert all(one >= other for one, other in pairwise(rates))
    assert math.isclose(rates[0], first, rel_tol=1e-9)
    assert math.isclose(rates[-1], last, rel_tol=1e-9, abs_tol=1e-15)


@pytest.mark.parametrize(
    ("processes", "most_normals", "plan"),
    [
        (1, 48, Plan(3, 48)),  # just fits
        (1, 47, Plan(4, 36)),  # 144 / 47 is above 3
        (1, 16, Plan(9, 16)),
        (1, 2, Plan(72, 2)),
        (2, PLENTY, Plan(4, 36)),
        (3, PLENTY, Plan(3, 48)),
        (4, PLENTY, Plan(4, 36)),
        (4, 30, Plan(8, 18)),  # 5 passes would do for memory; 4 processes share 8
        (100, PLENTY, Plan(100, 2)),  # batch norm needs two
    ],
)
def test_little_memory_and_many_processes_take_more_passes(processes: int, most_normals: int, plan: Plan) -> None:
    assert PAPER.plan(7, processes, most_normals) == plan


@given(normals=st.integers(2, 400), passes=st.integers(1, 8), processes=st.integers(1, 9), most_normals=st.integers(2, 500))
def test_a_plan_shows_all_normals_in_shares_that_fit(normals: int, passes: int, processes: int, most_normals: int) -> None:
    plan = Schedule("any", 10, 5 * normals, passes, 0, 10).plan(5, processes, most_normals)
    assert plan.passes * plan.normals >= normals
    assert plan.passes % processes == 0
    assert plan.passes >= passes
    assert 2 <= plan.normals <= most_normals
    # no more than rounding makes of it
    assert plan.normals == 2 or plan.passes * (plan.normals - 1) < normals


def test_makers_of_fewer_kinds_train_on_as_many_images() -> None:
    assert PAPER.plan(2, 1, PLENTY) == Plan(passes=3, normals=168)
    assert PAPER.plan(3, 1, PLENTY) == Plan(passes=3, normals=112)


@pytest.mark.parametrize("most_normals", [1, 0])
def test_memory_for_less_than_two_normals_is_an_error(most_normals: int) -> None:
    with pytest.raises(TrainError, match="memory for fewer than 2 normals a pass; use a smaller --size"):
        PAPER.plan(7, 1, most_normals)
