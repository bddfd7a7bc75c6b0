"""The study as one page for the quality folder: HTML with inline SVG, nothing from elsewhere, made to be printed."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from string import Template

import numpy as np

from calibration.attribute import EFFECTIVENESS, FALSE_ALARM, KAPPA, MISS, Figure, Grade
from calibration.gauge import NAMES
from calibration.msa import Analysis

GAUGE_SHARE = (0.10, 0.30)  # of the study's variation: acceptable up to, unacceptable beyond (AIAG)
DISTINCT = 5  # categories that a gauge must tell apart (AIAG)
_WIDTH, _BAR, _GAP = 640, 14, 26  # of a plot, SVG units
_NAMES_WIDTH, _FIGURES_WIDTH = 180, 150
_COLOURS = ("#1f6fb2", "#c2571a", "#3f8f4f", "#7c4dbd", "#8a6d1d", "#5c6b7a")
_GRADES: dict[Grade, str] = {"acceptable": "good", "marginal": "mid", "unacceptable": "bad", "not known": "none"}

_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 13px/1.4 system-ui, sans-serif; color: #1c2733; background: #fff }
body { max-width: 190mm; margin: 1em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin: 0 } h2 { font-size: 1.1em; margin: 1em 0 .3em } p { margin: .3em 0 }
table { border-collapse: collapse; width: 100% }
th, td { padding: .2em .5em; text-align: right; border-bottom: 1px solid #d5dce3 }
th:first-child, td:first-child { text-align: left } th { color: #5c6b7a; font-weight: 600 }
.soft, svg text { color: #5c6b7a; fill: #5c6b7a }
svg { width: 100%; height: auto; display: block } svg text { font: 11px system-ui }
.good { color: #236b35; font-weight: 600 } .mid { color: #8a5a00; font-weight: 600 } .bad { color: #b3261e; font-weight: 600 }
@page { size: A4; margin: 12mm }
@media print {
  body { font-size: 9.5px; margin: 0; padding: 0; max-width: none; print-color-adjust: exact }
  h2, table, svg, p { break-inside: avoid }
}
</style>
<h1>$title</h1>
<p class="soft">$facts</p>
$content
</html>
""")


def render(analysis: Analysis, *, title: str, when: str, who: str) -> bytes:
    """The page, UTF-8."""
    study = analysis.study
    facts = (
        f"{when}, {who}. {len(study.parts)} parts, {len(study.operators)} operators or stations"
        f" ({', '.join(study.operators)}), {study.repeats} repeats."
    )
    if study.threshold is not None:
        facts += f" Decisions by the threshold {study.threshold:.6g}, SET BY HAND for this study (--threshold)."
    content = [*_agreement(analysis), *_gauge(analysis)]
    page = _PAGE.substitute(title=html.escape(title), facts=html.escape(facts), content="\n".join(content))
    return page.encode()


def grade_gauge(share: float) -> Grade:
    """AIAG's word for the gauge's share of the study's variation."""
    if share < GAUGE_SHARE[0]:
        return "acceptable"
    return "marginal" if share <= GAUGE_SHARE[1] else "unacceptable"


