"""Studies from CSV, their page, and the door's command."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from calibration import CalibrationError
from calibration.__main__ import main
from calibration.msa import analyse, read_study
from calibration.msa_page import render


def write(path: Path, *, scores: bool = True, decisions: bool = True, reference: bool = True, worst: float = 0.0) -> Path:
    """A study of 12 parts, a third of them bad, 2 operators, 3 repeats; `worst` is added to a bad part's scores."""
    columns = ["part", "operator", "repeat", *(["score"] if scores else []), *(["decision"] if decisions else [])]
    lines = [",".join(columns + (["reference"] if reference else []))]
    rng = np.random.default_rng(4)
    for part in range(12):
        for operator in ("Ann", "Bo <b>"):
            for repeat in "123":
                score = 1.0 + part / 10 + (part >= 8) + rng.normal(0, 0.03) + worst * (part == 9)
                row = [f"p{part}", operator, repeat, *([f"{score:.4f}"] if scores else [])]
                row += ["NG" if score > 2.2 else "ok"] if decisions else []
                lines.append(",".join(row + (["NG" if part >= 8 else "OK"] if reference else [])))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_study_is_read_into_its_shape(tmp_path: Path) -> None:
    study = read_study(write(tmp_path / "study.csv"))
    assert (len(study.parts), study.operators, study.repeats) == (12, ("Ann", "Bo <b>"), 3)
    assert study.decisions is not None
    assert study.truth is not None
    assert study.truth.sum() == 4
    assert (study.decisions == study.truth[None, :, None]).all()


def test_scores_are_decided_by_the_threshold_where_there_are_no_decisions(tmp_path: Path) -> None:
    path = write(tmp_path / "study.csv", decisions=False)
    assert read_study(path).decisions is None
    decided = read_study(path, 2.2)
    assert decided.decisions is not None
    assert decided.scores is not None
    assert (decided.decisions == (decided.scores > 2.2)).all()
    assert decided.threshold == 2.2
    at = float(decided.scores[0, 5, 0])  # which passes, as at the station
    on_it = read_study(path, at).decisions
    assert on_it is not None
    assert not on_it[0, 5, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "no rows"),
        (lambda text: text.replace("operator", "who", 1), "columns part, who"),
        (lambda text: text.replace("score,decision", "height,word"), "expected part, operator, repeat, score or decision"),
        (lambda text: text.replace("p3,Ann,2", "p3,Ann,1"), "line 21: part p3, operator Ann, repeat 1 a second time"),
        (lambda text: "\n".join(text.splitlines()[:-1]), "part p11, operator Bo <b>, repeat 3 is missing.*71 of 72"),
        (lambda text: text.replace("ok", "fine", 1), "line 2: decision 'fine', expected OK or NG"),
        (lambda text: text.replace(",OK", ",NG", 1), "line 3: part p0 is both OK and NG"),
        (lambda text: text.replace("1.0", "1,0", 1), "expected OK or NG"),
        (lambda text: text.replace("1.", "x.", 1), "line 4: score 'x"),
        (lambda text: text.replace("1.", "nan #", 1), "expected a finite number"),
    ],
)
def test_a_file_that_is_no_study_is_refused_with_its_line(tmp_path: Path, change, message: str) -> None:
    path = write(tmp_path / "study.csv")
    path.write_text(change(path.read_text()))
    with pytest.raises(CalibrationError, match=message):
        read_study(path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("none.csv", "binary.csv"):
        with pytest.raises(CalibrationError, match="cannot be read"):
            read_study(tmp_path / name)


def test_decisions_alone_tell_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "study.csv", scores=False, reference=False)
    with pytest.raises(CalibrationError, match="add the column reference"):
        analyse(read_study(path))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_needs_nothing_from_elsewhere_and_names_cannot_break_it(tmp_path: Path) -> None:
    analysis = analyse(read_study(write(tmp_path / "study.csv", decisions=False), 2.2))
    page = render(analysis, title="A & <B>", when="2026-01-02", who="$who").decode()
    tags = Tags()
    tags.feed(page)
    names = [name for name, _ in tags.found]
    assert names.count("svg") == 3
    assert not {"script", "link", "img", "b"} & set(names)
    assert not [attributes for _, attributes in tags.found if {"src", "href"} & set(attributes)]
    assert "A &amp; &lt;B&gt;" in page
    assert "$who" in page
    assert "@page" in page
    for drawing in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + drawing.split("</svg>")[0] + "</svg>")
    assert page.count("<circle") == 72 + 4  # a dot a score; kappas of both with the truth, of the pair, of all


def msa(tmp_path: Path, *more: str) -> int:
    return main(["msa", "--csv", str(tmp_path / "study.csv"), "--out", str(tmp_path / "msa.html"), *more])


def test_the_door_writes_the_page_and_its_exit_code_is_aiags_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "study.csv")
    assert msa(tmp_path) == 0
    assert (tmp_path / "msa.html").read_text().startswith("<!doctype html>")
    assert "acceptable" in capsys.readouterr().out
    write(tmp_path / "study.csv", worst=-2)  # one of four bad parts always passes
    assert msa(tmp_path) == 1
    said = capsys.readouterr().out
    assert "0.250" in said
    assert "unacceptable" in said


def test_a_threshold_that_was_given_for_the_study_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "study.csv", decisions=False)
    mark = "threshold 2.2, SET BY HAND for this study (--threshold)"
    assert msa(tmp_path, "--threshold", "2.2") == 0
    assert f"decided by {mark}" in capsys.readouterr().out
    assert f"Decisions by the {mark}" in (tmp_path / "msa.html").read_text()
    assert msa(tmp_path) == 0
    assert "HAND" not in capsys.readouterr().out + (tmp_path / "msa.html").read_text()


def test_the_door_refuses_what_it_cannot_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert msa(tmp_path) == 2
    write(tmp_path / "study.csv", scores=False, reference=False)
    assert msa(tmp_path) == 2
    write(tmp_path / "study.csv")
    assert msa(tmp_path, "--out", str(tmp_path)) == 2
    errors = capsys.readouterr().err
    assert "cannot be read" in errors
    assert "a folder, expected the path of the page" in errors
    for threshold in ("nan", "inf"):  # nothing is above them, so that all would pass
        assert msa(tmp_path, "--threshold", threshold) == 2
    study = (tmp_path / "study.csv").read_bytes()
    assert msa(tmp_path, "--out", str(tmp_path / "study.csv")) == 2
    assert (tmp_path / "study.csv").read_bytes() == study
    errors = capsys.readouterr().err
    assert "threshold is nan, expected a finite number" in errors
    assert "the study itself, which the page would replace" in errors
    assert not (tmp_path / "msa.html").exists()
