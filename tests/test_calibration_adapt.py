"""Adapting a bundle on the station: the guard, the comparison, the new bundle, and the door."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration import CalibrationError, adapt_door
from calibration.__main__ import main
from calibration.adapt import Adapter, Comparison, compare, split_candidates, write_extended
from calibration.probes import GoodImage, Plan, score_good
from calibration.record import load_calibration, save_calibration
from engines.__main__ import main as engines_main
from engines.bundle import Variant, load_bundle
from engines.images import Image, encode_png, pixel_digest, read_image
from engines.inspector import Inspector
from engines.verify import verify_golden
from tests.fakes import cells, conformal_record, feature_graph, flat, textured, write_pictures, write_tiny_bundle


def station_image(seed: int, grey: int = 140) -> Image:
    """A good picture of a station with more light than grey 128, with a little grain."""
    noise = np.random.default_rng(seed).normal(grey, 2, (64, 64, 1)).round()
    return np.repeat(noise, 3, axis=2).astype(np.uint8)


@pytest.fixture
def station(tmp_path: Path) -> Path:
    """A bundle that has seen grey 128 alone, ten good images of grey 128, twelve of a brighter station, and its calibration."""
    rows = cells(126, 127, 128, 129, 130)
    write_tiny_bundle(tmp_path / "bundle", rows=rows, normals=(textured(5),), golden=(flat(128), flat(100), flat(180)))
    write_pictures(tmp_path / "calibrated-on", [station_image(seed, 140 + seed % 4) for seed in range(100, 120)])
    write_pictures(tmp_path / "good", [station_image(seed, 139 + seed % 3) for seed in range(12)])
    with Inspector(load_bundle(tmp_path / "bundle"), threads=1) as inspector:
        paths = sorted((tmp_path / "calibrated-on").iterdir())
        record = conformal_record(inspector, paths, station="line-2", rate=0.1)
    save_calibration(tmp_path / "line-2.json", record)
    return tmp_path


def adapt(folder: Path, *more: str, out: str = "new", bundle: str = "bundle") -> int:
    where = ["--bundle", str(folder / bundle), "--calibration", str(folder / "line-2.json"), "--images", str(folder / "good")]
    return main(["adapt", *where, "--out", str(folder / out), "--threads", "1", "--who", "Ada", *more])


def tree(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def images_with(scores: list[float]) -> list[GoodImage]:
    return [GoodImage(Path(f"{number}.png"), str(number), score, (64, 64)) for number, score in enumerate(scores)]


def test_an_image_above_the_threshold_needs_a_persons_word() -> None:
    images = images_with([1.0, 1.1, 0.9, 5.0, 1.0, 5.5])
    assert split_candidates(images, 6.0, []) == ([0, 1, 2, 4], [], [3, 5])  # far from the rest, below the threshold
    assert split_candidates(images, 1.05, ["3.png"]) == ([0, 2, 4], [3], [1, 5])


def test_an_image_without_a_score_is_never_normal() -> None:
    normal, _, left_out = split_candidates(images_with([1.0, 1.0, 1.0, float("nan")]), 2.0, [])
    assert 3 not in normal
    assert 3 in left_out


def test_a_name_that_no_image_has_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"other\.png: accepted, but none of the 2 images"):
        split_candidates(images_with([1.0, 1.0]), 2.0, ["other.png"])


@pytest.fixture
def adapter(station: Path) -> Iterator[Adapter]:
    with Inspector(load_bundle(station / "bundle"), threads=1) as inspector:
        images = score_good(inspector, sorted((station / "good").iterdir()))
        yield Adapter(inspector, images, 5, 0, lambda done, total: None)


def test_every_image_is_judged_by_a_bank_that_does_not_hold_it(adapter: Adapter) -> None:
    scorers, scores = adapter.cross_fitted()
    assert len(scorers) == 5 and sorted(np.bincount(adapter.fold).tolist()) == [2, 2, 2, 3, 3]
    for fold, scorer in enumerate(scorers):
        own = set(np.flatnonzero(adapter.fold == fold).tolist())
        held = adapter.extended(fold)
        first = 1  # one image is in the old bank
        others = [number for number in range(12) if number not in own]
        assert {others[image - first] for image in held.image if image >= first} <= set(others)
        assert np.array_equal(scorer.ldknn.rows, held.rows)
        for row, image in zip(held.rows, held.image, strict=True):  # each is of the image that it is said to be of
            if image >= first:
                assert (adapter.candidates.features.reshape(12, 64, 3)[others[image - first]] == row).all(axis=1).any()
        for number in own:
            rows = adapter.candidates.features.reshape(12, 64, 3)[number]
            assert not (held.rows[:, None] == rows).all(axis=2).any()
    for number, (image, score) in enumerate(zip(adapter.images, scores.tolist(), strict=True)):
        assert score == scorers[adapter.fold[number]].score(read_image(image.path)).value
        whole = adapter.scorer(adapter.extended())
        assert score != pytest.approx(whole.score(read_image(image.path)).value)  # which holds it


def test_the_stations_images_score_lower_with_their_like_in_the_bank(adapter: Adapter) -> None:
    before = np.array([image.score for image in adapter.images])
    assert (adapter.cross_fitted()[1] < 0.5 * before).all()


def test_a_golden_picture_that_comes_too_near_the_new_threshold_is_let_go(adapter: Adapter, tmp_path: Path) -> None:
    golden = adapter.inspector.bundle.golden()
    scorer = adapter.scorer(adapter.extended())
    values = [scorer.score(image).value for image in golden.images]
    # the new threshold is the highest of the scores, and their deviation the spread: one golden picture is at it
    scores = np.append(np.zeros(11), values[1])
    near = 0.1 * scores.std(ddof=1)
    assert [abs(value - values[1]) > near for value in values] == [True, False, True]
    write_extended(tmp_path / "clear", adapter, scores, accepted=[], left_out=[], station="line-2", who="Ada")
    assert load_bundle(tmp_path / "clear").golden().names == (golden.names[0], golden.names[2])


def test_both_banks_are_compared_on_the_same_images_and_defects(adapter: Adapter) -> None:
    unchanged = [adapter.scorer(adapter.inspector.bundle.bank)] * 5
    before = np.array([image.score for image in adapter.images])
    plan = Plan(per_kind=20, contrast=60.0, sizes_px=(2.0, 20.0))
    limit = float(np.median(before))
    same = compare(adapter, unchanged, before, limit, 0.2, plan, lambda done, total: None)
    assert same.before.size == same.after.size and same.before.size.a50 is not None
    assert same.before.false_rejects == same.after.false_rejects == 6
    assert same.before.size.tried == 110  # of twelve images, one is above the threshold for 20 %: what is on it does not count
    extended = compare(adapter, *adapter.cross_fitted(), limit, 0.2, plan, lambda done, total: None)
    assert extended.before.size == same.before.size
    assert extended.after.false_rejects == 0
    assert extended.after.size.a50 is not None and extended.after.size.a50 < same.before.size.a50


def test_the_door_writes_a_bundle_that_verifies_and_leaves_the_old_one(
    station: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tree(station / "bundle")
    assert adapt(station) == 0
    said = capsys.readouterr().out
    assert "as it was" in said and "extended" in said and "to go back, run it again" in said
    record = load_calibration(station / "line-2.json")
    assert f"the old threshold is {record.threshold:.6g}, {record.origin}" in said  # by hand or not
    assert tree(station / "bundle") == old
    parent, new = load_bundle(station / "bundle"), load_bundle(station / "new")
    assert new.digest != parent.digest
    (extension,) = new.manifest.provenance.extensions
    assert (extension.parent, extension.who, extension.station) == (parent.digest, "Ada", "line-2")
    assert extension.rows == len(new.bank.rows) == 5
    assert extension.new_rows == np.count_nonzero(new.bank.image >= 1) > 0
    assert len(extension.images) == 12 and set(extension.images) <= new.learnt_from()
    manifest = new.manifest
    assert manifest.threshold is not None and manifest.threshold.n == 12
    with Inspector(new, threads=1) as inspector:
        assert verify_golden(inspector, new.golden(), manifest.threshold, manifest.golden.spread).passed
    assert engines_main(["info", "--bundle", str(station / "new")]) == 0
    assert "Ada: 12 images of station line-2" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_an_adapted_bundle_can_be_adapted_again_and_keeps_its_history(station: Path) -> None:
    assert adapt(station) == 0
    write_pictures(station / "calibrated-on", [station_image(seed, 140 + seed % 4) for seed in range(200, 220)])
    with Inspector(load_bundle(station / "new"), threads=1) as inspector:
        record = conformal_record(inspector, sorted((station / "calibrated-on").iterdir()), station="line-2", rate=0.1)
    save_calibration(station / "line-2.json", record)
    names = write_pictures(station / "good", [station_image(seed, 139 + seed % 3) for seed in range(50, 62)])
    assert adapt(station, "--accept", *(path.name for path in names), out="newer", bundle="new") == 0
    first, second = load_bundle(station / "newer").manifest.provenance.extensions
    assert second.parent == load_bundle(station / "new").digest and first.parent == load_bundle(station / "bundle").digest


def test_an_odd_image_is_left_out_and_listed_until_it_is_accepted(station: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (station / "good" / "odd.png").write_bytes(encode_png(flat(230)))
    assert adapt(station) == 0
    assert "odd.png" in capsys.readouterr().err
    assert load_bundle(station / "new").manifest.provenance.extensions[0].left_out == ("odd.png",)
    assert adapt(station, "--accept", "odd.png", out="accepted") == 0
    extension = load_bundle(station / "accepted").manifest.provenance.extensions[0]
    assert (extension.accepted, extension.left_out, len(extension.images)) == (("odd.png",), (), 13)


def test_an_extended_bank_that_finds_less_is_warned_of(
    station: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = adapt_door.compare

    def compare_backwards(*arguments: Any) -> Comparison:
        found = real(*arguments)
        return replace(found, before=found.after, after=found.before)

    assert adapt(station) == 0
    assert "finds fewer of the defects" not in capsys.readouterr().err
    monkeypatch.setattr(adapt_door, "compare", compare_backwards)
    assert adapt(station, out="worse") == 0
    assert "finds fewer of the defects" in capsys.readouterr().err


def test_what_nobody_vouched_for_is_not_in_the_bank(station: Path) -> None:
    odd = flat(230)
    (station / "good" / "odd.png").write_bytes(encode_png(odd))
    assert adapt(station) == 0
    new = load_bundle(station / "new")
    (extension,) = new.manifest.provenance.extensions
    assert len(extension.images) == 12
    assert pixel_digest(odd) not in {*extension.images, *new.learnt_from()}
    with Inspector(new, threads=1) as inspector:
        assert inspector.score(odd).value > load_calibration(station / "line-2.json").threshold


def test_a_precision_that_still_agrees_is_kept_with_its_graph(station: Path) -> None:
    variant = Variant(precision="fp16", images=2, max_difference=0.0, flips=0, offered=True)
    made = load_bundle(station / "bundle")
    write_tiny_bundle(
        station / "bundle",
        rows=made.bank.rows,
        golden=(flat(128), flat(100), flat(180)),
        variants=(variant,),
        graphs={"fp16": feature_graph(convolution=True)},
    )
    with Inspector(load_bundle(station / "bundle"), threads=1) as inspector:
        paths = sorted((station / "calibrated-on").iterdir())
        save_calibration(station / "line-2.json", conformal_record(inspector, paths, station="line-2", rate=0.1))
    assert adapt(station) == 0
    again = load_bundle(station / "new").manifest.variant("fp16")
    assert again is not None and again.offered and again.images >= 1


def brighter_graph() -> bytes:
    """A network to which every picture looks ten times as bright, and so like none in the bank."""
    model = onnx.ModelProto.FromString(feature_graph(convolution=True))
    (kernel,) = (tensor for tensor in model.graph.initializer if tensor.name == "kernel")
    kernel.CopyFrom(numpy_helper.from_array(10 * numpy_helper.to_array(kernel), "kernel"))
    return bytes(model.SerializeToString())


def test_a_precision_that_decides_otherwise_with_the_new_bank_is_not_offered(station: Path) -> None:
    variant = Variant(precision="fp16", images=2, max_difference=0.0, flips=0, offered=True)
    write_tiny_bundle(
        station / "bundle",
        rows=cells(126, 127, 128, 129, 130),
        golden=(flat(128), flat(100), flat(180)),
        variants=(variant,),
        graphs={"fp16": brighter_graph()},
    )
    with Inspector(load_bundle(station / "bundle"), threads=1) as inspector:
        paths = sorted((station / "calibrated-on").iterdir())
        save_calibration(station / "line-2.json", conformal_record(inspector, paths, station="line-2", rate=0.1))
    assert adapt(station) == 0
    new = load_bundle(station / "new")
    again = new.manifest.variant("fp16")
    assert again is not None and not again.offered
    assert "golden images flip with the station's bank" in (again.reason or "")
    assert not list((station / "new").glob("*fp16*"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--rows", "100000"), "100000 rows, expected 2 to"),
        (("--accept", "nobody.png"), "nobody.png: accepted, but none"),
    ],
)
def test_the_door_refuses_and_writes_nothing(
    station: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    assert adapt(station, *more) == 2
    assert said in capsys.readouterr().err
    assert not (station / "new").exists()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("bundle", "give another folder"),
        ("good", "a folder that is not a bundle"),
        ("line-2.json", "a file; expected a new path"),
        ("line-2.json/new/deep", "could not be written (Not a directory)"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_scored(
    station: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, out: str, said: str
) -> None:
    monkeypatch.setattr("calibration.adapt_door.score_good", lambda *_: pytest.fail("an image was scored"))
    before = tree(station / "bundle"), (station / "line-2.json").read_bytes()
    assert adapt(station, out=out) == 2
    assert said in capsys.readouterr().err
    assert (tree(station / "bundle"), (station / "line-2.json").read_bytes()) == before


def test_the_old_bundles_own_folder_is_never_written(adapter: Adapter) -> None:
    path = adapter.inspector.bundle.path
    before = tree(path)
    with pytest.raises(CalibrationError, match="give another folder"):
        write_extended(path, adapter, np.arange(12.0), accepted=(), left_out=(), station="line-2", who="Ada")
    assert tree(path) == before


def test_a_calibration_of_another_bundle_and_too_few_images_are_refused(
    station: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((station / "good").iterdir())[:5]:
        path.unlink()
    assert adapt(station) == 2
    assert "7 images to add, expected 10 or more" in capsys.readouterr().err
    write_tiny_bundle(station / "bundle", threshold=3.0)
    assert adapt(station) == 2
    assert "calibrate this station with the bundle first" in capsys.readouterr().err


def test_a_bundle_from_before_extensions_loads(station: Path) -> None:
    manifest = station / "bundle" / "manifest.json"
    document = json.loads(manifest.read_text())
    del document["provenance"]["extensions"]
    manifest.write_text(json.dumps(document))
    assert load_bundle(station / "bundle").manifest.provenance.extensions == ()


def test_a_threshold_of_another_precision_is_warned_of(station: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = load_calibration(station / "line-2.json")
    assert adapt(station) == 0
    assert "expected fp32" not in capsys.readouterr().err
    save_calibration(station / "line-2.json", record.model_copy(update={"precision": "int8-cpu"}))
    assert adapt(station, out="newer") == 0
    assert "line-2.json: its threshold is for int8-cpu, expected fp32" in " ".join(capsys.readouterr().err.split())
