"""The engines door: what it prints, writes and ends with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engines.__main__ import main
from engines.bundle import GOLDEN, Variant, load_bundle
from engines.images import encode_png, read_image
from tests.fakes import feature_graph, flat, flip_byte, tiny_adaptation, write_pictures, write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "bundle", threshold=0.5, golden=(flat(128), flat(160), flat(10)))
    return tmp_path / "bundle"


def test_info_names_what_an_auditor_asks_for(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--bundle", str(bundle)]) == 0
    said = capsys.readouterr().out
    assert load_bundle(bundle).digest in said  # whole, in a log too
    assert "64 x 64" in said
    assert main(["info", "--bundle", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema_version"] == 1


def info_of(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The rows of `info` by name."""
    assert main(["info", "--bundle", str(path)]) == 0
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    return {name.strip(): value.strip() for _, name, value, _ in rows}


def test_info_tells_how_the_backbone_was_adapted(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = info_of(bundle, capsys)
    assert plain["adaptation"] == "none"
    assert "right answers" not in plain
    write_tiny_bundle(tmp_path / "adapted", adaptation=tiny_adaptation())
    told = info_of(tmp_path / "adapted", capsys)
    assert told["adaptation"] == "preset quick, maker cutpaste, 1.5 min"
    assert told["right answers"] == "85% of 20 on held-out images"


def test_verify_passes_and_says_so(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--bundle", str(bundle)]) == 0
    assert "passed: 3 golden images: 0 decision flips" in capsys.readouterr().out


def test_verify_exits_with_1_where_a_score_is_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_bundle(tmp_path / "one", threshold=0.5, golden=(flat(128),))
    other = write_tiny_bundle_scored_by_another_bank(tmp_path / "other")
    assert main(["verify", "--bundle", str(other)]) == 1
    assert "FAILED: 1 golden images: 1 decision flips" in capsys.readouterr().out


def write_tiny_bundle_scored_by_another_bank(path: Path) -> Path:
    """A bundle whose golden image scored 0 when it was made, and scores far above the threshold with its bank."""
    from engines.bundle import Golden, write_bundle
    from tests.fakes import cells

    write_tiny_bundle(path, threshold=0.5, golden=(flat(128),))
    made = load_bundle(path)
    bank = type(made.bank)(cells(255), made.bank.density, made.bank.image, made.bank.patch)
    write_bundle(
        path,
        spec=made.manifest.input,
        method=made.manifest.method,
        threshold=made.manifest.threshold,
        golden_check=made.manifest.golden,
        provenance=made.manifest.provenance,
        features=made.graph("fp32"),
        bank=bank,
        mask=None,
        golden=Golden(("part",), (flat(128),), np.zeros(1)),
    )
    return path


def test_score_prints_one_line_an_image(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.png").write_bytes(encode_png(flat(128)))
    (tmp_path / "parts" / "b.png").write_bytes(encode_png(flat(255)))
    assert main(["score", "--bundle", str(bundle), str(tmp_path / "parts"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png"]
    assert rows[0]["score"] == pytest.approx(0, abs=1e-9)
    assert rows[1]["score"] > 1


def test_heat_maps_of_images_with_one_name_do_not_overwrite_each_other(bundle: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "x1" / "p" / "a.png", tmp_path / "x2" / "p" / "a.png", tmp_path / "x2" / "p" / "a.bmp.png"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(flat(200)))
    assert main(["score", "--bundle", str(bundle), *map(str, paths), "--heatmaps", str(tmp_path / "heat")]) == 0
    written = sorted((tmp_path / "heat").iterdir())
    assert len(written) == 3
    assert read_image(written[0]).shape == (64, 128, 3)


def test_a_damaged_bundle_is_one_line_and_2(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_byte(bundle / GOLDEN)
    assert main(["verify", "--bundle", str(bundle)]) == 2
    complained = capsys.readouterr().err
    assert complained.startswith(f"error: {bundle / GOLDEN}: damaged")
    assert complained.count("\n") == 1


def test_an_empty_folder_to_score_is_2(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["score", "--bundle", str(bundle), str(tmp_path / "empty")]) == 2
    assert "expected PNG, JPEG, BMP, TIFF or WebP files" in capsys.readouterr().err


def test_bench_names_every_stage(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--bundle", str(bundle), "--repeats", "5", "--json", str(tmp_path / "f.json")]) == 0
    said = capsys.readouterr().out
    assert all(stage in said for stage in ("preprocess", "features", "LDKNN", "total", "images per second"))
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["stages_ms"]["total"]["p50"] > 0
    assert figures["repeats"] == 5


def test_score_names_what_it_cannot_score_goes_on_and_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_bundle(tmp_path / "sized", frame_size=(64, 64))
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "1.png").write_bytes(b"text")
    (parts / "2.png").write_bytes(encode_png(flat(128, (64, 80))))
    (parts / "3.png").write_bytes(encode_png(flat(128)))
    assert main(["score", "--bundle", str(tmp_path / "sized"), str(parts)]) == 2
    read = capsys.readouterr()
    assert [line.split()[-1] for line in read.out.splitlines()] == [str(parts / "3.png")]
    first, second = read.err.splitlines()
    assert first.startswith(f"error: {parts / '1.png'}: not an image")
    assert second.startswith(f"error: {parts / '2.png'}: frame is 80 x 64 pixels, expected 64 x 64")


def test_a_precision_is_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offered = Variant(precision="fp16", images=40, max_difference=0.02, flips=0, offered=True)
    refused = Variant(precision="int8", images=40, max_difference=0.5, flips=3, offered=False, reason="3 of 40 decisions flip")
    half = feature_graph(convolution=True)
    path = tmp_path / "bundle"
    write_tiny_bundle(path, golden=(flat(128), flat(160)), variants=(offered, refused), graphs={"fp16": half})
    told = info_of(path, capsys)
    assert told["precision fp16"].startswith("offered; scores differ by 0.02 of the spread")
    assert told["precision int8"].startswith("not offered: 3 of 40 decisions flip; ")
    for command in (["verify"], ["score", str(write_pictures(tmp_path, [flat(128)])[0])], ["bench", "--repeats", "1"]):
        assert main([command[0], "--bundle", str(path), "--precision", "fp16", *command[1:]]) == 0
    assert "onnxruntime fp16 (CPUExecutionProvider)" in capsys.readouterr().out
    assert main(["verify", "--bundle", str(path), "--precision", "int8"]) == 2
    assert "int8 is not offered" in capsys.readouterr().err
