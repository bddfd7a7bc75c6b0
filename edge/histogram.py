"""Scores as bars of text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BINS = 12
_WIDTH = 22  # so that a line with the mark fits in 80 columns: a live one is cut off there


def histogram(scores: Sequence[float], threshold: float | None = None, mark: str = "") -> list[str]:
    """A line a bin from the lowest score to the highest, the one that the threshold is in marked; none without scores.

    Args:
        scores: finite.
        threshold: drawn where it is; one beyond all scores gets a line of its own, above or below.
        mark: behind it, such as that it was set by hand; no longer than that.
    """
    if not scores:
        return []
    values = np.asarray(scores, np.float64)
    counts, edges = np.histogram(values, bins=_BINS if len(set(scores)) > 1 else 1)
    most = max(counts)
    lines, marked = [], False
    for count, low, high in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        bar = "#" * round((_WIDTH - len(mark)) * count / most) or ("." if count else "")
        here = threshold is not None and not marked and low <= threshold <= high
        marked = marked or here
        lines.append(
            f"{low:>10.4g} to {high:<10.4g} {count:5d} {bar}{f'  <- threshold {threshold:.4g}{mark}' if here else ''}".rstrip()
        )
    if threshold is not None and not marked:
        line = f"threshold {threshold:.4g}{mark}, {'below' if threshold < edges[0] else 'above'} all scores"
        lines = [line, *lines] if threshold < edges[0] else [*lines, line]
    return lines
