"""The reject line, and the dry run that stands in for it."""

from __future__ import annotations

from typing import Protocol

from edge.verdict import Verdict


class Rejector(Protocol):
    """Acts on verdicts. Rejects until told otherwise: only a PASS lets a part go."""

    def apply(self, verdict: Verdict) -> None:
        """Act on one part. Raises StationError when the line cannot be driven."""

    def close(self) -> None:
        """Return to rejecting and release the line; may be called twice."""


class DryRunRejector:
    """Drives no line and counts what it would have done.

    Attributes:
        passed, rejected: parts so far.
        rejecting: the level the line would have now; True before the first part and after `close`.
    """

    def __init__(self) -> None:
        self.passed = 0
        self.rejected = 0
        self.rejecting = True

    def apply(self, verdict: Verdict) -> None:
        """Count one part."""
        self.rejecting = verdict.outcome.rejects
        if self.rejecting:
            self.rejected += 1
        else:
            self.passed += 1

    def close(self) -> None:
        """Reject from here on."""
        self.rejecting = True
