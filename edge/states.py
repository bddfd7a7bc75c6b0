"""The states of a station and which may follow which; names after OPC 40100-1. A pure machine: no clock, no thread.

A part can pass in READY and EXECUTING alone. HALTED and ERROR are ends: what comes after them is another start.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edge import StationError


class State(enum.Enum):
    """Where a station is between its start and its end."""

    PREOPERATIONAL = "preoperational"
    """Nothing is known to be in order yet."""
    INITIALIZED = "initialized"
    """Bundle, engine, calibration and lines are there, and the self-test passed; something else is not good: no part passes."""
    READY = "ready"
    """Everything is good, and no part came yet."""
    EXECUTING = "executing"
    """Everything is good, and parts are judged."""
    HALTED = "halted"
    """It ended in order."""
    ERROR = "error"
    """It ended because something that a person or a new start must mend is broken."""

    @property
    def passes(self) -> bool:
        """Whether a part may pass."""
        return self in (State.READY, State.EXECUTING)


ALLOWED: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.PREOPERATIONAL: frozenset({State.INITIALIZED, State.HALTED, State.ERROR}),
        State.INITIALIZED: frozenset({State.READY, State.HALTED, State.ERROR}),
        State.READY: frozenset({State.EXECUTING, State.INITIALIZED, State.HALTED, State.ERROR}),
        State.EXECUTING: frozenset({State.INITIALIZED, State.HALTED, State.ERROR}),
        State.HALTED: frozenset(),
        State.ERROR: frozenset(),
    }
)


@dataclass(frozen=True)
class Transition:
    """One change of state and why, in words."""

    before: State
    after: State
    reason: str


class Machine:
    """Holds the state.

    Attributes:
        state: now.
        reason: why it is in this state.
    """

    def __init__(self) -> None:
        self.state = State.PREOPERATIONAL
        self.reason = "the station starts"

    def to(self, after: State, reason: str) -> Transition:
        """Go to a state. Raises StationError where the table does not allow that, and stays where it was."""
        if after not in ALLOWED[self.state]:
            allowed = ", ".join(sorted(state.value for state in ALLOWED[self.state])) or "none"
            raise StationError(f"a station that is {self.state.value} cannot become {after.value}, expected one of: {allowed}")
        transition = Transition(self.state, after, reason)
        self.state, self.reason = after, reason
        return transition
