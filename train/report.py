"""The evaluation as a page for a person: figures, curves, and the images that went worst."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import jinja2
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from engines.atomic import new_folder
from engines.bundle import Bundle
from engines.images import Image, encode_png
from engines.inspector import anomaly_map, overlay
from train import TrainError
from train.adaptation_plots import adaptation_facts, adaptation_plots
from train.choice_plots import choice_facts, choice_plots
from train.data import Dataset, Sample
from train.evaluate import ALL, Evaluation, judged_region
from train.metrics import PRO_LIMIT, SPRO_LIMIT, Mask, image_roc
from train.plots import INK, LDKNN_COLOUR, NN_COLOUR, plot

MARK = "reb-train evaluation"  # in the page's <meta name="generator">: a folder with it may be replaced
_PAGE = "index.html"
_OWN_FILES = re.compile(
    r"index\.html|(histogram|roc|alpha|bank|adaptation|confusion|(miss|overkill)-\d+-(image|heat|mask))\.png"
)
_WORST = 6
_PICTURE_PX = 400  # longer side; more than the page shows, so that outlines stay sharp
_OUTLINE = (255, 45, 85)

_METHODS = {
    "ldknn": ("LDKNN", LDKNN_COLOUR),
    "nn": ("NN", NN_COLOUR),
    "knn": ("KNN, mean of K", "#0891b2"),
    "kth-nn": ("K-th NN", "#65a30d"),
    "lof": ("LOF", "#7c3aed"),
    "ldof": ("LDOF", "#64748b"),
}
_METRICS = {
    "image_auroc": "Image AUROC",
    "best_f1": "Best F1",
    "pixel_auroc": "Pixel AUROC",
    "aupro": f"AUPRO ({PRO_LIMIT:g})",
    "spro": f"AU-sPRO ({SPRO_LIMIT:g})",
}
_HEADLINES = {
    "image_auroc": "LDKNN, good against defective parts",
    "pixel_auroc": "LDKNN, pixel by pixel",
    "aupro": "LDKNN, region by region, overkill up to 30 % of pixels",
    "spro": "LDKNN, saturated overlap, overkill up to 5 % of pixels",
}
_GOOD, _BAD = "#4b83b8", "#d9694a"


@dataclass(frozen=True)
class Row:
    """One row of a table: its name, its cells as text, and which of them is the best of its column."""

    name: str
    cells: tuple[str, ...]
    best: tuple[bool, ...]


@dataclass(frozen=True)
class Card:
    """One image of a gallery: where its pictures are and what is said below them."""

    name: str
    kind: str
    score: str
    verdict: str
    wrong: bool
    pictures: tuple[tuple[str, str], ...]


def check_report_folder(folder: Path | str) -> None:
    """Refuse a folder that a report would wipe out: it may be new, empty, or an older report and nothing else.

    Raises:
        TrainError: a file, or a folder with anything else in it.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise TrainError(f"{folder}: a file, expected a new path or a folder for the report")
    if not folder.is_dir():
        return
    strangers = sorted(child.name for child in folder.iterdir() if not _OWN_FILES.fullmatch(child.name))
    page = folder / _PAGE
    if strangers or (page.is_file() and MARK not in page.read_text(encoding="utf-8", errors="replace")):
        raise TrainError(
            f"{folder}: holds {', '.join(strangers[:3]) or 'another page'}, which a report would replace;"
            " expected a new path, an empty folder or an older report"
        )


