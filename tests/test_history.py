"""The history: every threshold stays, and whatever was done to the files is found."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from calibration import CalibrationError
from calibration.__main__ import main
from calibration.history import check_whole, history_fault, history_path, newest_parts, read_history, write
from calibration.propose import Wishes
from calibration.record import load_calibration, save_calibration, sha256
from calibration.scores import Scored
from engines import EngineError
from tests.fakes import tiny_calibration

PARTS = (Scored(name="a.png", score=1.0, pixels="0" * 64), Scored(name="b.png", score=2.0, group="a.png", good=False))


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A record with a history of three."""
    path = tmp_path / "line-1.json"
    for number, threshold in enumerate((1.0, 2.0, 3.0)):
        calibration = tiny_calibration(threshold).model_copy(update={"why": f"reason {number}"})
        write(path, calibration, wishes=Wishes(), parts=PARTS[: number or 2], warnings=["beware"])
    return path


def lines(record: Path) -> list[str]:
    return history_path(record).read_text().splitlines(keepends=True)


def faults(record: Path) -> str:
    return "; ".join(read_history(record).faults)


def test_every_threshold_stays_with_what_it_replaced(record: Path) -> None:
    found = read_history(record)
    assert found.faults == ()
    assert [entry.calibration.threshold for entry in found.entries] == [1.0, 2.0, 3.0]
    assert [entry.replaced.threshold if entry.replaced else None for entry in found.entries] == [None, 1.0, 2.0]
    assert [entry.previous for entry in found.entries] == [None, found.entries[0].digest, found.entries[1].digest]
    assert found.entries[0].parts == PARTS
    assert found.entries[2].calibration.why == "reason 2"
    assert found.entries[1].warnings == ("beware",)
    in_force = load_calibration(record)
    assert (in_force.threshold, in_force.entry) == (3.0, found.entries[2].digest)


def change(old: str, new: str, at: int) -> Callable[[Path], None]:
    def tamper(record: Path) -> None:
        all_lines = lines(record)
        assert old in all_lines[at]
        all_lines[at] = all_lines[at].replace(old, new, 1)
        history_path(record).write_text("".join(all_lines))

    return tamper


def rewrite(order: list[int]) -> Callable[[Path], None]:
    return lambda record: history_path(record).write_text("".join(lines(record)[place] for place in order)) and None


def old_record(record: Path) -> None:
    calibration = load_calibration(record)
    entry = read_history(record).entries[1]
    save_calibration(record, calibration.model_copy(update={"threshold": 2.0, "why": "reason 1", "entry": entry.digest}))


def other_threshold(record: Path) -> None:
    save_calibration(record, load_calibration(record).model_copy(update={"threshold": 9.0}))


def another_entry(record: Path) -> None:
    """Entry 2 written anew with another threshold and a digest that is right."""
    all_lines = lines(record)
    document = json.loads(all_lines[1])
    del document["sha256"]
    document["calibration"]["threshold"] = 2.5
    all_lines[1] = json.dumps({**document, "sha256": sha256(document)}, sort_keys=True) + "\n"
    history_path(record).write_text("".join(all_lines))


TAMPERING: dict[str, Callable[[Path], object]] = {
    "entry 1 was changed": change('"threshold": 1.0', '"threshold": 1.5', 0),
    "entry 2 was changed": change("reason 1", "reason 7", 1),
    "entry 3 was changed": change('"score": 1.0', '"score": 1.1', 2),
    "line 1 does not follow": rewrite([1, 2]),
    "line 2 does not follow": rewrite([0, 2]),
    "line 2 does not follow the one before; an entry was removed, inserted or moved": rewrite([0, 0, 1, 2]),
    "line 3 does not follow the one before": another_entry,
    "the end of the history was cut off": rewrite([0, 1]),
    "line-1.history.jsonl: not there, and line-1.json is an entry of it": lambda record: history_path(record).unlink(),
    "names; the end of the history was cut off": lambda record: history_path(record).write_text(""),
    "is entry 2 of 3": old_record,
    "differs from entry 3": other_threshold,
    "its last line is cut off": lambda record: history_path(record).write_text("".join(lines(record))[:-5]),
    "line 4 is no entry": lambda record: history_path(record).write_text("".join(lines(record)) + "{}\n"),
    "names no entry, but there is a history": lambda record: save_calibration(record, tiny_calibration()),
    "run `calibration fit` first": lambda record: record.unlink(),
}


