"""The calibration record: what is written comes back, and nothing else is believed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from calibration import CalibrationError
from calibration.record import Calibration, load_calibration, mismatches, save_calibration

FIELDS: dict[str, Any] = {
    "station": "line-3",
    "camera": "camera-1",
    "recipe": "carpet",
    "threshold": 1.25,
    "bundle_digest": "b" * 64,
    "backend": "onnxruntime",
    "precision": "fp32",
    "engine_digest": "e" * 64,
    "n": 199,
    "rate": 0.01,
    "method": "conformal",
    "when": "2024-01-01T00:00:00+00:00",
    "who": "Ada",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A record on disk."""
    save_calibration(tmp_path / "line-3.json", Calibration(**FIELDS))
    return tmp_path / "line-3.json"


def edit(path: Path, **changes: object) -> None:
    """Change fields of a record as a person with an editor would; None removes a field."""
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))


def test_round_trip(path: Path) -> None:
    assert load_calibration(path) == Calibration(**FIELDS)


@given(threshold=st.floats(allow_nan=False, allow_infinity=False), station=st.text(st.characters(codec="utf-8"), min_size=1))
def test_every_bit_of_a_threshold_comes_back(tmp_path_factory: pytest.TempPathFactory, threshold: float, station: str) -> None:
    path = tmp_path_factory.mktemp("record") / "record.json"
    save_calibration(path, Calibration(**FIELDS | {"threshold": threshold, "station": station}))
    loaded = load_calibration(path)
    assert loaded.threshold.hex() == threshold.hex()
    assert loaded.station == station


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_threshold_that_is_not_finite_is_never_made(bad: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Calibration(**FIELDS | {"threshold": bad})


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "-Infinity", "1e999", "null", '"high"'])
def test_a_threshold_that_is_no_number_is_refused(path: Path, bad: str) -> None:
    path.write_text(path.read_text().replace("1.25", bad))
    with pytest.raises(CalibrationError, match=r"line-3\.json: threshold: .*; calibrate again"):
        load_calibration(path)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"n": 0}, "n"),
        ({"n": -5}, "n"),
        ({"rate": 0.0}, "rate"),
        ({"rate": 1}, "rate"),
        ({"station": ""}, "station"),
        ({"camera": ""}, "camera"),
        ({"colour": "red"}, "colour"),
        ({"threshold": None}, "threshold"),
        ({"bundle_digest": None}, "bundle_digest"),
    ],
)
def test_wrong_missing_and_unknown_fields_are_named(path: Path, change: dict[str, object], where: str) -> None:
    edit(path, **change)
    with pytest.raises(CalibrationError, match=rf"line-3\.json: {where}: .*; calibrate again"):
        load_calibration(path)


@pytest.mark.parametrize("change", [{"threshold": 9.25}, {"station": "line-4"}, {"n": 999}, {"sha256": None}, {"sha256": "0"}])
def test_a_record_that_was_edited_by_hand_is_refused(path: Path, change: dict[str, object]) -> None:
    edit(path, **change)
    with pytest.raises(CalibrationError, match="changed since it was written"):
        load_calibration(path)


def test_no_flipped_bit_gives_another_record(path: Path) -> None:
    # a flip in white space may leave the same record
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            loaded = load_calibration(path)
        except CalibrationError:
            continue
        assert loaded == Calibration(**FIELDS)


def test_layout_may_change_where_values_do_not(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert load_calibration(path) == Calibration(**FIELDS)


def test_a_newer_schema_is_refused_by_number(path: Path) -> None:
    edit(path, schema_version=3, something_new="x")
    with pytest.raises(CalibrationError, match="calibration schema 3, expected 2 or 1; update the program"):
        load_calibration(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "[1]", "3", "null", "{}", '"x"', "\x00", "[" * 100_000])
def test_what_is_no_record_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(CalibrationError, match="not a calibration record; run `calibration fit` again"):
        load_calibration(path)


