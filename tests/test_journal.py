"""The journal: a row on the disk before anybody hears of the verdict, or an error; and whatever was lost is said."""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import StationError
from edge.audit import audit
from edge.chain import JOURNAL
from edge.journal import SqliteJournal
from edge.judge import row_fields
from edge.verdict import Arrival, Frame, Missing, Outcome, Verdict
from tests.fakes import FakeClock, flat, journal_rows, tiny_calibration

RUN = "20240101T000000.000000Z-7"
CALIBRATION = tiny_calibration()
JUDGED_WITH = row_fields("tiny", CALIBRATION)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal goes."""
    return tmp_path / "journal.db"


def opened(path: Path, run: str = RUN, timeout_ms: float = 200) -> SqliteJournal:
    return SqliteJournal(path, run, FakeClock(), timeout_ms=timeout_ms)


def arrival(part: int = 1, source: str = "good/1.png") -> Arrival:
    """Triggered 250 ms before the clock's time, pictured 2 ms after."""
    trigger_ns = FakeClock().now_ns() - 250_000_000
    return Frame(flat(0), part, trigger_ns + 2_000_000, trigger_ns, source)


def verdict(part: int = 1, score: float | None = 0.5, **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "outcome": Outcome.PASS,
        "threshold": 1.25,
        "threshold_method": "conformal",
        "latency_ms": 12.3456,
        "reason": "score 0.5 is at or below the threshold 1.25",
        "source": "good/1.png",
    }
    return Verdict(part=part, score=score, **fields | changes)


def keep(journal: SqliteJournal, part: int, **changes: Any) -> None:
    journal.announce(arrival(part), JUDGED_WITH)
    journal.verdict(verdict(part, **changes))


def events(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(row["event"], row["details"]) for row in journal_rows(path) if row["kind"] == "event"]


def parts(path: Path) -> list[tuple[int, str]]:
    return [(row["part"], row["outcome"]) for row in journal_rows(path) if row["kind"] == "part"]


def killed(journal: SqliteJournal) -> None:
    """What is left when the process dies: nothing written, and the lock gone."""
    journal._connection.close()
    os.close(journal._lock)
    journal._lock = -1


def test_a_verdict_is_one_row_with_everything_an_auditor_asks(path: Path) -> None:
    journal = opened(path)
    keep(journal, 7, stages_ms={"capture": 2.0, "search": 3.4567})
    journal.close()
    (row,) = journal_rows(path)
    assert row.pop("recorded").endswith("+00:00")
    assert row.pop("triggered").endswith("+00:00")
    assert row == {
        "kind": "part",
        "run": RUN,
        "part": 7,
        "outcome": "PASS",
        "score": 0.5,
        "threshold": 1.25,
        "threshold_method": "conformal",
        "latency_ms": 12.346,
        "capture_ms": 2.0,
        "trigger_ns": 10**12 - 250_000_000,
        "reason": "score 0.5 is at or below the threshold 1.25",
        "source": "good/1.png",
        "recipe": "tiny",
        "bundle": "b" * 64,
        "backend": "onnxruntime",
        "precision": "fp32",
        "engine": "e" * 64,
        "calibration": CALIBRATION.digest,
        "part_ref": None,
        "stages_ms": {"capture": 2.0, "search": 3.457},
    }


def test_the_trigger_is_as_long_ago_on_the_wall_as_on_the_monotonic_clock(path: Path) -> None:
    journal = opened(path)
    keep(journal, 1)
    journal.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (ago_ms,) = connection.execute(
            "SELECT 86400000 * (julianday(recorded) - julianday(triggered)) FROM parts"
        ).fetchone()  # views are for such questions
    assert 249 <= ago_ms < 5000


def test_a_part_without_a_picture_has_no_time_of_capture(path: Path) -> None:
    journal = opened(path)
    journal.announce(Missing(1, 10**12, "a.png", "truncated"), JUDGED_WITH)
    journal.verdict(verdict(1, None, outcome=Outcome.FAULT))
    journal.close()
    assert journal_rows(path)[0]["capture_ms"] is None


