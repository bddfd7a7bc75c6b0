"""The drift reference: taken from good parts that pass, bound to one calibration, and the door's commands around it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from calibration import CalibrationError
from calibration.__main__ import main
from calibration.appearance import statistics_of
from calibration.record import Calibration, save_calibration
from calibration.reference import load_reference, save_reference, take_reference
from engines.bundle import load_bundle
from engines.images import Image
from engines.inspector import Inspector
from tests.fakes import calibration_for, flat, textured, write_pictures, write_tiny_bundle

IN_BANK = textured(999)


def picture(seed: int, light: float = 1.0) -> Image:
    """Grain on grey 128: no two parts alike, with colour, structure and light."""
    rng = np.random.default_rng(seed)
    return np.clip(light * (128 + rng.normal(0, 2) + rng.normal(0, 8, (64, 64, 3))), 0, 255).astype(np.uint8)


@pytest.fixture
def inspector(tmp_path: Path) -> Iterator[Inspector]:
    write_tiny_bundle(tmp_path / "bundle", normals=(IN_BANK,))
    with Inspector(load_bundle(tmp_path / "bundle"), threads=1) as opened:
        yield opened


@pytest.fixture
def good(tmp_path: Path) -> list[Path]:
    return write_pictures(tmp_path / "good", [picture(seed) for seed in range(40)])


@pytest.fixture
def calibration(inspector: Inspector) -> Calibration:
    return calibration_for(inspector, 1e9)


def test_rows_are_the_score_and_the_statistics_of_each_part(
    inspector: Inspector, good: list[Path], calibration: Calibration
) -> None:
    reference = take_reference(inspector, calibration, good, who="Ada")
    assert len(reference.parts) == 40
    assert reference.parts[7] == pytest.approx((inspector.score(picture(7)).value, *statistics_of(picture(7))))
    assert (reference.station, reference.calibration, reference.who) == (calibration.station, calibration.digest, "Ada")


def test_the_part_that_set_the_threshold_and_those_above_it_are_left_out(inspector: Inspector, good: list[Path]) -> None:
    scores = sorted(inspector.score(picture(seed)).value for seed in range(40))
    reference = take_reference(inspector, calibration_for(inspector, scores[36]), good, who="Ada")
    assert len(reference.parts) == 36
    assert max(part[0] for part in reference.parts) < scores[36]
    with pytest.raises(CalibrationError, match="29 of 40 good parts are below the threshold, expected 30 or more"):
        take_reference(inspector, calibration_for(inspector, scores[29]), good, who="Ada")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IN_BANK, "the bundle was made with this picture"),
        (picture(3), "the same picture as"),
        (flat(128), "sharpness is nan, expected a finite number"),
    ],
)
def test_a_picture_that_may_not_count_is_named(
    inspector: Inspector, good: list[Path], calibration: Calibration, tmp_path: Path, image: Image, message: str
) -> None:
    (odd,) = write_pictures(tmp_path / "odd", [image])
    with pytest.raises(CalibrationError, match=f"{odd}: {message}"):
        take_reference(inspector, calibration, [*good, odd], who="Ada")


def test_what_is_written_is_read(inspector: Inspector, good: list[Path], calibration: Calibration, tmp_path: Path) -> None:
    reference = take_reference(inspector, calibration, good, who="Ada")
    save_reference(tmp_path / "drift.json", reference)
    assert load_reference(tmp_path / "drift.json") == reference
    assert load_reference(tmp_path / "drift.json").monitor(calibration).parts == 0


def test_another_threshold_needs_another_reference(inspector: Inspector, good: list[Path], calibration: Calibration) -> None:
    reference = take_reference(inspector, calibration, good, who="Ada")
    with pytest.raises(CalibrationError, match="drift reference is for calibration"):
        reference.monitor(calibration_for(inspector, 1e8))


def test_other_channels_are_refused(inspector: Inspector, good: list[Path], calibration: Calibration) -> None:
    reference = take_reference(inspector, calibration, good, who="Ada")
    for change in ({"channels": reference.channels[::-1]}, {"parts": tuple(part[:6] for part in reference.parts)}):
        with pytest.raises(CalibrationError, match="expected score, brightness"):
            reference.model_copy(update=change).monitor(calibration)


def test_a_file_that_is_none_or_was_changed_is_refused(
    inspector: Inspector, good: list[Path], calibration: Calibration, tmp_path: Path
) -> None:
    path = tmp_path / "drift.json"
    save_reference(path, take_reference(inspector, calibration, good, who="Ada"))
    document = json.loads(path.read_text())
    for change, message in (
        ({"who": "Bob"}, "changed since it was written"),
        ({"schema_version": 2}, "schema 2, expected 1"),
        ({"parts": document["parts"][:20]}, "parts: Tuple should have at least 30 items"),
        ({"colour": 1}, "colour: Extra inputs"),
    ):
        path.write_text(json.dumps({**document, **change}))
        with pytest.raises(CalibrationError, match=message):
            load_reference(path)
    for content in ("[]", "{", "null", '{"schema_version": 1}'):
        path.write_text(content)
        with pytest.raises(CalibrationError, match="not a drift reference"):
            load_reference(path)
    with pytest.raises(CalibrationError, match="cannot be read"):
        load_reference(tmp_path / "none.json")


def run(tmp_path: Path, command: str, images: str, *more: str) -> int:
    station = ["--bundle", str(tmp_path / "bundle"), "--calibration", str(tmp_path / "line-1.json"), "--threads", "1"]
    return main([command, *station, "--images", str(tmp_path / images), *more])


@pytest.mark.usefixtures("good")
def test_the_doors_take_a_reference_and_see_a_lamp_fail(
    tmp_path: Path, calibration: Calibration, capsys: pytest.CaptureFixture[str]
) -> None:
    save_calibration(tmp_path / "line-1.json", calibration)
    kept = str(tmp_path / "drift.json")
    assert run(tmp_path, "reference", "good", "--out", kept) == 0
    said = capsys.readouterr().out
    assert "brightness" in said
    told = f"parts pass at threshold {calibration.threshold:.6g}, {calibration.origin}"  # by hand or not
    assert told in said
    write_pictures(tmp_path / "same", [picture(seed) for seed in range(100, 130)])
    assert run(tmp_path, "drift", "same", "--reference", kept) == 0
    said = capsys.readouterr().out
    assert "30 of 30 parts passed and were watched; no drift was seen" in said
    assert told in said
    write_pictures(tmp_path / "dark", [picture(seed, 0.8) for seed in range(130, 190)])
    assert run(tmp_path, "drift", "dark", "--reference", kept) == 1
    said = capsys.readouterr().out
    assert "light drifted: brightness" in said
    assert told in said


@pytest.mark.usefixtures("good")
def test_the_door_says_where_no_part_passes(
    tmp_path: Path, inspector: Inspector, calibration: Calibration, capsys: pytest.CaptureFixture[str]
) -> None:
    threshold = max(inspector.score(picture(seed)).value for seed in range(40)) * 2
    save_calibration(tmp_path / "line-1.json", calibration_for(inspector, threshold))
    kept = str(tmp_path / "drift.json")
    assert run(tmp_path, "reference", "good", "--out", kept) == 0
    write_pictures(tmp_path / "white", [picture(seed, 2.0) for seed in range(3)])
    assert run(tmp_path, "drift", "white", "--reference", kept) == 1
    assert "no part passed" in capsys.readouterr().err


@pytest.mark.usefixtures("good")
def test_the_door_refuses_another_calibration(
    tmp_path: Path, inspector: Inspector, calibration: Calibration, capsys: pytest.CaptureFixture[str]
) -> None:
    save_calibration(tmp_path / "line-1.json", calibration)
    kept = str(tmp_path / "drift.json")
    assert run(tmp_path, "reference", "good", "--out", kept) == 0
    save_calibration(tmp_path / "line-1.json", calibration_for(inspector, 1e8))
    assert run(tmp_path, "drift", "good", "--reference", kept) == 2
    save_calibration(tmp_path / "line-1.json", calibration.model_copy(update={"bundle_digest": "0" * 64}))
    assert run(tmp_path, "drift", "good", "--reference", kept) == 2
    errors = capsys.readouterr().err
    assert "drift reference is for calibration" in errors
    assert "calibration is for bundle 000000000000" in errors
