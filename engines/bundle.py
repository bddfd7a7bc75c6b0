"""The bundle: the one hand-over from workstation to station, checked file by file when it is loaded."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines import EngineError
from engines.atomic import check_place, new_folder
from engines.images import Image, decode_image, encode_png
from engines.preprocess import Preprocessor, Roi

SCHEMA = 1
FEATURES, BANK, GOLDEN, MASK, MANIFEST = "features.onnx", "bank.npz", "golden.npz", "mask.png", "manifest.json"
Precision = Literal["fp32", "fp16", "int8", "int8-cpu"]
Metric = Literal["sqeuclidean", "euclidean"]
Pooling = Literal["cover", "paper"]
DensityKind = Literal["published", "measured"]
Positive = Annotated[int, Field(gt=0)]
PRECISIONS: tuple[str, ...] = get_args(Precision)
FP32: Precision = "fp32"
_NO_GRAPHS: Mapping[str, bytes] = MappingProxyType({})


class Record(BaseModel):
    """Base of everything that is written to disk as JSON: frozen, unknown keys and non-finite numbers refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Input(Record):
    """What of a frame is judged, and at which size. Sizes are (height, width) in pixels, the region (x, y, w, h)."""

    size: tuple[Positive, Positive]
    roi: tuple[int, int, int, int] | None = None
    frame_size: tuple[Positive, Positive] | None = None
    mm_per_pixel: float | None = Field(default=None, gt=0)


class Method(Record):
    """Everything that turns an embedding into a score. `grid` is the patch map's (rows, columns).

    `density` says what the bank's densities are: `published`, each row's mean distance to its K nearest neighbours among
    all good patches, or `measured`, how far good patches lie from the row, which looks at the published one too.
    """

    backbone: str
    dim: Positive
    grid: tuple[Positive, Positive]
    metric: Metric = "sqeuclidean"
    density: DensityKind = "published"
    k: Positive = 9
    alpha: float = Field(default=1.0, ge=0)
    pooling: Pooling = "cover"


class ProvisionalThreshold(Record):
    """Threshold from normals that were held out at training: a start, not a calibration of any station."""

    value: float
    n: Positive
    rate: float = Field(gt=0, lt=1)


class GoldenCheck(Record):
    """How far the exported graph is from the trained network on the golden images.

    `spread` is the standard deviation of normal scores; differences are stated relative to it.
    """

    images: Positive
    spread: float = Field(gt=0)
    max_difference: float = Field(ge=0)
    flips: int = Field(ge=0)


class Variant(Record):
    """The feature graph in another precision, and how it was held against the float32 one before it was offered.

    Attributes:
        precision: of its graph; never fp32, which every bundle has.
        images: that both scored.
        max_difference: largest score difference, in spreads of normal scores; None where a score was not a number.
        flips: decisions that differ at the provisional threshold.
        offered: the bundle holds its graph.
        reason: why it is not offered.
    """

    precision: Precision
    images: Positive
    max_difference: float | None = Field(ge=0)
    flips: int = Field(ge=0)
    offered: bool
    reason: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Variant:
        if self.precision == FP32:
            raise ValueError("fp32 is listed as a variant; it is what variants are held against")
        if self.offered != (self.reason is None):
            raise ValueError(f"{self.precision} is {'offered with' if self.offered else 'not offered without'} a reason")
        if self.offered and (self.max_difference is None or self.flips > 0):
            raise ValueError(f"{self.precision} is offered with {self.flips} flips, difference {self.max_difference}")
        return self

    def cells(self) -> tuple[str, ...]:
        """For a table: precision, images, largest difference, flips, and whether it is offered, with the reason why not."""
        difference = "-" if self.max_difference is None else f"{self.max_difference:.2g}"
        verdict = "offered" if self.reason is None else f"not offered: {self.reason}"
        return self.precision, str(self.images), difference, str(self.flips), verdict


class ImageRecord(Record):
    """One training image: its name below the data folder, the digest of its pixels, and what it was used for."""

    name: str
    pixels: str
    use: Literal["bank", "held-out"]


