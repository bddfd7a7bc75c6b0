"""The challenge set: any wrong decision fails it, whatever breaks is wrong, and one sort of parts is no challenge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from calibration import CalibrationError
from calibration.__main__ import main
from calibration.challenge import ChallengePart, find_challenge, run_challenge
from calibration.record import save_calibration
from engines import EngineError
from engines.bundle import load_bundle
from engines.images import Image
from engines.inspector import Inspector, Score
from tests.fakes import calibration_for, flat, textured, write_pictures, write_tiny_bundle

GOOD, BAD = [flat(grey) for grey in (129, 126, 132)], [flat(grey) for grey in (200, 40)]  # from grey 128
THRESHOLD = 0.01
IN_BANK = textured(5)


@pytest.fixture
def inspector(tmp_path: Path) -> Iterator[Inspector]:
    write_tiny_bundle(tmp_path / "bundle", normals=(IN_BANK,))
    with Inspector(load_bundle(tmp_path / "bundle"), threads=1) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three good parts in OK and two bad ones in ng."""
    write_pictures(tmp_path / "challenge" / "OK", GOOD)
    write_pictures(tmp_path / "challenge" / "ng", BAD)
    return tmp_path / "challenge"


def between(inspector: Inspector) -> float:
    """A threshold between the good parts and the bad."""
    good, bad = (max(inspector.score(image).value for image in images) for images in (GOOD, BAD))
    low = min(inspector.score(image).value for image in BAD)
    assert good < low <= bad
    return (good + low) / 2


def test_a_station_that_is_right_passes(inspector: Inspector, folder: Path) -> None:
    threshold = between(inspector)
    result = run_challenge(inspector, calibration_for(inspector, threshold), find_challenge(folder), who="Ada")
    assert result.passed
    assert [(part.name, part.decision) for part in result.parts] == [
        ("OK/1.png", "PASS"),
        ("OK/2.png", "PASS"),
        ("OK/3.png", "PASS"),
        ("ng/1.png", "REJECT"),
        ("ng/2.png", "REJECT"),
    ]
    assert (result.who, result.threshold, result.bundle_digest) == ("Ada", threshold, inspector.bundle.digest)
    assert str(result) == "3 of 3 good parts passed, 2 of 2 bad ones were rejected, 0 faults"


@pytest.mark.parametrize(
    ("threshold", "wrong"), [(1e9, ["ng/1.png", "ng/2.png"]), (-1e9, ["OK/1.png", "OK/2.png", "OK/3.png"])]
)
def test_any_wrong_decision_fails(inspector: Inspector, folder: Path, threshold: float, wrong: list[str]) -> None:
    result = run_challenge(inspector, calibration_for(inspector, threshold), find_challenge(folder), who="Ada")
    assert not result.passed
    assert [part.name for part in result.wrong] == wrong


