"""`edge calibrate`: a threshold from good parts before the station's own camera. Nothing is judged, and the line rejects."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration import CalibrationError
from calibration.challenge import find_challenge, run_challenge, wrong_parts
from calibration.fit import beyond_provisional, bound_to, make_calibration
from calibration.history import check_whole, history_path, write
from calibration.propose import Comparison, Proposal, Wishes, check_needs, propose
from calibration.record import Calibration, load_calibration
from calibration.reference import make_reference, save_reference
from calibration.scores import Scored, read_scores, split
from calibration.threshold import check_enough
from calibration.threshold_door import add_wishes, show_comparison, wishes_of
from edge import StationError
from edge.check import self_test
from edge.config import load_recipes, rejector_setup
from edge.confirmed import cautions, confirmed_parts
from edge.consequences import against, caught, consequences
from edge.gathering import Gathering, Good, Refused, odd_ones, scored, statistics_of
from edge.histogram import histogram
from edge.intake import Intake, looks_aside
from edge.rejector import DryRunRejector, ProcessRejector, Rejector
from edge.run import open_camera
from edge.sections import DryRun, StationConfig
from edge.verdict import Missing
from engines import InspectionError, console
from engines.bundle import load_bundle
from engines.inspector import Inspector

_COUNT = 200
_SHOWN = 3  # highest scores, and groups
_GIVE_BAD = "confirm some of the journal with `edge label --ng`, or give scores of some with --bad-csv"


@dataclass(frozen=True)
class _Left:
    """A part that a person left out, and why."""

    part: Good
    why: str

    def __str__(self) -> str:
        part = self.part
        return f"part {part.number} ({part.name}, score {part.score:.6g}, pixels {part.pixels}) left out: {self.why}"


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the door."""
    parser = commands.add_parser("calibrate", help="take a threshold from good parts before the camera; nothing is judged")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE")
    parser.add_argument("--recipe", metavar="NAME", help="whose parts these are; needed where there are several")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--count", default=_COUNT, type=console.positive_int, help="good parts (default: %(default)s)")
    source.add_argument(
        "--from-journal", action="store_true", help="no camera: the scores of parts that a person found good (edge label)"
    )
    parser.add_argument(
        "--bad-csv", type=Path, metavar="CSV", help="scores of bad parts beside those of the journal: part,score,label"
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PART: WHY",
        help="leave a part out, by number or file; may be repeated",
    )
    add_wishes(parser)
    parser.add_argument("--shift", type=console.positive_int, metavar="PARTS", help="parts of a shift: says its false rejects")
    parser.add_argument("--who", help="for the history (default: the user's name)")
    parser.add_argument("--why", default="", help="reason, for the history")
    parser.add_argument("--yes", action="store_true", help="put it in force without asking")
    parser.add_argument("--out", type=Path, metavar="FILE", help="record to write (default: the recipe's calibration)")
    parser.set_defaults(run=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> int:
    config = _recipe(load_recipes(arguments.config), arguments.recipe)
    wishes = wishes_of(arguments)
    out: Path = arguments.out or config.calibration
    if out.is_dir():
        raise StationError(f"{out}: a folder, expected the path of the record to write, such as line-3.json")
    check_whole(out)
    if not arguments.from_journal and arguments.method == "conformal":
        check_enough(arguments.count, wishes.rate)  # before anybody shows a part
    excluded = [_exclusion(text) for text in arguments.exclude]
    if arguments.from_journal and excluded:
        raise StationError("--exclude is for pictures that are taken now; label a part of the journal again instead")
    if not (arguments.yes or _can_ask()):
        console.warn("nobody can be asked here, there is no terminal: no threshold will be put in force; give --yes to do so")
    bundle = load_bundle(config.bundle)
    with Inspector(
        bundle, config.backend, precision=config.precision, threads=config.threads, search=config.search
    ) as inspector:
        faults = self_test(inspector).faults
        if faults:
            raise StationError("; ".join(faults))
        run = _Run(arguments, config, inspector, wishes, out)
        if arguments.from_journal:
            run.from_journal()
        else:
            run.take(excluded)
        return run.decide()


def _recipe(recipes: dict[str, StationConfig], name: str | None) -> StationConfig:
    if name is None and len(recipes) > 1:
        raise StationError(f"no recipe named, expected --recipe and one of: {', '.join(recipes)}")
    config = next(iter(recipes.values())) if name is None else recipes.get(name)
    if config is None:
        raise StationError(f"recipe '{name}', expected one of: {', '.join(recipes)}")
    return config


def _exclusion(text: str) -> tuple[str, str]:
    what, colon, why = text.partition(":")
    if not colon or not what.strip() or not why.strip():
        raise StationError(f"exclude is '{text}', expected a part and a reason, such as '17: finger on the part'")
    return what.strip(), why.strip()


class _Run:
    """What was taken, what is left out of it, and what comes of it."""

    def __init__(
        self, arguments: argparse.Namespace, config: StationConfig, inspector: Inspector, wishes: Wishes, out: Path
    ) -> None:
        self._arguments = arguments
        self._config = config
        self._inspector = inspector
        self._wishes = wishes
        self._out = out
        self._who: str = arguments.who or console.account()
        self._parts: list[Good] = []
        self._left: list[_Left] = []
        self._cautions: list[str] = []
        confirmed = confirmed_parts(config.journal, bound_to(inspector))
        self._journal_good = [one for one in confirmed if one.good]
        self._bad = self._bad_parts([one for one in confirmed if not one.good])
        self._old = _in_force(config)

    def take(self, excluded: Sequence[tuple[str, str]]) -> None:
        """Good parts from the camera."""
        check_needs(self._arguments.method, self._wishes, bad=bool(self._bad), give_bad=_GIVE_BAD)
        stamp = f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%S.%fZ}"
        folder = self._out.parent / f"{self._out.stem}.parts" / stamp
        gathering = Gathering(self._inspector, folder, self._out.parent)
        self._parts = gathering.parts
        console.say("nothing is judged now, and the line rejects; let good parts alone pass, each once")
        _gather(self._config, gathering, self._arguments.count, self._old)
        if not self._parts:
            raise StationError("no part was taken; look at the camera with `edge camera --preview`")
        not_counted = ", ".join(f"{count} {problem}" for problem, count in sorted(gathering.refused.items())) or "none"
        console.say(f"took {len(self._parts)} pictures, kept in {folder}; not counted: {not_counted}")
        if len(self._parts) < self._arguments.count:
            console.warn(f"the source ended after {len(self._parts)} of {self._arguments.count} parts")
        lost = gathering.refused["no picture"] + gathering.refused["no score"]
        if lost > 0:
            self._cautions.append(f"{lost} parts had no picture or no score: such are FAULTs and are rejected at any threshold")
        for what, why in excluded:
            self._exclude(what, why)

    def from_journal(self) -> None:
        """The scores of parts that a person found good."""
        if not self._journal_good:
            raise StationError(
                f"{self._config.journal}: no parts that a person found good with this bundle and engine; see `edge label`"
            )
        self._cautions += cautions(self._config.journal, bound_to(self._inspector))

    def decide(self) -> int:
        """Show what would be, and write it where a person says so."""
        while True:
            counted = self._journal_good if self._arguments.from_journal else scored(self._kept())
            everything = [*counted, *self._bad]
            good, bad = split(everything)
            comparison = propose(good, self._wishes, bad, give_bad=_GIVE_BAD)
            self._show_parts(counted)
            show_comparison(comparison)
            proposal = self._chosen(comparison)
            calibration = make_calibration(
                self._inspector,
                proposal,
                self._wishes,
                station=self._config.station,
                camera=self._config.camera,
                who=self._who,
                why=self._arguments.why,
            )
            warnings = [
                *proposal.warnings,
                *beyond_provisional(self._inspector, proposal),
                *self._cautions,
                *(f"{left}, by {self._who}" for left in self._left),
            ]
            if self._left:
                warnings.append("good parts like those left out will be rejected, and the rates do not count them")
            for line in histogram([one.score for one in counted], proposal.threshold):
                console.say(line)
            for warning in warnings:
                console.warn(warning)
            self._say_consequences(proposal, calibration, counted)
            answer = "yes" if self._arguments.yes else _ask(can_exclude=not self._arguments.from_journal)
            if answer == "yes":
                self._write(calibration, everything, counted, warnings)
                return console.DONE
            if answer == "no":
                console.say(f"not put in force: {self._out} is as it was")
                return console.NO
            try:
                self._exclude(*_exclusion(answer))
            except StationError as error:
                console.warn(str(error))

    def _chosen(self, comparison: Comparison) -> Proposal:
        """The threshold of the method that was asked for. Raises StationError, with what can still be done, without one."""
        try:
            return comparison.of(self._arguments.method)
        except CalibrationError as error:
            if not self._parts:
                raise
            folder = self._out.parent / Path(self._parts[0].name).parent
            raise StationError(
                f"{error}; not put in force, and the pictures stay in {folder}: begin again with a higher --count or with"
                " another method or rate, or take a threshold from these with `calibration fit --images`"
            ) from None

    def _kept(self) -> list[Good]:
        gone = {left.part.number for left in self._left}
        return [part for part in self._parts if part.number not in gone]

    def _exclude(self, what: str, why: str) -> None:
        found = [part for part in self._kept() if part.called(what)]
        if len(found) != 1:
            raise StationError(
                f"'{what}' is {len(found)} of the parts, expected one: a number from 1 to {len(self._parts)}, or a file's name"
            )
        self._left.append(_Left(found[0], why))

    def _bad_parts(self, bad: list[Scored]) -> list[Scored]:
        path = self._arguments.bad_csv
        if path is not None:
            handed, _ = read_scores(path, bound_to(self._inspector))
            if all(one.good for one in handed):
                raise CalibrationError(f"{path}: no bad parts in it; expected a column label with bad")
            known = {one.name for one in bad}
            return bad + [one for one in handed if not one.good and one.name not in known]
        return bad

    def _show_parts(self, counted: Sequence[Scored]) -> None:
        numbers = {part.name: f"part {part.number}" for part in self._parts}
        highest = sorted(counted, key=lambda one: -one.score)[:_SHOWN]
        named = ", ".join(f"{numbers.get(one.name, one.name)} {one.score:.4g}" for one in highest)
        console.say(f"highest scores: {named}; is each of these really a good part?")
        for number, remarks in odd_ones(self._kept(), self._inspector.bundle.manifest.golden.spread).items():
            console.warn(f"part {number}: {'; '.join(remarks)}")
        groups: dict[str, list[str]] = {}
        for one in counted:
            if one.group is not None:
                groups.setdefault(one.group, []).append(numbers[one.name].removeprefix("part "))
        for members in sorted(groups.values(), key=len, reverse=True)[:_SHOWN]:
            console.warn(f"parts {', '.join(members)} look like one part and count as one; show each part once")
        if len(groups) > _SHOWN:
            console.warn(f"and {len(groups) - _SHOWN} more such groups")

    def _say_consequences(self, proposal: Proposal, calibration: Calibration, counted: Sequence[Scored]) -> None:
        console.say(f"proposed: threshold {proposal.threshold:.6g}, {proposal.method} from {proposal.good} good parts")
        for line in consequences(proposal, self._arguments.shift):
            console.say(line)
        console.say(against(self._old, calibration, counted))
        console.say(caught(self._bad, proposal.threshold))
        self._say_challenge(calibration)

    def _say_challenge(self, calibration: Calibration) -> None:
        challenge = self._config.challenge
        if challenge is None or challenge.path is None:
            return
        try:
            result = run_challenge(self._inspector, calibration, find_challenge(challenge.path), who=self._who)
            wrong = wrong_parts(result)
        except InspectionError as error:
            wrong = str(error)
        if wrong:
            console.warn(f"challenge FAILS, and so the station would not be ready: {wrong}")
        else:
            console.say(f"challenge passes: {result}")

    def _write(
        self, calibration: Calibration, everything: Sequence[Scored], counted: Sequence[Scored], warnings: Sequence[str]
    ) -> None:
        written = write(self._out, calibration, wishes=self._wishes, parts=everything, warnings=warnings)
        console.say(f"wrote {self._out} for station {written.station} by {self._who}, and {history_path(self._out)}")
        self._write_reference(written, {one.name: one for one in counted})
        if self._out.absolute() != self._config.calibration.absolute():
            console.say(f"the station judges by {self._config.calibration} as before")
        elif self._config.active.exists():
            name = f"{self._arguments.config} {self._config.recipe}"
            console.say(f"a recipe was chosen at this station before: put it in force with `edge recipe --config {name}`")
        else:
            console.say("the station judges by it from its next start on")

    def _write_reference(self, written: Calibration, counted: dict[str, Scored]) -> None:
        path = self._config.model_copy(update={"calibration": self._out}).drift_reference
        needed = "; with the section drift the station does not start without one" if self._config.drift is not None else ""
        if not self._parts:
            console.warn(f"no drift reference, since scores alone do not say what parts look like{needed}: calibrate by camera")
            return
        try:
            reference = make_reference(written, statistics_of(self._kept(), counted), who=self._who)
            save_reference(path, reference)
        except InspectionError as error:  # the threshold is in force all the same
            console.warn(f"no drift reference: {error}{needed}")
            return
        console.say(f"wrote {path}, which drift is measured against: {len(reference.parts)} parts")


