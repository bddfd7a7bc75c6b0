"""Whether there is room on the journal's disk, looked at once a second."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from edge.clock import Clock

MIN_FREE_BYTES = 100 * 2**20
_EVERY_NS = 10**9
_AGAIN_BYTES = MIN_FREE_BYTES * 11 // 10  # before a disk that was full is good again, so that it is not both in turns


class DiskSpace:
    """A condition of the station: enough is free."""

    def __init__(
        self, folder: Path, clock: Clock, free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
    ) -> None:
        """`folder` is looked at by `clock`; `free_bytes` is replaced in tests."""
        self._folder = folder
        self._clock = clock
        self._free_bytes = free_bytes
        self._look_ns = 0
        self._fault = ""

    def fault(self) -> str:
        """Why the disk is not good, "" where it is."""
        now_ns = self._clock.now_ns()
        if now_ns >= self._look_ns:
            self._look_ns = now_ns + _EVERY_NS
            self._fault = self._look()
        return self._fault

    def _look(self) -> str:
        try:
            free = self._free_bytes(self._folder)
        except OSError as error:
            return f"{self._folder}: cannot be looked at ({error.strerror or error}); check the disk and permissions"
        needed = _AGAIN_BYTES if self._fault else MIN_FREE_BYTES
        if free >= needed:
            return ""
        # no number that changes from look to look: the reason is journalled once
        return f"{self._folder}: less than {needed >> 20} MiB free; free some space"