class Adaptation(Record):
    """How a backbone was adapted to the product on synthetic defects.

    Attributes:
        weights, weights_sha256: that it began from; `none` and None for an untrained network.
        preset, updates, images_per_update, images_per_pass, window_px, learning_rate, seed: of the schedule; `window_px` is
            None where whole network inputs were trained on.
        turns: pictures were turned by quarters too, and not only flipped.
        early: the layers before the stage of the finer tap were `kept` as they came, or `trained` with the others.
        share: of the trained weights in those that are kept; the rest is the initial ones.
        statistics: of the trunk's batch norm: `kept` as they came with the weights, or of each `batch` (one pass), for a
            network that had none; layers after the features take them of each batch always.
        maker, classes, saliency: of the synthetic defects; the first class is the good image.
        tail: `loaded` with the weights, or `random`: then it trained with the head from the first update.
        device, precision, seconds: where and how long.
        loss, accuracy: mean loss and share of right answers of every update.
        confusion: rows true classes, columns answers, on images that were held out of training or, where none were,
            on those of training.
        images: pixel digests of the good images that it learnt from.
    """

    weights: str
    weights_sha256: str | None
    preset: str
    updates: int
    images_per_update: int
    images_per_pass: int
    window_px: int | None
    learning_rate: float
    turns: bool
    early: Literal["kept", "trained"]
    share: float
    seed: int
    maker: str
    classes: tuple[str, ...]
    saliency: str
    tail: Literal["loaded", "random"]
    statistics: Literal["kept", "batch"]
    device: str
    precision: str
    seconds: float
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]
    confusion_on: Literal["held-out", "training"]
    images: tuple[str, ...]

    @property
    def right(self) -> float:
        """Share of right answers in the confusion matrix, 0 to 1."""
        return sum(row[number] for number, row in enumerate(self.confusion)) / sum(map(sum, self.confusion))

    @model_validator(mode="after")
    def _fits_together(self) -> Adaptation:
        count = len(self.classes)
        if len(self.confusion) != count or any(len(row) != count or sum(row) < 1 for row in self.confusion):
            raise ValueError(f"the confusion matrix does not have {count} rows of {count} counts, one answer or more in each")
        if not len(self.loss) == len(self.accuracy) == self.updates:
            raise ValueError(f"{len(self.loss)} losses and {len(self.accuracy)} accuracies for {self.updates} updates")
        return self


class Tried(Record):
    """One alpha, tried on synthetic defects over good images that the bank did not hold.

    Attributes:
        auroc: of the defects' scores against the good images', 0 to 1.
        behind, error: how far that is below the best alpha's, and the standard error of this difference.
    """

    alpha: float = Field(ge=0)
    auroc: float = Field(ge=0, le=1)
    behind: float = Field(ge=0)
    error: float = Field(ge=0)


class BankSize(Record):
    """What a bank of so many rows would have been: the beginning of the one that was taken, or all of it.

    Attributes:
        alpha, auroc: that it would have been given, and what that reaches on the synthetic defects, 0 to 1.
        plain: what nearest neighbour alone reaches there.
        search_ms: median time of an image score, without the features, on the machine that trained.
    """

    rows: Positive
    alpha: float = Field(ge=0)
    auroc: float = Field(ge=0, le=1)
    plain: float = Field(ge=0, le=1)
    search_ms: float = Field(gt=0)


class Choice(Record):
    """What the density's weight was chosen on. `sizes` ascend, and the last is the bank itself."""

    images: Positive
    defects: Positive
    saliency: str
    tried: tuple[Tried, ...]
    sizes: tuple[BankSize, ...]
    machine: str


class Extension(Record):
    """How a station brought a bundle's bank up to date with its own good parts.

    Attributes:
        parent: digest of the bundle that was extended.
        when, who, station: of the extension.
        images: pixel digests of the images that were added; `Provenance.images` has their names.
        accepted, left_out: names of images that looked anomalous, and were added by a person's word, or not.
        rows, new_rows: in the bank, and how many of them are of the added images.
        seed: of the choice of rows.
    """

    parent: str
    when: str
    who: str
    station: str
    images: tuple[str, ...]
    accepted: tuple[str, ...]
    left_out: tuple[str, ...]
    rows: Positive
    new_rows: int = Field(ge=0)
    seed: int


