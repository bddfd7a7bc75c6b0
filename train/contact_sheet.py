"""A contact sheet of audit findings: one picture that a person can go through with the folder open beside it."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from engines import EngineError
from engines.atomic import write_file
from engines.images import Image
from train.audit import PROBLEMS, Finding
from train.data import Sample

_MOST_TILES = 60
_COLUMNS = 4
_TILE = (190, 320)  # picture (height, width) in pixels
_CAPTION_PX, _GAP_PX, _LEGEND_PX = 82, 16, 26
_DPI = 100
_SMALL = 9  # points
_COLOURS = dict(
    zip(PROBLEMS, ("#555555", "#7b3fa0", "#a864c8", "#1f6fb4", "#d97a00", "#4d4a3a", "#2a8a6e", "#c0292b"), strict=True)
)


def contact_sheet(findings: Sequence[Finding], path: Path | str) -> None:
    """Write a PNG with one tile a finding, grouped by problem; 60 at most, the worst of each problem.

    A duplicate stands at the left of its tile, its twin at the right. Every problem keeps some tiles, however many
    findings another has. An empty sheet says so, and replaces the one of an earlier audit.

    Args:
        findings: by problem, worst first, as the audit gives them.
        path: the PNG file.

    Raises:
        EngineError: the file cannot be written.
    """
    groups = [list(group) for _, group in groupby(findings, key=lambda finding: finding.problem)]
    shown = _share([len(group) for group in groups], _MOST_TILES)
    drawn = [finding for group, count in zip(groups, shown, strict=True) for finding in group[:count]]
    step_x, step_y = _TILE[1] + _GAP_PX, _TILE[0] + _CAPTION_PX
    top = 2 * _GAP_PX + max(1, _rows(len(groups))) * _LEGEND_PX
    width = _GAP_PX + _COLUMNS * step_x
    height = top + _rows(len(drawn)) * step_y
    canvas = np.full((height, width, 3), 255, np.uint8)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)

    def write(x: int, y: int, text: str, size: float, colour: str) -> None:
        weight = "bold" if size > _SMALL else "normal"
        figure.text(x / width, 1 - y / height, text, size=size, color=colour, weight=weight, va="top", parse_math=False)

    if not groups:
        write(_GAP_PX, _GAP_PX, "Nothing suspicious", 13, "#333333")
    for place, (group, count) in enumerate(zip(groups, shown, strict=True)):
        x, y = _GAP_PX + place % _COLUMNS * step_x, _GAP_PX + place // _COLUMNS * _LEGEND_PX
        rest = f", {count} shown" if count < len(group) else ""
        write(x, y, f"{group[0].problem}: {len(group)}{rest}", 13, _COLOURS[group[0].problem])
    for place, finding in enumerate(drawn):
        x, y = _GAP_PX + place % _COLUMNS * step_x, top + place // _COLUMNS * step_y
        canvas[y : y + _TILE[0], x : x + _TILE[1]] = _tile(finding)
        y += _TILE[0]
        write(x, y + 5, f"{finding.problem}: {_shorten(finding.sample.path.name, 28)}", 10, _COLOURS[finding.problem])
        write(x, y + 22, textwrap.fill(finding.detail, 47, max_lines=3, placeholder=" ..."), _SMALL, "#333333")
    figure.figimage(canvas, zorder=-1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    write_file(path, buffer.getvalue())


def _rows(tiles: int) -> int:
    return -(-tiles // _COLUMNS)


def _share(counts: Sequence[int], places: int) -> list[int]:
    """Share places fairly: those who need fewest are served first, and what they leave goes to the others."""
    shown = [0] * len(counts)
    for served, index in enumerate(sorted(range(len(counts)), key=lambda index: counts[index])):
        shown[index] = min(counts[index], places // (len(counts) - served))
        places -= shown[index]
    return shown


def _tile(finding: Finding) -> Image:
    colour = _COLOURS[finding.problem]
    pair = [finding.sample] if finding.twin is None else [finding.sample, finding.twin]
    side = _TILE[1] // len(pair)
    tile = np.concatenate([_letterboxed(sample, (_TILE[0], side)) for sample in pair], axis=1)
    rgb = tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
    for left in range(0, _TILE[1], side):
        cv2.rectangle(tile, (left, 0), (left + side - 1, _TILE[0] - 1), rgb, 9 if left == 0 else 3)
    return tile


def _letterboxed(sample: Sample, size: tuple[int, int]) -> Image:
    """The image shrunk or enlarged to fit, uint8 RGB `size`, on light grey; a dark cross where it cannot be read."""
    box = np.full((*size, 3), 225, np.uint8)
    try:
        image = sample.image()
    except EngineError:
        for one, other in (((0, 0), (size[1], size[0])), ((0, size[0]), (size[1], 0))):
            cv2.line(box, one, other, (150, 150, 150), 2, cv2.LINE_AA)
        return box
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    high, wide = (max(1, round(side * scale)) for side in image.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    top, left = (size[0] - high) // 2, (size[1] - wide) // 2
    box[top : top + high, left : left + wide] = cv2.resize(image, (wide, high), interpolation=way)
    return box


def _shorten(name: str, most: int) -> str:
    """The end of a file name says which it is, so the middle goes."""
    return name if len(name) <= most else f"{name[: most // 3]}...{name[-(most - most // 3 - 3) :]}"
