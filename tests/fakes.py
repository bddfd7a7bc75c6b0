"""Stand-ins that tests of every room share; nothing of this ships.

The tiny network averages each 8 x 8 cell of its input, colour by colour. So a patch's embedding is the mean colour of its
cell after ImageNet normalisation, and scores can be worked out by hand: a bank of one row, `cell(grey)`, with density
0 scores a flat picture of that grey 0, and a cell of another colour the squared distance between the two colours.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.stand_in import CALIBRATION
from calibration.defects import Defect, Mask
from calibration.fit import make_calibration, score_images
from calibration.propose import Wishes, propose
from calibration.record import Calibration, save_calibration
from calibration.scores import split
from edge.judge import Judge
from edge.verdict import Arrival, Frame, Missing, Outcome, Verdict
from edge.worker import Scorer as JudgesScorer
from engines import EngineError
from engines.bundle import (
    GOLDEN,
    MANIFEST,
    Adaptation,
    Bank,
    BankSize,
    Choice,
    Golden,
    GoldenCheck,
    ImageRecord,
    Input,
    Method,
    Metric,
    Pooling,
    Provenance,
    ProvisionalThreshold,
    Tried,
    Variant,
    load_bundle,
    make_preprocessor,
    pack_npz,
    write_bundle,
)
from engines.images import Image, encode_png, pixel_digest
from engines.inspector import Inspector, Scorer
from engines.preprocess import IMAGENET_MEAN, IMAGENET_STD
from engines.search import Score

CELL_PX = 8
DIM = 3
GREY = 128

Floats = npt.NDArray[np.float32]


def flat(colour: int | tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Image:
    """A picture of one colour: uint8 RGB (height, width, 3)."""
    return np.full((*size, 3), colour, np.uint8)


def textured(seed: int, size: tuple[int, int] = (64, 64)) -> Image:
    """A picture of seeded noise: uint8 RGB (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def cell(colour: int | tuple[int, int, int]) -> Floats:
    """Embedding of a cell of one colour, float32 (3,): the definition, in float64 and then rounded."""
    unit = np.broadcast_to(np.asarray(colour, np.float64), (3,)) / 255
    return ((unit - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32)


def cells(*colours: int | tuple[int, int, int]) -> Floats:
    """Embeddings of several cells, float32 (n, 3): rows for a tiny bank."""
    return np.stack([cell(colour) for colour in colours])


def grid_of(size: tuple[int, int]) -> tuple[int, int]:
    """Patch grid (rows, columns) of the tiny network for an input of (height, width)."""
    return size[0] // CELL_PX, size[1] // CELL_PX


class FakeExtractor:
    """The tiny network in NumPy, as a `FeatureExtractor`.

    Attributes:
        calls: how many images were embedded.
        closed: `close` was called.
        before: called with the number of the call before each embedding; raise, wait or count there.
        spoil: turns the embeddings float32 (patches, 3) into those that are given out, such as NaN.
    """

    backend = "fake"
    precision = "fp32"
    provider = "NumPy"
    engine_digest = hashlib.sha256(b"fake").hexdigest()

    def __init__(
        self,
        size: tuple[int, int] = (64, 64),
        *,
        before: Callable[[int], None] = lambda call: None,
        spoil: Callable[[Floats], Floats] = lambda embeddings: embeddings,
    ) -> None:
        self.calls = 0
        self.closed = False
        self.before = before
        self.spoil = spoil
        self._size = size

    def extract(self, tensor: Floats) -> Floats:
        """Mean of each cell: float32 (1, 3, h, w) to float32 (patches, 3). Raises EngineError as real ones do."""
        _check_tensor(tensor, self._size)
        self.calls += 1
        self.before(self.calls)
        rows, columns = grid_of(self._size)
        means = tensor[0].reshape(3, rows, CELL_PX, columns, CELL_PX).mean(axis=(2, 4))
        return self.spoil(np.ascontiguousarray(means.reshape(3, -1).T))

    def close(self) -> None:
        """Note that it was closed; may be called twice."""
        self.closed = True


def feature_graph(size: tuple[int, int] = (64, 64), *, convolution: bool = False) -> bytes:
    """The tiny network as ONNX: float32 (1, 3, h, w) to float32 (patches, 3), patches row by row.

    It averages by pooling, or by a convolution, which can be quantised.
    """
    patches = int(np.prod(grid_of(size)))
    square = {"kernel_shape": [CELL_PX] * 2, "strides": [CELL_PX] * 2}
    kernel = np.eye(DIM, dtype=np.float32)[:, :, None, None] * np.ones((CELL_PX, CELL_PX), np.float32) / CELL_PX**2
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["means"], **square)
        if convolution
        else helper.make_node("AveragePool", ["image"], ["means"], **square),
        helper.make_node("Transpose", ["means"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["last", "shape"], ["embeddings"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, *size])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [patches, DIM])],
        [
            helper.make_tensor("shape", TensorProto.INT64, [2], [patches, DIM]),
            *([numpy_helper.from_array(kernel, "kernel")] if convolution else []),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def write_tiny_bundle(
    path: Path | str,
    *,
    threshold: float | None = 1.0,
    rows: Floats | None = None,
    density: Floats | None = None,
    size: tuple[int, int] = (64, 64),
    roi: tuple[int, int, int, int] | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
    frame_size: tuple[int, int] | None = None,
    mm_per_pixel: float | None = None,
    metric: Metric = "sqeuclidean",
    pooling: Pooling = "cover",
    k: int = 1,
    alpha: float = 1.0,
    normals: tuple[Image, ...] = (),
    golden: tuple[Image, ...] = (),
    spread: float = 0.1,
    adaptation: Adaptation | None = None,
    choice: Choice | None = None,
    graph: bytes | None = None,
    variants: tuple[Variant, ...] = (),
    graphs: Mapping[str, bytes] = MappingProxyType({}),
) -> str:
    """Write a bundle of the tiny network and return its digest.

    Args:
        path: folder to write.
        threshold: provisional threshold; None leaves it out.
        rows: float32 (n, 3), the bank; one row, a cell of grey 128, unless given.
        density: float32 (n,); zeros unless given.
        size: network input (height, width).
        roi: judged (x, y, width, height).
        mask: bool (H, W), True = ignored.
        frame_size: (height, width) of every frame; taken from `mask`, or else from `size`, where a region needs one.
        mm_per_pixel: scale of the frame.
        metric, pooling, k, alpha: the method's settings.
        normals: images recorded in the provenance as being in the bank.
        golden: golden images; a flat one of grey 128 unless given. Their scores are computed by `FakeExtractor`.
        spread: standard deviation of normal scores that the manifest states.
        adaptation, choice: how the backbone was adapted and alpha chosen, as the provenance has it.
        graph: its float32 feature graph; `feature_graph` unless given.
        variants, graphs: further precisions, and the graphs of those that are offered.
    """
    if frame_size is None and mask is not None:
        frame_size = (mask.shape[0], mask.shape[1])
    if frame_size is None and roi is not None:
        frame_size = size
    bank = tiny_bank(cells(GREY) if rows is None else rows, density)
    spec = Input(size=size, roi=roi, frame_size=frame_size, mm_per_pixel=mm_per_pixel)
    method = Method(backbone="tiny", dim=DIM, grid=grid_of(size), metric=metric, k=k, alpha=alpha, pooling=pooling)
    pictures = golden or (flat(GREY, frame_size or size),)
    scorer = Scorer(method, make_preprocessor(spec, mask), bank, FakeExtractor(size))
    return write_bundle(
        path,
        spec=spec,
        method=method,
        threshold=None if threshold is None else ProvisionalThreshold(value=threshold, n=50, rate=0.01),
        golden_check=GoldenCheck(images=len(pictures), spread=spread, max_difference=0.0, flips=0),
        provenance=tiny_provenance(normals, adaptation, choice),
        features=feature_graph(size) if graph is None else graph,
        bank=bank,
        mask=mask,
        golden=Golden(
            names=tuple(f"golden-{index}.png" for index in range(len(pictures))),
            images=pictures,
            scores=np.array([scorer.score(picture).value for picture in pictures]),
        ),
        variants=variants,
        graphs=graphs,
    )


def tiny_bank(rows: Floats, density: Floats | None = None) -> Bank:
    """A bank of these rows, all of image 0; density zeros unless given."""
    count = len(rows)
    return Bank(
        rows=rows,
        density=np.zeros(count, np.float32) if density is None else density,
        image=np.zeros(count, np.int32),
        patch=np.arange(count, dtype=np.int32),
    )


def tiny_provenance(
    normals: tuple[Image, ...] = (), adaptation: Adaptation | None = None, choice: Choice | None = None
) -> Provenance:
    """Where the tiny bundle says that it comes from; `normals` are its bank images."""
    images = tuple(
        ImageRecord(name=f"normal-{index}.png", pixels=pixel_digest(image), use="bank") for index, image in enumerate(normals)
    )
    return Provenance(
        created="2024-01-01T00:00:00+00:00",
        recipe="tiny",
        command="train fit",
        seed=0,
        weights="none",
        weights_sha256=None,
        coreset=1.0,
        patches=64,
        images=images,
        versions={"numpy": "2"},
        adaptation=adaptation,
        choice=choice,
    )


def tiny_adaptation() -> Adaptation:
    """An adaptation of three updates that is right on 17 of 20 held-out images: on 9 of 10 good ones, 8 of 10 others."""
    return Adaptation(
        weights="resnet18.pth",
        weights_sha256="ab" * 32,
        preset="quick",
        updates=3,
        statistics="kept",
        turns=False,
        early="kept",
        share=0.5,
        images_per_update=24,
        images_per_pass=12,
        window_px=32,
        learning_rate=0.03,
        seed=0,
        maker="cutpaste",
        classes=("good", "rectangle"),
        saliency="the part fills the images",
        tail="loaded",
        device="cpu",
        precision="float32",
        seconds=90.0,
        loss=(0.75, 0.5, 0.25),
        accuracy=(0.5, 0.75, 1.0),
        confusion=((9, 1), (2, 8)),
        confusion_on="held-out",
        images=("cd" * 32,),
    )


def tiny_choice() -> Choice:
    """Three alphas, of which the middle one is best, and two sizes of bank."""
    return Choice(
        images=12,
        defects=240,
        saliency="everywhere, the part fills the images",
        tried=(
            Tried(alpha=0.0, auroc=0.7, behind=0.05, error=0.02),
            Tried(alpha=0.5, auroc=0.75, behind=0.0, error=0.0),
            Tried(alpha=1.0, auroc=0.74, behind=0.01, error=0.015),
        ),
        sizes=(
            BankSize(rows=50, alpha=0.0, auroc=0.6, plain=0.6, search_ms=1.5),
            BankSize(rows=200, alpha=1.0, auroc=0.74, plain=0.7, search_ms=4.0),
        ),
        machine="a processor, 2 cores",
    )


def flip_byte(path: Path | str, at: int | None = None) -> None:
    """Change one byte of a file in place: the one at index `at`, the middle one unless given."""
    path = Path(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 0xFF
    path.write_bytes(bytes(data))


def _check_tensor(tensor: Floats, size: tuple[int, int]) -> None:
    if tensor.dtype != np.float32 or tensor.shape != (1, 3, *size):
        raise EngineError(f"network input is {tensor.dtype} {tensor.shape}, expected float32 (1, 3, {size[0]}, {size[1]})")


class FakeClock:
    """A clock that tests turn; sleeping turns it too.

    Attributes:
        slept_until: every time that was slept until.
    """

    def __init__(self, now_ns: int = 10**12) -> None:
        self._now_ns = now_ns
        self.slept_until: list[int] = []

    def now_ns(self) -> int:
        """The time that it was turned to."""
        return self._now_ns

    def sleep_until_ns(self, when_ns: int) -> None:
        """Turn to `when_ns`; never back."""
        self.slept_until.append(when_ns)
        self._now_ns = max(self._now_ns, when_ns)

    def advance_ms(self, milliseconds: float) -> None:
        """Turn it by a duration; back where negative, which no monotonic clock does."""
        self._now_ns += round(milliseconds * 1e6)


def score_of(value: float) -> Score:
    """A score without patches, which took no time."""
    return Score(value, lambda: np.zeros(1, np.float32))


@dataclass(frozen=True)
class Scoring:
    """How `FakeScorer` treats one image: it takes `ms`, then raises `error` or gives `score`.

    With `heeds` False it ignores the time that it was given and answers late.
    """

    score: float = 0.0
    ms: float = 0.0
    error: BaseException | None = None
    heeds: bool = True


class FakeScorer:
    """Follows a script, one entry an image, and turns the clock as it goes.

    Attributes:
        timeouts_s: the time that each call was given.
        fault: as a `Scorer`'s.
    """

    def __init__(self, clock: FakeClock, script: Iterable[Scoring]) -> None:
        self.fault = ""
        self._clock = clock
        self._script = iter(script)
        self.timeouts_s: list[float] = []

    def score(self, image: Image, timeout_s: float) -> Score:
        """The next entry of the script."""
        self.timeouts_s.append(timeout_s)
        step = next(self._script)
        if step.heeds and step.ms > timeout_s * 1e3:
            self._clock.advance_ms(timeout_s * 1e3)
            raise TimeoutError("no score by the deadline")
        self._clock.advance_ms(step.ms)
        if step.error is not None:
            raise step.error
        return score_of(step.score)

    def close(self) -> None:
        """Nothing to release."""


class FakeRejector:
    """A reject line that remembers everything.

    Attributes:
        trace: (part, rejects) in the order applied, to compare whole.
        levels: the line's level from the start on, True for rejecting; each call adds one.
        announced: (part, trigger_ns) in order.
        beats: how often the loop showed that it turns.
        ready: what it was told of the station, in order.
    """

    def __init__(self, error: Exception | None = None, fail_at: int | None = None) -> None:
        self.trace: list[tuple[int, bool]] = []
        self.levels = [True]
        self.announced: list[tuple[int, int]] = []
        self.beats = 0
        self.ready: list[bool] = []
        self._error = error
        self._fail_at = fail_at

    @property
    def rejecting(self) -> bool:
        """The level now."""
        return self.levels[-1]

    def beat(self) -> None:
        """Count the calls."""
        self.beats += 1

    def set_ready(self, ready: bool) -> None:
        """Remember it."""
        self.ready.append(ready)

    def announce(self, part: int, trigger_ns: int) -> None:
        """Remember one part."""
        self.announced.append((part, trigger_ns))

    def apply(self, verdict: Verdict) -> None:
        """Remember one part, or raise at the part where it is told to fail."""
        if self._error is not None and verdict.part == self._fail_at:
            raise self._error
        self.trace.append((verdict.part, verdict.outcome.rejects))
        self.levels.append(verdict.outcome.rejects)

    def close(self) -> None:
        """Reject from here on."""
        self.levels.append(True)


def judge_of(scorer: JudgesScorer, threshold: float, name: str = "tiny") -> Judge:
    """A judge with a calibration that has this threshold and is not for any bundle."""
    return Judge(name, scorer, tiny_calibration(threshold))


@dataclass(frozen=True)
class Keeping:
    """How `FakeJournal` treats the rows of one part: the first takes `ms`; one that fails is not kept."""

    ms: float = 0.0
    announce_error: Exception | None = None
    error: Exception | None = None
    second_error: Exception | None = None


class FakeJournal:
    """Keeps rows in memory, slowly or not at all where it is told so.

    Attributes:
        announced: parts that were announced.
        judged_with: the recipe of each.
        rows: verdicts kept.
        events: (name, details) kept.
    """

    def __init__(self, clock: FakeClock, plan: Mapping[int, Keeping] | None = None) -> None:
        self._clock = clock
        self._plan = plan or {}
        self._asked: set[int] = set()
        self.announced: list[int] = []
        self.judged_with: list[str] = []
        self.rows: list[Verdict] = []
        self.events: list[tuple[str, dict[str, object]]] = []

    def announce(self, arrival: Arrival, judged_with: Mapping[str, str]) -> None:
        """Note one part as planned."""
        error = self._plan.get(arrival.part, Keeping()).announce_error
        if error is not None:
            raise error
        self.announced.append(arrival.part)
        self.judged_with.append(judged_with["recipe"])

    def verdict(self, verdict: Verdict) -> None:
        """Keep one verdict as planned for its part."""
        keeping = self._plan.get(verdict.part, Keeping())
        first = verdict.part not in self._asked
        self._asked.add(verdict.part)
        if first:
            self._clock.advance_ms(keeping.ms)
        error = keeping.error if first else keeping.second_error
        if error is not None:
            raise error
        self.rows.append(verdict)

    def event(self, name: str, details: Mapping[str, object]) -> None:
        """Keep one event."""
        self.events.append((name, dict(details)))

    def later(self, name: str, details: Mapping[str, object]) -> None:
        """Keep one event."""
        self.events.append((name, dict(details)))

    def close(self) -> None:
        """Nothing to bring to a disk."""


def journal_rows(path: Path) -> list[dict[str, Any]]:
    """The bodies of a journal's rows, each with its `kind`, read without the program; NaN would be no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT kind, body FROM chain ORDER BY id").fetchall()
    return [{"kind": kind, **json.loads(body, parse_constant=refuse)} for kind, body in rows]


class FakeLedger:
    """Remembers what happened to pictures.

    Attributes:
        pictures: (part, outcome, path, pixel digest, why).
        events: (name, details).
    """

    def __init__(self) -> None:
        self.pictures: list[tuple[int, Outcome, str, str, str]] = []
        self.events: list[tuple[str, dict[str, object]]] = []

    def note_evidence(self, *, part: int, outcome: Outcome, path: str, pixels: str, why: str) -> None:
        """Remember a picture."""
        self.pictures.append((part, outcome, path, pixels, why))

    def later(self, name: str, details: dict[str, object]) -> None:
        """Remember an event."""
        self.events.append((name, details))


class FakeCamera:
    """Gives pictures as parts; None is a part without one. `age_ms` is how long ago each part triggered when it is given.

    Attributes:
        first_after_ms: when the first part comes after it was asked for.
        healthy, status: as a `Camera`'s.
        closed: calls of `close`.
    """

    first_after_ms = 10_000.0

    def __init__(self, clock: FakeClock, pictures: Sequence[Image | None], age_ms: Sequence[float] = ()) -> None:
        self._clock = clock
        self._pictures = pictures
        self._age_ms = age_ms
        self.healthy = True
        self.status = ""
        self.closed = 0

    def frames(self) -> Iterator[Arrival]:
        """One arrival for each picture."""
        self._clock.advance_ms(self.first_after_ms)
        for part, picture in enumerate(self._pictures, start=1):
            age_ms = self._age_ms[part - 1] if self._age_ms else 0.0
            trigger_ns = self._clock.now_ns() - round(age_ms * 1e6)
            source = f"fake/{part}.png"
            if picture is None:
                yield Missing(part, trigger_ns, source, "no picture")
                continue
            image = picture.copy()
            image.flags.writeable = False
            yield Frame(image, part, trigger_ns, trigger_ns, source)

    def close(self) -> None:
        """Count the calls."""
        self.closed += 1


def write_pictures(folder: Path, pictures: Sequence[Image]) -> list[Path]:
    """Write pictures as 1.png, 2.png, ... and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(1, len(pictures) + 1)]
    for path, picture in zip(paths, pictures, strict=True):
        path.write_bytes(encode_png(picture))
    return paths


def write_station(folder: Path) -> Path:
    """Everything a station needs, below `folder`; returns its configuration, `station.yaml`.

    The bundle's bank is grey 128. Calibrated for station `line-1`, camera `camera-1`, with grey 138 at the threshold: in
    `parts` there are grey 130 (PASS), 138 (PASS, at the threshold), 139 (REJECT) and 120 (PASS).
    """
    write_tiny_bundle(folder / "bundle", golden=(flat(GREY), textured(1)))
    with Inspector(load_bundle(folder / "bundle"), threads=1) as inspector:
        save_calibration(folder / "line-1.json", calibration_for(inspector, inspector.score(flat(138)).value))
    write_pictures(folder / "parts", [flat(130), flat(138), flat(139), flat(120)])
    config = folder / "station.yaml"
    config.write_text(
        "station: line-1\n"
        "bundle: bundle\n"
        "calibration: line-1.json\n"
        "threads: 1\n"
        "deadline_ms: 60000\n"
        "source:\n"
        "  kind: replay\n"
        "  path: parts\n"
        "journal: journal.db\n"
    )
    return config


def write_recipes(
    folder: Path, *, greys: Mapping[str, int] = MappingProxyType({"gasket": 128, "bolt": 60}), golden_off: Collection[str] = ()
) -> Path:
    """A station of recipes over one folder of parts; returns its configuration, which starts with the first one.

    Each recipe's bank is a cell of one grey; the threshold is at ten greys above. The manifests of those in `golden_off`
    promise other scores than the bundle gives.
    """
    below = ""
    for name, grey in greys.items():
        write_tiny_recipe(folder, name, grey, golden_off=name in golden_off)
        below += f"  {name}: {{bundle: bundles/{name}, calibration: {name}.json}}\n"
    write_pictures(folder / "parts", [flat(130), flat(138), flat(139), flat(60), flat(70), flat(71)])
    config = folder / "station.yaml"
    config.write_text(
        f"station: line-1\nthreads: 1\ndeadline_ms: 60000\njournal: journal.db\nrecipe: {next(iter(greys))}\n"
        f"source: {{kind: replay, path: parts}}\nrecipes:\n{below}"
    )
    return config


def write_tiny_recipe(folder: Path, name: str, grey: int, *, golden_off: bool = False) -> None:
    """A bundle `bundles/NAME` whose bank is one cell of a grey, and `NAME.json`, calibrated at ten greys above."""
    bundle = folder / "bundles" / name
    write_tiny_bundle(bundle, rows=cells(grey), golden=(flat(grey), textured(1)))
    if golden_off:
        with np.load(bundle / GOLDEN) as archive:
            arrays = {key: archive[key] for key in archive.files}
        data = pack_npz(arrays | {"scores": arrays["scores"] + 0.5})
        (bundle / GOLDEN).write_bytes(data)
        manifest = json.loads((bundle / MANIFEST).read_text())
        manifest["files"][GOLDEN] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (bundle / MANIFEST).write_text(json.dumps(manifest))
    with Inspector(load_bundle(bundle), threads=1) as inspector:
        save_calibration(folder / f"{name}.json", calibration_for(inspector, inspector.score(flat(grey + 10)).value))


def calibration_for(inspector: Inspector, threshold: float) -> Calibration:
    """A calibration of station `line-1`, camera `camera-1`, that holds for this inspector."""
    return tiny_calibration(threshold).model_copy(
        update={
            "bundle_digest": inspector.bundle.digest,
            "backend": inspector.extractor.backend,
            "precision": inspector.extractor.precision,
            "engine_digest": inspector.extractor.engine_digest,
        }
    )


def conformal_record(inspector: Inspector, paths: Sequence[Path], *, station: str, rate: float) -> Calibration:
    """A conformal calibration on pictures that are a part each."""
    scored = score_images(inspector, paths, paths[0].parent, grouping="none")
    wishes = Wishes(rate=rate)
    proposal = propose(split(scored)[0], wishes).of("conformal")
    return make_calibration(inspector, proposal, wishes, station=station, camera="c", who="w")


def tiny_calibration(threshold: float = 1.25) -> Calibration:
    """A calibration of station `line-1`, camera `camera-1`, for a bundle that there is not."""
    return CALIBRATION.model_copy(update={"recipe": "tiny", "threshold": threshold, "who": "test"})


@dataclass(frozen=True, eq=False)
class Asked:
    """What a maker of defects was asked for; `image` is a copy of the one that it drew on."""

    index: int
    kind: str
    seed: int
    draw: int
    image: Image
    saliency: Mask | None


class PaintingMaker:
    """A maker whose defects are boxes: `paint` changes the image in place and says in which box, x, y, width, height."""

    def __init__(
        self,
        kinds: tuple[str, ...],
        paint: Callable[[Image, Asked], tuple[int, int, int, int]],
        images: Sequence[Image] = (),
    ) -> None:
        self.kinds = kinds
        self.asked: list[Asked] = []
        self.boxes: list[tuple[int, int, int, int]] = []
        self._paint, self._images = paint, images

    def draw(
        self,
        index: int,
        kind: str,
        *,
        seed: int,
        draw: int,
        image: Image | None = None,
        saliency: Mask | None = None,
        size_px: float | None = None,
        contrast: float | None = None,
    ) -> Defect:
        """Paint a defect, and note what was asked."""
        flawed = (self._images[index] if image is None else image).copy()
        asked = Asked(index, kind, seed, draw, flawed.copy(), saliency)
        box = self._paint(flawed, asked)
        self.asked.append(asked)
        self.boxes.append(box)
        x, y, width, height = box
        shape = np.zeros(flawed.shape[:2], bool)
        shape[y : y + height, x : x + width] = True
        return Defect(flawed, shape, shape, kind, box, {"size_px": 20.4, "contrast": 31.0})