def write_report(folder: Path | str, evaluation: Evaluation, bundle: Bundle, dataset: Dataset) -> Path:
    """Write the report folder in one step and return its page.

    The page shows what `evaluation` holds; images and masks of the worst cases are read again from `dataset`'s files.

    Raises:
        TrainError: `folder` holds something else than an older report.
        EngineError: the folder cannot be written, or an image has gone since.
    """
    check_report_folder(folder)
    scores = evaluation.scores["ldknn"]
    good = np.array([sample.good for sample in evaluation.samples])
    stated = bundle.manifest.threshold
    threshold = stated.value if stated is not None else None
    files = {
        "histogram.png": plot(lambda axes: _draw_histogram(axes, scores[good], scores[~good], threshold)),
        "roc.png": plot(lambda axes: _draw_roc(axes, evaluation, good)),
    }
    adaptation, choice = bundle.manifest.provenance.adaptation, bundle.manifest.provenance.choice
    if choice is not None:
        files |= choice_plots(choice, bundle.manifest.method.alpha)
    if adaptation is not None:
        files |= adaptation_plots(adaptation)
    bad_order = np.flatnonzero(~good)[np.argsort(scores[~good], kind="stable")][:_WORST]
    good_order = np.flatnonzero(good)[np.argsort(-scores[good], kind="stable")][:_WORST]
    gallery = _Gallery(evaluation, bundle, threshold, files)
    misses = [gallery.card(f"miss-{place}", index) for place, index in enumerate(bad_order.tolist(), start=1)]
    overkill = [gallery.card(f"overkill-{place}", index) for place, index in enumerate(good_order.tolist(), start=1)]
    metrics = [name for name in _METRICS if any(name in found for found in evaluation.metrics.values())]
    kinds = (*evaluation.kinds(), ALL)
    page = _template().render(
        mark=MARK,
        recipe=bundle.manifest.provenance.recipe,
        untrained=bundle.manifest.provenance.weights == "none",
        written=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        tiles=_tiles(evaluation, good, threshold),
        metrics=[_METRICS[name] for name in metrics],
        methods=_by_method(evaluation, metrics),
        kinds=_by_kind(evaluation, metrics, kinds),
        methods_by_kind=_methods_by_kind(evaluation, kinds),
        counts={kind: int(evaluation.of_kind(kind).sum()) for kind in kinds},
        escapes=_escapes(evaluation, kinds, threshold),
        misses=misses,
        overkill=overkill,
        notes=evaluation.notes,
        variants=[variant.cells() for variant in bundle.manifest.variants],
        choice=choice_facts(choice) if choice is not None else None,
        adaptation=adaptation_facts(adaptation) if adaptation is not None else None,
        provenance=_provenance(bundle, dataset, evaluation),
    )
    with new_folder(folder) as temporary:
        for name, data in files.items():
            (temporary / name).write_bytes(data)
        (temporary / _PAGE).write_text(page, encoding="utf-8")
    return Path(folder) / _PAGE


class _Gallery:
    """Draws the pictures of single images, all on one colour scale, into `files`."""

    def __init__(self, evaluation: Evaluation, bundle: Bundle, threshold: float | None, files: dict[str, bytes]) -> None:
        self._evaluation = evaluation
        self._spec = bundle.manifest.input
        self._threshold = threshold
        self._files = files
        maps = evaluation.maps["ldknn"]
        good = np.array([sample.good for sample in evaluation.samples])
        # colour begins where one good patch in twenty does, and is full at half of all defects' hottest patches
        self._low = float(np.nanquantile(maps[good], 0.95))
        self._high = max(float(np.median(np.nanmax(maps[~good], axis=(1, 2)))), self._low + 1e-6)

    def card(self, stem: str, index: int) -> Card:
        """Draw image `index` under file names that begin with `stem`."""
        sample = self._evaluation.samples[index]
        image = _fitted(judged_region(sample.image(), self._spec))
        heat = anomaly_map(self._evaluation.maps["ldknn"][index], (image.shape[0], image.shape[1]))
        pictures = [("image", image), ("heat", overlay(image, heat, self._low, self._high))]
        mask = None if sample.good else sample.mask()
        if mask is not None:
            pictures.append(("mask", _outlined(image, judged_region(mask, self._spec))))
        for name, picture in pictures:
            self._files[f"{stem}-{name}.png"] = encode_png(picture)
        score = float(self._evaluation.scores["ldknn"][index])
        verdict, wrong = _verdict(sample, score, self._threshold)
        shown = tuple((f"{stem}-{name}.png", name) for name, _ in pictures)
        return Card(sample.path.name, sample.kind, f"{score:.3f}", verdict, wrong, shown)