def _gather(config: StationConfig, gathering: Gathering, count: int, old: Calibration | None) -> None:
    """Parts as the station would get them, by its own trigger; the rejector is there and never told that it is ready."""
    with contextlib.ExitStack() as closing:
        draw = closing.enter_context(console.live())
        rejector: Rejector = (
            DryRunRejector() if isinstance(config.rejector, DryRun) else ProcessRejector(rejector_setup(config))
        )
        closing.callback(rejector.close)
        turn: Callable[[], None] = rejector.beat
        camera = open_camera(config) if looks_aside(config) else open_camera(config, turn)
        closing.callback(camera.close)
        intake = closing.enter_context(contextlib.closing(Intake(config, camera, rejector, turn, _unnoted)))
        intake.serve(lambda: {"station": config.station, "state": "calibrating", "parts": len(gathering.parts)})
        intake.begin()
        for arrival in intake.camera.frames():
            rejector.beat()
            if isinstance(arrival, Missing):
                found: Good | Refused = gathering.missing(arrival.reason, arrival.source)
            else:
                found = gathering.offer(arrival.image, arrival.source)
            _tell(found, count)
            if console.err.is_terminal:
                scores = [part.score for part in gathering.parts]
                draw([f"{len(scores)} of {count} good parts", *_histogram(scores, old)])
            if len(gathering.parts) == count:
                return


