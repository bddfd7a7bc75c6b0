"""Labels: chained beside the journal, bound to the verdicts that they are about, all or none of a list."""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path

import pytest

from edge import StationError
from edge.audit import audit, export_csv
from edge.chain import LABEL, canonical, follow, last_head
from edge.journal import SqliteJournal
from edge.judge import row_fields
from edge.truth import (
    Label,
    add_labels,
    labelled_scores,
    labels_path,
    newest_label,
    read_labels,
    read_parts,
    tally,
    unlabelled,
)
from edge.verdict import Missing, Outcome, Verdict
from tests.fakes import FakeClock, tiny_calibration

JUDGED_WITH = row_fields("tiny", tiny_calibration(1.0))

SCORES = [
    (Outcome.PASS, 0.2),
    (Outcome.REJECT, 1.5),
    (Outcome.PASS, 0.9),
    (Outcome.FAULT, None),
    (Outcome.FAULT, 0.4),
    (Outcome.REJECT, 1.3),
]


def judge(journal: SqliteJournal, clock: FakeClock, part: int, outcome: Outcome, score: float | None) -> None:
    journal.announce(Missing(part, clock.now_ns(), f"{part}.png", "no picture"), JUDGED_WITH)
    journal.verdict(Verdict(part, outcome, score, 1.0, 5.0, "as it is", f"{part}.png", "conformal"))


def six_parts(path: Path) -> None:
    """Write a journal with a run of the six parts of `SCORES`."""
    clock = FakeClock()
    kept = SqliteJournal(path, "run-1", clock)
    kept.event("started", {})
    for part, (outcome, score) in enumerate(SCORES, start=1):
        judge(kept, clock, part, outcome, score)
    kept.event("stopped", {"reason": "end"})
    kept.close()


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    six_parts(tmp_path / "journal.db")
    return tmp_path / "journal.db"


def label(part: int, truth: str = "NG", kind: str | None = "dent", by: str = "Anna", note: str = "") -> Label:
    return Label("run-1", part, truth, kind if truth == "NG" else None, by, note)


def add(journal: Path, *labels: Label) -> int:
    return add_labels(journal, [(f"labels.csv:{line}", one) for line, one in enumerate(labels, start=2)], read_parts(journal))


def tamper(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement)
    connection.close()


def test_a_later_label_replaces_the_earlier_one_which_stays(journal: Path) -> None:
    assert add(journal, label(2), label(3, "OK")) == 2
    assert add(journal, label(2, "OK", by="Bo")) == 1
    assert read_labels(journal) == {("run-1", 2): label(2, "OK", by="Bo"), ("run-1", 3): label(3, "OK")}
    found = audit(journal)
    assert (found.broken, found.labels.row) == (None, 3)


def test_what_holds_already_is_not_said_twice(journal: Path) -> None:
    assert add(journal, label(2)) == 1
    assert add(journal, label(2)) == 0
    assert add(journal, label(2, note="deep")) == 1
    assert audit(journal).labels.row == 2


def test_a_label_can_be_given_while_a_station_writes(journal: Path) -> None:
    clock = FakeClock()
    writing = SqliteJournal(journal, "run-2", clock)
    judge(writing, clock, 1, Outcome.PASS, 0.1)
    assert add_labels(journal, [("here", Label("run-2", 1, "NG", None, "Anna"))], read_parts(journal)) == 1
    judge(writing, clock, 2, Outcome.PASS, 0.1)
    writing.close()
    assert audit(journal).broken is None