def _verdict(sample: Sample, score: float, threshold: float | None) -> tuple[str, bool]:
    """What the threshold would do with a part, and whether that is wrong."""
    if threshold is None:
        return "", False
    rejected = score > threshold
    if rejected:
        return ("overkill", True) if sample.good else ("rejected", False)
    return ("passed", False) if sample.good else ("escape", True)


def _fitted(image: Image) -> Image:
    """An image of any size at the page's picture size, its own aspect ratio kept."""
    scale = _PICTURE_PX / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA), dtype=np.uint8)


def _outlined(image: Image, mask: Mask) -> Image:
    """A fitted picture, uint8 RGB (h, w, 3), with the outline of a mask of the same region, bool (H, W)."""
    # area: a defect thinner than a pixel of the picture still has an outline
    drawn = cv2.resize(mask.astype(np.float32), (image.shape[1], image.shape[0]), interpolation=cv2.INTER_AREA) > 0
    outlines, _ = cv2.findContours(drawn.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(image.copy(), outlines, -1, _OUTLINE, 2, cv2.LINE_AA), dtype=np.uint8)


def _draw_histogram(axes: Axes, good: npt.NDArray, bad: npt.NDArray, threshold: float | None) -> None:
    ends = np.concatenate([good, bad, [] if threshold is None else [threshold]])
    low, high = float(ends.min()), float(ends.max())
    edges = np.linspace(low, high if high > low else low + 1, 41).tolist()
    for scores, name, colour in ((good, "good", _GOOD), (bad, "defective", _BAD)):
        axes.hist(scores, edges, color=colour, alpha=0.62, label=f"{name} ({len(scores)})", edgecolor="white", linewidth=0.4)
    if threshold is not None:
        axes.axvline(threshold, color=INK, linestyle="--", linewidth=1.3, label=f"provisional threshold {threshold:.3f}")
    axes.set_xlabel("LDKNN image score")
    axes.set_ylabel("images")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def _draw_roc(axes: Axes, evaluation: Evaluation, good: Mask) -> None:
    axes.plot([0, 1], [0, 1], color="#c9ced6", linewidth=1, linestyle=":")
    for name, (label, colour) in reversed(_METHODS.items()):
        scores = evaluation.scores[name]
        main = name == "ldknn"
        auroc = 100 * evaluation.metrics[name]["image_auroc"][ALL]
        overkill, rejected = image_roc(scores[good], scores[~good])
        axes.plot(overkill, rejected, color=colour, linewidth=2.4 if main else 1.2, label=f"{label}  {auroc:.1f}")
    axes.set_xlabel("overkill: good parts rejected")
    axes.set_ylabel("defective parts rejected")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    axes.legend(*(side[::-1] for side in axes.get_legend_handles_labels()), frameon=False, fontsize=9, labelcolor=INK)


def _tiles(evaluation: Evaluation, good: Mask, threshold: float | None) -> list[tuple[str, str, str]]:
    """The page's headline: (label, value, explanation) each."""
    found = evaluation.metrics["ldknn"]
    tiles = [(_METRICS[name], f"{100 * found[name][ALL]:.1f} %", what) for name, what in _HEADLINES.items() if name in found]
    if threshold is not None:
        over = evaluation.scores["ldknn"] > threshold
        for label, wrong, group in (("Escapes", ~over & ~good, ~good), ("Overkill", over & good, good)):
            what = "defective" if label == "Escapes" else "good"
            tiles.append((label, str(int(wrong.sum())), f"of {int(group.sum())} {what}, at the provisional threshold"))
    return tiles


