"""Adapting a product end to end: from drawn parts to weights with their record, a bundle that tells, or nothing at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train.adapt
import train.adaptation
import train.fit
import train.processes
import train.product
from calibration import CalibrationError
from calibration.defects import KINDS
from calibration.fit import score_images
from engines.bundle import Bundle, load_bundle
from engines.images import encode_png, pixel_digest, read_image
from engines.inspector import Inspector
from engines.verify import verify_golden
from tests.test_fit import Talk, exported_once
from train import TrainError
from train.__main__ import main
from train.adaptation import Request, adapt_to_file, draw_defects
from train.backbones import BACKBONES, build, build_tail
from train.features import FeatureNet, embed
from train.fit import fit
from train.pictures import find_part
from train.processes import available_bytes, processes_of_run, torchrun
from train.product import Console, Settings, open_product
from train.sample import write_sample
from train.schedule import PRESETS, Schedule
from train.weights import Weights, find_weights, write_weights

SIDE_PX = 64
PARTS, HELD_OUT = 20, 3
TINY = Schedule("quick", updates=4, images=21, passes=1, warmup=1, cosine=5, window_px=48)
SPEC = BACKBONES["resnet18"]


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """A tiny preset, frequent checkpoints, no audit, each graph exported once, and one thread."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "quick", TINY)
        patch.setattr(train.adapt, "_EXAMINED", 4)
        patch.setattr(train.adapt, "_CHECKPOINT_UPDATES", 2)
        patch.setattr(train.fit, "to_onnx", exported_once)
        patch.setattr(train.product, "audit_images", lambda samples, advance: [])
        yield
    torch.set_num_threads(usual)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty good parts, and three for a calibration; not to be written to."""
    out = tmp_path_factory.mktemp("drawn") / "flange"
    write_sample(out, train=PARTS, calibration=3, test_good=0, per_defect=0, size_px=SIDE_PX)
    return out


def settings_for(data: Path, **changed: Any) -> Settings:
    usual = Settings(data, weights="none", size=(SIDE_PX, SIDE_PX), coreset=0.1, device="cpu", command="train adapt")
    return dataclasses.replace(usual, **changed)


def request_for(**changed: Any) -> Request:
    return dataclasses.replace(Request("quick", precision="float32"), **changed)


@dataclasses.dataclass(frozen=True)
class Done:
    path: Path
    weights: Weights
    talk: Talk


def adapted_to(data: Path, out: Path, request: Request | None = None, **changed: Any) -> Done:
    talk = Talk()
    adapt_to_file(settings_for(data, **changed), request or request_for(), out, talk.console)
    weights = find_weights(str(out), SPEC)
    assert weights is not None
    return Done(out, weights, talk)


@pytest.fixture(scope="module")
def adapted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Weights adapted with seed 0, with TensorBoard logs beside them; not to be written to."""
    folder = tmp_path_factory.mktemp("adapted")
    request = request_for(checkpoint=folder / "flange.safetensors.checkpoint", logs=folder / "logs")
    return adapted_to(data, folder / "flange.safetensors", request)


@pytest.fixture(scope="module")
def bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """What `fit --adapt` writes; not to be written to."""
    out = tmp_path_factory.mktemp("fitted") / "bundle"
    request = request_for(checkpoint=out.with_name("bundle.checkpoint"))
    fit(settings_for(data), out, Talk().console, request)
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]
    return load_bundle(out)


def learnt_and_held_out(data: Path, seed: int = 0) -> tuple[list[str], list[str]]:
    """Pixel digests, as the seed divides the parts."""
    product = open_product(settings_for(data, seed=seed), Talk().console)
    digests = [pixel_digest(sample.image()) for sample in product.samples]
    return digests[: product.in_bank], digests[product.in_bank :]


def same(one: Weights, other: Weights) -> bool:
    assert one.state.keys() == other.state.keys()
    return all(torch.equal(one.state[name], other.state[name]) for name in one.state)


# ---- weights and their record