def test_every_commit_of_a_verdict_waits_for_the_disk(path: Path) -> None:
    """What survives a power cut is SQLite's promise for these two settings, and the disk's to keep."""
    journal = opened(path)
    keep(journal, 1)
    assert journal._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert journal._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    journal.announce(arrival(2), JUDGED_WITH)
    assert journal._connection.execute("PRAGMA synchronous").fetchone() == (1,)  # NORMAL: an announcement alone
    statements: list[str] = []
    journal._connection.set_trace_callback(statements.append)
    journal.verdict(verdict(2))
    journal.event("x", {})
    assert [word for word in statements if word.startswith(("PRAGMA", "BEGIN", "COMMIT"))] == [
        "PRAGMA synchronous = FULL",
        "BEGIN IMMEDIATE",
        "COMMIT",
    ] * 2
    journal.close()


def test_a_row_is_there_before_the_journal_closes(path: Path) -> None:
    journal = opened(path)
    keep(journal, 1)
    assert parts(path) == [(1, "PASS")]
    journal.close()


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, None])
def test_a_score_that_is_no_number_becomes_null(path: Path, score: float | None) -> None:
    journal = opened(path)
    keep(journal, 1, score=score, outcome=Outcome.FAULT)
    journal.close()
    assert journal_rows(path)[0]["score"] is None


@given(scores=st.lists(st.floats() | st.none(), max_size=8), text=st.text(st.characters(), max_size=40))
def test_whatever_is_written_is_read_back_and_the_chain_is_whole(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float | None], text: str
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.db"
    journal = opened(path)
    for part, score in enumerate(scores, start=1):
        journal.announce(arrival(part, text), JUDGED_WITH)
        journal.verdict(verdict(part, score, reason=text))
    journal.close()
    found = journal_rows(path)
    finite = [score if score is not None and math.isfinite(score) else None for score in scores]
    assert [(row["part"], row["score"]) for row in found] == list(enumerate(finite, start=1))
    assert all(row["reason"] == text and row["source"] == text for row in found)
    assert audit(path).broken is None


def test_a_name_that_is_not_text_is_kept(path: Path) -> None:
    journal = opened(path)
    journal.announce(arrival(1, "\udcff.png"), JUDGED_WITH)
    journal.verdict(verdict(1))
    journal.close()
    assert journal_rows(path)[0]["source"] == "\udcff.png"
    assert audit(path).broken is None


def test_a_later_run_appends(path: Path) -> None:
    for run in ("first", "second"):
        journal = opened(path, run)
        keep(journal, 1)
        journal.close()
    assert [row["run"] for row in journal_rows(path)] == ["first", "second"]
    assert audit(path).rows == 2


def test_a_verdict_that_was_not_announced_is_refused(path: Path) -> None:
    journal = opened(path)
    with pytest.raises(StationError, match="part 3 was not announced"):
        journal.verdict(verdict(3))
    journal.close()


def test_a_second_row_of_a_part_follows_the_first(path: Path) -> None:
    journal = opened(path)
    keep(journal, 1)
    journal.verdict(verdict(1, outcome=Outcome.FAULT))
    journal.close()
    assert parts(path) == [(1, "PASS"), (1, "FAULT")]
    assert dict(audit(path).runs[RUN].outcomes) == {"PASS": 0, "FAULT": 1}


def test_a_part_in_flight_when_the_process_died_is_a_fault_after_the_restart(path: Path) -> None:
    journal = opened(path, "first")
    journal.event("started", {})
    keep(journal, 1)
    journal.announce(arrival(2, "bad/2.png"), JUDGED_WITH)
    killed(journal)
    opened(path, "second").close()
    last, interrupted = journal_rows(path)[-2:]
    assert (last["run"], last["part"], last["outcome"], last["source"]) == ("first", 2, "FAULT", "bad/2.png")
    assert last["reason"] == "the station ended before the verdict was recorded; the part did not pass"
    assert (last["score"], last["bundle"], last["capture_ms"]) == (None, "b" * 64, 2.0)
    assert interrupted["event"] == "interrupted"
    assert interrupted["details"] == {"run": "first", "last_part": 1, "in_flight": 1}
    opened(path, "third").close()
    assert len(journal_rows(path)) == 4  # it is said once
    assert audit(path).gaps == ["row 4: run first was interrupted after part 1, parts in flight: 1"]


