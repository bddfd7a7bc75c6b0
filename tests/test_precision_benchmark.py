"""The benchmark of precisions: every precision and runtime is in it, and nothing is judged by its time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.precision import main
from engines.images import encode_png
from tests.fakes import feature_graph, flat, textured, write_tiny_bundle


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pictures = {"train/good": textured(0), "test/good": textured(1), "test/spot": flat(200)}
    for name, picture in pictures.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "0.png").write_bytes(encode_png(picture))
    return tmp_path / "data"


def test_it_prints_and_writes_what_it_measured(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_bundle(tmp_path / "bundle", normals=(textured(0),), graph=feature_graph(convolution=True))
    out = tmp_path / "figures.json"
    words = ["--bundle", tmp_path / "bundle", "--data", data, "--json", out, "--repeats", 2]
    assert main([str(word) for word in words]) == 0
    figures = json.loads(out.read_text())
    in_onnxruntime = [row for row in figures["times"] if row["runtime"] == "ONNX Runtime"]
    assert [row["precision"] for row in in_onnxruntime] == ["fp32", "fp16", "int8", "int8-cpu"]
    assert in_onnxruntime[0]["ratio"] == 1
    assert [row["precision"] for row in figures["scores"]] == ["fp32", "fp16", "int8", "int8-cpu"]
    assert figures["scores"][0] | {"image_auroc": 0} == {
        "precision": "fp32",
        "image_auroc": 0,
        "mean_difference": 0,
        "deviation": 0,
        "good_at_most": 0,
        "flips": 0,
        "images": 2,
    }
    assert figures["scores"][0]["image_auroc"] == 100
    assert figures["machine"] in capsys.readouterr().out