def test_the_record_says_how_it_came_about(adapted: Done, data: Path) -> None:
    record = adapted.weights.adaptation
    assert record is not None
    assert (record.weights, record.weights_sha256, record.tail) == ("none", None, "random")
    assert record.statistics == "batch"
    assert (record.preset, record.updates, record.window_px, record.learning_rate) == ("quick", 4, 48, 0.03)
    assert (record.images_per_update, record.images_per_pass) == (21, 21)
    assert (record.seed, record.maker, record.classes) == (0, "defectmaker", ("good", *KINDS))
    assert (record.device, record.precision) == ("cpu", "float32")
    assert record.seconds > 0
    assert len(record.loss) == len(record.accuracy) == 4
    assert record.loss[0] > 0.5
    assert all(0 <= share <= 1 for share in record.accuracy)
    assert [sum(row) for row in record.confusion] == [4] * 7
    assert {len(row) for row in record.confusion} == {7}
    assert record.confusion_on == "held-out"
    (where,) = (line for line in adapted.talk.said if line.startswith("where defects are put: "))
    assert where.endswith(f", {record.saliency}")


def test_it_learns_from_the_banks_images_alone(adapted: Done, data: Path) -> None:
    learnt, held_out = learnt_and_held_out(data)
    assert adapted.weights.adaptation is not None
    assert list(adapted.weights.adaptation.images) == learnt
    assert len(learnt) == PARTS - HELD_OUT
    assert not set(learnt) & set(held_out)


