"""`edge label` as its user sees it: options, CSV files, and what is wrong with them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from edge import StationError
from edge.__main__ import main
from edge.label import read_csv
from edge.truth import Label, labels_path, read_labels, read_parts
from tests.fakes import write_station
from tests.test_truth import six_parts

HEADER = "run,part,truth,kind,by,note\n"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    six_parts(tmp_path / "journal.db")
    return tmp_path / "journal.db"


def csv_file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def label(journal: Path, *more: str) -> int:
    return main(["label", "--journal", str(journal), *more])


def test_one_part_by_options(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert label(journal, "--run", "run-1", "--part", "2", "--ng", "--kind", "scratch", "--by", "Anna", "--note", "rim") == 0
    assert read_labels(journal) == {("run-1", 2): Label("run-1", 2, "NG", "scratch", "Anna", "rim")}
    said = capsys.readouterr().out
    assert "1 labels; 0 said what holds already" in said
    assert "1 of 5 scored parts are labelled: 1 rejects confirmed, 0 overkill, 0 escapes, 0 passes confirmed, 0 faults" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--part", "2", "--ng", "--by", "Anna"), "--part needs --run"),
        (("--part", "2", "--run", "run-1", "--by", "Anna"), "and --ok or --ng"),
        (("--part", "2", "--run", "run-1", "--ng"), "add --by NAME"),
        (("--part", "2", "--run", "run-1", "--ok", "--kind", "dent", "--by", "Anna"), "has no kind of defect"),
        (("--part", "99", "--run", "run-1", "--ok", "--by", "Anna"), "its parts go from 1 to 6"),
        (("--scores", "scores.csv"), "no labelled parts"),
    ],
)
def test_wrong_options_are_one_error(
    journal: Path, more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(journal, *more) == 2
    assert said in capsys.readouterr().err
    assert not labels_path(journal).exists()


def test_the_list_names_whole_runs_and_the_closest_first(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert label(journal, "--list", "--first", "2") == 0
    first, second, count, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("run-1  part      2  REJECT  score 1.5")
    assert " above the threshold" in first
    assert second.startswith("run-1  part      6  REJECT")
    assert count == "2 parts that nobody looked at, and 3 more (--first 5)"


def test_many_parts_by_csv(journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = HEADER + 'run-1,2,ng,scratch,,"rim, left"\n\nrun-1,3,OK,,Bo,\n run-1 ,3, ok ,,,said twice\n'
    path = csv_file(tmp_path, b"\xef\xbb\xbf" + text.encode())  # as Excel writes it
    assert label(journal, "--csv", str(path), "--by", "Anna") == 0
    assert read_labels(journal) == {
        ("run-1", 2): Label("run-1", 2, "NG", "scratch", "Anna", "rim, left"),
        ("run-1", 3): Label("run-1", 3, "OK", None, "Bo", ""),
    }
    assert "1 rejects confirmed, 0 overkill, 0 escapes, 1 passes confirmed" in capsys.readouterr().out
    assert label(journal, "--scores", str(tmp_path / "scores.csv")) == 0
    assert (tmp_path / "scores.csv").read_text() == "part,score,group,label\nrun-1/2,1.5,run-1,bad\nrun-1/3,0.9,run-1,good\n"


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "by,note,truth,part,run,kind\nAnna,,NG,4,r,\n")
    assert read_csv(path, None) == [(f"{path}:2", Label("r", 4, "NG", None, "Anna", ""))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run;part;truth;kind;by;note\n", ":1: columns are run;part;truth;kind;by;note; expected run,part,truth,kind,by,note"),
        ("", ":1: columns are nothing"),
        ("run,part,truth,by,note\n", ":1: columns are"),
        (HEADER, "no labels below the header"),
        (HEADER + "r,1,OK,,A,\nr,2,maybe,,A,\n", ":3: truth is 'maybe', expected OK or NG"),
        (HEADER + "r,0,OK,,A,\n", ":2: part is '0', expected a number from 1"),
        (HEADER + "r,1.5,OK,,A,\n", ":2: part is '1.5'"),
        (HEADER + ",1,OK,,A,\n", ":2: no run"),
        (HEADER + "r,1,OK,dent,A,\n", ":2: a part that is OK has no kind"),
        (HEADER + "r,1,OK,,,\n", ":2: nobody is named"),
        (HEADER + "r,1,OK\n", ":2: 3 values, expected 6"),
        (HEADER + "r,1,OK,,A,\nr,1,NG,,B,\n", ":3: contradicts line 2 about part 1 of run r"),
        (HEADER + "r,1,NG,dent,A,\nr,1,NG,crack,A,\n", ":3: contradicts line 2"),
        (HEADER.encode() + b"r,1,OK,,A,\nr,2,OK,,M\xfcller,\n", ":3: not UTF-8; save it as CSV UTF-8"),
        (HEADER + 'r,1,OK,,A,"open\n', "not CSV"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(StationError) as caught:
        read_csv(csv_file(tmp_path, text), None)
    assert said in str(caught.value)


def test_every_wrong_line_is_named_up_to_ten(tmp_path: Path) -> None:
    path = csv_file(tmp_path, HEADER + "r,x,OK,,A,\n" * 14)
    with pytest.raises(StationError) as caught:
        read_csv(path, None)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path}:2: ")
    assert lines[9:] == [f"{path}:11: part is 'x', expected a number from 1", "and 4 more", "nothing was labelled"]


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(StationError, match="cannot be read"):
        read_csv(tmp_path / "none.csv", None)


def test_the_next_start_of_the_station_holds_the_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, kept = write_station(tmp_path), tmp_path / "journal.db"
    assert main(["run", "--config", str(config)]) == 0
    ((run, part), *_) = read_parts(kept)
    assert label(kept, "--run", run, "--part", str(part), "--ok", "--by", "Anna") == 0
    assert main(["run", "--config", str(config)]) == 0
    capsys.readouterr()
    assert main(["audit", "--journal", str(kept)]) == 0
    assert "1 labels, head: row 1 " in capsys.readouterr().out
    labels_path(kept).unlink()
    assert main(["audit", "--journal", str(kept)]) == 1
    assert "journal.db-labels: label 1: not there as the journal holds it" in capsys.readouterr().out


def test_what_is_exported_says_the_truth_beside_the_verdict(journal: Path, tmp_path: Path) -> None:
    assert label(journal, "--run", "run-1", "--part", "2", "--ng", "--kind", "scratch", "--by", "Anna") == 0
    assert main(["export", "--journal", str(journal), "--csv", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = {row["part"]: row for row in csv.DictReader(file)}
    columns = ("truth", "truth_kind", "truth_by", "truth_note")
    assert [rows["2"][column] for column in columns] == ["NG", "scratch", "Anna", ""]
    assert [rows["1"][column] for column in columns] == ["", "", "", ""]
