"""The seam below the capture thread: one camera that is opened, set, read and closed, always by the same thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from edge import StationError
from edge.camera_sections import LiveSource
from engines.images import Image


class DeviceLostError(StationError):
    """The camera is not there, or stopped answering; opening it again may mend that."""


class TornFrameError(StationError):
    """A picture came incomplete. The camera goes on."""

    def __init__(self, reason: str, captured_ns: int) -> None:
        super().__init__(reason)
        self.captured_ns = captured_ns


@dataclass(frozen=True)
class Grab:
    """One picture as a device gave it.

    Attributes:
        image: uint8 RGB (h, w, 3), the caller's own.
        captured_ns: monotonic; the end of the exposure as nearly as the device can tell, and never after the picture came.
    """

    image: Image
    captured_ns: int


@dataclass(frozen=True)
class Setting:
    """One setting: what was wanted, and what the device says that it has.

    Attributes:
        got: None where the device cannot be asked.
        step: how far `got` may be from `wanted`, since a device has steps of its own.
    """

    name: str
    wanted: float | str
    got: float | str | None
    step: float = 0.0

    @property
    def fault(self) -> str | None:
        """In words, where the device does not have what was wanted."""
        if self.got is None or self.got == self.wanted:
            return None
        if isinstance(self.got, str) or isinstance(self.wanted, str) or not abs(self.got - self.wanted) <= self.step:
            return f"{self.name} is {self._text(self.got)} after {self._text(self.wanted)} was set"
        return None

    def __str__(self) -> str:
        got = "set, cannot be read back" if self.got is None else f"read back {self._text(self.got)}"
        return f"{self.name} {self._text(self.wanted)}, {got}"

    @staticmethod
    def _text(value: float | str) -> str:
        return value if isinstance(value, str) else f"{value:g}"


class Device(Protocol):
    """A camera. Its methods raise DeviceLostError where opening again may help, StationError where it cannot.

    Attributes:
        name: for people.
        triggered: a signal at the camera releases each picture, so that silence is no fault.
    """

    name: str
    triggered: bool

    def open(self) -> None:
        """Connect."""

    def apply(self, source: LiveSource) -> Sequence[Setting]:
        """Set what the configuration gives, begin to take pictures, and tell what the device says that it has now."""

    def read(self) -> Grab | None:
        """The next picture, in order; None when none came within a fraction of a second. Raises TornFrameError as well."""

    def counts(self) -> dict[str, int]:
        """What the device counts, such as lost packets; may be empty."""

    def close(self) -> None:
        """Disconnect; may be called twice, and at any state."""