def test_training_and_examination_get_the_images_that_they_should(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def note(task: Any, examination: Any, clean: torch.Tensor, *rest: Any) -> None:
        for given in (task, examination):
            seen.append({pixel_digest(np.ascontiguousarray(image)) for image in given._images})
        seen.append({pixel_digest(image.numpy()) for image in clean})
        raise TrainError("seen enough")

    monkeypatch.setattr(train.adaptation, "adapt", note)
    with pytest.raises(TrainError, match="seen enough"):
        adapted_to(data, tmp_path / "x.safetensors")
    learnt, held_out = learnt_and_held_out(data)  # at this size the network's input is the image itself
    assert seen == [set(learnt), set(held_out), set(learnt)]


def test_few_images_are_examined_on_themselves(data: Path, tmp_path: Path) -> None:
    done = adapted_to(data, tmp_path / "few.safetensors", few_shot=2)
    record = done.weights.adaptation
    assert record is not None
    assert len(record.images) == 2
    assert record.confusion_on == "training"
    assert any(line.startswith("adapted in 0.") and "right on training images" in line for line in done.talk.said)


def test_a_person_reads_what_happens(adapted: Done) -> None:
    said = adapted.talk.said
    assert "adapting for 4 updates of 21 images, 21 at a time" in said
    assert any(line.startswith("update 4 of 4: loss ") for line in said)
    assert any(line.startswith("adapted in 0.") and "right on held-out images" in line for line in said)
    assert said[-1] == f"wrote {adapted.path}"
    assert adapted.talk.bars == ["weights", "audit", "images", "saliency", "saliency", "adapting"]


def test_the_file_holds_a_trunk_and_the_record_and_no_checkpoint_is_left(adapted: Done) -> None:
    assert adapted.weights.state.keys() == build(SPEC, None, 0).state_dict().keys()
    assert adapted.weights.sha256 == hashlib.sha256(adapted.path.read_bytes()).hexdigest()
    assert sorted(path.name for path in adapted.path.parent.iterdir()) == ["flange.safetensors", "logs"]
    with safe_open(adapted.path, "pt") as file:
        assert file.metadata().keys() == {"adaptation"}


def test_weights_written_again_keep_the_record(adapted: Done, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    write_weights(copy, adapted.weights)
    again = find_weights(str(copy), SPEC)
    assert again is not None
    assert again.adaptation == adapted.weights.adaptation
    assert same(again, adapted.weights)
    write_weights(copy, Weights(adapted.weights.state, "plain", "0"))
    plain = find_weights(str(copy), SPEC)
    assert plain is not None
    assert plain.adaptation is None


def test_tensorboard_reads_the_logs(adapted: Done) -> None:
    record = adapted.weights.adaptation
    assert record is not None
    events = EventAccumulator(str(adapted.path.parent / "logs"))
    events.Reload()
    right = {f"right/{name}" for name in ("all", "good", *KINDS)}
    assert set(events.Tags()["scalars"]) == {"loss", "learning_rate"} | right
    for name, values in (("loss", record.loss), ("right/all", record.accuracy)):
        assert [event.step for event in events.Scalars(name)] == [0, 1, 2, 3]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(values, rel=1e-6)


def test_weights_with_a_tail_are_begun_from_and_named(data: Path, tmp_path: Path) -> None:
    state = {**build(SPEC, None, 11).state_dict(), **build_tail(SPEC, None, 12)[0].state_dict()}
    write_weights(tmp_path / "whole.safetensors", Weights(state, "", ""))
    sha256 = hashlib.sha256((tmp_path / "whole.safetensors").read_bytes()).hexdigest()
    done = adapted_to(data, tmp_path / "out.safetensors", weights=str(tmp_path / "whole.safetensors"))
    record = done.weights.adaptation
    assert record is not None
    assert (record.weights, record.weights_sha256, record.tail) == ("whole.safetensors", sha256, "loaded")
    assert record.statistics == "kept"
    moved = (done.weights.state["conv1.weight"] - state["conv1.weight"]).abs().max()
    assert 0 < float(moved) < 0.5  # it began there, and learnt


def test_what_was_adapted_twice_remembers_the_images_of_both(adapted: Done, data: Path, tmp_path: Path) -> None:
    first, second = learnt_and_held_out(data)[0], learnt_and_held_out(data, seed=1)[0]
    assert set(first) != set(second)
    again = adapted_to(data, tmp_path / "again.safetensors", weights=str(adapted.path), seed=1).weights.adaptation
    assert again is not None
    assert set(again.images) == set(first) | set(second)
    assert len(again.images) == len(set(again.images))
    assert (again.weights, again.weights_sha256) == ("flange.safetensors", adapted.weights.sha256)


# ---- bundles


def test_fit_adapts_and_the_bundle_tells_and_verifies(bundle: Bundle, adapted: Done) -> None:
    made = bundle.manifest.provenance
    assert made.adaptation is not None
    assert adapted.weights.adaptation is not None
    same_but_for_time = made.adaptation.model_copy(update={"seconds": adapted.weights.adaptation.seconds})
    assert same_but_for_time == adapted.weights.adaptation
    assert made.weights == "none, adapted"
    assert made.weights_sha256 is not None
    with Inspector(bundle) as inspector:
        assert verify_golden(inspector, bundle.golden(), bundle.manifest.threshold, bundle.manifest.golden.spread).passed
    assert bundle.learnt_from() == set(made.adaptation.images)


def test_fit_with_adapted_weights_is_the_same_bundle(bundle: Bundle, adapted: Done, data: Path, tmp_path: Path) -> None:
    talk = Talk()
    fit(settings_for(data, weights=str(adapted.path)), tmp_path / "bundle", talk.console)
    again = load_bundle(tmp_path / "bundle")
    assert np.array_equal(again.bank.rows, bundle.bank.rows)
    assert again.manifest.threshold == bundle.manifest.threshold
    assert again.manifest.provenance.adaptation == adapted.weights.adaptation
    assert again.manifest.provenance.weights_sha256 == adapted.weights.sha256
    assert [line for line in talk.warned if not line.startswith("synthetic defects can hardly be told")] == []


def test_the_bundle_embeds_with_the_adapted_weights(bundle: Bundle, adapted: Done, data: Path) -> None:
    network = FeatureNet(build(SPEC, adapted.weights.state, 0), SPEC)
    before = FeatureNet(build(SPEC, None, 0), SPEC)
    with Inspector(bundle) as inspector:
        tensor = inspector.preprocessor(read_image(data / "train/good/000.png"))
        got = inspector.extractor.extract(tensor)
    assert np.allclose(got, embed(network, tensor, torch.device("cpu")), rtol=1e-3, atol=1e-3)
    assert not np.allclose(got, embed(before, tensor, torch.device("cpu")), rtol=0.1, atol=0.1)


@pytest.fixture(scope="module")
def leaky(adapted: Done, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Talk]:
    """Weights adapted with seed 0, fitted with seed 1: images are held out that the backbone knows."""
    talk, out = Talk(), tmp_path_factory.mktemp("leaky") / "bundle"
    fit(settings_for(data, weights=str(adapted.path), seed=1), out, talk.console)
    return load_bundle(out), talk


def test_held_out_images_that_were_learnt_from_deserve_a_warning(leaky: tuple[Bundle, Talk], data: Path) -> None:
    known = len(set(learnt_and_held_out(data)[0]) & set(learnt_and_held_out(data, seed=1)[1]))
    assert known > 0
    expected = (
        f"{known} of {HELD_OUT} held-out images were used to adapt flange.safetensors: the provisional threshold will be too"
        " low; fit with the seed that adapted it, or adapt again"
    )
    assert [line for line in leaky[1].warned if not line.startswith("synthetic defects can hardly be told")] == [expected]


def test_nobody_calibrates_on_what_the_backbone_learnt_from(leaky: tuple[Bundle, Talk], data: Path) -> None:
    bundle, _ = leaky
    in_bank = {image.pixels for image in bundle.manifest.provenance.images if image.use == "bank"}
    adapted_on = set(learnt_and_held_out(data)[0])
    assert adapted_on - in_bank
    known = next(
        path for path in sorted((data / "train/good").iterdir()) if pixel_digest(read_image(path)) in adapted_on - in_bank
    )
    fresh = sorted((data / "calibration/good").iterdir())
    assert bundle.learnt_from() == adapted_on | in_bank
    with Inspector(bundle) as inspector:
        with pytest.raises(CalibrationError, match=rf"{known.name}: the bundle was made with this picture.*; calibrate on"):
            score_images(inspector, [*fresh, known], data)
        assert len(score_images(inspector, fresh, data)) == 3


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_failed_adaptation_leaves_no_bundle_and_an_older_one_stays(
    bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "quick", dataclasses.replace(TINY, learning_rate=1e30))
    older = tmp_path / "older" / "bundle"
    older.mkdir(parents=True)
    for name, content in contents(bundle.path).items():
        (older / name).write_bytes(content)
    for out in (tmp_path / "new" / "bundle", older):
        with pytest.raises(TrainError, match="the loss is nan at update"):
            fit(settings_for(data), out, Talk().console, request_for(checkpoint=out.with_name("bundle.checkpoint")))
    assert not (tmp_path / "new").exists()
    assert contents(older) == contents(bundle.path)
    assert [path.name for path in older.parent.iterdir()] == ["bundle"]
    weights = tmp_path / "weights" / "x.safetensors"
    with pytest.raises(TrainError, match="the loss is nan at update"):
        adapted_to(data, weights)
    assert not weights.parent.exists()


# ---- interrupted and resumed


class Impatient(Talk):
    """Presses Ctrl-C after the third update."""

    @property
    def console(self) -> Console:
        return dataclasses.replace(super().console, progress=self._interrupting)

    def _interrupting(self, title: str) -> Any:
        def advance(done: int, total: int, note: str = "") -> None:
            if title == "adapting" and done == 3:
                raise KeyboardInterrupt

        return _Bar(advance)


class _Bar:
    def __init__(self, advance: Callable[..., None]) -> None:
        self.advance = advance

    def __enter__(self) -> Callable[..., None]:
        return self.advance

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""


def masked(folder: Path, rows: int) -> Path:
    mask = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    mask[:rows] = 255
    path = folder / f"mask-{rows}.png"
    path.write_bytes(encode_png(mask))
    return path


def test_an_interrupted_adaptation_goes_on_to_the_same_weights_with_the_same_settings_alone(data: Path, tmp_path: Path) -> None:
    mask, other_mask = masked(tmp_path, 8), masked(tmp_path, 16)
    out = tmp_path / "out" / "x.safetensors"
    request = request_for(checkpoint=out.with_name("x.safetensors.checkpoint"))
    with pytest.raises(KeyboardInterrupt):
        adapt_to_file(settings_for(data, mask=mask), request, out, Impatient().console)
    assert [path.name for path in out.parent.iterdir()] == ["x.safetensors.checkpoint"]
    before = contents(out.parent)

    refused = "x.safetensors.checkpoint: an unfinished adaptation; give --resume to go on with it, or delete the file"
    for again in (lambda: adapted_to(data, out, request), lambda: fit(settings_for(data), out, Talk().console, request)):
        with pytest.raises(TrainError, match=refused):
            again()
    going_on = dataclasses.replace(request, resume=True)
    for changed, changed_request in (
        ({"mask": other_mask}, going_on),
        ({"mask": mask, "seed": 1}, going_on),
        ({"mask": mask, "few_shot": 19}, going_on),
        ({"mask": mask}, dataclasses.replace(going_on, maker="cutpaste")),
    ):
        with pytest.raises(TrainError, match=r"is of another run \(.* now .*\); give the same settings"):
            adapted_to(data, out, changed_request, **changed)
    assert contents(out.parent) == before

    done = adapted_to(data, out, going_on, mask=mask)
    assert "going on after update 2 of 4" in done.talk.said
    assert [path.name for path in out.parent.iterdir()] == ["x.safetensors"]
    whole = adapted_to(data, tmp_path / "whole.safetensors", mask=mask).weights
    assert same(done.weights, whole)
    assert done.weights.adaptation is not None
    assert whole.adaptation is not None
    assert done.weights.adaptation.loss == whole.adaptation.loss


def test_resuming_what_was_never_begun_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="no such checkpoint to go on from"):
        adapted_to(data, tmp_path / "x.safetensors", request_for(resume=True, checkpoint=tmp_path / "none"))


# ---- what is asked for


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"preset": "slow"}, "adaptation preset 'slow', expected one of: paper, quick"),
        ({"maker": "hammer"}, "maker 'hammer', expected one of: defectmaker, cutpaste, "),
    ],
)
def test_unknown_names_are_refused_before_an_image_is_read(changed: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=message):
        adapted_to(tmp_path / "nowhere", tmp_path / "x.safetensors", request_for(**changed))
    with pytest.raises(TrainError, match=message):
        fit(settings_for(tmp_path / "nowhere"), tmp_path / "bundle", Talk().console, request_for(**changed))


