"""Scored pictures: what a threshold is taken from, scored here or handed over as a CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from calibration import CalibrationError
from calibration.parts import Parts, parts_of
from engines.bundle import Record

_LABELS = {"good": True, "bad": False}


class Scored(Record):
    """One picture and its score.

    Attributes:
        name: of the picture or the part, for a person.
        score: its score.
        pixels: digest of its pixels; None where only a score was handed over.
        group: what part it is of; None where no other picture is of the same.
        good: a person says so; False is a bad part.
    """

    name: str
    score: float
    pixels: str | None = None
    group: str | None = None
    good: bool = True


def split(scored: Sequence[Scored]) -> tuple[Parts, Parts | None]:
    """Good and bad parts; None without bad ones. Raises CalibrationError as `parts_of`."""
    bad = [one for one in scored if not one.good]
    return _parts([one for one in scored if one.good]), _parts(bad) if bad else None


def read_scores(path: Path, bound: Mapping[str, str]) -> tuple[list[Scored], int]:
    """Read scores from a CSV file with a line of names: `score`, and, if there are, `part`, `group`, `label`.

    `label` is good or bad, and a row without one is left out: nobody confirmed that part. Without the column all are good.
    `pixels` is the digest of a picture's pixels. An export of the journal has most of these; other columns are not looked at.

    Args:
        path: the file, UTF-8.
        bound: what the scores must have been made with; a column of such a name must agree in every row.

    Returns:
        The scores, and how many rows were left out.

    Raises:
        CalibrationError: unreadable, no column `score`, a score that is no number, an unknown label, another bundle or engine,
            or the same picture, or the same part with the same score, twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    except UnicodeDecodeError:
        raise CalibrationError(f"{path}: not UTF-8; save it as CSV in UTF-8") from None
    rows = csv.DictReader(io.StringIO(text))
    if "score" not in (rows.fieldnames or ()):
        raise CalibrationError(f"{path}: no column 'score' in its first line; expected part,score and perhaps group,label")
    scored: list[Scored] = []
    left_out = 0
    first: dict[str, int] = {}
    rows_of: dict[tuple[str, float], int] = {}
    try:
        for row in rows:
            one = _row(row, bound, labelled="label" in (rows.fieldnames or ()), line=rows.line_num)
            if one is None:
                left_out += 1
                continue
            if one.pixels is not None and first.setdefault(one.pixels, rows.line_num) != rows.line_num:
                raise CalibrationError(f"line {rows.line_num}: the same picture as line {first[one.pixels]}; remove one")
            row_of = rows_of.setdefault((one.name, one.score), rows.line_num)
            if row_of != rows.line_num and one.pixels is None and one.group is None:
                raise CalibrationError(
                    f"line {rows.line_num}: part {one.name} with the score of line {row_of} again; remove one, or give both the"
                    " same group if they are two pictures of it"
                )
            scored.append(one)
    except (CalibrationError, csv.Error) as error:
        raise CalibrationError(f"{path}: {error}") from None
    return scored, left_out


def _row(row: Mapping[str, str | None], bound: Mapping[str, str], *, labelled: bool, line: int) -> Scored | None:
    label = (row.get("label") or "").strip().lower()
    if labelled and not label:
        return None
    if label and label not in _LABELS:
        raise CalibrationError(f"line {line}: label is '{label}', expected good, bad or nothing")
    text = (row["score"] or "").strip()
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise CalibrationError(f"line {line}: score is '{text}', expected a finite number; leave parts without a score out")
    for name, wanted in bound.items():
        made = row.get(name)
        if made and made != wanted:
            raise CalibrationError(
                f"line {line}: made with {name} {made[:12]}, expected {wanted[:12]}; scores do not carry over"
            )
    return Scored(
        name=(row.get("part") or "").strip() or f"line {line}",
        score=score,
        pixels=row.get("pixels") or None,
        group=(row.get("group") or "").strip() or None,
        good=_LABELS.get(label, True),
    )


def _parts(scored: Sequence[Scored]) -> Parts:
    groups = [("group", one.group) if one.group is not None else ("own", str(place)) for place, one in enumerate(scored)]
    return parts_of([one.score for one in scored], groups)
