"""Evidence: the right pictures, within the quota, and never in a verdict's way."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge.evidence as module
from edge.evidence import Choice, EvidenceFolder, stored
from edge.journal import SqliteJournal
from edge.station import Station
from edge.verdict import Outcome, Verdict
from engines.images import encode_png, pixel_digest, read_image
from tests.fakes import (
    FakeCamera,
    FakeClock,
    FakeLedger,
    FakeRejector,
    FakeScorer,
    Scoring,
    flat,
    journal_rows,
    judge_of,
    textured,
)

THRESHOLD = 10.0
EVERYTHING = Choice(every=1, near=0.0)
SIZE = len(encode_png(textured(0)))


def verdict(part: int, outcome: Outcome = Outcome.PASS, score: float | None = 0.0) -> Verdict:
    return Verdict(part, outcome, score, THRESHOLD, 5.0, "r", f"{part}.png", "conformal")


def opened(
    folder: Path, ledger: FakeLedger, *, run: str = "run", choice: Choice = EVERYTHING, quota: int = 10**9, waiting: int = 100
) -> tuple[EvidenceFolder, list[str]]:
    complaints: list[str] = []
    evidence = EvidenceFolder(folder, run, ledger, choice, quota_bytes=quota, waiting=waiting, complain=complaints.append)
    return evidence, complaints


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


@pytest.mark.parametrize(
    ("part", "outcome", "score", "why"),
    [
        (1, Outcome.REJECT, 11.0, "reject"),
        (1, Outcome.FAULT, None, "fault"),
        (1, Outcome.FAULT, 3.0, "fault"),
        (1, Outcome.PASS, 10.0, "near"),
        (1, Outcome.PASS, 8.0, "near"),
        (1, Outcome.PASS, 7.999, None),
        (5, Outcome.PASS, 0.0, "sample"),
        (10, Outcome.PASS, 9.0, "near"),
        (4, Outcome.PASS, -3.0, None),
    ],
)
def test_what_is_kept_and_why(part: int, outcome: Outcome, score: float | None, why: str | None) -> None:
    assert Choice(every=5, near=2.0).why(verdict(part, outcome, score)) == why


def test_no_sampling() -> None:
    assert Choice(every=0, near=0.0).why(verdict(100)) is None
    assert Choice(every=0, near=0.0).why(verdict(100, score=THRESHOLD)) == "near"  # at the threshold


def test_a_picture_is_written_whole_and_noted(tmp_path: Path) -> None:
    ledger = FakeLedger()
    evidence, complaints = opened(tmp_path / "evidence", ledger)
    picture = textured(3)
    evidence.offer(picture, verdict(17, Outcome.REJECT))
    evidence.close()
    name = "run/00000017-REJECT.png"
    assert ledger.pictures == [(17, Outcome.REJECT, name, pixel_digest(picture), "reject")]
    assert pixel_digest(read_image(tmp_path / "evidence" / name)) == pixel_digest(picture)
    assert names(tmp_path / "evidence") == [name]
    assert (evidence.counts.written, complaints) == (1, [])


def test_nothing_is_made_where_nothing_is_kept(tmp_path: Path) -> None:
    evidence, _ = opened(tmp_path / "evidence", FakeLedger(), choice=Choice(every=0, near=0.0))
    evidence.offer(flat(1), verdict(1))
    evidence.close()
    assert not (tmp_path / "evidence").exists()


def blocked(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Writing waits until it is released; the first event says that it has begun."""
    begun, release, real = threading.Event(), threading.Event(), module.write_file

    def write(path: Path, data: bytes) -> None:
        begun.set()
        assert release.wait(30)
        real(path, data)

    monkeypatch.setattr(module, "write_file", write)
    return begun, release


def test_a_full_queue_drops_pictures_and_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, release = blocked(monkeypatch)
    evidence, _ = opened(tmp_path, FakeLedger(), waiting=2)
    evidence.offer(flat(0), verdict(1, Outcome.REJECT))
    assert begun.wait(30)
    started = time.monotonic()
    for part in range(2, 102):
        evidence.offer(flat(0), verdict(part, Outcome.REJECT))
    assert time.monotonic() - started < 5
    assert evidence.counts.dropped == 98
    release.set()
    evidence.close()
    assert [name[-10:] for name in names(tmp_path)] == ["REJECT.png"] * 3
    assert evidence.counts.written == 3


