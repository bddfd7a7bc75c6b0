"""A person's hold: while it is on, the station is not ready and every part is rejected."""

from __future__ import annotations


class Hold:
    """Safe to share between threads."""

    def __init__(self) -> None:
        """Start without a hold."""
        self._held = False

    def halt(self) -> None:
        """From now on no part is decided to pass; the line `ready` drops with the next turn of the deciding loop."""
        self._held = True

    def resume(self) -> None:
        """Judge again, as soon as all else is good."""
        self._held = False

    def fault(self) -> str:
        """Why the station is not ready; "" where nobody holds it."""
        return "somebody holds it (POST /halt); POST /resume lets it go on" if self._held else ""
