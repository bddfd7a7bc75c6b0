"""Heads of the journal's chain kept outside it, since a chain cannot see its own end cut off."""

from __future__ import annotations

import datetime
import os
import queue
import re
import threading
from collections.abc import Callable
from pathlib import Path

from edge import StationError
from edge.chain import Head
from engines.atomic import make_folder, sync_folder

EVERY_ROWS = 1000
_LINE = re.compile(r"\S+ row (\d+) ([0-9a-f]{64})")


class HeadKeeper:
    """Says the head and appends it to a file: at start, at stop, and every 1,000 rows.

    A thread writes the file, which is best on another machine's disk: one that hangs or fails holds up no part.
    """

    def __init__(self, path: Path | None, say: Callable[[str], None], complain: Callable[[str], None]) -> None:
        """Start the thread where there is a file to write.

        Args:
            path: of the file; None for none.
            say: told each head, for the log.
            complain: told once, from the thread, that the file cannot be written.
        """
        self._say = say
        self._complain = complain
        self._last = 0
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if path is not None:
            self._thread = threading.Thread(target=self._work, args=(path,), name="heads", daemon=True)
            self._thread.start()

    def note(self, head: Head, *, due: bool = False) -> None:
        """Keep a head where 1,000 rows came since the last one, or where it is `due` anyway."""
        if not due and head.row < self._last + EVERY_ROWS:
            return
        self._last = head.row
        self._say(f"journal head: row {head.row} {head.hash}")
        when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self._lines.put(f"{when} row {head.row} {head.hash}\n")

    def close(self) -> None:
        """Write what waits, for some seconds at most; may be called twice."""
        self._lines.put(None)
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _work(self, path: Path) -> None:
        complained = False
        while (line := self._lines.get()) is not None:
            try:
                make_folder(path.parent)
                with path.open("a+b", buffering=0) as file:
                    new = file.tell() == 0
                    if not new:
                        file.seek(-1, os.SEEK_END)
                        line = line if file.read(1) == b"\n" else "\n" + line  # a power cut may have cut off the last one
                    file.write(line.encode())
                    os.fsync(file.fileno())
                if new:
                    sync_folder(path.parent)
            except OSError as error:
                if not complained:
                    complained = True
                    self._complain(f"{path}: heads of the journal are not kept ({error.strerror or error}); mend the file")


def read_heads(path: Path) -> list[Head]:
    """Heads that a station kept. Lines that are none, such as one that a power cut cut off, are left out.

    Raises:
        StationError: unreadable, or without a head.
    """
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError as error:
        raise StationError(f"{path}: cannot be read ({error.strerror or error}); expected a file of heads") from None
    heads = [Head(int(match[1]), match[2]) for match in map(_LINE.fullmatch, lines) if match is not None]
    if not heads:
        raise StationError(f"{path}: no heads there, expected lines of TIME row NUMBER SHA-256")
    return heads
