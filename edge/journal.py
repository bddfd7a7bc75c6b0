"""What was decided, one JSON object a line: events of the station, and one verdict for each part."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from edge import StationError
from edge.verdict import Verdict


class Journal(Protocol):
    """Where verdicts are kept."""

    def verdict(self, verdict: Verdict) -> None:
        """Keep one verdict. Raises StationError when it cannot be kept."""

    def event(self, name: str, details: Mapping[str, object]) -> None:
        """Keep one event. Raises StationError when it cannot be kept."""

    def close(self) -> None:
        """Bring everything to the disk; may be called twice."""


class JsonLinesJournal:
    """Appends to a text file. A line is written in one call and cut off again if it did not fit.

    A verdict row that follows another of the same run and part replaces it: that happens only where writing the first
    one made the part late, or where the reject line did not take it. Rows reach the operating system at once and the disk
    when the journal closes.
    """

    def __init__(self, path: Path, run: str, bundle_digest: str) -> None:
        """Open for appending; a half line left by a killed process is cut off, and that is noted.

        Args:
            path: the file, made if missing.
            run: identifies this start of the station; parts are numbered within it.
            bundle_digest: written into every row.

        Raises:
            StationError: the file cannot be opened or written.
        """
        self._path = path
        self._common = {"run": run, "bundle": bundle_digest}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            cut = self._cut_half_line()
        except OSError as error:
            raise self._refused(error) from None
        if cut > 0:
            self.event("recovered", {"cut_bytes": cut})

    def verdict(self, verdict: Verdict) -> None:
        """Keep one verdict. Raises StationError when it cannot be kept."""
        self._append(
            {
                "part": verdict.part,
                "outcome": verdict.outcome.value,
                "score": verdict.score if verdict.score is not None and math.isfinite(verdict.score) else None,
                "threshold": verdict.threshold,
                "latency_ms": round(verdict.latency_ms, 3),
                "reason": verdict.reason,
                "source": verdict.source,
            }
        )

    def event(self, name: str, details: Mapping[str, object]) -> None:
        """Keep one event. Raises StationError when it cannot be kept."""
        self._append({"event": name, **details})

    def close(self) -> None:
        """Bring everything to the disk; may be called twice."""
        if self._file >= 0:
            handle, self._file = self._file, -1
            try:
                os.fsync(handle)
            except OSError as error:
                raise self._refused(error) from None
            finally:
                os.close(handle)

    def _append(self, row: Mapping[str, object]) -> None:
        when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = (json.dumps({"when": when, **self._common, **row}, allow_nan=False) + "\n").encode()
        try:
            self._cut_half_line()  # left by a failed write where cutting it off failed too
            end = os.fstat(self._file).st_size
            try:
                written = os.write(self._file, line)
            except OSError:
                os.ftruncate(self._file, end)
                raise
            if written != len(line):
                os.ftruncate(self._file, end)
                raise OSError(None, f"{written} of {len(line)} bytes fitted")
        except OSError as error:
            raise self._refused(error) from None

    def _cut_half_line(self) -> int:
        size = os.fstat(self._file).st_size
        end, tail = size, b""
        while end > 0:
            start = max(0, end - 65536)
            tail = os.pread(self._file, end - start, start)
            newline = tail.rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._file, end)
        return size - end

    def _refused(self, error: OSError) -> StationError:
        return StationError(
            f"{self._path}: the journal cannot be written ({error.strerror or error}); check the disk and permissions"
        )
