"""The capability report as one self-contained HTML file: words, tables, curves as inline SVG, and the map."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping

import numpy as np

from calibration.capability import ALL, LEVELS, NAMES, Capability, Drawn, Sizes, curve_of, in_words, region_of

_WIDTH, _HEIGHT = 330, 230  # of a panel, SVG units
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 12, 34
_BANDS = 6  # of sizes, whose share of hits is drawn
_NEAR = 1.5  # factor: defects with a contrast that near to the stated one make the dots
_TICKS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)

_STYLE = """
:root {
  --ink: #1c2733; --soft: #5c6b7a; --line: #d5dce3; --curve: #1f6fb2; --bound: #c2571a; --ground: #fff; --band: #f5f7f9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e9ee; --soft: #9aa8b5; --line: #3a4651; --curve: #6db3ec; --bound: #f0965c; --ground: #161b20; --band: #1e252c;
  }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); }
body { max-width: 1080px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.15em; margin-top: 2em }
.soft { color: var(--soft) } .lead { font-size: 1.15em }
table { border-collapse: collapse; width: 100% }
th, td { padding: .35em .6em; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child, td.words { text-align: left } td.words { white-space: normal; width: 45% }
th { font-weight: 600; color: var(--soft) } tbody tr:nth-child(odd) td { background: var(--band) }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1em }
figure { margin: 0 } figcaption { font-weight: 600 } figure p { margin-top: 0 } svg { width: 100%; height: auto }
img { max-width: 100% } code { overflow-wrap: anywhere }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft) } .axis { stroke: var(--line) }
.curve { fill: none; stroke: var(--curve); stroke-width: 2 } .dot { fill: var(--curve); fill-opacity: .5 }
.bound { fill: none; stroke: var(--bound); stroke-width: 1.5; stroke-dasharray: 5 3 }
.at { stroke: var(--soft); stroke-dasharray: 2 3 }
"""


def render(capability: Capability, map_png: bytes, mm_per_pixel: float | None) -> bytes:
    """The page, UTF-8."""
    count, rejected = len(capability.images), capability.false_rejects
    by_kind = {ALL: capability.drawn} | {
        name: tuple(drawn for drawn in capability.drawn if drawn.kind == kind) for kind, name in NAMES.items()
    }
    by_region = {name: tuple(d for d in capability.drawn if region_of(d.x, d.y) == name) for name in capability.regions}
    title = f"What station {capability.station} can see"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{_text(title)}</title>",
        f"<style>{_STYLE}</style><h1>{_text(title)}</h1>",
        f"<p class=soft>recipe {_text(capability.recipe)}, camera {_text(capability.camera)}, {_text(capability.when)},"
        f" threshold {capability.threshold:.6g}, {_text(capability.threshold_from)}</p>",
        f"<p class=lead>At a step of {capability.contrast:g} grey levels across the outline this station"
        f" {_text(in_words(ALL, capability.kinds[ALL], mm_per_pixel))}.</p>",
        f"<p>Of {count} good images it rejects {rejected} ({rejected / count:.1%}) at the same threshold.</p>",
        "<p class=soft>The defects are synthetic, drawn on this station's own good images. Real ones differ: small dark holes,"
        " for one, are found more often than drawn defects of the same size and contrast, and shades without an outline less"
        " often. Try real bad parts as soon as there are some. A size is the square root of a defect's area, in pixels of the"
        " source image; its contrast is the step of brightness across its outline, as the network sees it.</p>",
        "<h2>By kind of defect</h2>",
        _table("kind", capability.kinds),
        "<h2>Curves</h2><p class=soft>Blue: probability of detection. Orange, dashed: its lower 95 % bound. Dots: share"
        f" found of the defects with a contrast within a factor of {_NEAR:g} of {capability.contrast:g}, by size; larger dots"
        " hold more.</p>",
        "<div class=panels>",
        *(_panel(name, sizes, by_kind[name], capability.contrast) for name, sizes in capability.kinds.items()),
        "</div><h2>By region of the image</h2>",
        _table("region", capability.regions),
        "<h2>Smallest defect over the part</h2>",
        f"<p class=soft>The size in pixels that is found with 90 % probability, all kinds together, at a contrast of"
        f" {capability.contrast:g} grey levels. Not coloured: not the part, or nothing can be stated.</p>",
        f"<img alt='smallest defect over the part' src='data:image/png;base64,{base64.b64encode(map_png).decode()}'>",
        "<h2>Curves by region</h2><div class=panels>",
        *(_panel(name, sizes, by_region[name], capability.contrast) for name, sizes in capability.regions.items()),
        "</div><h2>What this holds for</h2>",
        f"<p class=soft>bundle <code>{capability.bundle_digest}</code><br>"
        f"calibration <code>{capability.calibration_digest}</code><br>"
        f"engine <code>{capability.engine_digest}</code> ({_text(capability.backend)}, {_text(capability.precision)})<br>"
        f"{len(capability.drawn)} defects, seed {capability.seed}; drawn {_text(capability.saliency)}<br>"
        "Logistic POD after MIL-HDBK-1823A, Firth's penalty; bounds by profile likelihood ratio, one-sided, widened by the"
        " images' design effect.</p>",
    ]
    return "\n".join(parts).encode()


def _table(first: str, sizes: Mapping[str, Sizes]) -> str:
    head = "".join(f"<th>{name}" for name in (first, "found", "a50, px", "a90, px", "a90/95, px", ""))
    rows = "".join(
        f"<tr><td>{_text(name)}<td>{one.found} of {one.tried}<td>{_px(one.a50)}<td>{_px(one.a90)}<td>{_px(one.a90_95)}"
        f"<td class='words soft'>{_text(one.reason or '')}"
        for name, one in sizes.items()
    )
    return f"<table><thead><tr>{head}</thead><tbody>{rows}</tbody></table>"


def _panel(name: str, sizes: Sizes, drawn: tuple[Drawn, ...], contrast: float) -> str:
    caption = f"<figure><figcaption>{_text(name)}</figcaption>"
    if not drawn:
        return f"{caption}<p class=soft>nothing was drawn there</p></figure>"
    low, high = min(one.size_px for one in drawn), max(one.size_px for one in drawn)

    def x(size: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log(size / low) / max(math.log(high / low), 1e-9)

    def y(probability: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - probability)

    marks = [
        f"<line class=axis x1={_LEFT} x2={_WIDTH - _RIGHT} y1={y(p):.1f} y2={y(p):.1f} /><text x={_LEFT - 6} y={y(p) + 4:.1f}"
        f" text-anchor=end>{p:.0%}</text>"
        for p in (0, 0.5, 0.9, 1)
    ]
    marks += [
        f"<text x={x(tick):.1f} y={_HEIGHT - 18} text-anchor=middle>{tick}</text>" for tick in _TICKS if low <= tick <= high
    ]
    marks.append(f"<text x={(_LEFT + _WIDTH) / 2} y={_HEIGHT - 3} text-anchor=middle>size, px</text>")
    for middle, share, count in _dots(drawn, contrast):
        marks.append(f"<circle class=dot cx={x(middle):.1f} cy={y(share):.1f} r={1.5 + 0.7 * math.sqrt(count):.1f} />")
    for at in (sizes.a90, sizes.a90_95):
        if at is not None:
            marks.append(f"<line class=at x1={x(at):.1f} x2={x(at):.1f} y1={y(0):.1f} y2={y(0.9):.1f} />")
    grid = np.geomspace(low, high, 80)
    curve = curve_of(sizes, grid, contrast)
    if curve is not None:
        marks.append(_line("curve", [(x(size), y(p)) for size, p in zip(grid.tolist(), curve.tolist(), strict=True)]))
        bounds = zip(sizes.bounds, LEVELS, strict=True)
        marks.append(_line("bound", [(x(size), y(p)) for size, p in bounds if size is not None and low <= size <= high]))
    said = _stated(sizes)
    label = _text(f"probability of detection over size, {name}: {said}")
    svg = f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img aria-label='{label}'>{''.join(marks)}</svg>"
    return f"{caption}{svg}<p class=soft>{_text(said)}</p></figure>"


def _dots(drawn: tuple[Drawn, ...], contrast: float) -> list[tuple[float, float, int]]:
    """Size, share of hits and count of each band of the defects near the stated contrast."""
    near = sorted((one.size_px, one.found) for one in drawn if 1 / _NEAR <= one.contrast / contrast <= _NEAR)
    dots = []
    for band in np.array_split(np.arange(len(near)), _BANDS):
        if len(band) > 0:
            sizes, found = zip(*(near[number] for number in band), strict=True)
            dots.append((float(np.exp(np.log(sizes).mean())), sum(found) / len(band), len(band)))
    return dots


def _line(name: str, points: list[tuple[float, float]]) -> str:
    if len(points) < 2:
        return ""
    return f"<polyline class={name} points='{' '.join(f'{x:.1f},{y:.1f}' for x, y in points)}' />"


def _stated(sizes: Sizes) -> str:
    if sizes.a90 is None:
        return sizes.reason or "nothing can be stated"
    return f"a90 {sizes.a90:.3g} px, " + ("no bound" if sizes.a90_95 is None else f"a90/95 {sizes.a90_95:.3g} px")


def _px(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _text(value: str) -> str:
    return html.escape(value, quote=True)
