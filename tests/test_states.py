"""The table of states: which may follow which, and that nothing else does."""

from __future__ import annotations

import itertools

import pytest

from edge import StationError
from edge.states import ALLOWED, Machine, State, Transition

WAYS = {  # how to get to each state
    State.PREOPERATIONAL: [],
    State.INITIALIZED: [State.INITIALIZED],
    State.READY: [State.INITIALIZED, State.READY],
    State.EXECUTING: [State.INITIALIZED, State.READY, State.EXECUTING],
    State.HALTED: [State.HALTED],
    State.ERROR: [State.ERROR],
}
# written down a second time, by hand
FORBIDDEN = {
    ("preoperational", "preoperational"),
    ("preoperational", "ready"),
    ("preoperational", "executing"),
    ("initialized", "preoperational"),
    ("initialized", "initialized"),
    ("initialized", "executing"),
    ("ready", "preoperational"),
    ("ready", "ready"),
    ("executing", "preoperational"),
    ("executing", "ready"),
    ("executing", "executing"),
    *itertools.product(("halted", "error"), [state.value for state in State]),
}


def at(state: State) -> Machine:
    machine = Machine()
    for step in WAYS[state]:
        machine.to(step, "on the way")
    return machine


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_the_table(before: State, after: State) -> None:
    machine = at(before)
    if (before.value, after.value) in FORBIDDEN:
        reason = machine.reason
        with pytest.raises(
            StationError, match=f"a station that is {before.value} cannot become {after.value}, expected one of"
        ):
            machine.to(after, "forbidden")
        assert (machine.state, machine.reason) == (before, reason)
    else:
        assert machine.to(after, "because") == Transition(before, after, "because")
        assert (machine.state, machine.reason) == (after, "because")


def test_every_state_is_in_the_table_and_only_ready_and_executing_pass_parts() -> None:
    assert set(ALLOWED) == set(State)
    assert [state for state in State if state.passes] == [State.READY, State.EXECUTING]


def test_a_machine_starts_with_nothing_known() -> None:
    assert Machine().state is State.PREOPERATIONAL


def test_from_every_state_that_is_no_end_the_station_can_end_in_order_and_by_an_error() -> None:
    ends = {State.HALTED, State.ERROR}
    assert all(ends <= after for before, after in ALLOWED.items() if before not in ends)