def test_a_score_at_the_threshold_passes_as_at_the_station(inspector: Inspector, folder: Path) -> None:
    at = inspector.score(BAD[0]).value
    result = run_challenge(inspector, calibration_for(inspector, at), find_challenge(folder), who="Ada")
    assert "ng/1.png" in [part.name for part in result.wrong]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_fault_is_wrong_for_a_bad_part_too(
    inspector: Inspector, folder: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(inspector, "score", lambda image: Score(value, np.zeros((8, 8), np.float32)))
    result = run_challenge(inspector, calibration_for(inspector, THRESHOLD), find_challenge(folder), who="Ada")
    assert len(result.wrong) == 5
    assert {part.decision for part in result.parts} == {"FAULT"}
    assert all(f"score is {value}" in part.why for part in result.parts)


def test_a_picture_that_cannot_be_read_is_a_fault_and_the_others_are_judged(inspector: Inspector, folder: Path) -> None:
    (folder / "ng" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = run_challenge(inspector, calibration_for(inspector, between(inspector)), find_challenge(folder), who="Ada")
    assert [(part.name, part.decision) for part in result.wrong] == [("ng/2.png", "FAULT")]
    assert "truncated" in result.wrong[0].why


def test_live_parts_are_judged_as_files_are(inspector: Inspector) -> None:
    def lost() -> Image:
        raise EngineError("camera is lost")

    parts = [ChallengePart("master 1", True, lambda: GOOD[0]), ChallengePart("master 2", False, lambda: BAD[0])]
    assert run_challenge(inspector, calibration_for(inspector, between(inspector)), parts, who="Ada").passed
    broken = [parts[0], ChallengePart("master 2", False, lost)]
    assert not run_challenge(inspector, calibration_for(inspector, between(inspector)), broken, who="Ada").passed


def test_the_digest_takes_in_names_truths_and_pixels(inspector: Inspector) -> None:
    def digest(*parts: tuple[str, bool, Image]) -> str:
        shown = [ChallengePart(name, good, lambda image=image: image) for name, good, image in parts]
        return run_challenge(inspector, calibration_for(inspector, THRESHOLD), shown, who="Ada").challenge

    one = digest(("a", True, GOOD[0]), ("b", False, BAD[0]))
    assert one == digest(("a", True, GOOD[0]), ("b", False, BAD[0]))
    others = {
        digest(("c", True, GOOD[0]), ("b", False, BAD[0])),
        digest(("a", False, GOOD[0]), ("b", True, BAD[0])),
        digest(("a", True, GOOD[1]), ("b", False, BAD[0])),
    }
    assert len(others) == 3
    assert one not in others


def test_a_part_that_the_bundle_has_learnt_is_refused(inspector: Inspector) -> None:
    parts = [ChallengePart("a", True, lambda: IN_BANK), ChallengePart("b", False, lambda: BAD[0])]
    with pytest.raises(CalibrationError, match="a: the bundle was made with this picture"):
        run_challenge(inspector, calibration_for(inspector, THRESHOLD), parts, who="Ada")


def test_a_challenge_of_one_sort_is_refused(inspector: Inspector, folder: Path) -> None:
    with pytest.raises(CalibrationError, match="1 good and 0 bad parts"):
        run_challenge(inspector, calibration_for(inspector, THRESHOLD), [ChallengePart("a", True, lambda: GOOD[0])], who="Ada")
    for picture in (folder / "ng").iterdir():
        picture.unlink()
    with pytest.raises(CalibrationError, match="3 good and 0 bad parts, expected one or more of each"):
        find_challenge(folder)


def test_labels_from_a_file(folder: Path) -> None:
    (folder / "challenge.csv").write_text("image,label\nOK/1.png,ok\nng/2.png,NG\n")
    assert [(part.name, part.good) for part in find_challenge(folder)] == [("OK/1.png", True), ("ng/2.png", False)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("picture,truth\n1.png,OK\n", "columns picture, truth, expected image and label"),
        ("image,label\nOK/1.png,fine\n", "line 2: label 'fine', expected OK or NG"),
        ("image,label\nOK/1.png,OK\n../../x.png,NG\n", "line 3: image '../../x.png', expected a path within"),
        ("image,label\nOK/1.png,OK\n,NG\n", "line 3: image '', expected a path within"),
        ("image,label\nOK/1.png,OK\nOK/1.png,NG\n", "OK/1.png is there twice"),
        ("", "columns none"),
    ],
)
def test_labels_that_are_none_are_refused(folder: Path, content: str, message: str) -> None:
    (folder / "challenge.csv").write_text(content)
    with pytest.raises(CalibrationError, match=message):
        find_challenge(folder)


def test_the_door_ends_with_1_on_failure_and_keeps_the_result(
    inspector: Inspector, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, kept = tmp_path / "line-1.json", tmp_path / "result.json"
    argv = ["challenge", "--bundle", str(tmp_path / "bundle"), "--calibration", str(record), "--images", str(folder)]
    save_calibration(record, calibration_for(inspector, between(inspector)))
    assert main([*argv, "--json", str(kept)]) == 0
    assert len(json.loads(kept.read_text())["parts"]) == 5
    assert "passed: 3 of 3 good parts passed" in capsys.readouterr().out
    save_calibration(record, calibration_for(inspector, 1e9))
    assert main(argv) == 1
    said = capsys.readouterr().out
    assert "wrong: ng/1.png is NG and was decided PASS" in said
    assert "FAILED" in said
    assert f"judged at threshold 1e+09, {calibration_for(inspector, 1e9).origin}" in said  # by hand or not
    save_calibration(record, calibration_for(inspector, 1e9).model_copy(update={"method": "manual", "why": "lamp changed"}))
    assert main([*argv, "--json", str(kept)]) == 1
    said = capsys.readouterr().out
    assert "threshold 1e+09 SET BY HAND" in said
    assert "judged at threshold 1e+09, SET BY HAND by test" in said
    assert json.loads(kept.read_text())["threshold_method"] == "manual"
    assert main([*argv[:-1], str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