def test_weights_go_to_safetensors_alone(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"x\.pth: suffix '\.pth', expected \.safetensors"):
        adapted_to(tmp_path / "nowhere", tmp_path / "x.pth")


@pytest.mark.parametrize(("maker", "kinds"), [("cutpaste-3way", ("cutpaste", "cutpaste-scar")), ("draem", ("draem",))])
def test_older_makers_have_classes_of_their_own(maker: str, kinds: tuple[str, ...], data: Path, tmp_path: Path) -> None:
    record = adapted_to(data, tmp_path / "x.safetensors", request_for(maker=maker), few_shot=3).weights.adaptation
    assert record is not None
    assert (record.maker, record.classes) == (maker, ("good", *kinds))
    assert record.images_per_update == round(21 / (1 + len(kinds))) * (1 + len(kinds))


def saliency_masks(data: Path, folder: Path) -> Path:
    """A mask for each training image: the middle."""
    folder.mkdir()
    mask = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    mask[16:48, 16:48] = 255
    for path in (data / "train/good").iterdir():
        (folder / f"{path.stem}.png").write_bytes(encode_png(mask))
    return folder


def test_masks_from_files_are_used_and_a_missing_one_is_named(data: Path, tmp_path: Path) -> None:
    folder = saliency_masks(data, tmp_path / "masks")
    record = adapted_to(data, tmp_path / "x.safetensors", request_for(saliency=folder)).weights.adaptation
    assert record is not None
    assert record.saliency == f"masks from {folder}: 25% of a typical image is part"
    lost = sorted(folder.iterdir())[7]
    lost.unlink()
    with pytest.raises(CalibrationError, match=rf"expected one usable mask an image:\n  {lost.name}: no {lost.name} or"):
        adapted_to(data, tmp_path / "y.safetensors", request_for(saliency=folder))
    assert not (tmp_path / "y.safetensors").exists()