def _histogram(scores: Sequence[float], old: Calibration | None) -> list[str]:
    """With the threshold in force."""
    return histogram(scores) if old is None else histogram(scores, old.threshold, " SET BY HAND" if old.manual else "")


def _unnoted(_name: str, _details: object) -> None:
    """Nothing is journalled while nothing is judged."""


def _tell(found: Good | Refused, count: int) -> None:
    if isinstance(found, Refused):
        console.warn(f"not counted, {found.problem}: {found.source}: {found.detail}")
        return
    if not console.err.is_terminal:  # where it is, the histogram counts
        console.say(f"{found.number:5d} of {count}  score {found.score:.6g}  {Path(found.name).name}  {found.source}")
    for remark in found.remarks:
        console.warn(f"part {found.number}: {remark}")


def _in_force(config: StationConfig) -> Calibration | None:
    try:
        return load_calibration(config.calibration)
    except CalibrationError:
        return None


def _can_ask() -> bool:
    return sys.stdin.isatty() and console.out.is_terminal


def _ask(*, can_exclude: bool) -> str:
    """`yes`, `no`, or a part and a reason; `no` where nobody can be asked."""
    if not _can_ask():
        return "no"
    more = ", or PART: WHY to leave a part out" if can_exclude else ""
    while True:
        try:
            text = input(f"put it in force? yes or no{more}: ").strip()
        except EOFError:
            console.say("")  # what follows begins a line of its own
            return "no"
        except KeyboardInterrupt:
            console.say("")
            raise
        if text in ("yes", "no") or (can_exclude and ":" in text):
            return text
