"""Calibrating on good images, and its door."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration import CalibrationError
from calibration.__main__ import main
from calibration.fit import fit_calibration
from calibration.record import load_calibration
from engines.bundle import Variant, load_bundle
from engines.images import encode_png
from engines.inspector import Inspector, Score
from tests.fakes import feature_graph, flat, textured, write_pictures, write_tiny_bundle

GOOD = [flat(grey) for grey in (129, 126, 132, 123, 135, 137, 138, 117, 140)]  # farther and farther from grey 128
IN_BANK = textured(5)


@pytest.fixture
def inspector(tmp_path: Path) -> Iterator[Inspector]:
    """A bundle whose bank is grey 128 and which says that a textured picture is in it."""
    write_tiny_bundle(tmp_path / "bundle", normals=(IN_BANK,))
    with Inspector(load_bundle(tmp_path / "bundle"), threads=1) as opened:
        yield opened


@pytest.fixture
def good(tmp_path: Path) -> list[Path]:
    """Nine good pictures."""
    return write_pictures(tmp_path / "good", GOOD)


def test_the_threshold_is_the_score_of_the_picture_at_that_rank(inspector: Inspector, good: list[Path]) -> None:
    # ceil(10 * 0.8) = 8: the eighth nearest to grey 128 is 117
    calibration = fit_calibration(inspector, good, station="line-1", camera="left", rate=0.2, who="Ada")
    assert calibration.threshold == inspector.score(flat(117)).value
    # ceil(10 * 0.9) = 9: the farthest
    calibration = fit_calibration(inspector, good, station="line-1", camera="left", rate=0.1, who="Ada")
    assert calibration.threshold == inspector.score(flat(140)).value


def test_the_order_of_the_files_does_not_matter(inspector: Inspector, good: list[Path]) -> None:
    one = fit_calibration(inspector, good, station="s", camera="c", rate=0.2, who="w")
    other = fit_calibration(inspector, good[::-1], station="s", camera="c", rate=0.2, who="w")
    assert one.threshold == other.threshold


def test_the_record_says_what_it_is_valid_for(inspector: Inspector, good: list[Path]) -> None:
    calibration = fit_calibration(inspector, good, station="line-1", camera="left", rate=0.2, who="Ada")
    assert (calibration.station, calibration.camera, calibration.who) == ("line-1", "left", "Ada")
    assert (calibration.n, calibration.rate, calibration.method, calibration.recipe) == (9, 0.2, "conformal", "tiny")
    assert calibration.bundle_digest == inspector.bundle.digest
    assert calibration.engine_digest == inspector.extractor.engine_digest
    assert (calibration.backend, calibration.precision) == ("onnxruntime", "fp32")


def test_progress_counts_every_image(inspector: Inspector, good: list[Path]) -> None:
    calls: list[tuple[int, int]] = []
    fit_calibration(
        inspector, good, station="s", camera="c", rate=0.2, who="w", progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(number, 9) for number in range(1, 10)]


@pytest.mark.parametrize("name", ["renamed.png", "again.bmp", "again.tiff", "again.webp"])
def test_an_image_of_the_bank_is_known_whatever_its_name_and_format(
    inspector: Inspector, good: list[Path], tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101] if name.endswith("webp") else []
    assert cv2.imwrite(str(path), cv2.cvtColor(IN_BANK, cv2.COLOR_RGB2BGR), lossless)
    with pytest.raises(CalibrationError, match=f"{name}: the bundle was made with this picture.*; calibrate on other"):
        fit_calibration(inspector, [*good, path], station="s", camera="c", rate=0.2, who="w")


def test_the_same_picture_twice_is_refused_and_both_are_named(inspector: Inspector, good: list[Path], tmp_path: Path) -> None:
    twin = tmp_path / "twin.bmp"
    cv2.imwrite(str(twin), cv2.cvtColor(GOOD[3], cv2.COLOR_RGB2BGR))
    with pytest.raises(CalibrationError, match=r"twin\.bmp: the same picture as .*4\.png; .*remove one"):
        fit_calibration(inspector, [*good, twin], station="s", camera="c", rate=0.2, who="w")


def test_too_few_images_are_refused_before_one_is_read(inspector: Inspector) -> None:
    nowhere = [Path(f"/nowhere/{number}.png") for number in range(98)]
    with pytest.raises(CalibrationError, match="98 good images, expected at least 99"):
        fit_calibration(inspector, nowhere, station="s", camera="c", rate=0.01, who="w")


def test_a_score_that_is_not_finite_is_refused_with_its_file(
    inspector: Inspector, good: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector, "score", lambda image: Score(float("nan"), np.zeros((8, 8), np.float32)))
    with pytest.raises(CalibrationError, match=r"1\.png: score is nan, expected a finite number"):
        fit_calibration(inspector, good, station="s", camera="c", rate=0.2, who="w")


def test_damaged_images_are_all_named(inspector: Inspector, good: list[Path]) -> None:
    for index in (1, 4):
        good[index].write_bytes(good[index].read_bytes()[:-20])
    with pytest.raises(CalibrationError, match=rf"cannot be used:\n  {good[1]}: .*\n  {good[4]}: "):
        fit_calibration(inspector, good, station="s", camera="c", rate=0.2, who="w")


def test_every_score_is_handed_out(inspector: Inspector, good: list[Path]) -> None:
    scores: dict[str, float] = {}
    calibration = fit_calibration(
        inspector,
        good,
        station="s",
        camera="c",
        rate=0.2,
        who="w",
        scored=lambda path, score: scores.update({path.name: score}),
    )
    assert sorted(scores) == sorted(path.name for path in good)
    assert calibration.threshold in scores.values()


def fit(tmp_path: Path, *more: str, out: str = "line-1.json", rate: str = "0.2") -> int:
    """Run the door on the pictures below `tmp_path`."""
    where = ["--bundle", str(tmp_path / "bundle"), "--images", str(tmp_path / "good"), "--out", str(tmp_path / out)]
    return main(["fit", *where, "--station", "line-1", "--false-reject", rate, *more])


@pytest.mark.usefixtures("inspector", "good")
def test_the_door_writes_a_record_and_says_what_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "Ada")
    assert fit(tmp_path, "--camera", "left") == 0
    calibration = load_calibration(tmp_path / "line-1.json")
    assert (calibration.station, calibration.camera, calibration.n, calibration.who) == ("line-1", "left", 9, "Ada")
    said = capsys.readouterr().out
    assert f"threshold {calibration.threshold:.6g} from 9 good images" in said
    assert "probability 0.2 or less" in said


@pytest.mark.usefixtures("inspector", "good")
def test_the_door_names_the_account_by_number_where_it_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert fit(tmp_path) == 0
    assert load_calibration(tmp_path / "line-1.json").who.startswith("uid ")


@pytest.mark.usefixtures("inspector", "good")
@pytest.mark.parametrize("rate", ["0", "1", "nan", "0.01", "-1"])
def test_the_door_refuses_a_rate_that_it_cannot_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: str) -> None:
    assert fit(tmp_path, rate=rate) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "line-1.json").exists()


@pytest.mark.usefixtures("inspector", "good")
def test_the_door_refuses_a_folder_as_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    assert fit(tmp_path, out="folder") == 2
    assert "a folder, expected the path of the record" in capsys.readouterr().err


@pytest.mark.usefixtures("inspector")
def test_the_door_refuses_an_empty_folder_and_a_missing_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "good").mkdir()
    assert fit(tmp_path) == 2
    assert "0 good images, expected at least 4" in capsys.readouterr().err


@pytest.mark.usefixtures("good")
def test_the_door_refuses_a_bundle_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path) == 2
    assert "no manifest.json there" in capsys.readouterr().err


@pytest.mark.usefixtures("inspector", "good")
def test_a_refusal_leaves_the_old_record(tmp_path: Path) -> None:
    assert fit(tmp_path) == 0
    before = json.loads((tmp_path / "line-1.json").read_text())
    assert fit(tmp_path, rate="0.001") == 2
    assert json.loads((tmp_path / "line-1.json").read_text()) == before


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["fit"], ["guess"], ["fit", "--false-reject", "high"]):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
    capsys.readouterr()


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize(("spread", "warned"), [(0.001, True), (10.0, False)])
def test_a_threshold_far_above_the_provisional_one_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spread: float, warned: bool
) -> None:
    write_tiny_bundle(tmp_path / "bundle", threshold=0.001, spread=spread)
    assert fit(tmp_path) == 0
    read = capsys.readouterr()
    assert "highest scores: " in read.out
    assert "is each of these really a good part?" in read.out
    assert ("far above the bundle's provisional 0.001" in read.err) == warned


def test_a_picture_of_another_size_is_named(tmp_path: Path, good: list[Path]) -> None:
    write_tiny_bundle(tmp_path / "sized", frame_size=(64, 64))
    good[2].write_bytes(encode_png(flat(120, (64, 80))))
    with (
        Inspector(load_bundle(tmp_path / "sized")) as sized,
        pytest.raises(CalibrationError, match=rf"{good[2]}: frame is 80 x 64"),
    ):
        fit_calibration(sized, good, station="s", camera="c", rate=0.2, who="w")


@pytest.mark.usefixtures("good")
def test_the_door_calibrates_the_precision_that_the_station_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variant = Variant(precision="fp16", images=2, max_difference=0.0, flips=0, offered=True)
    write_tiny_bundle(tmp_path / "bundle", variants=(variant,), graphs={"fp16": feature_graph(convolution=True)})
    assert fit(tmp_path, "--precision", "fp16") == 0
    assert load_calibration(tmp_path / "line-1.json").precision == "fp16"
    assert fit(tmp_path, "--precision", "int8") == 2
    assert "no int8, it has fp32, fp16" in capsys.readouterr().err