def test_a_death_between_parts_is_recorded_too(path: Path) -> None:
    journal = opened(path, "first")
    journal.event("started", {})
    killed(journal)
    opened(path, "second").close()
    assert events(path)[-1] == ("interrupted", {"run": "first", "last_part": None, "in_flight": 0})


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A journal of 20 parts as it lies on the disk while the station runs: the file and its write-ahead log."""
    path = tmp_path_factory.mktemp("running") / "journal.db"
    journal = opened(path, "first")
    journal.event("started", {})
    for part in range(1, 21):
        keep(journal, part)
    journal.announce(arrival(21), JUDGED_WITH)
    data = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    killed(journal)
    return data


@given(share=st.floats(0, 1), torn=st.binary(max_size=50), zeros=st.integers(0, 9000))
def test_whatever_of_the_log_a_power_cut_took_a_whole_beginning_is_left(
    tmp_path_factory: pytest.TempPathFactory, log: tuple[bytes, bytes], share: float, torn: bytes, zeros: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "journal.db"
    path.write_bytes(log[0])
    Path(f"{path}-wal").write_bytes(log[1][: round(share * len(log[1]))] + torn + bytes(zeros))
    journal = opened(path, "second")
    keep(journal, 1)
    journal.close()
    assert audit(path).broken is None
    rows = [row for row in journal_rows(path) if row["kind"] == "part" and row["run"] == "first"]
    assert [row["part"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(row["outcome"] == "PASS" for row in rows[:-1])  # only the last one may have been in flight
    assert len(rows) < 21 or rows[20]["outcome"] == "FAULT"
    assert (len(rows) == 21) or share < 1


def test_a_run_that_stopped_was_not_interrupted(path: Path) -> None:
    journal = opened(path, "first")
    journal.event("started", {})
    keep(journal, 1)
    journal.event("stopped", {})
    journal.close()
    opened(path, "second").close()
    assert [name for name, _ in events(path)] == ["started", "stopped"]


def test_a_part_that_an_interrupt_left_undecided_is_a_fault_when_the_journal_closes(path: Path) -> None:
    journal = opened(path)
    keep(journal, 1)
    journal.announce(arrival(2), JUDGED_WITH)
    journal.event("stopped", {"reason": "KeyboardInterrupt"})
    journal.close()
    assert parts(path) == [(1, "PASS"), (2, "FAULT")]


def test_an_interrupt_behind_the_commit_breaks_nothing(path: Path) -> None:
    journal = opened(path)
    keep(journal, 1)
    journal._head = None  # as it is when the interrupt comes before the new head is noted
    keep(journal, 2)
    journal.close()
    assert audit(path).rows == 2


def test_an_interrupt_that_left_a_transaction_open_breaks_nothing(path: Path) -> None:
    journal = opened(path)
    journal._connection.execute("BEGIN IMMEDIATE")
    keep(journal, 1)
    journal.close()
    assert parts(path) == [(1, "PASS")]


def test_a_lock_holds_a_row_up_no_longer_than_it_may_and_the_gap_is_recorded(path: Path) -> None:
    journal = opened(path, timeout_ms=100)
    keep(journal, 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for part in (2, 3):
            begun = time.monotonic()
            with pytest.raises(StationError, match=r"cannot be written \(locked for more than 100 ms; close the program"):
                journal.announce(arrival(part), JUDGED_WITH)
            with pytest.raises(StationError, match="locked for more than 100 ms"):
                journal.verdict(verdict(part))
            assert time.monotonic() - begun < 5
        with pytest.raises(StationError):
            journal.verdict(verdict(3, outcome=Outcome.FAULT))  # the row that would replace it: no further part
        other.execute("ROLLBACK")
    keep(journal, 4)
    keep(journal, 5)
    journal.close()
    ((name, gap),) = events(path)
    assert (name, gap["first"], gap["last"], gap["parts"]) == ("gap", 2, 3, 2)
    assert "locked" in gap["reason"]
    assert parts(path) == [(1, "PASS"), (4, "PASS"), (5, "PASS")]
    report = audit(path)
    assert (report.broken, report.runs[RUN].missing) == (None, 2)
    assert report.gaps[0].startswith(f"row 2: run {RUN}, 2 parts from 2 to 3 were FAULT and could not be recorded")


def test_a_gap_at_the_end_is_recorded_when_the_journal_closes(path: Path) -> None:
    journal = opened(path, timeout_ms=1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StationError):
            journal.announce(arrival(1), JUDGED_WITH)
        with pytest.raises(StationError):
            journal.verdict(verdict(1))
    journal.close()
    assert [name for name, _ in events(path)] == ["gap"]


def test_a_reader_holds_nothing_up(path: Path) -> None:
    journal = opened(path, timeout_ms=1)
    keep(journal, 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM parts").fetchone() == (1,)
        keep(journal, 2)
        assert audit(path).rows == 2
    journal.close()


def test_two_stations_on_one_journal_are_refused(path: Path) -> None:
    journal = opened(path)
    with pytest.raises(StationError, match="another station writes to it; stop that one"):
        opened(path)
    journal.close()
    opened(path).close()


def test_a_writer_that_knows_no_lock_is_noticed(path: Path) -> None:
    journal = opened(path)
    keep(journal, 1)
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.execute("INSERT INTO chain SELECT 2, kind, body, hash FROM chain")
    with pytest.raises(StationError, match="UNIQUE constraint failed"):
        keep(journal, 2)
    killed(journal)
    assert "row 2: " in str(audit(path).broken)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_taken_away_is_noticed(path: Path, replaced: bool) -> None:
    journal = opened(path)
    keep(journal, 1)
    path.rename(path.with_name("elsewhere"))
    if replaced:
        path.write_bytes(b"")
    with pytest.raises(StationError, match="No such file" if not replaced else "another file has taken its place"):
        journal.announce(arrival(2), JUDGED_WITH)
    killed(journal)


LIMITED = """
import contextlib, resource, signal, sys
from pathlib import Path
from edge import StationError
from edge.verdict import Outcome
from tests.test_journal import JUDGED_WITH, arrival, opened, verdict
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = opened(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
kept = []
for part in range(1, 200):
    with contextlib.suppress(StationError):  # as the station does: the FAULT of a part that was not announced is kept too
        journal.announce(arrival(part), JUDGED_WITH)
    try:
        journal.verdict(verdict(part))
        kept.append(part)
    except StationError as error:
        complaint = str(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.announce(arrival(200), JUDGED_WITH)
journal.verdict(verdict(200))
journal.close()
print(len(kept), complaint)
"""


def test_a_disk_that_is_full_and_then_not(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True, timeout=60)
    kept, complaint = done.stdout.split(maxsplit=1)
    assert 3 <= int(kept) < 150
    assert "the journal cannot be written" in complaint
    report = audit(path)
    assert report.broken is None
    numbers = {part for part, _ in parts(path)}
    assert 200 in numbers
    lost = sum(details["parts"] for name, details in events(path) if name == "gap")
    assert len(numbers) + lost == 200
    assert len(numbers) == int(kept) + 1


def test_what_other_threads_leave_goes_with_the_next_row(path: Path) -> None:
    journal = opened(path)
    thread = threading.Thread(target=journal.later, args=("evidence failed", {"reason": "full"}))
    thread.start()
    thread.join()
    journal.note_evidence(part=1, outcome=Outcome.REJECT, path="run/1.png", pixels="d" * 64, why="reject")
    assert journal_rows(path) == []
    keep(journal, 1)
    assert [row["kind"] for row in journal_rows(path)] == ["part", "event", "evidence"]
    journal.note_evidence(part=2, outcome=Outcome.PASS, path="run/2.png", pixels="d" * 64, why="near")
    journal.close()
    last = journal_rows(path)[-1]
    assert (last["kind"], last["run"], last["part"], last["outcome"], last["why"]) == ("evidence", RUN, 2, "PASS", "near")


def test_the_log_is_moved_into_the_file_from_aside(path: Path) -> None:
    journal = opened(path)
    for part in range(1, 502):
        keep(journal, part)
    assert journal._checkpointing is not None
    journal._checkpointing.join(timeout=30)
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)) as alone:
        assert alone.execute("SELECT count(*) FROM chain").fetchone()[0] >= 500  # without the log
    journal.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["journal.db", "journal.db-lock"]


def test_folders_are_made(tmp_path: Path) -> None:
    journal = opened(tmp_path / "logs" / "deep" / "journal.db")
    keep(journal, 1)
    journal.close()
    assert parts(tmp_path / "logs" / "deep" / "journal.db") == [(1, "PASS")]


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "journal.db"):
        with pytest.raises(StationError, match=r"cannot be (written|read)"):
            opened(path)


def pragma(path: Path, name: str, value: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA {name} = {value}")


def test_other_files_are_refused_and_not_touched(path: Path) -> None:
    path.write_text('{"when": "2024", "part": 1}\n')
    with pytest.raises(StationError, match=r"a journal of JSON lines.*give this station another name, such as journal\.db"):
        opened(path)
    assert path.read_text() == '{"when": "2024", "part": 1}\n'
    path.write_bytes(b"PK\3\4 a zip")
    with pytest.raises(StationError, match="not a station's journal; give another file"):
        opened(path)
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE recipes (name)")
    before = path.read_bytes()
    with pytest.raises(StationError, match="a database of another program, expected a station's journal"):
        opened(path)
    assert path.read_bytes() == before


def test_a_newer_journal_is_refused(path: Path) -> None:
    opened(path).close()
    pragma(path, "user_version", 2)
    with pytest.raises(StationError, match="journal schema 2, expected 1; update the program"):
        opened(path)
    pragma(path, "user_version", 1)
    opened(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (JOURNAL.application_id,)


def test_a_death_before_the_tables_were_made_leaves_an_empty_journal(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    assert path.stat().st_size > 0
    opened(path).close()
    assert audit(path).rows == 0


def test_a_file_system_without_write_ahead_logs_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite3.connect
    monkeypatch.setattr("edge.journal.sqlite3.connect", lambda path, **options: real(":memory:", **options))
    with pytest.raises(StationError, match="without write-ahead logs; put the journal on a local disk"):
        opened(path)
    monkeypatch.undo()
    opened(path).close()  # the lock went with the refusal


def test_a_damaged_file_says_what_to_do(path: Path) -> None:
    journal = opened(path)
    for part in range(1, 100):
        keep(journal, part)
    journal.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(bytes(data))
    with pytest.raises(StationError, match=r"the journal is damaged .*; move the file away and keep it"):
        opened(path)
    assert "cannot be read" in str(audit(path).broken)


def test_closing_twice_is_harmless_and_writing_after_it_refused(path: Path) -> None:
    journal = opened(path)
    journal.close()
    journal.close()
    with pytest.raises(StationError, match="cannot be written"):
        journal.announce(arrival(), JUDGED_WITH)


def test_while_another_program_holds_the_lock_the_clock_sleeps_in_short_steps(path: Path) -> None:
    clock = FakeClock()
    journal = SqliteJournal(path, RUN, clock, timeout_ms=200)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        before, begun_ns = len(clock.slept_until), clock.now_ns()
        with pytest.raises(StationError, match="locked for more than 200 ms"):
            journal.event("one", {})
        slept = [when - begun_ns for when in clock.slept_until[before:]]
        assert slept == [step * 2_000_000 for step in range(1, 101)]  # the beat goes on meanwhile, every 2 ms
    journal.event("two", {})
    journal.close()
    assert [name for name, _ in events(path)] == ["two"]


def test_a_lock_that_is_let_go_in_time_costs_no_row(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:

        class Letting(FakeClock):
            def sleep_until_ns(self, when_ns: int) -> None:
                super().sleep_until_ns(when_ns)
                if len(self.slept_until) == 30:
                    other.execute("COMMIT")

        journal = SqliteJournal(path, RUN, Letting(), timeout_ms=200)
        other.execute("BEGIN IMMEDIATE")
        keep(journal, 1)
        journal.close()
    assert [part for part, _ in parts(path)] == [1]


def test_a_journal_that_a_power_cut_interrupted_while_it_was_made_starts_anew(tmp_path: Path) -> None:
    """Its first page never came to the disk; the rollback journal, which did, says that the file was empty before."""
    path = tmp_path / "journal.db"
    path.write_bytes(bytes(4096))
    header = bytes.fromhex("d9d505f920a163d7") + struct.pack(">IIIII", 0, 1, 0, 512, 4096)
    Path(f"{path}-journal").write_bytes(header.ljust(512, b"\0"))
    kept = SqliteJournal(path, "run-1", FakeClock())
    kept.event("started", {})
    kept.close()
    assert audit(path).broken is None
    assert [row["kind"] for row in journal_rows(path)] == ["event"]