def _agreement(analysis: Analysis) -> list[str]:
    found, study = analysis.agreement, analysis.study
    if found is None or study.truth is None:
        return []
    bad = int(study.truth.sum())
    rows = [
        (
            html.escape(name),
            *map(_percent, (one.effectiveness, one.miss, one.false_alarm)),
            _plain(one.truth),
            _plain(one.itself),
        )
        for name, one in zip(study.operators, found.operators, strict=True)
    ]
    pairs = [
        (f"kappa {study.operators[one]}, {study.operators[other]}", figure) for (one, other), figure in found.pairs.items()
    ]
    kappas = [(f"kappa {name}, truth", one.truth) for name, one in zip(study.operators, found.operators, strict=True)]
    return [
        "<h2>Decisions</h2>",
        _table(("", "effectiveness", "miss rate", "false alarm rate", "kappa with the truth", "kappa with itself"), rows),
        f"<p class=soft>{bad} bad and {len(study.truth) - bad} good parts by the reference. AIAG's limits: effectiveness"
        f" {EFFECTIVENESS[0]:.0%} ({EFFECTIVENESS[1]:.0%}), miss rate {MISS[0]:.0%} ({MISS[1]:.0%}), false alarm rate"
        f" {FALSE_ALARM[0]:.0%} ({FALSE_ALARM[1]:.0%}), kappa {KAPPA[0]:g} ({KAPPA[1]:g}); in brackets what is unacceptable"
        " beyond. In brackets in the table: 95 % intervals, Clopper and Pearson's for rates with the part as what was drawn"
        " (cautious), percentiles over resampled parts for kappa; of a kappa of 1 nothing is known below.</p>",
        _intervals([*kappas, *pairs, ("kappa of all decisions", found.all)], KAPPA),
    ]


def _gauge(analysis: Analysis) -> list[str]:
    gauge, study = analysis.gauge, analysis.study
    if gauge is None or study.scores is None:
        return []
    found = gauge.components
    rows, bars = [], []
    for name, words in NAMES.items():
        variance = getattr(found, name)
        share, (low, high) = found.share(variance), gauge.shares[name]
        least, most = gauge.deviations[name]
        rows.append(
            (words, f"{math.sqrt(variance):.4g}", f"{least:.4g} to {most:.4g}", f"{share:.1%}", f"{low:.1%} to {high:.1%}")
        )
        bars.append((words, share, low, high))
    pooled = "was taken for repeatability" if found.pooled else "stays apart"
    interaction = (
        "One operator or station alone: nothing is said about others."
        if math.isnan(found.interaction_p)
        else f"The interaction of operators and parts (p {found.interaction_p:.3f}) {pooled}."
    )
    share = found.share(found.gauge)
    word = grade_gauge(share)
    enough = "good" if found.distinct >= DISTINCT else "bad"
    return [
        "<h2>Score</h2>",
        f"<p>Repeatability and reproducibility take <span class={_GRADES[word]}>{share:.1%} of the study's variation:"
        f" {word}</span> (AIAG: acceptable below {GAUGE_SHARE[0]:.0%}, unacceptable above {GAUGE_SHARE[1]:.0%});"
        f" <span class={enough}>{found.distinct} distinct categories</span> (AIAG: {DISTINCT} or more). {interaction}</p>",
        _table(("", "deviation", "95 % interval", "of the study's variation", "95 % interval"), rows),
        _bars(bars[:-1]),
        "<p class=soft>Variance components by analysis of variance; negative ones are 0. Intervals are percentiles over"
        " resampled parts, with these operators. The study's variation is that of its parts: choose them as production makes"
        " them.</p>",
        "<h2>Score of each part</h2>",
        _strips(analysis),
    ]


def _percent(figure: Figure) -> str:
    span = f"({100 * figure.low:.1f} to {100 * figure.high:.1f})"
    return f"<span class={_GRADES[figure.grade]}>{figure.value:.1%} {figure.grade}</span> {span}"