@pytest.mark.parametrize("message", TAMPERING)
def test_whatever_was_done_to_the_files_is_found(record: Path, capsys: pytest.CaptureFixture[str], message: str) -> None:
    assert main(["history", "--record", str(record)]) == 0
    TAMPERING[message](record)
    assert message in faults(record)
    capsys.readouterr()
    assert main(["history", "--record", str(record)]) == 1
    assert message in capsys.readouterr().err


def test_the_faults_of_a_history_are_one_line_and_those_of_a_record_are_not_among_them(record: Path) -> None:
    assert history_fault(record) == ""
    rewrite([0, 1])(record)
    assert "the end of the history was cut off" in history_fault(record)
    history_path(record).unlink()
    history_path(record).mkdir()
    assert "cannot be read" in history_fault(record)
    record.write_text("{")
    assert history_fault(record) == ""


def test_no_byte_of_the_history_can_be_changed_unseen(record: Path) -> None:
    data = history_path(record).read_bytes()
    whole = read_history(record).entries
    for at in range(0, len(data), 7):
        history_path(record).write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        found = read_history(record)
        assert found.faults or found.entries == whole  # a flip in white space may leave the same entries


def test_all_written_anew_is_found_by_an_entry_that_was_noted_elsewhere(record: Path, tmp_path: Path) -> None:
    noted = read_history(record).entries[1].digest
    assert main(["history", "--record", str(record), "--head", noted]) == 0
    record.unlink()
    history_path(record).unlink()
    write(record, tiny_calibration(7.0))
    assert main(["history", "--record", str(record)]) == 0
    assert main(["history", "--record", str(record), "--head", noted]) == 1
    assert "which was noted elsewhere" in read_history(record, noted).faults[0]


def test_nothing_is_appended_to_a_damaged_history(record: Path) -> None:
    rewrite([0, 2])(record)
    before = record.read_bytes(), history_path(record).read_bytes()
    with pytest.raises(CalibrationError, match=r"does not follow .*; keep both files"):
        write(record, tiny_calibration(4.0))
    assert (record.read_bytes(), history_path(record).read_bytes()) == before


