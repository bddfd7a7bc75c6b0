"""The journal: one whole line a row, or none and an error."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import StationError
from edge.journal import JsonLinesJournal
from edge.verdict import Outcome, Verdict

RUN, DIGEST = "2024-01-01T00:00:00+00:00/7", "d" * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal goes."""
    return tmp_path / "journal.jsonl"


def opened(path: Path, run: str = RUN) -> JsonLinesJournal:
    return JsonLinesJournal(path, run, DIGEST)


def verdict(part: int = 1, score: float | None = 0.5, **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "outcome": Outcome.PASS,
        "threshold": 1.25,
        "latency_ms": 12.3456,
        "reason": "score 0.5 is at or below the threshold 1.25",
        "source": "good/1.png",
    }
    return Verdict(part=part, score=score, **fields | changes)


def rows(path: Path) -> list[dict[str, Any]]:
    """Every line, parsed strictly: NaN is no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_verdict_is_one_line_with_everything_an_auditor_asks(path: Path) -> None:
    journal = opened(path)
    journal.verdict(verdict(7))
    journal.close()
    (row,) = rows(path)
    assert row.pop("when").endswith("+00:00")
    assert row == {
        "run": RUN,
        "bundle": DIGEST,
        "part": 7,
        "outcome": "PASS",
        "score": 0.5,
        "threshold": 1.25,
        "latency_ms": 12.346,
        "reason": "score 0.5 is at or below the threshold 1.25",
        "source": "good/1.png",
    }


def test_a_row_is_there_before_the_journal_closes(path: Path) -> None:
    journal = opened(path)
    journal.verdict(verdict())
    assert len(rows(path)) == 1
    journal.close()


def test_events_keep_their_details(path: Path) -> None:
    journal = opened(path)
    journal.event("started", {"station": "line-1", "calibration": {"n": 99}})
    journal.close()
    (row,) = rows(path)
    assert (row["event"], row["station"], row["calibration"], row["run"]) == ("started", "line-1", {"n": 99}, RUN)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, None])
def test_a_score_that_is_no_number_becomes_null(path: Path, score: float | None) -> None:
    journal = opened(path)
    journal.verdict(verdict(score=score, outcome=Outcome.FAULT))
    journal.close()
    assert rows(path)[0]["score"] is None


@given(
    scores=st.lists(st.floats() | st.none(), max_size=8),
    text=st.text(max_size=40),
)
def test_whatever_is_written_each_verdict_is_one_line(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float | None], text: str
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    journal = opened(path)
    for part, score in enumerate(scores, start=1):
        journal.verdict(verdict(part, score, reason=text, source=text))
    journal.close()
    found = rows(path)
    assert [row["part"] for row in found] == list(range(1, len(scores) + 1))
    assert [row["score"] for row in found] == [
        score if score is not None and math.isfinite(score) else None for score in scores
    ]
    assert all(row["reason"] == text and row["source"] == text for row in found)


def test_a_later_run_appends(path: Path) -> None:
    for run in ("first", "second"):
        journal = opened(path, run)
        journal.verdict(verdict())
        journal.close()
    assert [row["run"] for row in rows(path)] == ["first", "second"]


@pytest.mark.parametrize("size", [1, 10, 65_535, 65_536, 65_537, 200_000])
@pytest.mark.parametrize("whole", [0, 2])
def test_a_half_line_is_cut_at_the_start_and_that_is_noted(path: Path, whole: int, size: int) -> None:
    journal = opened(path, "first")
    for part in range(1, whole + 1):
        journal.verdict(verdict(part))
    journal.close()
    with path.open("ab") as file:
        file.write(b"{" + b"x" * (size - 1))
    journal = opened(path, "second")
    journal.verdict(verdict(1))
    journal.close()
    found = rows(path)
    assert [row.get("part") for row in found] == [*range(1, whole + 1), None, 1]
    assert (found[whole]["event"], found[whole]["cut_bytes"], found[whole]["run"]) == ("recovered", size, "second")


def test_a_whole_journal_is_not_touched(path: Path) -> None:
    path.write_bytes(b'{"a": 1}\n')
    opened(path).close()
    assert path.read_bytes() == b'{"a": 1}\n'


def test_every_place_where_a_kill_may_have_cut_a_row(path: Path) -> None:
    journal = opened(path)
    journal.verdict(verdict(1))
    journal.close()
    one = path.read_bytes()
    for length in (*range(0, len(one), 12), len(one) - 1):
        path.write_bytes(one + one[:length])
        journal = opened(path)
        journal.verdict(verdict(2))
        journal.close()
        assert [row["part"] for row in rows(path) if "part" in row] == [1, 2]


def full_disk(monkeypatch: pytest.MonkeyPatch, fitting: int) -> None:
    """`fitting` bytes of a row still fit; without any, writing fails with ENOSPC."""
    real = os.write

    def write(handle: int, data: bytes) -> int:
        if fitting == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data[:fitting])

    monkeypatch.setattr("edge.journal.os.write", write)


@pytest.mark.parametrize("fitting", [0, 1, 100])
def test_a_full_disk_leaves_no_half_line(path: Path, monkeypatch: pytest.MonkeyPatch, fitting: int) -> None:
    journal = opened(path)
    journal.verdict(verdict(1))
    with monkeypatch.context() as broken:
        full_disk(broken, fitting)
        with pytest.raises(StationError, match=r"journal\.jsonl: the journal cannot be written \(.*\); check the disk"):
            journal.verdict(verdict(2))
    assert [row["part"] for row in rows(path)] == [1]
    journal.verdict(verdict(3))
    journal.close()
    assert [row["part"] for row in rows(path)] == [1, 3]


def test_a_half_line_that_could_not_be_cut_off_spoils_no_later_row(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = opened(path)
    journal.verdict(verdict(1))
    with monkeypatch.context() as broken:
        full_disk(broken, 50)
        broken.setattr("edge.journal.os.ftruncate", refuse)
        for part in (2, 3):
            with pytest.raises(StationError, match="cannot be written"):
                journal.verdict(verdict(part))
    journal.verdict(verdict(4))
    journal.close()
    assert [row["part"] for row in rows(path)] == [1, 4]


def test_a_disk_that_does_not_confirm_is_an_error_at_close(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = opened(path)
    journal.verdict(verdict(1))
    monkeypatch.setattr("edge.journal.os.fsync", refuse)
    with pytest.raises(StationError, match="cannot be written"):
        journal.close()
    journal.close()
    assert len(rows(path)) == 1


LIMITED = """
import resource, signal, sys
from pathlib import Path
from edge import StationError
from edge.journal import JsonLinesJournal
from edge.verdict import Outcome, Verdict
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = JsonLinesJournal(Path(sys.argv[1]), "run", "digest")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
kept = 0
for part in range(1, 100):
    try:
        journal.verdict(Verdict(part, Outcome.PASS, 0.5, 1.0, 2.0, "r" * (part % 7), "1.png"))
        kept += 1
    except StationError:
        break
print(kept)
"""


def test_a_file_that_the_system_lets_grow_no_further(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True, timeout=60)
    kept = int(done.stdout)
    assert 3 <= kept < 10
    assert [row["part"] for row in rows(path)] == list(range(1, kept + 1))


def test_folders_are_made(tmp_path: Path) -> None:
    journal = opened(tmp_path / "logs" / "deep" / "journal.jsonl")
    journal.verdict(verdict())
    journal.close()
    assert len(rows(tmp_path / "logs" / "deep" / "journal.jsonl")) == 1


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "journal.jsonl"):
        with pytest.raises(StationError, match="cannot be written"):
            opened(path)


def test_closing_twice_is_harmless_and_writing_after_it_refused(path: Path) -> None:
    journal = opened(path)
    journal.close()
    journal.close()
    with pytest.raises(StationError, match="cannot be written"):
        journal.verdict(verdict())
