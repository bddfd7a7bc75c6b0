"""The ablation: figures that agree with `fit` and `evaluate`, and work that is never done twice."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train.ablate
import train.adapt
import train.fit
from engines.bundle import Bank, Method, load_bundle
from engines.images import encode_png, pixel_digest, read_image
from engines.inspector import Scorer
from engines.ldknn import density
from engines.preprocess import Roi
from train import TrainError
from train.__main__ import main
from train.ablate import Cell, CellResult, Study, compare_makers, few_shot_curve, score_images
from train.ablation_table import COMPARED, Row, makers_table
from train.adaptation import Request
from train.data import open_dataset
from train.evaluate import evaluate
from train.export import TorchExtractor
from train.features import grid_of
from train.fit import fit
from train.normals import embed_normals, select_coreset
from train.product import Console, Settings, open_product
from train.sample import DEFECTS, write_sample
from train.schedule import PRESETS, Schedule

SIDE_PX = 64
TINY = Schedule("quick", updates=2, images=14, passes=1, warmup=1, cosine=3)
CELLS = [f"{weights}-seed{seed}" for seed in (0, 1) for weights in ("initial", *COMPARED)]


class Talk:
    """What a person would have read."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    @property
    def console(self) -> Console:
        return Console(self.said.append, self.warned.append, self._progress)

    @property
    def finished(self) -> list[str]:
        """Names of the cells that were computed."""
        return [line.split(":")[0] for line in self.said if re.search(r": NN .*, LDKNN ", line)]

    @contextlib.contextmanager
    def _progress(self, _title: str) -> Iterator[Callable[..., None]]:
        yield lambda done, total, note="": None


@dataclasses.dataclass(frozen=True)
class Measured:
    data: Path
    out: Path
    rows: tuple[Row, ...]
    talk: Talk


@pytest.fixture(autouse=True, scope="module")
def tiny() -> Iterator[None]:
    """Adaptations of two updates, on one thread: images this small gain nothing from more."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "quick", TINY)
        patch.setattr(train.adapt, "_EXAMINED", 1)
        yield
    torch.set_num_threads(usual)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty good parts to train on, of which some are held out, and a few to test; not to be written to."""
    out = tmp_path_factory.mktemp("drawn") / "flange"
    write_sample(out, train=20, calibration=0, test_good=9, per_defect=2, size_px=SIDE_PX)
    return out