class Provenance(Record):
    """Where a bundle comes from, for the auditor who asks months later; `weights` are those that embed."""

    created: str
    recipe: str
    command: str
    seed: int
    weights: str
    weights_sha256: str | None
    coreset: float
    patches: int
    images: tuple[ImageRecord, ...]
    versions: dict[str, str]
    adaptation: Adaptation | None = None
    choice: Choice | None = None
    extensions: tuple[Extension, ...] = ()


class FileEntry(Record):
    """Size and SHA-256 of one file of the bundle."""

    bytes: int
    sha256: str


class Manifest(Record):
    """`manifest.json`: the bundle's table of contents; its own SHA-256 is the bundle's digest."""

    schema_version: int
    input: Input
    method: Method
    threshold: ProvisionalThreshold | None
    golden: GoldenCheck
    provenance: Provenance
    files: dict[str, FileEntry]
    variants: tuple[Variant, ...] = ()

    @model_validator(mode="after")
    def _variants_have_files(self) -> Manifest:
        names = [variant.precision for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"variants {', '.join(names)}, expected each precision once")
        offered = {variant.precision for variant in self.variants if variant.offered}
        kept = {precision for precision in PRECISIONS if precision != FP32 and features_file(precision) in self.files}
        if offered != kept:
            raise ValueError(f"offers {sorted(offered)}, has files for {sorted(kept)}")
        return self

    def variant(self, precision: str) -> Variant | None:
        """What is known of a precision; None of fp32 and of what was never made."""
        return next((variant for variant in self.variants if variant.precision == precision), None)