def test_people_may_label_at_the_same_time(journal: Path) -> None:
    parts = read_parts(journal)

    def work(by: str) -> None:
        for number in range(10):
            add_labels(journal, [("here", label(2, by=by, note=str(number)))], parts)

    threads = [threading.Thread(target=work, args=(by,)) for by in ("Anna", "Bo", "Cy")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (audit(journal).broken, audit(journal).labels.row) == (None, 30)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (label(7), "run run-1 has no part 7; its parts go from 1 to 6"),
        (label(4), "part 4 of run run-1 was a FAULT without a score"),
        (Label("run-9", 1, "OK", None, "Anna"), "run 'run-9' is not in the journal; expected a run such as run-1"),
    ],
)
def test_one_wrong_label_leaves_all_out_and_says_where_it_is(journal: Path, wrong: Label, said: str) -> None:
    with pytest.raises(StationError) as caught:
        add(journal, label(1, "OK"), wrong, label(2))
    assert f"labels.csv:3: {said}" in str(caught.value)
    assert "nothing was labelled" in str(caught.value)
    assert not labels_path(journal).exists()


def test_a_failure_half_way_labels_nothing(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(journal, label(1))
    calls = []

    def fails(content: dict) -> str:
        calls.append(content)
        if len(calls) == 2:
            raise sqlite3.OperationalError("disk I/O error")
        return canonical(content)

    monkeypatch.setattr("edge.truth.canonical", fails)
    with pytest.raises(StationError, match="cannot be written"):
        add(journal, label(2), label(3))
    assert read_labels(journal) == {("run-1", 1): label(1)}


def test_a_changed_label_is_found(journal: Path) -> None:
    add(journal, label(1), label(2))
    tamper(labels_path(journal), "UPDATE chain SET body = replace(body, 'NG', 'OK') WHERE id = 1")
    assert "journal.db-labels: row 1: its hash does not follow" in str(audit(journal).broken)
    with pytest.raises(StationError, match="see `edge audit`"):
        read_labels(journal)
    with pytest.raises(StationError, match="see `edge audit`"):
        add(journal, label(3))


def test_a_verdict_rewritten_with_its_whole_chain_is_found_by_its_label(journal: Path) -> None:
    add(journal, label(1))
    connection = sqlite3.connect(journal)
    rows = connection.execute("SELECT kind, body FROM chain ORDER BY id").fetchall()
    with connection:
        connection.execute("DELETE FROM chain")
        head = last_head(connection)
        for kind, body in rows:
            row = follow(head, kind, body.replace('"score":0.2', '"score":0.3'))
            connection.execute("INSERT INTO chain VALUES (?, ?, ?, ?)", (row.number, row.kind, row.body, row.hash))
            head = row.head
    connection.close()
    assert audit(journal).broken == (
        "journal.db-labels: label 1: row 2 of the journal is not the verdict that it is about: rewritten"
    )


def test_another_journals_labels_are_found(journal: Path, tmp_path: Path) -> None:
    add(journal, label(6))
    other = tmp_path / "other.db"
    SqliteJournal(other, "run-1", FakeClock()).close()
    labels_path(journal).rename(labels_path(other))
    assert "the journal has no row 7: cut off, or another journal's labels" in str(audit(other).broken)


def test_labels_that_the_journal_holds_cannot_go(journal: Path) -> None:
    add(journal, label(1), label(2))
    held = SqliteJournal(journal, "run-2", FakeClock())
    held.event("started", {"labels": newest_label(journal)})
    held.close()
    assert audit(journal).broken is None
    add(journal, label(3))
    assert audit(journal).broken is None
    tamper(labels_path(journal), "DELETE FROM chain WHERE id > 1")
    assert audit(journal).broken == (
        "journal.db-labels: label 2: not there as the journal holds it: cut off, removed or rewritten"
    )
    labels_path(journal).unlink()
    assert "not there as the journal holds it" in str(audit(journal).broken)


def test_a_label_cut_off_is_found_by_the_labels_head_that_an_audit_printed(journal: Path) -> None:
    add(journal, label(1), label(2))
    head = audit(journal).labels
    assert audit(journal, digests=[head.hash]).broken is None
    tamper(labels_path(journal), "DELETE FROM chain WHERE id = 2")
    assert audit(journal).broken is None
    assert f"no row or label has the hash {head.hash}" in str(audit(journal, digests=[head.hash]).broken)


def test_a_row_that_is_no_label_is_forged(journal: Path) -> None:
    add(journal, label(1))
    connection = sqlite3.connect(labels_path(journal))
    with connection:
        row = follow(last_head(connection), LABEL, canonical({"run": "run-1", "part": "1"}))
        connection.execute("INSERT INTO chain VALUES (?, ?, ?, ?)", (row.number, row.kind, row.body, row.hash))
    connection.close()
    assert "forged" in str(audit(journal).broken)


def test_damaged_labels_keep_no_station_from_starting(journal: Path) -> None:
    assert newest_label(journal) is None
    labels_path(journal).write_bytes(b"no database at all")
    assert "give another file" in str((newest_label(journal) or {})["error"])


def test_an_empty_file_of_a_first_label_that_was_cut_short_is_none(journal: Path) -> None:
    labels_path(journal).touch()
    assert read_labels(journal) == {}
    assert audit(journal).broken is None
    assert add(journal, label(1)) == 1


def test_nobody_looked_at_lists_rejects_first_and_then_the_closest(journal: Path) -> None:
    parts = read_parts(journal)
    assert [part.part for part in unlabelled(parts, {})] == [2, 6, 5, 3, 1]
    add(journal, label(6), label(3, "OK"))
    assert [part.part for part in unlabelled(parts, read_labels(journal))] == [2, 5, 1]


def test_the_tally_tells_overkill_from_escapes(journal: Path) -> None:
    add(journal, label(1, "NG"), label(2, "NG"), label(3, "OK"), label(5, "OK"), label(6, "OK"))
    counts = tally(read_parts(journal), read_labels(journal))
    assert counts == {
        (Outcome.PASS, "NG"): 1,
        (Outcome.REJECT, "NG"): 1,
        (Outcome.PASS, "OK"): 1,
        (Outcome.FAULT, "OK"): 1,
        (Outcome.REJECT, "OK"): 1,
    }


def test_the_second_row_of_a_part_is_the_one_that_is_labelled(tmp_path: Path) -> None:
    path, clock = tmp_path / "journal.db", FakeClock()
    kept = SqliteJournal(path, "run-1", clock)
    judge(kept, clock, 1, Outcome.PASS, 0.5)
    kept.verdict(Verdict(1, Outcome.FAULT, 0.5, 1.0, 9.0, "late", "1.png", "conformal"))
    kept.close()
    assert read_parts(path)["run-1", 1].outcome is Outcome.FAULT
    add(path, label(1, "OK"))
    assert export_csv(path, tmp_path / "out.csv") == 2
    first, second = (tmp_path / "out.csv").read_text().splitlines()[1:]
    assert first.endswith(",,,,,")
    assert ",OK,,Anna,," in second


def test_scores_of_labelled_parts_are_handed_over(journal: Path) -> None:
    add(journal, label(1, "OK"), label(2), label(5, "OK"))
    scores = labelled_scores(journal)
    assert [(score.part, score.score, score.good) for score in scores] == [
        ("run-1/1", 0.2, True),
        ("run-1/2", 1.5, False),
        ("run-1/5", 0.4, True),
    ]
    assert {score.engine for score in scores} == {("b" * 64, "onnxruntime", "fp32", "e" * 64)}
    assert {score.group for score in scores} == {"run-1"}


def test_nothing_is_read_from_a_broken_journal(journal: Path) -> None:
    tamper(journal, "UPDATE chain SET body = replace(body, '0.9', '0.8') WHERE kind = 'part'")
    with pytest.raises(StationError, match="see `edge audit`"):
        read_parts(journal)


def test_the_body_of_a_label_names_the_verdict(journal: Path) -> None:
    add(journal, label(2, note="near the rim"))
    connection = sqlite3.connect(labels_path(journal))
    ((body,),) = connection.execute("SELECT body FROM chain").fetchall()
    connection.close()
    content = json.loads(body)
    assert (content["row"], content["hash"]) == (3, read_parts(journal)["run-1", 2].row.hash)
    assert (content["kind"], content["note"], content["by"]) == ("dent", "near the rim", "Anna")