@pytest.fixture(scope="module")
def measured(product: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Two seeds of the usual study; not to be written to."""
    out, talk = tmp_path_factory.mktemp("measured") / "out", Talk()
    return Measured(product, out, compare_makers(study_of(product, out), talk.console), talk)


@pytest.fixture
def copy(measured: Measured, tmp_path: Path) -> Path:
    """The usual study's folder: files in it may be replaced, but not written into."""
    return Path(shutil.copytree(measured.out, tmp_path / "copy", copy_function=os.link))


@pytest.fixture
def adaptations(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests of all adaptations that are made."""
    made: list[Request] = []
    usual = train.ablate.adapt_product

    def noted(product: Any, request: Request, seed: int, console: Console) -> Any:
        made.append(request)
        return usual(product, request, seed, console)

    monkeypatch.setattr(train.ablate, "adapt_product", noted)
    return made


def settings_for(data: Path, **changed: Any) -> Settings:
    return dataclasses.replace(Settings(data, weights="none", size=(SIDE_PX, SIDE_PX), coreset=0.1, device="cpu"), **changed)


def study_of(data: Path, out: Path, seeds: int = 2, preset: str = "quick", **changed: Any) -> Study:
    return Study(settings_for(data, **changed), Request(preset), seeds, out)


def test_every_method_has_its_row_with_a_value_for_every_seed(measured: Measured) -> None:
    assert [row.name for row in measured.rows] == [
        "untrained + NN",
        "untrained + LDKNN",
        "DefectMaker + NN",
        "DefectMaker + LDKNN (REB)",
        "CutPaste 3-way + NN",
        "CutPaste 3-way + LDKNN",
        "DRAEM + NN",
        "DRAEM + LDKNN",
    ]
    assert all(len(row.values) == 2 for row in measured.rows)
    assert all(0 <= value <= 1 for row in measured.rows for value in row.values)
    assert len({row.values for row in measured.rows}) > 4  # adapted weights are others


def test_initial_weights_give_what_fit_and_evaluate_give(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[bytes] = []  # of the same network both times; an export takes seconds
    usual = train.fit.to_onnx

    def exported_once(network: Any, size: tuple[int, int]) -> bytes:
        if not graphs:
            graphs.append(usual(network, size))
        return graphs[0]

    monkeypatch.setattr(train.fit, "to_onnx", exported_once)
    few = few_shot_curve(study_of(measured.data, tmp_path / "out"), (3,), Talk().console)
    for count, rows in ((None, measured.rows[:2]), (3, few[:2])):
        fit(settings_for(measured.data, seed=1, few_shot=count, k=9), tmp_path / "bundle", Talk().console)
        metrics = evaluate(load_bundle(tmp_path / "bundle"), open_dataset(measured.data)).metrics
        for found, search in zip(rows, ("nn", "ldknn"), strict=True):
            assert found.values[1] == pytest.approx(metrics[search]["image_auroc"]["all"], abs=1e-12), (count, search)


def test_both_searches_score_as_the_inspector_does_and_nn_is_alpha_0(product: Path, tmp_path: Path) -> None:
    ignored = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    ignored[:, :16] = 255
    (tmp_path / "mask.png").write_bytes(encode_png(ignored))
    settings = settings_for(product, roi=Roi(0, 0, SIDE_PX, 32), mask=tmp_path / "mask.png", k=4, seed=3)
    normals = embed_normals(open_product(settings, Talk().console), settings.seed, Talk().console)
    assert 0 < normals.patches < 64
    bank = select_coreset(normals, settings, Talk().console)
    samples = open_dataset(product).test[:11]  # a batch and a part of one
    scores, digests = score_images(normals, bank, settings, samples, Talk().console)
    features = normals.bank_features
    held = Bank(features[bank], density(bank, features, 4), np.zeros(len(bank), np.int32), np.zeros(len(bank), np.int32))
    for search, alpha in (("nn", 0.0), ("ldknn", 1.0)):
        method = Method(backbone="resnet18", dim=512, grid=grid_of(settings.size), metric="sqeuclidean", k=4, alpha=alpha)
        scorer = Scorer(method, normals.preprocessor, held, TorchExtractor(normals.network, normals.device))
        expected = [scorer.score(sample.image()).value for sample in samples]
        assert scores[search] == pytest.approx(expected, rel=1e-4, abs=1e-5), search
    assert digests == tuple(pixel_digest(sample.image()) for sample in samples)
    assert (scores["nn"] > scores["ldknn"]).all()  # less a density, which is above 0


def test_scores_that_are_not_finite_are_refused(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(product)
    normals = embed_normals(open_product(settings, Talk().console), 0, Talk().console)
    monkeypatch.setattr(train.ablate.Windows, "pool", lambda self, maps: np.full(len(maps), np.nan))
    sample = open_dataset(product).test[0]
    with pytest.raises(TrainError, match=f"^{sample.path}: the network gave numbers that are not finite"):
        score_images(normals, np.arange(5), settings, [sample], Talk().console)


def test_cells_weights_and_lines_are_there_and_no_checkpoint_is_left(measured: Measured) -> None:
    assert sorted(path.stem for path in (measured.out / "cells").iterdir()) == sorted(CELLS)
    weights = [path.name for path in (measured.out / "weights").iterdir()]
    assert len(weights) == 6
    assert all(re.fullmatch(r"[a-z0-9-]+-seed[01]-[0-9a-f]{12}\.safetensors", name) for name in weights)
    said, warned = measured.talk.said, measured.talk.warned
    assert said[0].startswith(f"data: {measured.data} (mvtec): train: good 20; test: good 9")
    assert "8 cells: 0 known, 8 to do" in said
    assert measured.talk.finished == CELLS
    assert re.fullmatch(r"draem-seed1: NN \d+\.\d\d, LDKNN \d+\.\d\d in \d+\.\d min \(8 of 8\)", said[-1])
    assert any(line.startswith("defectmaker-seed0: adapting for 2 updates") for line in said)
    assert [line.split(":")[0] for line in warned] == [
        "untrained resnet18 drawn from seed 0",
        "untrained resnet18 drawn from seed 1",
    ]


def test_the_json_holds_every_figure_and_what_it_depends_on(measured: Measured) -> None:
    document = json.loads((measured.out / "ablation.json").read_text())
    assert document["test"] == {"good": 9, "defective": 2 * len(DEFECTS)}
    assert document["initial"] == {"name": "untrained", "source": None}
    assert document["search"] == {"coreset": 0.1, "k": 9, "metric": "sqeuclidean"}
    assert document["adaptation"]["updates"] == 2
    assert document["seeds"] == [0, 1]
    assert [entry["name"] for entry in document["image_auroc"]] == [row.name for row in measured.rows]
    entry, row = document["image_auroc"][3], measured.rows[3]
    assert entry == {
        "name": "DefectMaker + LDKNN (REB)",
        "maker": "defectmaker",
        "search": "ldknn",
        "few_shot": None,
        "mean": row.mean,
        "deviation": row.deviation,
        "lowest": min(row.values),
        "highest": max(row.values),
        "values": list(row.values),
    }
    cell = CellResult.model_validate_json((measured.out / "cells" / "initial-seed0.json").read_bytes())
    assert (cell.nn, cell.ldknn, cell.in_bank) == (measured.rows[0].values[0], measured.rows[1].values[0], 17)
    assert min(read_image(measured.out / "ablation.png").shape[:2]) > 600


def test_a_second_run_computes_nothing_and_gives_the_same(
    measured: Measured, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.ablate, "open_product", lambda *_: pytest.fail("opened"))
    talk = Talk()
    assert compare_makers(study_of(measured.data, copy), talk.console) == measured.rows
    assert talk.said[-1] == "8 cells: 8 known, 0 to do"
    assert (copy / "ablation.json").read_bytes() == (measured.out / "ablation.json").read_bytes()


def test_a_run_that_was_cut_off_goes_on_with_what_is_missing(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adaptations: list[Request]
) -> None:
    study, talk = study_of(measured.data, tmp_path / "out", seeds=1), Talk()
    usual = train.ablate.embed_normals
    calls = 0

    def dies(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return usual(*arguments)

    monkeypatch.setattr(train.ablate, "embed_normals", dies)
    with pytest.raises(KeyboardInterrupt):
        compare_makers(study, talk.console)
    assert talk.finished == CELLS[:2]
    again = Talk()
    rows = compare_makers(study, again.console)
    assert "4 cells: 2 known, 2 to do" in again.said
    assert again.finished == CELLS[2:4]
    # the one that died had its weights already
    assert [request.maker for request in adaptations] == ["defectmaker", "cutpaste-3way", "draem"]
    assert [row.values for row in rows] == [row.values[:1] for row in measured.rows]


def test_an_unfinished_adaptation_goes_on_from_its_checkpoint(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(measured.data, tmp_path / "out", seeds=1)
    monkeypatch.setattr(train.adapt, "_CHECKPOINT_UPDATES", 1)
    usual = train.adapt._note
    seen: list[int] = []

    def dies(history: Any, update_seen: Any, update: int, schedule: Schedule) -> None:
        seen.append(update)
        if len(seen) == 2:
            raise KeyboardInterrupt
        usual(history, update_seen, update, schedule)

    monkeypatch.setattr(train.adapt, "_note", dies)
    with pytest.raises(KeyboardInterrupt):
        few_shot_curve(study, (20,), Talk().console)
    (checkpoint,) = (tmp_path / "out" / "weights").iterdir()
    assert checkpoint.suffix == ".checkpoint"
    talk = Talk()
    rows = few_shot_curve(study, (20,), talk.console)
    assert "defectmaker-20-shot-seed0: going on after update 1 of 2" in talk.said
    assert seen == [0, 1, 1]
    assert not list((tmp_path / "out" / "weights").glob("*.checkpoint"))
    assert [row.values for row in rows] == [row.values[:1] for row in measured.rows[:4]]  # twenty are all


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"key": 1', b'{"key": "x", "in_bank": 1, "nn": NaN, "ldknn": 1, "seconds": 1}']
)
def test_a_damaged_cell_is_computed_again_from_the_weights_kept(
    content: bytes, measured: Measured, copy: Path, adaptations: list[Request]
) -> None:
    path, talk = copy / "cells" / "defectmaker-seed1.json", Talk()
    path.unlink()
    path.write_bytes(content)
    assert compare_makers(study_of(measured.data, copy), talk.console) == measured.rows
    assert f"{path}: damaged; it is computed again" in talk.warned
    assert talk.finished == ["defectmaker-seed1"]
    assert adaptations == []


def test_damaged_weights_are_adapted_again(measured: Measured, copy: Path, adaptations: list[Request]) -> None:
    (path,) = (copy / "weights").glob("draem-seed0-*.safetensors")
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:1000])
    (copy / "cells" / "draem-seed0.json").unlink()
    talk = Talk()
    assert compare_makers(study_of(measured.data, copy), talk.console) == measured.rows
    assert f"{path}: damaged; the adaptation is done again" in talk.warned
    assert [request.maker for request in adaptations] == ["draem"]
    assert len(path.read_bytes()) >= len(whole) - 200  # all but the time that the record tells


def test_another_k_searches_again_with_the_same_weights(measured: Measured, copy: Path, adaptations: list[Request]) -> None:
    talk = Talk()
    rows = compare_makers(study_of(measured.data, copy, k=2), talk.console)
    assert talk.finished == CELLS
    path = copy / "cells" / "initial-seed0.json"
    assert f"{path}: is of other images, weights or settings; it is computed again" in talk.warned
    assert adaptations == []
    assert [row.values for row in rows[::2]] == [row.values for row in measured.rows[::2]]  # NN has no K
    assert rows != measured.rows


class StopError(Exception):
    """Raised in place of work."""


def known_of(study: Study, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many cells a study would not compute."""

    def stop(*_: Any) -> None:
        raise StopError

    monkeypatch.setattr(train.ablate, "open_product", stop)
    talk = Talk()
    with contextlib.suppress(StopError):
        compare_makers(study, talk.console)
    line = next(line for line in talk.said if " cells: " in line)
    return int(line.split(": ")[1].split()[0])


@pytest.mark.parametrize(
    ("changed", "known"),
    [
        ({}, 8),
        ({"alpha": 0.5, "recipe": "other", "command": "again", "seed": 5, "few_shot": 3}, 8),
        ({"k": 3}, 0),
        ({"coreset": 0.2}, 0),
        ({"metric": "euclidean"}, 0),
        ({"size": (64, 128)}, 0),
        ({"roi": Roi(0, 0, 64, 64)}, 0),
        ({"backbone": "vgg11_bn"}, 0),
        ({"preset": "paper"}, 2),  # initial weights are not adapted
    ],
)
def test_what_the_figures_depend_on_is_in_the_key(
    changed: dict[str, Any], known: int, measured: Measured, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert known_of(study_of(measured.data, copy, **changed), monkeypatch) == known


def test_requests_weights_and_versions_are_in_the_key(
    measured: Measured, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = study_of(measured.data, copy)
    (tmp_path / "masks").mkdir()
    for request in (Request("quick", saliency=tmp_path / "masks"), Request("quick", precision="float32")):
        assert known_of(dataclasses.replace(usual, request=request), monkeypatch) == 2
    (weights,) = (copy / "weights").glob("defectmaker-seed0-*")
    assert known_of(study_of(measured.data, copy, weights=str(weights)), monkeypatch) == 0
    monkeypatch.setattr("engines.__version__", "99")
    assert known_of(usual, monkeypatch) == 0


@pytest.mark.parametrize("name", ["train/good/003.png", "test/good/000.png"])
def test_a_changed_image_makes_every_cell_another(
    name: str, measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(measured.data, tmp_path / "data")
    study = study_of(data, tmp_path / "out", seeds=1)
    monkeypatch.setattr(train.ablate, "adapt_product", lambda product, *_: (_ for _ in ()).throw(TrainError("no")))
    with pytest.raises(TrainError, match="3 of 4 cells could not be trained"):
        compare_makers(study, Talk().console)
    assert known_of(study, monkeypatch) == 1
    os.utime(data / name, ns=(1, 1))
    assert known_of(study, monkeypatch) == 0


def test_one_adaptation_that_fails_does_not_stop_the_others(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = train.ablate.adapt_product

    def fails(product: Any, request: Request, *others: Any) -> Any:
        if request.maker == "cutpaste-3way":
            raise TrainError("one answer to everything")
        return usual(product, request, *others)

    monkeypatch.setattr(train.ablate, "adapt_product", fails)
    talk = Talk()
    expected = r"^1 of 4 cells could not be trained \(cutpaste-3way-seed0\); the others are kept"
    with pytest.raises(TrainError, match=expected):
        compare_makers(study_of(measured.data, tmp_path / "out", seeds=1), talk.console)
    assert talk.finished == ["initial-seed0", "defectmaker-seed0", "draem-seed0"]
    assert "cutpaste-3way-seed0: one answer to everything" in talk.warned
    assert not (tmp_path / "out" / "ablation.json").exists()


def test_few_shot_draws_a_line_for_each_method_over_the_counts(measured: Measured, tmp_path: Path) -> None:
    talk, out = Talk(), tmp_path / "out"
    rows = few_shot_curve(study_of(measured.data, out, seeds=1), (20, 1, 20), talk.console)
    cells = [
        f"{weights}-{count}-shot-seed{seed}" for seed in (0,) for count in (1, 20) for weights in ("initial", "defectmaker")
    ]
    assert talk.finished == cells
    assert [(row.name, row.few_shot) for row in rows] == [
        (name, count)
        for name in ("untrained + NN", "untrained + LDKNN", "DefectMaker + NN", "DefectMaker + LDKNN (REB)")
        for count in (1, 20)
    ]
    # twenty images are all that there are
    assert [row.values for row in rows if row.few_shot == 20] == [row.values[:1] for row in measured.rows[:4]]
    document = json.loads((out / "few_shot.json").read_text())
    assert [entry["few_shot"] for entry in document["image_auroc"]] == [1, 20] * 4
    assert document["image_auroc"][0]["values"] == list(rows[0].values)
    assert min(read_image(out / "few_shot.png").shape[:2]) > 600
    assert CellResult.model_validate_json((out / "cells" / "initial-1-shot-seed0.json").read_bytes()).in_bank == 1
    again = Talk()
    assert few_shot_curve(study_of(measured.data, out, seeds=1), (1,), again.console) == rows[::2]
    assert again.said[-1] == "2 cells: 2 known, 0 to do"


def test_a_test_image_that_is_in_the_bank_is_told(tmp_path: Path) -> None:
    data, talk = tmp_path / "data", Talk()
    write_sample(data, train=3, calibration=0, test_good=1, per_defect=1, size_px=SIDE_PX)
    shutil.copy(data / "train/good/001.png", data / "test/good/copy.png")
    few_shot_curve(study_of(data, tmp_path / "out", seeds=1), (3,), talk.console)
    told = [line for line in talk.warned if "pixel for pixel" in line]
    assert told == [f"1 of {2 + len(DEFECTS)} test images were trained on, pixel for pixel: their scores are too low"]


@pytest.mark.parametrize(
    ("changed", "counts", "message"),
    [
        ({"seeds": 0}, (), "0 seeds, expected 1 or more"),
        ({"k": 0}, (), "K is 0, expected 1 or more"),
        ({"preset": "long"}, (), "adaptation preset 'long', expected one of: paper, quick"),
        ({"device": "abacus"}, (), "device 'abacus' cannot be used"),
        ({"backbone": "alexnet"}, (), "backbone 'alexnet', expected one of"),
        ({"data": Path("gone")}, (), "gone: no such folder"),
        ({"weights": "gone.npz"}, (), "gone.npz: no such weights file"),
        ({"mask": Path("gone.png")}, (), "gone.png: cannot be read"),
        ({}, (0, 1), "few-shot with 0 images, expected 1 to 20: that many good ones there are"),
        ({}, (1, 21), "few-shot with 21 images, expected 1 to 20: that many good ones there are"),
    ],
)
def test_bad_input_is_one_error_before_any_work(
    changed: dict[str, Any],
    counts: tuple[int, ...],
    message: str,
    product: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train.ablate, "open_product", lambda *_: pytest.fail("opened"))
    study = study_of(**{"data": product, "out": tmp_path / "out", **changed})
    with pytest.raises(TrainError, match=re.escape(message)):
        if counts:
            few_shot_curve(study, counts, Talk().console)
        else:
            compare_makers(study, Talk().console)


def test_a_saliency_folder_that_is_not_there_is_refused(product: Path, tmp_path: Path) -> None:
    study = Study(settings_for(product), Request("quick", saliency=tmp_path / "gone"), 1, tmp_path / "out")
    with pytest.raises(TrainError, match=f"^{tmp_path / 'gone'}: no such folder; expected a folder of masks"):
        compare_makers(study, Talk().console)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("removed", "counted"),
    [
        ("test", "0 good and 0 defective"),
        ("test/good", f"0 good and {2 * len(DEFECTS)} defective"),
        (None, "9 good and 0 defective"),
    ],
)
def test_without_good_and_defective_test_images_nothing_can_be_measured(
    removed: str | None, counted: str, product: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(product, data)
    for name in (removed,) if removed is not None else [f"test/{defect}" for defect in DEFECTS]:
        shutil.rmtree(data / name)
    with pytest.raises(TrainError, match=f"^{data}: {counted} test images, expected 1 or more of each"):
        compare_makers(study_of(data, tmp_path / "out"), Talk().console)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", "cells"])
def test_a_file_where_results_are_to_go_is_refused(name: str, product: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("a file")
    with pytest.raises(TrainError, match=f"^{out}: cannot hold results .*; expected a new path or a folder$"):
        compare_makers(study_of(product, out), Talk().console)


def test_initial_weights_are_called_by_their_source(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (weights,) = (measured.out / "weights").glob("defectmaker-seed0-*")
    source = Path(shutil.copy(weights, tmp_path / "house-brand.safetensors"))

    def names(sha256: str | None) -> set[str]:
        usual = train.ablate.find_weights

        def found(*arguments: Any) -> Any:
            weights = usual(*arguments)
            return weights if sha256 is None or weights is None else dataclasses.replace(weights, sha256=sha256)

        with monkeypatch.context() as patch:
            patch.setattr(train.ablate, "find_weights", found)
            out = tmp_path / str(sha256)
            rows = few_shot_curve(study_of(measured.data, out, seeds=1, weights=str(source)), (1,), Talk().console)
        return {row.weights for row in rows}

    assert names(None) == {"house-brand", "DefectMaker"}
    assert names("f37072fd" + 56 * "0") == {"ImageNet", "DefectMaker"}  # as torchvision's file name has it


def test_cells_are_named_for_their_files() -> None:
    assert [Cell(None, 0).name, Cell("draem", 2).name, Cell(None, 1, 5).name] == [
        "initial-seed0",
        "draem-seed2",
        "initial-5-shot-seed1",
    ]


QUICK = ["--weights", "none", "--size", str(SIDE_PX), "--coreset", "0.1", "--device", "cpu", "--seeds", "2"]


def test_the_door_prints_the_table(measured: Measured, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "--data", str(measured.data), "--out", str(copy), *QUICK]) == 0
    out = capsys.readouterr().out
    assert "8 cells: 8 known, 0 to do" in out
    for cells in makers_table(measured.rows)[1]:
        assert any(all(cell in line for cell in cells) for line in out.splitlines()), cells
    assert f"wrote {copy}/ablation.json and ablation.png" in out


def test_the_door_draws_the_curve(measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ablate", "--data", str(measured.data), "--out", str(tmp_path / "out"), *QUICK, "--seeds", "1"]
    assert main([*words, "--few-shot", "1"]) == 0
    out = capsys.readouterr().out
    assert "2 cells: 0 known, 2 to do" in out
    assert "good images" in out
    assert (tmp_path / "out" / "few_shot.png").is_file()
    assert main([*words, "--few-shot", "1,0"]) == 2
    assert capsys.readouterr().err.startswith("error: few-shot with 0 images, expected 1 to 20")


@pytest.mark.parametrize(
    "words", [["--few-shot", "1;2"], ["--few-shot", ""], ["--few-shot", "-1"], ["--seeds", "0"], ["--preset", "x"]]
)
def test_the_door_refuses_bad_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["ablate", "--data", "x", "--out", "y", *words])
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_the_door_runs_in_one_process(
    product: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["ablate", "--data", str(product), "--out", str(tmp_path / "out"), *QUICK]) == 2
    assert capsys.readouterr().err == "error: WORLD_SIZE is 2: torchrun is for `train adapt` alone; start this without it\n"
