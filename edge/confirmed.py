"""Scores of the journal's parts that a person found good or bad, as a calibration takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from calibration.scores import Scored
from edge.truth import OK, labelled_scores, read_labels, read_parts
from edge.verdict import Outcome

_APART = 2.0  # times as many labelled of the one as of the other, and they are no sample of the line's parts


def confirmed_parts(journal: Path, bound: Mapping[str, str]) -> list[Scored]:
    """Those whose scores were made with the same; none where there is no journal. Each triggered part is a part of its own.

    Args:
        journal: a station may be writing to it.
        bound: of `calibration.fit.bound_to`.

    Raises:
        StationError: the journal or its labels are not whole.
    """
    if not journal.exists():
        return []
    engine = _engine(bound)
    return [Scored(name=one.part, score=one.score, good=one.good) for one in labelled_scores(journal) if one.engine == engine]


def cautions(journal: Path, bound: Mapping[str, str]) -> list[str]:
    """What to beware of where a threshold is taken from confirmed parts: people look at the odd ones first. Raises as above."""
    engine, labels = _engine(bound), read_labels(journal)
    parts = {key: part for key, part in read_parts(journal).items() if part.engine == engine}
    said = []
    if len({part.run for key, part in parts.items() if key in labels and labels[key].truth == OK}) == 1:
        said.append("all good parts are of one run of the station: other batches, and other light, may score otherwise")
    rejects, passes = (
        [key in labels for key, part in parts.items() if part.outcome is outcome] for outcome in (Outcome.REJECT, Outcome.PASS)
    )
    if rejects and passes:
        of_rejects, of_passes = sum(rejects) / len(rejects), sum(passes) / len(passes)
        if max(of_rejects, of_passes) > _APART * min(of_rejects, of_passes):
            said.append(
                f"{of_rejects:.0%} of the rejected parts and {of_passes:.0%} of the passed ones were looked at: the good ones"
                " among them are not like the line's, and neither are the rates; label all parts of a stretch"
            )
    return said


def _engine(bound: Mapping[str, str]) -> tuple[str, str, str, str]:
    return bound["bundle"], bound["backend"], bound["precision"], bound["engine"]