def test_closing_does_not_wait_for_a_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, release = blocked(monkeypatch)
    monkeypatch.setattr(module, "_CLOSING_S", 0.1)
    evidence, _ = opened(tmp_path, FakeLedger(), waiting=1)
    evidence.offer(flat(0), verdict(1))
    assert begun.wait(30)
    evidence.offer(flat(0), verdict(2))
    evidence.close()
    release.set()
    evidence._thread.join(timeout=30)
    assert not evidence._thread.is_alive()
    assert len(names(tmp_path)) == 2  # what waited is still written, should the process live on
    evidence.close()


def test_over_the_quota_the_oldest_passes_go_first_and_then_the_oldest_of_the_others(tmp_path: Path) -> None:
    ledger = FakeLedger()
    evidence, _ = opened(tmp_path, ledger, quota=4 * SIZE)
    for part, outcome in enumerate(
        [Outcome.REJECT, Outcome.PASS, Outcome.FAULT, Outcome.PASS, Outcome.REJECT, Outcome.REJECT, Outcome.REJECT], start=1
    ):
        evidence.offer(textured(0), verdict(part, outcome))
    evidence.close()
    assert names(tmp_path) == [f"run/0000000{n}" for n in ("3-FAULT.png", "5-REJECT.png", "6-REJECT.png", "7-REJECT.png")]
    deleted = [path for name, details in ledger.events if name == "evidence deleted" for path in details["paths"]]  # type: ignore[attr-defined]
    assert deleted == ["run/00000002-PASS.png", "run/00000004-PASS.png", "run/00000001-REJECT.png"]
    assert evidence.counts.deleted == 3


def test_a_pass_takes_the_place_of_no_other_outcome(tmp_path: Path) -> None:
    evidence, _ = opened(tmp_path, FakeLedger(), quota=2 * SIZE)
    for part, outcome in enumerate([Outcome.REJECT, Outcome.FAULT, Outcome.PASS], start=1):
        evidence.offer(textured(0), verdict(part, outcome))
    evidence.close()
    assert names(tmp_path) == ["run/00000001-REJECT.png", "run/00000002-FAULT.png"]
    assert (evidence.counts.no_room, evidence.counts.deleted) == (1, 0)


def test_a_picture_larger_than_the_quota_deletes_nothing(tmp_path: Path) -> None:
    evidence, _ = opened(tmp_path, FakeLedger(), quota=SIZE)
    evidence.offer(textured(0), verdict(1))
    evidence.offer(textured(0, (128, 128)), verdict(2, Outcome.REJECT))
    evidence.close()
    assert names(tmp_path) == ["run/00000001-PASS.png"]
    assert evidence.counts.no_room == 1


def test_what_earlier_runs_left_counts_and_goes_first(tmp_path: Path) -> None:
    earlier, _ = opened(tmp_path, FakeLedger(), run="earlier")
    for part in (1, 2):
        earlier.offer(textured(0), verdict(part))
    earlier.close()
    os.utime(tmp_path / "earlier" / "00000001-PASS.png", (5, 5))
    os.utime(tmp_path / "earlier" / "00000002-PASS.png", (4, 4))
    (tmp_path / "earlier" / "mine.png").write_bytes(b"no picture of a station")
    later, _ = opened(tmp_path, FakeLedger(), run="later", quota=2 * SIZE)
    later.offer(textured(0), verdict(1))
    later.close()
    assert names(tmp_path) == ["earlier/00000001-PASS.png", "earlier/mine.png", "later/00000001-PASS.png"]
    assert [path.name for path, _ in stored(tmp_path)] == ["00000001-PASS.png", "00000001-PASS.png"]


def test_what_a_kill_left_half_written_goes(tmp_path: Path) -> None:
    half = tmp_path / "killed" / ".00000007-PASS.png.x1y2.tmp"
    half.parent.mkdir()
    half.write_bytes(b"half")
    opened(tmp_path, FakeLedger())[0].close()
    assert not half.exists()


def test_folders_of_runs_go_with_their_last_picture(tmp_path: Path) -> None:
    for run in ("one", "two"):
        evidence, _ = opened(tmp_path, FakeLedger(), run=run, quota=SIZE)
        evidence.offer(textured(0), verdict(1))
        evidence.close()
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


@given(st.lists(st.tuples(st.sampled_from(list(Outcome)), st.integers(1, 3)), max_size=25))
def test_the_quota_holds_whatever_comes(tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[Outcome, int]]) -> None:
    folder = tmp_path_factory.mktemp("evidence")
    quota = 5 * SIZE
    evidence, complaints = opened(folder, FakeLedger(), quota=quota)
    for number, (outcome, size) in enumerate(parts, start=1):
        evidence.offer(textured(0, (32 * size, 32 * size)), verdict(number, outcome))
    evidence.close()
    kept = stored(folder)
    assert sum(size for _, size in kept) <= quota
    counts = evidence.counts
    assert (counts.written + counts.no_room, counts.failed, complaints) == (len(parts), 0, [])
    assert counts.written - counts.deleted == len(kept)


