"""A measurement-system study: parts, shown again and again to operators or stations, from a CSV file."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from calibration import CalibrationError
from calibration.attribute import Agreement, Decisions, Truth, agreement_of
from calibration.gauge import Gauge, Scores, check_crossed, gauge_of

_KEYS: Final = ("part", "operator", "repeat")
_BAD: Final = {"ok": False, "good": False, "pass": False, "ng": True, "bad": True, "reject": True, "fault": True}


@dataclass(frozen=True)
class Study:
    """A crossed study: every operator judged every part equally often.

    Attributes:
        parts, operators: names, in the order of the file.
        decisions: True is rejected; None where the file has no decisions and no threshold was given.
        truth: True is bad; None where the file does not tell.
        scores: None where the file has none.
        threshold: that decisions were made with from scores, if they were.
    """

    parts: tuple[str, ...]
    operators: tuple[str, ...]
    decisions: Decisions | None
    truth: Truth | None
    scores: Scores | None
    threshold: float | None

    @property
    def repeats(self) -> int:
        """Of each part by each operator."""
        values = self.decisions if self.decisions is not None else self.scores
        assert values is not None
        return int(values.shape[2])


@dataclass(frozen=True)
class Analysis:
    """What a study tells: agreement where there are decisions and the truth, the gauge where there are scores."""

    study: Study
    agreement: Agreement | None
    gauge: Gauge | None


def read_study(path: Path | str, threshold: float | None = None) -> Study:
    """Read the columns part, operator, repeat, and of score, decision and reference those that there are.

    Decisions and references are OK or NG; good, bad, PASS, REJECT and FAULT do too, a FAULT as a rejected part.

    Args:
        path: CSV with a header, UTF-8.
        threshold: where there are scores and no decisions, a score above it is a reject.

    Raises:
        CalibrationError: a threshold that is not finite, a file that is unreadable or has a column missing, a word or number
            that is none, a part judged twice under one repeat, or not as often as the others, a reference that changes, or
            nothing to analyse. The line is named.
    """
    path = Path(path)
    if threshold is not None and not math.isfinite(threshold):
        raise CalibrationError(f"threshold is {threshold}, expected a finite number, as the station's record has it")
    names, rows = _read(path)
    missing = [name for name in _KEYS if name not in names]
    if missing or not {"score", "decision"} & set(names):
        raise CalibrationError(
            f"{path}: columns {', '.join(names) or 'none'}, expected part, operator, repeat, score or decision, and reference"
        )
    parts, operators, repeats = (tuple(dict.fromkeys(row[key] for row in rows)) for key in _KEYS)
    shape = len(operators), len(parts), len(repeats)
    found = np.zeros(shape, bool)
    scores, rejected, bad = np.full(shape, math.nan), np.zeros(shape, bool), dict[str, bool]()
    for line, row in enumerate(rows, 2):
        where = f"{path}, line {line}"
        at = operators.index(row["operator"]), parts.index(row["part"]), repeats.index(row["repeat"])
        who = f"part {row['part']}, operator {row['operator']}, repeat {row['repeat']}"
        if found[at]:
            raise CalibrationError(f"{where}: {who} a second time, expected once; number the repeats")
        found[at] = True
        if "score" in names:
            scores[at] = _number(row["score"], where)
        if "decision" in names:
            rejected[at] = _word(row["decision"], "decision", where)
        if "reference" in names:
            truth = _word(row["reference"], "reference", where)
            if bad.setdefault(row["part"], truth) != truth:
                raise CalibrationError(f"{where}: part {row['part']} is both OK and NG by its reference; correct one")
    if not found.all():
        operator, part, repeat = np.argwhere(~found)[0]
        raise CalibrationError(
            f"{path}: part {parts[part]}, operator {operators[operator]}, repeat {repeats[repeat]} is missing, expected every"
            f" operator to judge every part equally often ({len(rows)} of {found.size} rows are there)"
        )
    decided = "decision" in names
    if not decided and threshold is not None:
        rejected = scores > threshold
    return Study(
        parts,
        operators,
        rejected if decided or threshold is not None else None,
        np.array([bad[part] for part in parts]) if bad else None,
        scores if "score" in names else None,
        None if decided else threshold,
    )


def analyse(study: Study, seed: int = 0) -> Analysis:
    """Everything that the study can tell.

    Raises:
        CalibrationError: as `agreement_of` and `gauge_of`, or neither can be told.
    """
    agreement = gauge = None
    if study.decisions is not None and study.truth is not None:
        agreement = agreement_of(study.decisions, study.truth, seed)
    if study.scores is not None and (agreement is None or study.repeats > 1):
        check_crossed(study.scores)
        gauge = gauge_of(study.scores, seed)
    if agreement is None and gauge is None:
        raise CalibrationError("decisions without a reference and without scores tell nothing; add the column reference")
    return Analysis(study, agreement, gauge)


def _read(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), restval="")
        names = tuple(name.strip().lower() for name in reader.fieldnames or ())
        reader.fieldnames = names
        rows = [{key: (value or "").strip() for key, value in row.items() if key is not None} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CalibrationError(f"{path}: cannot be read ({reason}); expected CSV with a header") from None
    if not rows:
        raise CalibrationError(f"{path}: no rows; expected one for each time that a part was judged")
    return names, rows


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CalibrationError(f"{where}: score '{text}', expected a finite number with a decimal point")
    return value


def _word(text: str, column: str, where: str) -> bool:
    if text.lower() not in _BAD:
        raise CalibrationError(f"{where}: {column} '{text}', expected OK or NG")
    return _BAD[text.lower()]
