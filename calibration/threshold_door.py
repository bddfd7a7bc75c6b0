"""What the doors that take a threshold share: the options that say what it should reach, and the table of all methods."""

from __future__ import annotations

import argparse

from calibration.propose import COMPARED_ONLY, METHODS, Comparison, Wishes
from engines import console


def add_wishes(parser: argparse.ArgumentParser) -> None:
    """Add `--method` and the wishes."""
    parser.add_argument(
        "--method",
        default="conformal",
        choices=[method for method in METHODS if method != COMPARED_ONLY],
        help="default: %(default)s",
    )
    wishes = Wishes()
    parser.add_argument(
        "--false-reject", default=wishes.rate, type=float, metavar="RATE", help="rate to bound (default: %(default)s)"
    )
    parser.add_argument("--beta", default=wishes.beta, type=console.positive_float, help="of f-beta (default: %(default)s)")
    parser.add_argument("--cost-escape", type=console.positive_float, metavar="COST", help="of a bad part that passes")
    parser.add_argument("--cost-overkill", type=console.positive_float, metavar="COST", help="of a good part that is rejected")
    parser.add_argument("--defects", type=float, metavar="SHARE", help="share of bad parts on the line")
    parser.add_argument(
        "--margin",
        default=wishes.margin,
        type=float,
        help="of zero-escape, in spreads of good scores below the lowest bad one (default: %(default)s)",
    )


def wishes_of(arguments: argparse.Namespace) -> Wishes:
    """What was asked for. Raises CalibrationError for what cannot be wished for."""
    values = {
        "rate": arguments.false_reject,
        "beta": arguments.beta,
        "escape_cost": arguments.cost_escape,
        "overkill_cost": arguments.cost_overkill,
        "defects": arguments.defects,
        "margin": arguments.margin,
    }
    # not validated: `check` says in words what validation would say in codes
    wishes = Wishes.model_construct(**values)
    wishes.check()
    return wishes


def show_comparison(comparison: Comparison) -> None:
    """Print every method's threshold and rates, and why a method does not apply."""
    rows = [
        (
            proposal.method,
            f"{proposal.threshold:.6g}",
            str(proposal.false_reject),
            str(proposal.escape) if proposal.escape is not None else "not known",
        )
        for proposal in comparison.proposals
    ]
    columns = ("method", "threshold", "good parts rejected", "bad parts passed")
    console.table("thresholds, with rates to expect (95 % confidence)", columns, rows)
    for method, reason in comparison.refused.items():
        console.say(f"no {method}: {reason}")