def full(path: Path, data: bytes) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def broken(path: Path, data: bytes) -> None:
    raise RuntimeError("a bug")


@pytest.mark.parametrize("write", [full, broken])
def test_a_disk_that_is_full_is_said_once_and_the_next_picture_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, bytes], None]
) -> None:
    ledger, real, calls = FakeLedger(), module.write_file, 0

    def sometimes(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += 1
        (write if calls <= 3 else real)(path, data)

    monkeypatch.setattr(module, "write_file", sometimes)
    evidence, complaints = opened(tmp_path, ledger)
    for part in range(1, 5):
        evidence.offer(flat(0), verdict(part, Outcome.REJECT))
    evidence.close()
    assert (evidence.counts.failed, evidence.counts.written) == (3, 1)
    assert len(complaints) == 1
    assert complaints[0].startswith("evidence is not kept: ")
    assert complaints[0].endswith("; verdicts go on")
    assert [name for name, _ in ledger.events] == ["evidence failed"]
    assert [picture[0] for picture in ledger.pictures] == [4]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    evidence, complaints = opened(tmp_path / "file", FakeLedger())
    evidence.offer(flat(0), verdict(1, Outcome.REJECT))
    evidence.close()
    assert evidence.counts.failed == 1
    assert "could not be written" in complaints[0]


JUDGED = [
    Scoring(0.0),
    Scoring(11.0),
    Scoring(9.9),
    Scoring(0.0, ms=500.0),
    Scoring(float("nan")),
    Scoring(0.0, error=RuntimeError("x")),
    Scoring(10.0),
]


def judged(folder: Path, open_evidence: Callable[[SqliteJournal], EvidenceFolder] | None) -> tuple[Any, ...]:
    """What comes of a run with and without evidence: verdicts, what the line was told, and the parts' rows."""
    clock, rejector = FakeClock(), FakeRejector()
    journal = SqliteJournal(folder / "journal.db", "run", clock)
    evidence = None if open_evidence is None else open_evidence(journal)
    scorings = JUDGED * 5
    station = Station(
        judge=judge_of(FakeScorer(clock, list(scorings)), THRESHOLD),
        rejector=rejector,
        journal=journal,
        clock=clock,
        deadline_ms=100.0,
        evidence=evidence,
    )
    verdicts: list[Verdict] = []
    station.run(FakeCamera(clock, [flat(1, (16, 16))] * len(scorings)), verdicts.append)
    journal.close()
    rows = [row for row in journal_rows(folder / "journal.db") if "latency_ms" in row]
    times = ("recorded", "triggered")
    return verdicts, rejector.trace, [{key: value for key, value in row.items() if key not in times} for row in rows]


def test_verdicts_are_the_same_without_evidence_with_a_disk_that_fails_and_with_a_queue_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_: list[EvidenceFolder] = []

    def open_evidence(journal: SqliteJournal) -> EvidenceFolder:
        made = EvidenceFolder(
            tmp_path / "kept", "run", journal, EVERYTHING, quota_bytes=10**9, waiting=1, complain=lambda line: None
        )
        opened_.append(made)
        return made

    def run(name: str, open_: Callable[[SqliteJournal], EvidenceFolder] | None) -> tuple[Any, ...]:
        (tmp_path / name).mkdir()
        return judged(tmp_path / name, open_)

    without = run("without", None)
    assert {verdict.outcome for verdict in without[0]} == set(Outcome)
    assert len(without[2]) == len(without[0]) == 5 * len(JUDGED)
    assert run("with", open_evidence) == without
    monkeypatch.setattr(module, "write_file", full)
    assert run("failing disk", open_evidence) == without
    opened_[1].close()
    assert opened_[1].counts.failed > 0
    _, release = blocked(monkeypatch)
    assert run("full queue", open_evidence) == without
    assert opened_[2].counts.dropped >= 5 * len(JUDGED) - 2
    release.set()
    for evidence in opened_:
        evidence.close()


def test_a_picture_that_cannot_be_deleted_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = Path.unlink
    evidence, complaints = opened(tmp_path, FakeLedger(), quota=SIZE)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".png":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    for part in (1, 2, 3):
        evidence.offer(textured(0), verdict(part))
    evidence.close()
    assert (evidence.counts.written, evidence.counts.failed, evidence.counts.deleted) == (1, 2, 0)
    assert len(complaints) == 1
