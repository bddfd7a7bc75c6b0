"""Lines of text from a file descriptor, read by a thread: standard input, or a scanner on a serial port."""

from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Callable

_LONGEST = 1024  # bytes of a line that are kept; no reference is as long
_LINE_END = re.compile(rb"\r\n|\n|\r")


class LineReader:
    """Reads until the other side ends, or until it is closed."""

    def __init__(self, descriptor: int, on_line: Callable[[str], None], on_end: Callable[[str], None], name: str) -> None:
        r"""Start the thread.

        Args:
            descriptor: stays open; its owner closes it after this.
            on_line: called in the thread with each line, without its end (\n, \r or \r\n). Bytes that are not UTF-8
                become lone surrogates, which no printable text has.
            on_end: called in the thread once there is nothing more to read, with the reason, "" at the end of the file.
            name: of the thread.
        """
        self._descriptor = descriptor
        self._on_line = on_line
        self._on_end = on_end
        self._woken, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread without `on_end`; may be called twice, and not by the thread itself."""
        if self._wake < 0:
            return
        os.close(self._wake)
        self._wake = -1
        self._thread.join(timeout=5)
        os.close(self._woken)

    def _work(self) -> None:
        kept, returned = b"", False
        while True:
            try:
                readable, _, _ = select.select([self._descriptor, self._woken], [], [])
                if self._woken in readable:
                    return
                data = os.read(self._descriptor, 4096)
            except BlockingIOError:
                continue
            except (OSError, ValueError) as error:  # a terminal whose other side went away gives EIO
                self._on_end(getattr(error, "strerror", None) or str(error))
                return
            if data == b"":
                if kept:
                    self._give(kept)
                self._on_end("")
                return
            if returned and data.startswith(b"\n"):  # a scanner's line ends at once with its \r, whether \n follows or not
                data = data[1:]
            returned = data.endswith(b"\r")
            *lines, kept = _LINE_END.split(kept + data)
            kept = kept[:_LONGEST]
            for line in lines:
                self._give(line)

    def _give(self, line: bytes) -> None:
        self._on_line(line[:_LONGEST].decode("utf-8", errors="surrogateescape"))
