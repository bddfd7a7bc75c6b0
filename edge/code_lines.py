"""Which recipe a controller asks for: a binary code on input lines, read when it is valid."""

from __future__ import annotations

from collections.abc import Callable

CODE, STROBE = "code-", "strobe"


class CodeLines:
    """Reads the code of a recipe. Times are monotonic nanoseconds.

    With a strobe the code counts at the strobe's rising edge, and at the start where the strobe is up. Without one it counts
    once the lines have stood still for a while, since they never change at the same instant.
    """

    def __init__(self, bits: int, settle_ns: int | None, level: Callable[[str], bool], now_ns: int) -> None:
        """Begin to look.

        Args:
            bits: lines, named `code-0` (the lowest bit) and so on; none for no code ever.
            settle_ns: how long they must stand still; None where there is a strobe.
            level: reads a line, True where active.
            now_ns: the time now.
        """
        self._bits = bits
        self._settle_ns = settle_ns
        self._level = level
        self._told: int | None = None
        self.due_ns: int | None = None
        """When to call `read` next at the latest; None when nothing is due."""
        if bits > 0 and (settle_ns is not None or level(STROBE)):
            self.due_ns = now_ns + (settle_ns or 0)

    def edge(self, name: str, active: bool, at_ns: int) -> None:
        """A line changed at `at_ns`; those that are not of the code do not matter."""
        if self._settle_ns is not None and name.startswith(CODE):
            self.due_ns = at_ns + self._settle_ns
        elif name == STROBE and active:
            self.due_ns = at_ns

    def read(self, now_ns: int) -> int | None:
        """The code, once it is valid: each strobe gives it, and otherwise each change does. None in between."""
        if self.due_ns is None or now_ns < self.due_ns:
            return None
        self.due_ns = None
        code = sum(self._level(f"{CODE}{bit}") << bit for bit in range(self._bits))
        if self._settle_ns is not None and code == self._told:
            return None
        self._told = code
        return code
