"""What a proposed threshold would do, in plain words, for the person who has to say yes."""

from __future__ import annotations

from collections.abc import Sequence

from calibration.propose import Proposal
from calibration.record import Calibration, mismatches
from calibration.scores import Scored

_NAMED = 3


def consequences(proposal: Proposal, shift: int | None) -> list[str]:
    """What further good parts can expect, a thousand and those of a shift, and how low a rate so many parts can promise."""
    said = list(proposal.consequences())
    if shift is not None:
        rate = proposal.false_reject
        low, most = shift * rate.low, shift * rate.high
        about = f"{shift * rate.expected:.0f} (95 % confidence: {low:.0f} to {most:.0f})"
        said.append(f"in a shift of {shift:,} good parts about {about} are rejected")
    least = 100 / (proposal.good + 1)
    said.append(f"{proposal.good} parts can bound the rate of false rejects at {least:.2g} % at best; 1 % takes 99, 0.1 % 999")
    return said


def against(old: Calibration | None, new: Calibration, counted: Sequence[Scored]) -> str:
    """How the threshold in force differs, and what it makes of these parts."""
    if old is None:
        return "no threshold was in force here that can be read"
    unlike = mismatches(
        old,
        bundle_digest=new.bundle_digest,
        backend=new.backend,
        precision=new.precision,
        engine_digest=new.engine_digest,
    )
    if unlike:
        return f"in force is {old.threshold:.6g}, {old.origin}, for another bundle or engine: the two do not compare"
    above = [sum(one.score > threshold for one in counted) for threshold in (old.threshold, new.threshold)]
    return (
        f"in force is {old.threshold:.6g}, {old.origin}: the new one is {new.threshold - old.threshold:+.6g}; of these"
        f" {len(counted)} pictures the one in force rejects {above[0]}, the new one {above[1]}"
    )


def caught(bad: Sequence[Scored], threshold: float) -> str:
    """What would have become of the parts that a person found bad."""
    if not bad:
        return "what bad parts would have done is not known: nobody confirmed one with this bundle and engine"
    escapes = sorted((one for one in bad if one.score <= threshold), key=lambda one: one.score)
    named = ", ".join(f"{one.name} {one.score:.4g}" for one in escapes[:_NAMED])
    return (
        f"of {len(bad)} confirmed bad parts {len(bad) - len(escapes)} would have been rejected and {len(escapes)} would have"
        f" passed{f': {named}' if escapes else ''}{', ...' if len(escapes) > _NAMED else ''}"
    )