def _table(rows: Mapping[str, Sequence[float | None]], *, mark_best: bool) -> list[Row]:
    """Percentages as text, one decimal; a dash where undefined; what is best in its column as shown is marked."""
    shown = {name: tuple("–" if value is None else f"{100 * value:.1f}" for value in values) for name, values in rows.items()}
    best = [
        None if top is None or not mark_best else f"{100 * top:.1f}"
        for top in (
            max((value for value in column if value is not None), default=None) for column in zip(*rows.values(), strict=True)
        )
    ]
    return [
        Row(name, cells, tuple(cell == top for cell, top in zip(cells, best, strict=True))) for name, cells in shown.items()
    ]


def _by_method(evaluation: Evaluation, metrics: Sequence[str]) -> list[Row]:
    """All defects: methods x metrics."""
    found = evaluation.metrics
    rows = {label: [found[name].get(metric, {}).get(ALL) for metric in metrics] for name, (label, _) in _METHODS.items()}
    return _table(rows, mark_best=True)


def _by_kind(evaluation: Evaluation, metrics: Sequence[str], kinds: Sequence[str]) -> list[Row]:
    """LDKNN: kinds x metrics."""
    found = evaluation.metrics["ldknn"]
    return _table({kind: [found.get(metric, {}).get(kind) for metric in metrics] for kind in kinds}, mark_best=False)


def _methods_by_kind(evaluation: Evaluation, kinds: Sequence[str]) -> list[Row]:
    """Image AUROC: methods x kinds."""
    found = {label: evaluation.metrics[name]["image_auroc"] for name, (label, _) in _METHODS.items()}
    return _table({label: [auroc.get(kind) for kind in kinds] for label, auroc in found.items()}, mark_best=True)


def _escapes(evaluation: Evaluation, kinds: Sequence[str], threshold: float | None) -> dict[str, int]:
    """How many of each kind the provisional threshold passes; empty without one."""
    if threshold is None:
        return {}
    passed = evaluation.scores["ldknn"] <= threshold
    return {kind: int((passed & evaluation.of_kind(kind)).sum()) for kind in kinds}


def _provenance(bundle: Bundle, dataset: Dataset, evaluation: Evaluation) -> list[tuple[str, str]]:
    """What was judged and on what, as (name, value)."""
    manifest = bundle.manifest
    method, origin, spec = manifest.method, manifest.provenance, manifest.input
    bad = sum(not sample.good for sample in evaluation.samples)
    banked = sum(image.use == "bank" for image in origin.images)
    weights = origin.weights if origin.weights_sha256 is None else f"{origin.weights} (SHA-256 {origin.weights_sha256[:16]})"
    threshold = manifest.threshold
    x, y, width, height = spec.roi or (0, 0, 0, 0)
    return [
        ("Bundle digest", bundle.digest),
        ("Trained", origin.created),
        ("Command", origin.command),
        ("Backbone", f"{method.backbone}, {method.dim} values a patch"),
        ("Weights", weights),
        ("Precision", evaluation.precision),
        ("Network input", f"{spec.size[1]} x {spec.size[0]} pixels, {method.grid[1]} x {method.grid[0]} patches"),
        ("Judged region", "whole image" if spec.roi is None else f"{width} x {height} pixels at {x}, {y}"),
        ("Ignored pixels", "none" if bundle.mask is None else "by mask"),
        ("Coreset", f"{len(bundle.bank.rows):,} of {origin.patches:,} patches (asked for: {origin.coreset:g})"),
        (
            "LDKNN",
            f"{method.density} density, K {method.k}, alpha {method.alpha:g}, {method.metric}, pooling {method.pooling}",
        ),
        (
            "Provisional threshold",
            "none"
            if threshold is None
            else f"{threshold.value:.4f}, from {threshold.n} held-out good images at rate {threshold.rate:.3g}",
        ),
        ("Training images", f"{banked} in the bank, {len(origin.images) - banked} held out"),
        ("Test images", f"{len(evaluation.samples) - bad} good, {bad} defective"),
        ("Data", f"{dataset.root} ({dataset.layout})"),
        ("Seed", str(origin.seed)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in origin.versions.items())),
    ]


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("train", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html")
