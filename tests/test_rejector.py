"""What every reject line must do: reject until told otherwise, follow each verdict, and reject again when it is closed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edge.rejector import DryRunRejector
from edge.verdict import Outcome, Verdict
from tests.fakes import FakeRejector

AnyRejector = DryRunRejector | FakeRejector


@pytest.fixture(params=[DryRunRejector, FakeRejector])
def rejector(request: pytest.FixtureRequest) -> AnyRejector:
    """Each reject line there is, and the one that tests use."""
    make: Callable[[], AnyRejector] = request.param
    return make()


def verdict(part: int, outcome: Outcome) -> Verdict:
    return Verdict(part, outcome, 1.0, 2.0, 3.0, "a reason", "1.png", "conformal")


def test_it_rejects_before_the_first_part(rejector: AnyRejector) -> None:
    assert rejector.rejecting


def test_only_a_pass_lets_a_part_go(rejector: AnyRejector) -> None:
    sequence = [Outcome.PASS, Outcome.REJECT, Outcome.PASS, Outcome.PASS, Outcome.FAULT, Outcome.FAULT, Outcome.PASS]
    levels = []
    for part, outcome in enumerate(sequence, start=1):
        rejector.apply(verdict(part, outcome))
        levels.append(rejector.rejecting)
    assert levels == [False, True, False, False, True, True, False]


@pytest.mark.parametrize("last", list(Outcome))
def test_it_rejects_once_closed_and_may_be_closed_twice(rejector: AnyRejector, last: Outcome) -> None:
    rejector.apply(verdict(1, last))
    rejector.close()
    assert rejector.rejecting
    rejector.close()
    assert rejector.rejecting


def test_one_that_must_not_pass_any_part_rejects() -> None:
    rejector = DryRunRejector()
    rejector.set_ready(True)
    assert rejector.rejecting  # until a part passes
    rejector.apply(verdict(1, Outcome.PASS))
    rejector.set_ready(True)
    assert not rejector.rejecting
    rejector.set_ready(False)
    assert rejector.rejecting


def test_the_dry_run_counts() -> None:
    rejector = DryRunRejector()
    for part, outcome in enumerate([Outcome.PASS, Outcome.REJECT, Outcome.FAULT, Outcome.PASS, Outcome.FAULT], start=1):
        rejector.apply(verdict(part, outcome))
    assert (rejector.passed, rejector.rejected) == (2, 3)


def test_the_fake_remembers_the_whole_trace() -> None:
    rejector = FakeRejector()
    rejector.apply(verdict(1, Outcome.PASS))
    rejector.apply(verdict(2, Outcome.FAULT))
    rejector.close()
    assert rejector.trace == [(1, False), (2, True)]
    assert rejector.levels == [True, False, True, True]
