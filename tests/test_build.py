"""Engines are built as asked, proved before they are installed, and refused where they do not belong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engines import EngineError
from engines.__main__ import main
from engines.build import build_engine, build_plan
from engines.bundle import Bundle, load_bundle
from engines.engine_file import read_engine
from engines.extractors import make_extractor
from engines.inspector import Inspector
from engines.trt import load_tensorrt
from tests.fake_gpu import FakeDriver
from tests.fake_tensorrt import FakeTensorRT
from tests.fakes import cells, feature_graph, flat, flip_byte, textured, write_tiny_bundle

SIZE = (64, 64)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    write_tiny_bundle(
        tmp_path / "bundle",
        size=SIZE,
        threshold=0.5,
        rows=cells(100, 128),
        golden=(flat(128), flat(100), textured(1), textured(2)),
        spread=0.5,
    )
    return load_bundle(tmp_path / "bundle")


def folder_of_engine(bundle: Bundle) -> Path:
    (folder,) = bundle.path.with_name("bundle.engines").iterdir()
    return folder


# --- the build


def test_a_graph_is_built_strongly_typed_in_true_float32(tensorrt: FakeTensorRT) -> None:
    built = build_plan(load_tensorrt("tensorrt"), feature_graph(SIZE), workspace_mb=64)
    (asked,) = tensorrt.built
    assert asked == SimpleNamespace(tf32=False, workspace=64 << 20, capabilities=[], cache=b"")
    assert built.plan
    assert built.timing_cache == b"cache of this GPU"


def test_other_gpus_are_built_for_where_they_are_named(tensorrt_rtx: FakeTensorRT) -> None:
    build_plan(load_tensorrt("tensorrt-rtx"), feature_graph(SIZE), capabilities=((8, 6), (8, 9)))
    assert tensorrt_rtx.built[0].capabilities == ["SM86", "SM89"]
    assert tensorrt_rtx.built[0].workspace is None
    tensorrt_rtx.failing = "capability"
    with pytest.raises(EngineError, match=r"knows no compute capability 8\.6"):
        build_plan(load_tensorrt("tensorrt-rtx"), feature_graph(SIZE), capabilities=((8, 6),))


def test_a_graph_that_does_not_parse_is_refused_with_what_was_said(tensorrt: FakeTensorRT) -> None:
    with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0 cannot parse the graph \(no model: .*export it again"):
        build_plan(load_tensorrt("tensorrt"), b"no graph")


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ("build", r"could not build the engine \(error: out of memory\); where memory was short.*--workspace-mb less"),
        ("builder", r"cannot be used here \(error: no device\); check GPU and driver"),
    ],
)
def test_a_build_that_fails_says_why(failing: str, said: str, tensorrt: FakeTensorRT) -> None:
    tensorrt.failing = failing
    with pytest.raises(EngineError, match=said):
        build_plan(load_tensorrt("tensorrt"), feature_graph(SIZE))


def test_a_timing_cache_is_used_kept_and_left_where_it_does_not_fit(
    bundle: Bundle, tensorrt: FakeTensorRT, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    for before in (None, b"cache of this GPU", b"cache of another"):
        if before is not None:
            cache.write_bytes(before)
        build_engine(bundle, "tensorrt", "fp32", timing_cache=cache)
        assert cache.read_bytes() == b"cache of this GPU"
    assert [asked.cache for asked in tensorrt.built] == [b"", b"cache of this GPU", b""]
    tensorrt.failing = "no cache"
    build_engine(bundle, "tensorrt", "fp32", timing_cache=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_has_no_purpose_on_a_gpu_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="int8-cpu is the graph for ONNX Runtime on a processor; build int8"):
        build_engine(bundle, "tensorrt", "int8-cpu")
    with pytest.raises(EngineError, match="tensorrt-rtx times nothing and has no timing cache; leave --timing-cache out"):
        build_engine(bundle, "tensorrt-rtx", "fp32", timing_cache=tmp_path / "cache")


def test_a_timing_cache_that_cannot_be_written_costs_no_engine(
    bundle: Bundle, tensorrt: FakeTensorRT, driver: FakeDriver, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EngineError):
        build_engine(bundle, "tensorrt", "fp32", timing_cache=tmp_path / "file" / "cache")
    assert driver.memory == {}
    make_extractor(bundle, "tensorrt").close()
    (tmp_path / "folder").mkdir()
    with pytest.raises(EngineError, match="folder: cannot be read"):
        build_engine(bundle, "tensorrt", "fp32", timing_cache=tmp_path / "folder")


# --- the proof


def test_an_engine_is_proved_and_installed_with_its_record(bundle: Bundle, tensorrt: FakeTensorRT, driver: FakeDriver) -> None:
    result = build_engine(bundle, "tensorrt", "fp32", workspace_mb=64)
    assert result.golden.passed
    assert result.folder == folder_of_engine(bundle)
    assert result.folder.name == f"tensorrt-10.3.0-fake-orin-2sm-fp32-{bundle.digest[:12]}"
    record = json.loads((result.folder / "engine.json").read_text())
    assert record["target"] == {
        "bundle": bundle.digest,
        "precision": "fp32",
        "backend": "tensorrt",
        "version": "10.3.0",
        "gpu": "Fake Orin",
        "capability": [8, 7],
        "multiprocessors": 2,
    }
    assert (record["images"], record["flips"], record["workspace_mb"]) == (4, 0, 64)
    assert record["max_difference"] < 1e-4
    assert record["graph_sha256"] == bundle.manifest.files["features.onnx"].sha256
    assert record["log"] == ["warning: a tactic was skipped"]
    assert driver.memory == {}
    with Inspector(bundle, "tensorrt") as inspector:
        assert inspector.extractor.engine_digest == record["sha256"]
        assert inspector.extractor.provider == "Fake Orin, tensorrt 10.3.0"


def test_an_engine_that_scores_wrongly_is_not_installed_and_the_older_one_stays(
    bundle: Bundle, tensorrt: FakeTensorRT, driver: FakeDriver
) -> None:
    build_engine(bundle, "tensorrt", "fp32")
    before = (folder_of_engine(bundle) / "engine.json").read_bytes()
    tensorrt.offset = 2.0
    result = build_engine(bundle, "tensorrt", "fp32")
    assert result.folder is None
    assert not result.golden.passed
    tensorrt.offset = np.nan
    with pytest.raises(EngineError, match="scores that are not finite"):
        build_engine(bundle, "tensorrt", "fp32")
    assert (folder_of_engine(bundle) / "engine.json").read_bytes() == before
    assert driver.memory == {}


@pytest.mark.parametrize("failing", ["build", "deserialize", "context", "execute"])
def test_a_build_that_fails_leaves_the_older_engine_and_no_memory(
    failing: str, bundle: Bundle, tensorrt: FakeTensorRT, driver: FakeDriver
) -> None:
    build_engine(bundle, "tensorrt", "fp32")
    before = (folder_of_engine(bundle) / "engine.plan").read_bytes()
    tensorrt.failing = failing
    with pytest.raises(EngineError):
        build_engine(bundle, "tensorrt", "fp32")
    assert (folder_of_engine(bundle) / "engine.plan").read_bytes() == before
    assert driver.memory == {}
    assert driver.pushed == 0


def test_engines_for_different_machines_stand_side_by_side(bundle: Bundle, tensorrt: FakeTensorRT, driver: FakeDriver) -> None:
    build_engine(bundle, "tensorrt", "fp32")
    driver.name, driver.capability = "Fake Thor", (11, 0)
    with pytest.raises(
        EngineError,
        match=r"no engine for tensorrt 10\.3\.0 on Fake Thor in fp32 \(there is one for gpu Fake Orin, capability \(8, 7\)\);"
        r" build it on this machine: python -m engines build --bundle .*bundle --backend tensorrt --precision fp32",
    ):
        make_extractor(bundle, "tensorrt")
    build_engine(bundle, "tensorrt", "fp32")
    assert len(list(bundle.path.with_name("bundle.engines").iterdir())) == 2
    make_extractor(bundle, "tensorrt").close()
    tensorrt.__version__ = "10.16.0"
    load_tensorrt.cache_clear()
    with pytest.raises(EngineError, match=r"no engine for tensorrt 10\.16\.0"):
        make_extractor(bundle, "tensorrt")


# --- reading


def test_a_bundle_without_engines_says_how_to_build_one(bundle: Bundle, tensorrt: FakeTensorRT, driver: FakeDriver) -> None:
    with pytest.raises(EngineError, match=r"no engine for tensorrt 10\.3\.0 on Fake Orin in fp32; build it on this machine"):
        make_extractor(bundle, "tensorrt")
    assert driver.pushed == 0
    with pytest.raises(EngineError, match="no fp16, it has fp32"):
        make_extractor(bundle, "tensorrt", precision="fp16")


@pytest.mark.parametrize("harm", ["flipped", "short", "missing"])
def test_a_damaged_engine_is_refused_before_tensorrt_sees_it(harm: str, bundle: Bundle, tensorrt: FakeTensorRT) -> None:
    build_engine(bundle, "tensorrt", "fp32")
    plan = folder_of_engine(bundle) / "engine.plan"
    if harm == "flipped":
        flip_byte(plan)
    elif harm == "short":
        plan.write_bytes(plan.read_bytes()[:-1])
    else:
        plan.unlink()
    tensorrt.failing = "deserialize"
    with pytest.raises(EngineError, match=r"engine\.plan: (damaged|cannot be read).*build it again"):
        make_extractor(bundle, "tensorrt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": {"gpu": "Another"}}, "built for gpu Another, expected Fake Orin"),
        ({"target": {"version": "10.4.0"}}, r"built for version 10\.4\.0, expected 10\.3\.0"),
        ({"target": {"bundle": "0" * 64}}, "built for bundle 0+, expected"),
        ({"target": {"capability": [8, 9]}}, r"built for capability \(8, 9\), expected \(8, 7\)"),
        ({"graph_sha256": "0" * 64}, "built from another graph"),
        ({"target": {"multiprocessors": 16}}, "built for multiprocessors 16, expected 2"),
        ({"schema_version": 2}, "schema 2, expected 1"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"bytes": 0}, "bytes: "),
    ],
)
def test_a_record_of_something_else_is_refused(
    change: dict[str, object], said: str, bundle: Bundle, tensorrt: FakeTensorRT
) -> None:
    build_engine(bundle, "tensorrt", "fp32")
    path = folder_of_engine(bundle) / "engine.json"
    record = json.loads(path.read_text())
    target = change.get("target")
    if isinstance(target, dict):
        record["target"] |= target
    else:
        record |= change
    path.write_text(json.dumps(record))
    with pytest.raises(EngineError, match=f"{said}.*build it again: python -m engines build"):
        make_extractor(bundle, "tensorrt")


def test_a_record_that_is_no_json_is_refused(bundle: Bundle, tensorrt: FakeTensorRT) -> None:
    build_engine(bundle, "tensorrt", "fp32")
    (folder_of_engine(bundle) / "engine.json").write_text("{")
    with pytest.raises(EngineError, match=r"engine\.json: the file: Invalid JSON.*build it again"):
        make_extractor(bundle, "tensorrt")


def test_an_engine_of_an_older_bundle_in_its_place_is_not_taken(bundle: Bundle, tensorrt: FakeTensorRT) -> None:
    result = build_engine(bundle, "tensorrt", "fp32")
    changed = replace(bundle, digest="f" * 64)
    target = result.record.target.model_copy(update={"bundle": changed.digest})
    with pytest.raises(EngineError, match=r"there is one for bundle [0-9a-f]{64}"):
        read_engine(bundle.path, target, bundle.graph("fp32"))


# --- the door


def test_the_door_builds_verifies_and_scores(
    bundle: Bundle, tensorrt: FakeTensorRT, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ["--bundle", str(bundle.path), "--backend", "tensorrt", "--precision", "fp32"]
    assert main(["verify", *here]) == 2
    assert "build it on this machine" in capsys.readouterr().err.replace("\n", " ")
    assert main(["build", *here]) == 0
    said = capsys.readouterr().out
    assert "for Fake Orin, tensorrt 10.3.0" in said
    assert "passed: 4 golden images: 0 decision flips" in said
    assert "wrote" in said
    assert main(["verify", *here]) == 0
    assert main(["verify", *here, "--search", "cpu"]) == 0
    assert main(["bench", *here, "--repeats", "2"]) == 0


def test_the_door_says_no_where_the_engine_scores_wrongly(
    bundle: Bundle, tensorrt: FakeTensorRT, capsys: pytest.CaptureFixture[str]
) -> None:
    tensorrt.offset = 2.0
    assert main(["build", "--bundle", str(bundle.path), "--precision", "fp32"]) == 1
    said = capsys.readouterr().out
    assert "FAILED: 4 golden images" in said
    assert "not installed" in said
    assert not bundle.path.with_name("bundle.engines").exists()


def test_the_door_names_what_is_missing(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--bundle", str(bundle.path), "--precision", "fp16"]) == 2
    assert "no fp16" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main(["build", "--bundle", str(bundle.path), "--backend", "onnxruntime"])
    assert left.value.code == 2


def test_bench_times_all_there_is_and_says_what_is_missing(
    bundle: Bundle, tensorrt: FakeTensorRT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_engine(bundle, "tensorrt", "fp32")
    figures = tmp_path / "figures.json"
    assert main(["bench", "--bundle", str(bundle.path), "--every", "--repeats", "2", "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    timed = [(one["backend"], one["precision"], one["searched_on"]) for one in found["timed"]]
    assert timed == [
        ("onnxruntime", "fp32", "cpu"),
        ("onnxruntime", "fp32", "gpu"),
        ("tensorrt", "fp32", "cpu"),
        ("tensorrt", "fp32", "gpu"),
    ]
    assert all(one["images_per_second"] > 0 for one in found["timed"])
    assert set(found["missing"]) == {
        f"{backend} fp32, search on the {search}"
        for backend in ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt-rtx")
        for search in ("CPU", "GPU")
    }
    said = capsys.readouterr().out
    assert "not timed: " in said
    assert "tensorrt fp32" in said