@pytest.mark.parametrize(
    "message",
    [
        "the end of the history was cut off",
        "names; the end of the history was cut off",
        "differs from entry 3",
        "names no entry, but there is a history",
    ],
)
def test_a_further_entry_does_not_hide_that_the_last_one_is_gone_or_the_record_was_changed(
    record: Path, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    TAMPERING[message](record)
    path = history_path(record)
    before = record.read_bytes(), path.read_bytes() if path.exists() else b""
    with pytest.raises(CalibrationError, match="keep both files"):
        write(record, tiny_calibration(4.0))
    with pytest.raises(CalibrationError, match="put it in force; its end was cut off, or the record was changed"):
        check_whole(record)
    assert main(["set", "--record", str(record), "--threshold", "4", "--why", "lamp"]) == 2
    assert "keep both files" in capsys.readouterr().err
    assert (record.read_bytes(), path.read_bytes() if path.exists() else b"") == before
    assert message in faults(record)


def test_a_record_without_its_history_is_not_replaced_and_said_in_words_of_its_own(record: Path) -> None:
    history_path(record).unlink()
    before = record.read_bytes()
    said = r"not there, and line-1\.json is an entry of it; .* copy it from where .*, or calibrate to a record of another name"
    with pytest.raises(CalibrationError, match=said):
        write(record, tiny_calibration(4.0))
    with pytest.raises(CalibrationError, match=said):
        check_whole(record)
    assert record.read_bytes() == before
    assert not history_path(record).exists()


def test_a_file_that_is_no_record_is_not_replaced_by_one(record: Path, tmp_path: Path) -> None:
    other = tmp_path / "station.yaml"
    other.write_text("station: line-1\n")
    for path in (other, history_path(record)):
        before = path.read_bytes()
        with pytest.raises(CalibrationError, match="what stands there would be lost"):
            write(path, tiny_calibration(4.0))
        assert path.read_bytes() == before


def test_an_older_record_that_was_put_back_may_be_followed_and_is_named(record: Path) -> None:
    old_record(record)
    write(record, tiny_calibration(4.0))
    newest = read_history(record).entries[-1]
    assert newest.replaced is not None
    assert newest.replaced.threshold == 2.0


def test_the_first_record_that_the_disk_kept_from_a_new_one_may_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "old.json"
    save_calibration(path, tiny_calibration(1.0))

    def full(path: Path, calibration: object) -> None:
        raise EngineError("no space")

    with monkeypatch.context() as broken:
        broken.setattr("calibration.history.save_calibration", full)
        with pytest.raises(EngineError, match="no space"):
            write(path, tiny_calibration(2.0))
    write(path, tiny_calibration(3.0))
    assert faults(path) == ""


def test_an_entry_that_was_never_put_in_force_is_said_and_writing_goes_on(
    record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, calibration: object) -> None:
        raise EngineError("no space")

    with monkeypatch.context() as broken:
        broken.setattr("calibration.history.save_calibration", full)
        with pytest.raises(EngineError, match="no space"):
            write(record, tiny_calibration(4.0))
    assert load_calibration(record).threshold == 3.0  # the old one is still in force
    assert "is entry 3 of 4" in faults(record)
    write(record, tiny_calibration(5.0))
    assert faults(record) == ""
    assert [entry.calibration.threshold for entry in read_history(record).entries] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_record_without_a_history_begins_one_and_is_named_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.json"
    save_calibration(path, tiny_calibration(1.0))
    digest = load_calibration(path).digest
    assert main(["history", "--record", str(path)]) == 0
    assert "older than histories" in capsys.readouterr().out
    write(path, tiny_calibration(2.0))
    (entry,) = read_history(path).entries
    assert entry.replaced is not None
    assert (entry.replaced.threshold, entry.replaced.digest) == (1.0, digest)


def test_a_damaged_record_may_be_replaced_and_the_history_says_so(record: Path) -> None:
    record.write_text("{")
    write(record, tiny_calibration(4.0))
    newest = read_history(record).entries[-1]
    assert newest.replaced is not None
    assert newest.replaced.threshold is None
    assert newest.replaced.problem is not None
    assert "not a calibration record" in newest.replaced.problem


def test_scores_are_found_again_for_the_same_engine_alone(record: Path) -> None:
    assert newest_parts(record, load_calibration(record)) == PARTS
    assert newest_parts(record, tiny_calibration().model_copy(update={"engine_digest": "f" * 64})) == ()
    assert newest_parts(record, tiny_calibration().model_copy(update={"camera": "left"})) == ()


def test_the_door_compares_and_exports(record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--record", str(record)]
    assert main(["diff", *where]) == 0
    said = capsys.readouterr().out
    assert "reason 1" in said
    assert "reason 2" in said
    assert "pictures: 1 in both, 0 only in 2, 1 only in 3" in said
    assert main(["diff", *where, "1", "3"]) == 0
    assert "pictures: 2 in both" in capsys.readouterr().out
    for entries in (["1"], ["1", "4"], ["1", "2", "3"]):
        assert main(["diff", *where, *entries]) == 2
    assert main(["export", *where]) == 2
    assert main(["export", *where, "--csv", str(tmp_path / "h.csv"), "--json", str(tmp_path / "h.json")]) == 0
    csv = (tmp_path / "h.csv").read_text().splitlines()
    assert csv[0].startswith("entry,when,who,why,method,old_threshold,old_method,threshold,")
    assert csv[2].startswith("2,2024-01-01T00:00:00+00:00,test,reason 1,conformal,1.0,conformal,2.0,")
    documents = json.loads((tmp_path / "h.json").read_text())
    assert [document["sha256"] for document in documents] == [entry.digest for entry in read_history(record).entries]
    before = record.read_bytes(), history_path(record).read_bytes()
    assert main(["export", *where, "--json", str(record)]) == 2
    assert main(["export", *where, "--csv", str(history_path(record))]) == 2
    assert "which a copy would replace" in capsys.readouterr().err
    assert (record.read_bytes(), history_path(record).read_bytes()) == before
    rewrite([0, 2])(record)
    assert main(["export", *where, "--csv", str(tmp_path / "h.csv")]) == 1
    assert len((tmp_path / "h.csv").read_text().splitlines()) == 2  # what is before the fault


def test_without_record_and_history_there_is_nothing_to_read(tmp_path: Path) -> None:
    for command in (["show"], ["history"], ["diff"], ["export", "--csv", "x"], ["set", "--threshold", "1", "--why", "x"]):
        assert main([*command, "--record", str(tmp_path / "none.json")]) == 2


def test_writers_at_the_same_time_lose_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "line-1.json"

    def several(first: int) -> None:
        for number in range(5):
            write(path, tiny_calibration(float(first + number)))

    threads = [threading.Thread(target=several, args=(10 * first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_history(path)
    assert found.faults == ()
    assert sorted(entry.calibration.threshold for entry in found.entries) == sorted(
        float(10 * first + number) for first in range(4) for number in range(5)
    )