def test_every_truncation_is_refused(path: Path) -> None:
    data = path.read_bytes().rstrip()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CalibrationError):
            load_calibration(path)


def test_bytes_that_are_no_text_are_refused(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(CalibrationError, match="not a calibration record"):
        load_calibration(path)


def test_a_missing_file_and_a_folder_say_what_to_run(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(CalibrationError, match=r"cannot be read .*; run `calibration fit` first"):
            load_calibration(path)


def test_a_record_is_replaced_whole(path: Path) -> None:
    save_calibration(path, Calibration(**FIELDS | {"threshold": 2.5}))
    assert load_calibration(path).threshold == 2.5
    assert [file.name for file in path.parent.iterdir()] == ["line-3.json"]


LOADED = {"bundle_digest": "b" * 64, "backend": "onnxruntime", "precision": "fp32", "engine_digest": "e" * 64}


def test_what_it_was_made_for_matches() -> None:
    assert mismatches(Calibration(**FIELDS), **LOADED) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"bundle_digest": "c" * 64}, "calibration is for bundle bbbbbbbbbbbb, loaded is cccccccccccc"),
        ({"backend": "tensorrt"}, "calibration is for backend onnxruntime, loaded is tensorrt"),
        ({"precision": "fp16"}, "calibration is for precision fp32, loaded is fp16"),
        ({"engine_digest": "d" * 64}, "calibration is for engine eeeeeeeeeeee, loaded is dddddddddddd"),
    ],
)
def test_each_difference_is_a_line(change: dict[str, str], line: str) -> None:
    assert mismatches(Calibration(**FIELDS), **LOADED | change) == [f"{line}; calibrate this station again"]


def test_all_differences_come_at_once() -> None:
    other = {"bundle_digest": "c" * 64, "backend": "x", "precision": "y", "engine_digest": "d" * 64}
    assert len(mismatches(Calibration(**FIELDS), **other)) == 4


OLD = """{
 "schema_version": 1,
 "station": "line-3",
 "camera": "camera-1",
 "recipe": "carpet",
 "threshold": 1.25,
 "bundle_digest": "b",
 "backend": "onnxruntime",
 "precision": "fp32",
 "engine_digest": "e",
 "n": 199,
 "rate": 0.01,
 "method": "conformal",
 "when": "2024-01-01T00:00:00+00:00",
 "who": "Ada",
 "sha256": "c974f13fc27fa2702584f9f13aa368db6851ac000f1434515388cf3b9985f47e"
}
"""


def test_a_record_of_schema_1_is_read_and_keeps_the_digest_that_its_journal_has(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(OLD)
    old = load_calibration(tmp_path / "old.json")
    assert (old.schema_version, old.threshold, old.entry, old.manual) == (1, 1.25, None, False)
    assert old.digest == json.loads(OLD)["sha256"]
    save_calibration(tmp_path / "copy.json", old)
    assert (tmp_path / "copy.json").read_text() == OLD


def test_schema_1_with_what_only_schema_2_has_is_refused(tmp_path: Path) -> None:
    document = {**json.loads(OLD), "why": "because"}
    (tmp_path / "old.json").write_text(json.dumps(document))
    with pytest.raises(CalibrationError, match="schema 1 with fields of schema 2"):
        load_calibration(tmp_path / "old.json")


def test_a_threshold_set_by_hand_says_so_and_needs_a_reason() -> None:
    manual = Calibration(**FIELDS | {"method": "manual", "why": "new lamp"})
    assert manual.manual
    assert manual.origin == "SET BY HAND by Ada, 2024-01-01T00:00:00+00:00: new lamp"
    assert "HAND" not in Calibration(**FIELDS).origin
    assert Calibration(**FIELDS | {"n": 1}).origin.startswith("conformal from 1 part, ")
    for why in ("", "  "):
        with pytest.raises(ValidationError, match="no reason"):
            Calibration(**FIELDS | {"method": "manual", "why": why})