def test_where_images_share_a_name_masks_lie_in_folders_as_they_do(data: Path, tmp_path: Path) -> None:
    loco, masks = tmp_path / "loco", tmp_path / "masks"
    parts = sorted((data / "train" / "good").iterdir())
    for number, folder in enumerate(("train/good", "validation/good", "test/good", "test/logical_anomalies")):
        (loco / folder).mkdir(parents=True)
        shutil.copy(parts[number], loco / folder / "000.png")
    mask = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    for number, folder in enumerate(("train/good", "validation/good")):
        (masks / folder).mkdir(parents=True)
        mask[16 : 32 + 16 * number] = 255
        (masks / folder / "000.png").write_bytes(encode_png(mask))
    talk = Talk()
    found = find_part(open_product(settings_for(loco), talk.console), slice(None), masks, [], talk.console)
    assert found.masks is not None
    assert [mask.mean() for mask in found.masks] == [0.25, 0.5]
    (masks / "validation/good/000.png").unlink()
    (masks / "000.png").write_bytes(encode_png(mask))  # of which of them?
    with pytest.raises(
        CalibrationError, match=r"validation/good/000.png: no validation/good/000.png or validation/good/000_mask"
    ):
        adapted_to(loco, tmp_path / "x.safetensors", request_for(saliency=masks))