@dataclass(frozen=True)
class Bank:
    """The memory bank.

    Attributes:
        rows: float32 (n, d) embeddings of normal patches.
        density: float32 (n,) usual distance at each row, as `Method.density` says.
        image: int32 (n,) which training image (index into the provenance's bank images) a row comes from.
        patch: int32 (n,) which patch of it, row by row over the grid.
    """

    rows: npt.NDArray[np.float32]
    density: npt.NDArray[np.float32]
    image: npt.NDArray[np.int32]
    patch: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Golden:
    """Images with the scores that the bundle must give for them: uint8 RGB (H, W, 3) each, and float64 (n,)."""

    names: tuple[str, ...]
    images: tuple[Image, ...]
    scores: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. What is held here are the very bytes whose digests were checked."""

    path: Path
    digest: str
    manifest: Manifest
    graphs: Mapping[str, bytes]
    bank: Bank
    mask: npt.NDArray[np.bool_] | None
    golden_npz: bytes

    def graph(self, precision: str) -> bytes:
        """The feature graph in a precision, as an ONNX file's bytes.

        Raises:
            EngineError: a precision that this bundle does not offer, with what it has and why.
        """
        if precision in self.graphs:
            return self.graphs[precision]
        has = ", ".join(self.graphs)
        if precision not in PRECISIONS:
            raise EngineError(f"precision '{precision}', expected one of: {', '.join(PRECISIONS)}; this bundle has {has}")
        made = self.manifest.variant(precision)
        if made is not None:
            raise EngineError(f"{self.path}: {precision} is not offered ({made.reason}); it has {has}: choose one of these")
        raise EngineError(f"{self.path}: no {precision}, it has {has}; choose one of these, or add it with `train export`")

    def golden(self) -> Golden:
        """Decode the golden images (not kept: they can be large)."""
        return _unpack_golden(self.golden_npz)

    def preprocessor(self) -> Preprocessor:
        """The preprocess function that this product was trained with."""
        return make_preprocessor(self.manifest.input, self.mask)

    def learnt_from(self) -> frozenset[str]:
        """Pixel digests of the images in the bank and of those that the backbone was adapted on: never calibrate on these."""
        made = self.manifest.provenance
        adapted_on = made.adaptation.images if made.adaptation is not None else ()
        return frozenset(image.pixels for image in made.images if image.use == "bank") | frozenset(adapted_on)


def make_preprocessor(spec: Input, mask: npt.NDArray[np.bool_] | None) -> Preprocessor:
    """Build the preprocess function that `spec` and `mask` describe."""
    roi = Roi(*spec.roi) if spec.roi is not None else None
    return Preprocessor(spec.size, roi=roi, mask=mask, frame_size=spec.frame_size)


def write_bundle(
    path: Path | str,
    *,
    spec: Input,
    method: Method,
    threshold: ProvisionalThreshold | None,
    golden_check: GoldenCheck,
    provenance: Provenance,
    features: bytes,
    bank: Bank,
    mask: npt.NDArray[np.bool_] | None,
    golden: Golden,
    variants: tuple[Variant, ...] = (),
    graphs: Mapping[str, bytes] = _NO_GRAPHS,
) -> str:
    """Write a bundle atomically and return its digest.

    `features` is the float32 graph, `graphs` has those of the offered `variants` by precision.

    Raises:
        EngineError: `path` is something else than a bundle, cannot be written, or the parts would not load as a
            bundle; what stood there still stands.
    """
    path = Path(path)
    check_replaceable(path)
    files = {
        FEATURES: features,
        BANK: pack_npz({"rows": bank.rows, "density": bank.density, "image": bank.image, "patch": bank.patch}),
        GOLDEN: _pack_golden(golden),
    }
    files |= {features_file(precision): graph for precision, graph in graphs.items()}
    if mask is not None:
        files[MASK] = encode_png(np.repeat(mask[:, :, None].astype(np.uint8) * 255, 3, axis=2))
    manifest = Manifest(
        schema_version=SCHEMA,
        input=spec,
        method=method,
        threshold=threshold,
        golden=golden_check,
        provenance=provenance,
        files={name: FileEntry(bytes=len(data), sha256=_sha256(data)) for name, data in files.items()},
        variants=variants,
    )
    text = (manifest.model_dump_json(indent=1) + "\n").encode()
    with new_folder(path) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        (folder / MANIFEST).write_bytes(text)
        load_bundle(folder)  # nothing that cannot be loaded takes the place of what can
    return _sha256(text)


def features_file(precision: str) -> str:
    """Name of the file with the feature graph in a precision."""
    return FEATURES if precision == FP32 else f"features-{precision}.onnx"


def check_replaceable(path: Path | str) -> None:
    """Refuse a path that holds something which is not a bundle, or cannot be written, before hours of work end there.

    Raises:
        EngineError: a file, a folder without a manifest that is not empty, or a place where no folder can be made.
    """
    path = Path(path)
    if path.is_dir() and not (path / MANIFEST).is_file() and any(path.iterdir()):
        raise EngineError(f"{path}: a folder that is not a bundle; expected a new path, an empty folder or an older bundle")
    if path.exists() and not path.is_dir():
        raise EngineError(f"{path}: a file; expected a new path or a folder for the bundle")
    check_place(path)


def load_bundle(path: Path | str) -> Bundle:
    """Load a bundle and check it whole: schema, presence, size and SHA-256 of each file, shapes and finite numbers.

    Raises:
        EngineError: anything missing, changed, newer than this program, or inconsistent.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise EngineError(f"{path}: no {MANIFEST} there; expected the folder that `train fit --out` wrote")
    text = _read(path / MANIFEST)
    manifest = _parse_manifest(path, text)
    unknown = manifest.files.keys() - {BANK, GOLDEN, MASK, *map(features_file, PRECISIONS)}
    if unknown:
        names = ", ".join(sorted(unknown))
        raise EngineError(f"{path}: the manifest lists {names}, not a file of schema {SCHEMA}; copy the bundle again")
    files = {name: _read_checked(path / name, entry) for name, entry in manifest.files.items()}
    missing = {FEATURES, BANK, GOLDEN} - files.keys()
    if missing:
        raise EngineError(f"{path}: the manifest lists no {', '.join(sorted(missing))}; copy the bundle again")
    mask = np.asarray(decode_image(files[MASK]).any(axis=2)) if MASK in files else None
    bank = _unpack_bank(path, files[BANK], manifest.method.dim)
    _golden_arrays(files[GOLDEN])
    graphs = {precision: files[name] for precision in PRECISIONS if (name := features_file(precision)) in files}
    return Bundle(path, _sha256(text), manifest, MappingProxyType(graphs), bank, mask, files[GOLDEN])


def bundle_digest(path: Path | str) -> str:
    """The digest of the bundle at a path, of which nothing but the manifest is read. Raises EngineError."""
    return _sha256(_read(Path(path) / MANIFEST))


