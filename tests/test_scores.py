"""Scores that are handed over: what is read, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration import CalibrationError
from calibration.scores import Scored, read_scores, split

BOUND = {"bundle": "b" * 64, "engine": "e" * 64}


def read(tmp_path: Path, text: str) -> tuple[list[Scored], int]:
    (tmp_path / "scores.csv").write_text(text)
    return read_scores(tmp_path / "scores.csv", BOUND)


def test_scores_with_groups_and_labels(tmp_path: Path) -> None:
    text = "part,score,group,label\n7,1.5,tray 1,good\n8,2.5,tray 1,Good\n9,9,,bad\n10,3,,\n"
    scored, left_out = read(tmp_path, text)
    assert scored == [
        Scored(name="7", score=1.5, group="tray 1"),
        Scored(name="8", score=2.5, group="tray 1"),
        Scored(name="9", score=9.0, good=False),
    ]
    assert left_out == 1  # nobody confirmed part 10
    good, bad = split(scored)
    assert bad is not None
    assert (good.count, len(good.scores), bad.count) == (1, 2, 1)


def test_without_labels_all_are_good_and_without_groups_each_is_a_part(tmp_path: Path) -> None:
    scored, left_out = read(tmp_path, "score\n1\n2\n2\n")
    assert [one.name for one in scored] == ["line 2", "line 3", "line 4"]
    assert left_out == 0
    good, bad = split(scored)
    assert (good.count, bad) == (3, None)


def test_a_group_named_like_a_place_is_not_that_place(tmp_path: Path) -> None:
    scored, _ = read(tmp_path, "score,group\n1,\n2,0\n3,0\n")
    assert split(scored)[0].count == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'score'"),
        ("part,value\n1,2\n", "no column 'score'"),
        ("score\nhigh\n", "line 2: score is 'high', expected a finite number"),
        ("score\n1\nnan\n", "line 3: score is 'nan'"),
        ("part,score\n1\n", "line 2: score is ''"),
        ("score,label\n1,fine\n", "line 2: label is 'fine', expected good, bad or nothing"),
        (f"score,bundle\n1,{'c' * 64}\n", "line 2: made with bundle cccccccccccc, expected bbbbbbbbbbbb"),
        (f"score,engine\n1,{'e' * 64}\n2,{'f' * 64}\n", "line 3: made with engine ffff"),
        ("score,pixels\n1,aa\n2,bb\n3,aa\n", "line 4: the same picture as line 2"),
        ("part,score\na,1\nb,1\na,2\na,1\n", "line 5: part a with the score of line 2 again"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        read(tmp_path, text)


def test_two_pictures_of_a_part_with_the_same_score_are_one_group_or_have_digests(tmp_path: Path) -> None:
    assert split(read(tmp_path, "part,score,group\na,1,a\na,1,a\nb,1,\n")[0])[0].count == 2
    assert len(read(tmp_path, "part,score,pixels\na,1,aa\na,1,bb\n")[0]) == 2


def test_a_missing_file_and_one_that_is_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_scores(tmp_path / "none.csv", BOUND)
    (tmp_path / "scores.csv").write_bytes(b"score\n\xff\n")
    with pytest.raises(CalibrationError, match="not UTF-8"):
        read_scores(tmp_path / "scores.csv", BOUND)
