"""Pictures of parts, kept for whoever asks later: written by a thread, within a quota, and never in a verdict's way."""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edge.verdict import Outcome, Verdict
from engines.atomic import write_file
from engines.images import Image, encode_png, pixel_digest

_NAME = re.compile(r"\d+-(PASS|REJECT|FAULT)\.png")
_CLOSING_S = 5.0


class Evidence(Protocol):
    """Takes pictures of parts."""

    def offer(self, image: Image, verdict: Verdict) -> None:
        """Take a picture or leave it; returns at once and raises nothing."""


class Ledger(Protocol):
    """Where it is noted that a picture was written or deleted; called from the writing thread."""

    def note_evidence(self, *, part: int, outcome: Outcome, path: str, pixels: str, why: str) -> None:
        """A picture stands at `path`, below the folder, with this digest of its pixels."""

    def later(self, name: str, details: dict[str, object]) -> None:
        """Something happened to the evidence."""


@dataclass(frozen=True)
class Choice:
    """Which pictures are kept: those of REJECT and FAULT always, and of PASS these.

    Attributes:
        every: each part whose number is a multiple; 0 for none.
        near: scores no further than this below the threshold.
    """

    every: int
    near: float

    def why(self, verdict: Verdict) -> str | None:
        """In a word, why this part's picture is kept; None where it is not."""
        if verdict.outcome.rejects:
            return verdict.outcome.value.lower()
        if verdict.score is not None and verdict.threshold - verdict.score <= self.near:
            return "near"
        return "sample" if self.every > 0 and verdict.part % self.every == 0 else None


@dataclass
class Counts:
    """What became of the pictures that were to be kept.

    Attributes:
        written: to the disk.
        dropped: the queue was full.
        no_room: within the quota.
        failed: could not be written.
        deleted: earlier ones, for the quota.
    """

    written: int = 0
    dropped: int = 0
    no_room: int = 0
    failed: int = 0
    deleted: int = 0


@dataclass(frozen=True)
class _Picture:
    image: Image
    verdict: Verdict
    why: str


class _Held:
    """Files of one kind, oldest first."""

    def __init__(self) -> None:
        self.files: collections.deque[tuple[Path, int]] = collections.deque()
        self.bytes = 0

    def add(self, path: Path, size: int) -> None:
        self.files.append((path, size))
        self.bytes += size

    def delete_oldest(self) -> Path:
        path, size = self.files[0]
        path.unlink(missing_ok=True)
        self.files.popleft()
        self.bytes -= size
        with contextlib.suppress(OSError):  # not empty
            path.parent.rmdir()
        return path


class EvidenceFolder:
    """Writes `<run>/<part>-<outcome>.png` below a folder, from a bounded queue.

    Over the quota the oldest passes are deleted first, then the oldest of the others; a pass never takes the place of
    another outcome. What cannot be written is counted and said once; no verdict depends on it.

    Attributes:
        folder: where they are.
        counts: so far.
    """

    def __init__(
        self,
        folder: Path,
        run: str,
        ledger: Ledger,
        choice: Choice,
        *,
        quota_bytes: int,
        waiting: int,
        complain: Callable[[str], None],
    ) -> None:
        """Start the thread.

        Args:
            folder: made when the first picture is written; what earlier runs left there counts for the quota.
            run: names the folder of this run's pictures.
            ledger: the journal.
            choice: which pictures are kept.
            quota_bytes: of all pictures in the folder.
            waiting: pictures that may wait to be written; further ones are dropped.
            complain: told once, from the thread, that pictures cannot be written.
        """
        self.counts = Counts()
        self.folder = folder
        self._run = run
        self._ledger = ledger
        self._choice = choice
        self._quota_bytes = quota_bytes
        self._complain = complain
        self._complained = False
        self._passes = _Held()
        self._others = _Held()
        self._queue: queue.Queue[_Picture | None] = queue.Queue(waiting)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="evidence", daemon=True)
        self._thread.start()

    def choose(self, choice: Choice) -> None:
        """Keep other pictures from the next part on; for the thread that offers them."""
        self._choice = choice

    def offer(self, image: Image, verdict: Verdict) -> None:
        """Take a read-only uint8 RGB (H, W, 3) picture or leave it; returns at once and raises nothing."""
        why = self._choice.why(verdict)
        if why is None:
            return
        try:
            self._queue.put_nowait(_Picture(image, verdict, why))
        except queue.Full:
            self.counts.dropped += 1

    def close(self) -> None:
        """Write what waits, for some seconds at most; may be called twice."""
        self._closing.set()
        with contextlib.suppress(queue.Full):  # the thread ends by itself once the queue is empty
            self._queue.put_nowait(None)
        self._thread.join(timeout=_CLOSING_S)

    def _work(self) -> None:
        if sys.platform == "linux":  # a thread's own priority is Linux's: the cores belong to the network and the search
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        with contextlib.suppress(OSError):
            for half in self.folder.glob("*/.*.png.*.tmp"):  # a kill came while it was written
                half.unlink()
        for path, size in stored(self.folder):
            self._hold(path, size)
        while (picture := self._next()) is not None:
            try:
                self._keep(picture)
            except Exception as error:  # whatever is wrong with one picture, the next one may be kept
                self.counts.failed += 1
                self._fail(str(error))

    def _next(self) -> _Picture | None:
        if self._closing.is_set() and self._queue.empty():
            return None
        return self._queue.get()

    def _keep(self, picture: _Picture) -> None:
        verdict = picture.verdict
        data = encode_png(picture.image)
        if not self._make_room(len(data), verdict.outcome):
            self.counts.no_room += 1
            return
        name = f"{self._run}/{verdict.part:08d}-{verdict.outcome.value}.png"
        write_file(self.folder / name, data)
        self._hold(self.folder / name, len(data))
        self.counts.written += 1
        digest = pixel_digest(picture.image)
        self._ledger.note_evidence(part=verdict.part, outcome=verdict.outcome, path=name, pixels=digest, why=picture.why)

    def _make_room(self, size: int, outcome: Outcome) -> bool:
        """Delete until `size` bytes fit the quota; False where they cannot."""
        if size + (self._others.bytes if outcome is Outcome.PASS else 0) > self._quota_bytes:
            return False
        deleted = []
        while self._passes.bytes + self._others.bytes + size > self._quota_bytes:
            path = (self._passes if self._passes.files else self._others).delete_oldest()
            self.counts.deleted += 1
            deleted.append(str(path.relative_to(self.folder)))
        if deleted:
            self._ledger.later("evidence deleted", {"paths": deleted, "quota_bytes": self._quota_bytes})
        return True

    def _hold(self, path: Path, size: int) -> None:
        (self._passes if path.stem.endswith(Outcome.PASS.value) else self._others).add(path, size)

    def _fail(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            self._complain(f"evidence is not kept: {reason}; verdicts go on")
            self._ledger.later("evidence failed", {"reason": reason})


def stored(folder: Path) -> list[tuple[Path, int]]:
    """Pictures that stand in an evidence folder, oldest first, with their sizes in bytes; empty where it cannot be read."""
    found = []
    with contextlib.suppress(OSError):
        for path in folder.glob("*/*.png"):
            with contextlib.suppress(FileNotFoundError):  # deleted for the quota in this moment
                if _NAME.fullmatch(path.name):
                    status = path.stat()
                    found.append((status.st_mtime_ns, path, status.st_size))
    return [(path, size) for _, path, size in sorted(found)]