def pack_npz(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Arrays as the bytes of an uncompressed .npz: plain arrays only, nothing that needs pickle."""
    if any(array.dtype.hasobject for array in arrays.values()):
        raise TypeError("arrays of Python objects cannot be stored without pickle")
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # the stub takes any name for allow_pickle
    return buffer.getvalue()


def _parse_manifest(path: Path, text: bytes) -> Manifest:
    try:
        document = json.loads(text)
        version = document["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise EngineError(f"{path / MANIFEST}: not a readable manifest; copy the bundle again") from None
    if version != SCHEMA:
        newer = isinstance(version, int) and version > SCHEMA
        remedy = "update the program on this machine" if newer else "train the bundle again"
        raise EngineError(f"{path}: bundle schema {version}, expected {SCHEMA}; {remedy}")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise EngineError(f"{path / MANIFEST}: {where}: {first['msg']}; copy the bundle again or train it again") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise EngineError(f"{path}: missing from the bundle; copy the bundle again") from None
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror or error}); check the disk and permissions") from None


def _read_checked(path: Path, entry: FileEntry) -> bytes:
    data = _read(path)
    if len(data) != entry.bytes or _sha256(data) != entry.sha256:
        raise EngineError(
            f"{path}: damaged ({len(data)} bytes, SHA-256 {_sha256(data)[:12]}...), expected {entry.bytes} bytes,"
            f" {entry.sha256[:12]}...; copy the bundle again"
        )
    return data


def _unpack_bank(path: Path, data: bytes, dim: int) -> Bank:
    names = ("rows", "density", "image", "patch")
    arrays = _load_npz(path / BANK, data, names)
    rows, density, image, patch = (arrays[name] for name in names)
    if [array.dtype for array in (rows, density, image, patch)] != [np.float32, np.float32, np.int32, np.int32]:
        got = ", ".join(f"{name} {arrays[name].dtype}" for name in names)
        raise EngineError(f"{path / BANK}: {got}, expected float32 rows and density, int32 image and patch; train it again")
    count = len(rows) if rows.ndim == 2 else 0
    if count == 0 or rows.shape[1] != dim or {density.shape, image.shape, patch.shape} != {(count,)}:
        got = ", ".join(f"{name} {arrays[name].shape}" for name in names)
        raise EngineError(f"{path / BANK}: {got}, expected rows (n, {dim}) and one value a row; train it again")
    if not (np.isfinite(rows).all() and np.isfinite(density).all()):
        raise EngineError(f"{path / BANK}: holds numbers that are not finite; train it again")
    return Bank(np.ascontiguousarray(rows), density, image, patch)


def _pack_golden(golden: Golden) -> bytes:
    arrays: dict[str, npt.NDArray[Any]] = {"names": np.array(golden.names), "scores": golden.scores}
    for index, image in enumerate(golden.images):
        arrays[_png_name(index)] = np.frombuffer(encode_png(image), np.uint8)
    return pack_npz(arrays)


def _unpack_golden(data: bytes) -> Golden:
    arrays = _golden_arrays(data)
    images = tuple(decode_image(arrays[_png_name(index)].tobytes()) for index in range(len(arrays["names"])))
    return Golden(tuple(str(name) for name in arrays["names"]), images, arrays["scores"])


def _golden_arrays(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of `golden.npz`, checked against each other; the images in them are still PNG files."""
    arrays = _load_npz(Path(GOLDEN), data, ("names", "scores"))
    names, scores = arrays["names"], arrays["scores"]
    expected = {"names", "scores"} | {_png_name(index) for index in range(names.size)}
    if names.ndim != 1 or scores.shape != names.shape or arrays.keys() != expected:
        counts = f"{names.size} names, {scores.size} scores and {len(arrays) - 2} images"
        raise EngineError(f"{GOLDEN}: {counts}, expected as many of each; train it again")
    if scores.dtype != np.float64 or not np.isfinite(scores).all():
        raise EngineError(f"{GOLDEN}: scores are {scores.dtype}, expected finite float64 numbers; train it again")
    return arrays


def _png_name(index: int) -> str:
    return f"png_{index:03d}"


def _load_npz(path: Path, data: bytes, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    try:
        archive = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("one array, not an archive of arrays")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise EngineError(f"{path}: not a readable array file ({error}); train the bundle again") from None
    for name in names:
        if not isinstance(arrays.get(name), np.ndarray):  # NumPy gives a member that is no array as bytes
            raise EngineError(f"{path}: has no array '{name}'; train the bundle again")
    return arrays


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
