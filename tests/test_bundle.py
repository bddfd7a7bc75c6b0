"""The bundle: what was written comes back, and whatever is damaged, newer or inconsistent is refused."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from engines import EngineError
from engines.bundle import (
    BANK,
    FEATURES,
    GOLDEN,
    MANIFEST,
    MASK,
    SCHEMA,
    GoldenCheck,
    ImageRecord,
    Input,
    Method,
    Variant,
    check_replaceable,
    load_bundle,
    pack_npz,
)
from engines.images import pixel_digest
from engines.verify import TOLERANCE, allowed_difference
from tests.fakes import cells, feature_graph, flat, flip_byte, textured, tiny_provenance, write_tiny_bundle

Arrays = dict[str, Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole tiny bundle with a mask."""
    mask = np.zeros((64, 64), bool)
    mask[:16, :8] = True
    write_tiny_bundle(tmp_path / "bundle", rows=cells(100, 150), mask=mask, threshold=0.25, normals=(flat(100), flat(150)))
    return tmp_path / "bundle"


def edit_manifest(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((path / MANIFEST).read_text())
    edit(document)
    (path / MANIFEST).write_text(json.dumps(document))


def replace_file(path: Path, name: str, data: bytes) -> None:
    """Put other bytes in a file and make the manifest agree, so that only a check of the content can notice."""
    (path / name).write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(path, lambda document: document["files"].update({name: entry}))


def edit_arrays(path: Path, name: str, edit: Callable[[Arrays], None]) -> None:
    with np.load(path / name) as archive:
        arrays = dict(archive)
    edit(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    replace_file(path, name, buffer.getvalue())


def test_round_trip(tmp_path: Path) -> None:
    mask = np.zeros((80, 100), bool)
    mask[10:30, 20:40] = True
    pictures = (textured(1, (80, 100)), flat(90, (80, 100)))
    density = np.array([0.5, 0.25], np.float32)
    digest = write_tiny_bundle(
        tmp_path / "bundle",
        threshold=0.75,
        rows=cells(100, (1, 2, 3)),
        density=density,
        size=(64, 96),
        roi=(2, 3, 90, 70),
        mask=mask,
        mm_per_pixel=0.1,
        metric="euclidean",
        k=3,
        alpha=0.5,
        golden=pictures,
    )
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.digest == digest == hashlib.sha256((tmp_path / "bundle" / MANIFEST).read_bytes()).hexdigest()
    assert bundle.path == tmp_path / "bundle"
    assert bundle.graph("fp32") == feature_graph((64, 96))
    np.testing.assert_array_equal(bundle.bank.rows, cells(100, (1, 2, 3)))
    np.testing.assert_array_equal(bundle.bank.density, density)
    assert bundle.bank.patch.tolist() == [0, 1]
    assert bundle.mask is not None
    np.testing.assert_array_equal(bundle.mask, mask)
    manifest = bundle.manifest
    assert manifest.input == Input(size=(64, 96), roi=(2, 3, 90, 70), frame_size=(80, 100), mm_per_pixel=0.1)
    assert manifest.method == Method(backbone="tiny", dim=3, grid=(8, 12), metric="euclidean", k=3, alpha=0.5)
    assert manifest.threshold is not None and manifest.threshold.value == 0.75
    golden = bundle.golden()
    assert golden.names == ("golden-0.png", "golden-1.png")
    for image, expected in zip(golden.images, pictures, strict=True):
        np.testing.assert_array_equal(image, expected)
    assert golden.scores.dtype == np.float64
    assert bundle.preprocessor()(pictures[0]).shape == (1, 3, 64, 96)


def test_the_same_parts_give_the_same_digest_and_others_another(tmp_path: Path) -> None:
    digests = [write_tiny_bundle(tmp_path / name, threshold=value) for name, value in (("a", 1.0), ("b", 1.0), ("c", 1.5))]
    assert digests[0] == digests[1] != digests[2]


def test_a_bundle_without_mask_and_threshold(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle", threshold=None)
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.mask is None
    assert bundle.manifest.threshold is None


def test_many_golden_images_keep_their_order(tmp_path: Path) -> None:
    # 1,001 images: as text, png_1000 would come before png_101
    pictures = tuple(flat((index % 256, index // 256, 0), (32, 32)) for index in range(1001))
    write_tiny_bundle(tmp_path / "bundle", size=(32, 32), golden=pictures)
    colours = [tuple(image[0, 0, :2]) for image in load_bundle(tmp_path / "bundle").golden().images]
    assert colours == [(index % 256, index // 256) for index in range(1001)]


def test_in_bank_lists_bank_images_alone(path: Path) -> None:
    assert load_bundle(path).learnt_from() == {pixel_digest(flat(100)), pixel_digest(flat(150))}
    held_out = ImageRecord(name="x.png", pixels="0" * 64, use="held-out").model_dump()
    edit_manifest(path, lambda document: document["provenance"]["images"].append(held_out))
    assert load_bundle(path).learnt_from() == {pixel_digest(flat(100)), pixel_digest(flat(150))}


@pytest.mark.parametrize("name", [FEATURES, BANK, GOLDEN, MASK])
def test_a_flipped_byte_is_noticed(path: Path, name: str) -> None:
    size = (path / name).stat().st_size
    for at in (0, size // 2, size - 1):
        flip_byte(path / name, at)
        with pytest.raises(EngineError, match=f"{name}: damaged"):
            load_bundle(path)
        flip_byte(path / name, at)
    load_bundle(path)


@pytest.mark.parametrize("name", [FEATURES, BANK, GOLDEN, MASK])
def test_a_truncated_or_grown_file_is_noticed(path: Path, name: str) -> None:
    data = (path / name).read_bytes()
    for other in (data[:-1], data + b"\0", b""):
        (path / name).write_bytes(other)
        with pytest.raises(EngineError, match=f"{name}: damaged"):
            load_bundle(path)


@pytest.mark.parametrize("name", [FEATURES, BANK, GOLDEN, MASK])
def test_a_missing_file_is_noticed(path: Path, name: str) -> None:
    (path / name).unlink()
    with pytest.raises(EngineError, match=f"{name}: missing"):
        load_bundle(path)


@pytest.mark.parametrize("name", [FEATURES, BANK, GOLDEN])
def test_a_file_that_the_manifest_does_not_list_is_noticed(path: Path, name: str) -> None:
    edit_manifest(path, lambda document: document["files"].pop(name))
    with pytest.raises(EngineError, match=f"lists no {name}"):
        load_bundle(path)


def test_a_folder_in_place_of_a_file_is_noticed(path: Path) -> None:
    (path / BANK).unlink()
    (path / BANK).mkdir()
    with pytest.raises(EngineError, match="cannot be read"):
        load_bundle(path)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    for nothing in (tmp_path, tmp_path / "missing"):
        with pytest.raises(EngineError, match=f"no {MANIFEST} there"):
            load_bundle(nothing)


@pytest.mark.parametrize(
    ("version", "remedy"), [(SCHEMA + 1, "update the program"), (SCHEMA - 1, "train the bundle again"), ("1", "train")]
)
def test_another_schema_is_refused(path: Path, version: int | str, remedy: str) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["schema_version"] = version
        document["something_new"] = {"unknown": True}  # the version speaks before any key that it may have brought

    edit_manifest(path, edit)
    with pytest.raises(EngineError, match=f"bundle schema {version}, expected {SCHEMA}; {remedy}"):
        load_bundle(path)


@pytest.mark.parametrize("where", [(), ("input",), ("method",), ("provenance",), ("golden",), ("threshold",), ("files", BANK)])
def test_an_unknown_key_is_refused_by_name(path: Path, where: tuple[str, ...]) -> None:
    def edit(document: dict[str, Any]) -> None:
        for key in where:
            document = document[key]
        document["alpah"] = 1

    edit_manifest(path, edit)
    with pytest.raises(EngineError, match="alpah: Extra inputs"):
        load_bundle(path)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("method", "alpha", float("nan")),
        ("method", "alpha", float("inf")),
        ("method", "alpha", -1),
        ("method", "k", 0),
        ("method", "metric", "cosine"),
        ("method", "pooling", "none"),
        ("threshold", "value", float("nan")),
        ("threshold", "value", None),
        ("threshold", "rate", 1.0),
        ("golden", "spread", 0.0),
        ("input", "size", [64]),
        ("input", "mm_per_pixel", 0.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(path: Path, section: str, key: str, value: object) -> None:
    edit_manifest(path, lambda document: document[section].update({key: value}))
    with pytest.raises(EngineError, match=f"{section}.{key}"):
        load_bundle(path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"7", b'"text"', b"\xff\xfe", b"{}", b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(path: Path, text: bytes) -> None:
    (path / MANIFEST).write_bytes(text)
    with pytest.raises(EngineError, match="not a readable manifest"):
        load_bundle(path)


@pytest.mark.parametrize("name", [f"../{FEATURES}", "../x", f"/etc/{BANK}", f"sub/{GOLDEN}", "extra.bin", MANIFEST, ""])
def test_a_manifest_that_lists_other_files_is_refused_before_they_are_read(
    path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_manifest(path, lambda document: document["files"].update({name: document["files"][FEATURES]}))
    opened: list[Path] = []
    read = Path.read_bytes

    def spy(file: Path) -> bytes:
        opened.append(file)
        return read(file)

    monkeypatch.setattr(Path, "read_bytes", spy)
    with pytest.raises(EngineError, match="not a file of schema"):
        load_bundle(path)
    assert opened == [path / MANIFEST]


def put(name: str, value: np.ndarray) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: value})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("rows", np.array([[0, 1, np.nan], [1, 2, 3]], np.float32)), "not finite"),
        (put("rows", np.array([[0, 1, np.inf], [1, 2, 3]], np.float32)), "not finite"),
        (put("density", np.array([0, np.nan], np.float32)), "not finite"),
        (put("rows", np.zeros((0, 3), np.float32)), r"rows \(0, 3\)"),
        (put("rows", np.zeros((2, 4), np.float32)), r"rows \(2, 4\)"),
        (put("rows", np.zeros(2, np.float32)), r"rows \(2,\)"),
        (put("rows", np.float32(1)), r"rows \(\)"),
        (put("rows", np.zeros((2, 3))), "rows float64"),
        (put("rows", np.zeros((2, 3), "U4")), "rows <U4"),
        (put("density", np.zeros((2, 1), np.float32)), r"density \(2, 1\)"),
        (put("image", np.zeros(3, np.int32)), r"image \(3,\)"),
        (put("patch", np.zeros(2)), "patch float64"),
        (lambda arrays: arrays.pop("density"), "no array 'density'"),
    ],
)
def test_a_bank_that_is_not_one_is_refused_by_its_content(path: Path, edit: Callable[[Arrays], None], message: str) -> None:
    edit_arrays(path, BANK, edit)
    with pytest.raises(EngineError, match=message):
        load_bundle(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("scores", np.array([np.nan])), "finite"),
        (put("scores", np.array([1], np.int64)), "int64"),
        (put("scores", np.zeros(2)), "1 names, 2 scores and 1 images"),
        (put("names", np.array(["a", "b"])), "2 names, 1 scores"),
        (put("png_001", np.zeros(9, np.uint8)), "2 images"),
        (lambda arrays: arrays.pop("png_000"), "0 images"),
        (lambda arrays: arrays.pop("scores"), "no array 'scores'"),
    ],
)
def test_golden_images_that_do_not_fit_their_scores_are_refused(
    path: Path, edit: Callable[[Arrays], None], message: str
) -> None:
    edit_arrays(path, GOLDEN, edit)
    with pytest.raises(EngineError, match=message):
        load_bundle(path)


class Trap:
    """Says so if it is unpickled."""

    sprung = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return spring, ()


def spring() -> None:
    Trap.sprung = True


@pytest.mark.parametrize("name", [BANK, GOLDEN])
def test_object_arrays_are_refused_without_unpickling(path: Path, name: str) -> None:
    steps = list(pickletools.genops(pickle.dumps(Trap())))
    named = {value for step, value, _ in steps if step.name in ("SHORT_BINUNICODE", "BINUNICODE", "GLOBAL")}
    assert "spring" in named, "the trap must work for this test to mean anything"
    assert "REDUCE" in {step.name for step, _, _ in steps}
    objects = np.empty(1, object)
    objects[0] = Trap()
    edit_arrays(path, name, put("rows" if name == BANK else "scores", objects))
    with pytest.raises(EngineError, match="not a readable array file"):
        load_bundle(path)
    assert not Trap.sprung


@pytest.mark.parametrize("data", [b"", b"nonsense", b"PK\x03\x04", pickle.dumps([1])])
def test_an_array_file_that_is_none_is_refused(path: Path, data: bytes) -> None:
    replace_file(path, BANK, data)
    with pytest.raises(EngineError, match="not a readable array file"):
        load_bundle(path)


def test_a_single_array_in_place_of_an_archive_is_refused(path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    replace_file(path, BANK, buffer.getvalue())
    with pytest.raises(EngineError, match="not a readable array file"):
        load_bundle(path)


def test_packing_objects_is_refused() -> None:
    with pytest.raises(TypeError, match="pickle"):
        pack_npz({"a": np.array([None])})


def test_a_bundle_that_could_not_be_loaded_is_not_written(path: Path) -> None:
    before = (path / MANIFEST).read_bytes()
    with pytest.raises(EngineError, match="not finite"):
        write_tiny_bundle(path, rows=np.array([[0, 0, 0], [1, 1, np.nan]], np.float32))
    assert (path / MANIFEST).read_bytes() == before
    load_bundle(path)
    assert [child.name for child in path.parent.iterdir()] == ["bundle"]


def test_a_bundle_replaces_a_bundle(path: Path) -> None:
    digest = write_tiny_bundle(path, threshold=9.0)
    assert load_bundle(path).digest == digest
    assert not (path / MASK).exists()


def test_what_may_be_replaced(path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for fine in (path, tmp_path / "empty", tmp_path / "new", tmp_path / "new" / "deep"):
        check_replaceable(fine)
    assert sorted(child.name for child in tmp_path.iterdir()) == ["bundle", "empty"]  # trying leaves nothing behind


def test_what_may_not_be_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.png").touch()
    with pytest.raises(EngineError, match="a folder that is not a bundle"):
        check_replaceable(folder)
    with pytest.raises(EngineError, match="a file"):
        check_replaceable(folder / "cat.png")
    with pytest.raises(EngineError, match=r"deep: could not be written \(Not a directory\)"):
        check_replaceable(folder / "cat.png" / "new" / "deep")
    with pytest.raises(EngineError, match="a folder that is not a bundle"):
        write_tiny_bundle(folder)
    assert [child.name for child in folder.iterdir()] == ["cat.png"]


def test_records_refuse_unknown_keys_and_changes() -> None:
    check = GoldenCheck(images=1, spread=1.0, max_difference=0.0, flips=0)
    with pytest.raises(ValidationError):
        check.flips = 1
    with pytest.raises(ValidationError):
        GoldenCheck.model_validate({**check.model_dump(), "typo": 1})
    assert tiny_provenance().images == ()


# ---- further precisions

OFFERED = Variant(precision="fp16", images=60, max_difference=0.03, flips=0, offered=True)
REFUSED = Variant(precision="int8", images=60, max_difference=0.4, flips=2, offered=False, reason="2 of 60 decisions flip")


def test_a_bundle_holds_the_graphs_that_it_offers(tmp_path: Path) -> None:
    half = feature_graph(convolution=True)
    write_tiny_bundle(tmp_path / "b", variants=(OFFERED, REFUSED), graphs={"fp16": half})
    bundle = load_bundle(tmp_path / "b")
    assert (tmp_path / "b/features-fp16.onnx").read_bytes() == bundle.graph("fp16") == half
    assert bundle.graph("fp32") == feature_graph()
    assert bundle.manifest.variants == (OFFERED, REFUSED)
    assert bundle.manifest.variant("fp32") is None


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("int8", r"b: int8 is not offered \(2 of 60 decisions flip\); it has fp32, fp16: choose one of these"),
        ("int8-cpu", "b: no int8-cpu, it has fp32, fp16; choose one of these, or add it with `train export`"),
        ("int4", "precision 'int4', expected one of: fp32, fp16, int8, int8-cpu; this bundle has fp32, fp16"),
    ],
)
def test_a_precision_that_is_not_there_is_refused_with_the_remedy(tmp_path: Path, precision: str, message: str) -> None:
    write_tiny_bundle(tmp_path / "b", variants=(OFFERED, REFUSED), graphs={"fp16": feature_graph()})
    with pytest.raises(EngineError, match=message):
        load_bundle(tmp_path / "b").graph(precision)


def test_a_damaged_variant_is_refused(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", variants=(OFFERED,), graphs={"fp16": feature_graph()})
    flip_byte(tmp_path / "b/features-fp16.onnx")
    with pytest.raises(EngineError, match=r"features-fp16.onnx: damaged"):
        load_bundle(tmp_path / "b")


def test_a_bundle_from_before_there_were_variants_loads(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b")
    path = tmp_path / "b/manifest.json"
    document = json.loads(path.read_text())
    assert document.pop("variants") == []
    path.write_text(json.dumps(document))
    assert set(load_bundle(tmp_path / "b").graphs) == {"fp32"}


@pytest.mark.parametrize(
    ("variants", "graphs", "message"),
    [
        ((OFFERED,), {}, r"offers \['fp16'\], has files for \[\]"),
        ((), {"fp16": b"x"}, r"offers \[\], has files for \['fp16'\]"),
        ((REFUSED,), {"int8": b"x"}, r"offers \[\], has files for \['int8'\]"),
        ((OFFERED, OFFERED), {"fp16": b"x"}, "expected each precision once"),
    ],
)
def test_what_is_offered_and_what_is_there_must_be_the_same(
    tmp_path: Path, variants: tuple[Variant, ...], graphs: dict[str, bytes], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        write_tiny_bundle(tmp_path / "b", variants=variants, graphs=graphs)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp32"}, "fp32 is listed as a variant"),
        ({"reason": "slow"}, "fp16 is offered with a reason"),
        ({"offered": False}, "fp16 is not offered without a reason"),
        ({"flips": 1}, "fp16 is offered with 1 flips"),
        ({"max_difference": None}, "difference None"),
    ],
)
def test_a_variant_must_fit_together(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Variant.model_validate({**OFFERED.model_dump(), **changes})


def test_a_variant_in_cells() -> None:
    assert OFFERED.cells() == ("fp16", "60", "0.03", "0", "offered")
    unknown = REFUSED.model_copy(update={"max_difference": None})
    assert unknown.cells() == ("int8", "60", "-", "2", "not offered: 2 of 60 decisions flip")


def test_a_further_precision_may_differ_by_what_it_did_when_it_was_made(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", variants=(OFFERED, REFUSED), graphs={"fp16": feature_graph()})
    manifest = load_bundle(tmp_path / "b").manifest
    assert allowed_difference(manifest, "fp32") == TOLERANCE
    assert allowed_difference(manifest, "fp16") == pytest.approx(TOLERANCE + 0.03)