@pytest.mark.parametrize("from_files", [True, False])
def test_no_defect_is_centred_where_the_station_looks_away(
    data: Path, tmp_path: Path, from_files: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    ignored[:, : SIDE_PX // 2] = 255
    (tmp_path / "mask.png").write_bytes(encode_png(ignored))
    given: list[list[npt.NDArray[np.bool_]]] = []
    monkeypatch.setattr(train.adaptation, "defect_sheet", lambda maker, *rest: given.append(maker.saliency))
    folder = saliency_masks(data, tmp_path / "masks") if from_files else None
    settings = settings_for(data, mask=tmp_path / "mask.png")
    draw_defects(settings, "defectmaker", folder, tmp_path / "sheet.png", 1, Talk().console)
    (masks,) = given
    assert all(mask.any() and not mask[:, : SIDE_PX // 2].any() for mask in masks)


@pytest.mark.parametrize("saved", [True, False])
def test_who_interrupts_hears_where_the_work_is(
    saved: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "flange.safetensors.checkpoint"

    def interrupted(*_: object) -> None:
        if saved:
            checkpoint.write_bytes(b"work")
        raise KeyboardInterrupt

    monkeypatch.setattr(train.adaptation, "adapt", interrupted)
    talk = Talk()
    with pytest.raises(KeyboardInterrupt):
        adapt_to_file(settings_for(data), request_for(checkpoint=checkpoint), tmp_path / "flange.safetensors", talk.console)
    assert any(str(checkpoint) in line for line in talk.said) is saved
    assert checkpoint.exists() is saved


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("flags\t: fpu avx2 avx512f", torch.float32),
        ("flags\t: fpu avx512_bf16 avx2", torch.bfloat16),
        ("flags\t: amx_bf16 amx_tile", torch.bfloat16),
        ("Features\t: fp asimd bf16 i8mm", torch.bfloat16),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_can(flags: str, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: flags)
    assert train.adaptation._precision("auto", torch.device("cpu")) is precision
    assert train.adaptation._precision("float32", torch.device("cpu")) is torch.float32


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for world_size in (None, "1"):
        if world_size is not None:
            monkeypatch.setenv("WORLD_SIZE", world_size)
        with torchrun("auto") as device:
            assert device == "auto"
            assert processes_of_run() == (0, 1)


@pytest.mark.parametrize("text", ["2", "two", "0"])
def test_an_environment_that_torchrun_did_not_make_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(TrainError, match=f"WORLD_SIZE is '{text}' .*; start several processes with torchrun"), torchrun("auto"):
        pass


def test_memory_is_what_the_machine_and_its_limits_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(train.processes, "_CGROUP", tmp_path)
    unlimited = available_bytes(cpu)
    assert 2**20 < unlimited <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(cpu) > 2**20
    (tmp_path / "memory.max").write_text("1003000\n")
    assert available_bytes(cpu) == 1_000_000
    monkeypatch.setattr(train.processes, "processes_of_run", lambda: (0, 4))
    assert available_bytes(cpu) == 250_000


def test_nothing_of_a_held_out_image_reaches_the_weights(data: Path, tmp_path: Path) -> None:
    """Not even through the estimate of where the part is."""
    usual = adapted_to(data, tmp_path / "usual.safetensors").weights
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    for sample in open_product(settings_for(copy), Talk().console).held_out:
        image = read_image(sample.path)
        image[:, :] = image.mean(axis=(0, 1)).astype(np.uint8) + image[:, ::-1] // 4
        sample.path.write_bytes(encode_png(image))
    assert same(adapted_to(copy, tmp_path / "other.safetensors").weights, usual)


# ---- the door


def test_options_of_the_adaptation_without_one_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--data", str(data), "--out", str(tmp_path / "b"), "--resume", "--maker", "draem", *WORDS]
    assert main(words) == 2
    expected = "error: --maker, --resume without --adapt, which alone uses it; add --adapt paper|quick\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("given", [["--k", "9"], ["--alpha", "0"]])
def test_masks_that_nothing_would_use_are_refused(
    given: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--data", str(data), "--out", str(tmp_path / "b"), "--saliency", str(tmp_path), *given, *WORDS]
    assert main(words) == 2
    assert "with --k or --alpha none are" in capsys.readouterr().err


WORDS = ["--size", str(SIDE_PX)]


def test_the_door_draws_defects_without_any_weights(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REB_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nothing answers there
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    sheet = tmp_path / "new" / "defects.png"
    assert main(["defects", "--data", str(data), "--out", str(sheet), "--rows", "2", *WORDS]) == 0
    read = capsys.readouterr()
    assert f"wrote {sheet}" in read.out
    assert "where defects are put: " in read.out
    assert read.err == ""
    high, wide = read_image(sheet).shape[:2]
    assert high > 2 * 256
    assert wide > 7 * 256


def test_the_door_adapts(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.safetensors"
    words = ["adapt", "--data", str(data), "--out", str(out), "--weights", "none", "--device", "cpu", *WORDS]
    words += ["--precision", "float32", "--maker", "cutpaste", "--few-shot", "2", "--workers", "0", "--seed", "4"]
    assert main(words) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    weights = find_weights(str(out), SPEC)
    assert weights is not None
    assert weights.adaptation is not None
    assert (weights.adaptation.maker, weights.adaptation.seed, len(weights.adaptation.images)) == ("cutpaste", 4, 2)
    out.with_name("x.safetensors.checkpoint").write_text(json.dumps("anything"))
    assert main(words) == 2
    assert "an unfinished adaptation; give --resume" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 2
    assert "not a checkpoint that can be read" in capsys.readouterr().err
    assert out.with_name("x.safetensors.checkpoint").read_text() == '"anything"'


def test_fit_leaves_several_processes_to_adapt(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["fit", "--data", str(data), "--out", str(tmp_path / "b"), "--adapt", "quick", *WORDS]) == 2
    assert "WORLD_SIZE is 2: torchrun is for `train adapt` alone" in capsys.readouterr().err
