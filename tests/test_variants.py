"""Export: a bundle again with further precisions, known images alone, and nothing that decides otherwise."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import train.variants as module
from engines import EngineError
from engines.bundle import Bundle, Precision, load_bundle
from engines.inspector import Inspector
from engines.verify import TOLERANCE, allowed_difference, verify_golden
from tests.fakes import Floats, feature_graph, textured, write_pictures, write_tiny_bundle
from tests.test_fit import Talk
from train import TrainError
from train.__main__ import main
from train.precision import convert
from train.variants import calibration_inputs, export, find_images

PICTURES = tuple(textured(number) for number in range(6))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    write_tiny_bundle(tmp_path / "bundle", normals=PICTURES, threshold=1.0, graph=feature_graph(convolution=True))
    return load_bundle(tmp_path / "bundle")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The bundle's images under other names, and one more."""
    write_pictures(tmp_path / "data", [textured(99), *PICTURES])
    return tmp_path / "data"


def test_what_agrees_is_in_the_bundle_and_what_does_not_is_named(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    result = export(bundle.path, data, tmp_path / "out", ("fp16", "int8"), Talk().console)
    written = load_bundle(tmp_path / "out")
    assert (result.path, result.digest, result.variants) == (tmp_path / "out", written.digest, written.manifest.variants)
    assert [variant.precision for variant in written.manifest.variants] == ["fp16", "int8"]
    assert written.manifest.variants[0].offered
    for variant in written.manifest.variants:
        assert ((tmp_path / "out" / f"features-{variant.precision}.onnx").is_file()) == variant.offered
    assert written.graph("fp32") == bundle.graph("fp32")
    kept = {"provenance", "method", "threshold", "golden", "input"}
    assert written.manifest.model_dump(include=kept) == bundle.manifest.model_dump(include=kept)
    assert np.array_equal(written.golden().scores, bundle.golden().scores)
    with Inspector(written, precision="fp16", threads=1) as inspector:
        assert inspector.extractor.precision == "fp16"
        stated = written.manifest
        tolerance = allowed_difference(stated, "fp16")
        assert tolerance > TOLERANCE
        verified = verify_golden(inspector, written.golden(), stated.threshold, stated.golden.spread, tolerance=tolerance)
        assert verified.passed


def test_a_bundle_may_be_written_over_itself(bundle: Bundle, data: Path) -> None:
    export(bundle.path, data, bundle.path, ("fp16",), Talk().console)
    assert [variant.precision for variant in load_bundle(bundle.path).manifest.variants] == ["fp16"]


def spoilt(graph: bytes, precision: Precision, tensors: Iterable[Floats]) -> bytes:
    """A conversion that doubles what the network gives."""
    model = onnx.load_from_string(graph)
    kernel = model.graph.initializer[1]
    kernel.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(kernel), kernel.name))
    return bytes(model.SerializeToString())


def test_a_graph_that_decides_otherwise_stays_out(
    bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "convert", spoilt)
    (variant,) = export(bundle.path, data, tmp_path / "out", ("int8",), Talk().console).variants
    assert (variant.offered, variant.flips > 0) == (False, True)
    written = load_bundle(tmp_path / "out")
    assert set(written.graphs) == {"fp32"}
    with pytest.raises(EngineError, match=r"int8 is not offered \(\d+ of \d+ decisions flip .*\); it has fp32: choose one"):
        written.graph("int8")


@pytest.mark.parametrize(("ratio", "offered"), [(0.5, True), (1.5, False)])
def test_int8_for_the_cpu_is_offered_where_it_is_faster(
    bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, offered: bool
) -> None:
    monkeypatch.setattr(module, "convert", lambda graph, precision, tensors: convert(graph, "fp16", tensors))
    monkeypatch.setattr(module, "time_ratio", lambda *arguments: ratio)
    (variant,) = export(bundle.path, data, tmp_path / "out", ("int8-cpu",), Talk().console).variants
    assert variant.offered == offered
    (variant,) = export(bundle.path, data, tmp_path / "out", ("int8",), Talk().console).variants
    assert variant.offered  # for a GPU, whose times are not known here


def test_images_are_known_by_their_pixels(bundle: Bundle, data: Path) -> None:
    bank, held_out = find_images(bundle, data, None, Talk().console)
    assert [sample.image().tobytes() for sample in bank] == [picture.tobytes() for picture in PICTURES]
    assert held_out == ()


def test_missing_images_are_counted_and_nothing_is_written(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    for path in sorted(data.iterdir())[3:]:
        path.unlink()
    message = r"data: 4 of 6 images that .*bundle was made with are not there, pixel for pixel \(normal-2.png, normal-3.png, .*"
    with pytest.raises(TrainError, match=message + "give the folder that it was fitted on"):
        export(bundle.path, data, tmp_path / "out", ("fp16",), Talk().console)
    assert not (tmp_path / "out").exists()


def test_ranges_are_measured_on_images_of_the_bank(bundle: Bundle, data: Path) -> None:
    bank, _ = find_images(bundle, data, None, Talk().console)
    tensors = list(calibration_inputs(bundle, bank))
    assert [tensor.tobytes() for tensor in tensors] == [bundle.preprocessor()(picture).tobytes() for picture in PICTURES]
    assert len(list(calibration_inputs(bundle, bank * 20))) == 32


def test_defects_are_drawn_on_what_is_judged(tmp_path: Path) -> None:
    def judged(**settings: Any) -> npt.NDArray[np.bool_] | None:
        write_tiny_bundle(tmp_path / "judged", **settings)
        return module._judged_pixels(load_bundle(tmp_path / "judged"))

    assert judged() is None
    mask = np.zeros((80, 96), bool)
    mask[:, 90:] = True
    expected = np.zeros((80, 96), bool)
    expected[4:68, 30:94] = True
    assert np.array_equal(judged(roi=(30, 4, 64, 64), frame_size=(80, 96)), expected)
    assert np.array_equal(judged(mask=mask), ~mask)
    assert np.array_equal(judged(roi=(30, 4, 64, 64), mask=mask), expected & ~mask)


def test_the_door_prints_the_table(bundle: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "--bundle", bundle.path, "--data", data, "--out", tmp_path / "out", "--precisions", "fp16"]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "fp16" in said
    assert "offered" in said
    assert load_bundle(tmp_path / "out").digest[:12] in said
    shutil.rmtree(data)
    assert main([str(word) for word in words]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "fp32", "fp16,fp16", "int4", "fp16,", "fp16 int8"])
def test_other_precisions_are_refused(text: str, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(["export", "--bundle", str(bundle.path), "--data", "x", "--out", "y", "--precisions", text])
    assert refusal.value.code == 2
    assert "expected some of fp16,int8,int8-cpu, each once" in capsys.readouterr().err