def _plain(figure: Figure) -> str:
    if math.isnan(figure.value):
        return "not known"
    span = f" ({figure.low:.2f} to {figure.high:.2f})" if not math.isnan(figure.low) else ""
    return f"<span class={_GRADES[figure.grade]}>{figure.value:.2f} {figure.grade}</span>{span}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns are text, cells are HTML."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _svg(height: float, shapes: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{html.escape(label)}">{"".join(shapes)}</svg>'


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, extra: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {extra}/>'


def _intervals(figures: Sequence[tuple[str, Figure]], limits: tuple[float, float]) -> str:
    """Dots with their intervals on a scale from 0 (or the lowest below) to 1, and the two limits."""
    known = [(words, figure) for words, figure in figures if not math.isnan(figure.value)]
    lowest = min([0.0, *(value for _, figure in known for value in (figure.value, figure.low) if not math.isnan(value))])

    def x(value: float) -> float:
        return _NAMES_WIDTH + (_WIDTH - _NAMES_WIDTH - 20) * (value - lowest) / (1 - lowest)

    height = _GAP * len(known) + 22
    shapes = [_line(x(limit), 0, x(limit), height - 18, "#9aa8b5", 'stroke-dasharray="3 3"') for limit in limits]
    shapes += [_text(x(limit), height - 4, f"{limit:g}", "middle") for limit in (*limits, 1.0)]
    for number, (words, figure) in enumerate(known):
        y = _GAP * number + _GAP / 2
        shapes.append(_text(0, y + 4, words))
        if not math.isnan(figure.low):
            shapes.append(_line(x(figure.low), y, x(figure.high), y, _COLOURS[0], 'stroke-width="2"'))
        shapes.append(f'<circle cx="{x(figure.value):.1f}" cy="{y:.1f}" r="4" fill="{_COLOURS[0]}"/>')
    return _svg(height, shapes, "kappa with intervals")


def _bars(bars: Sequence[tuple[str, float, float, float]]) -> str:
    """Shares of the study's variation with their intervals."""

    def x(share: float) -> float:
        return _NAMES_WIDTH + 60 + (_WIDTH - _NAMES_WIDTH - _FIGURES_WIDTH) * share

    shapes = []
    for number, (words, share, low, high) in enumerate(bars):
        y = _GAP * number + 6
        shapes.append(_text(0, y + _BAR - 3, words))
        shapes.append(f'<rect x="{x(0):.1f}" y="{y}" width="{x(share) - x(0):.1f}" height="{_BAR}" fill="#a9c8e4"/>')
        shapes.append(_line(x(low), y + _BAR / 2, x(high), y + _BAR / 2, "#1c2733", 'stroke-width="1.5"'))
        shapes.append(_text(x(max(share, high)) + 6, y + _BAR - 3, f"{share:.1%}"))
    return _svg(_GAP * len(bars) + 4, shapes, "variance components")


def _strips(analysis: Analysis) -> str:
    """Every score over its part, parts in the order of their mean score, a colour an operator, and the threshold."""
    study = analysis.study
    scores = study.scores
    assert scores is not None
    height, left, bottom = 190.0, 46, 22
    values = scores if study.threshold is None else np.append(scores, study.threshold)
    low, high = float(values.min()), float(values.max())
    span = high - low if high > low else 1.0
    order = np.argsort(scores.mean(axis=(0, 2)), kind="stable")

    def y(value: float) -> float:
        return 8 + (height - 8 - bottom) * (high - value) / span

    step = (_WIDTH - left) / len(order)
    shapes = [_line(left, y(value), _WIDTH, y(value), "#d5dce3") for value in (low, high)]
    shapes += [_text(left - 4, y(value) + 4, f"{value:.3g}", "end") for value in (low, high)]
    if study.threshold is not None:
        shapes.append(_line(left, y(study.threshold), _WIDTH, y(study.threshold), "#b3261e", 'stroke-dasharray="4 3"'))
    for place, part in enumerate(order.tolist()):
        for number, by_operator in enumerate(scores[:, part]):
            at = left + step * (place + (number + 1) / (len(study.operators) + 1))
            colour = _COLOURS[number % len(_COLOURS)]
            shapes += [
                f'<circle cx="{at:.1f}" cy="{y(value):.1f}" r="2.2" fill="{colour}" fill-opacity=".7"/>'
                for value in by_operator.tolist()
            ]
    for number, name in enumerate(study.operators):
        shapes.append(
            f'<text x="{left + 110 * number}" y="{height - 4:.0f}" style="fill:{_COLOURS[number % len(_COLOURS)]}">'
            f"{html.escape(name)}</text>"
        )
    return _svg(height, shapes, "scores by part")
