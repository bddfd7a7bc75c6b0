"""The commands of the calibration door that show whether a station still holds: `reference`, `drift`, `challenge`, `msa`."""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from calibration.appearance import measure
from calibration.challenge import find_challenge, run_challenge
from calibration.drift import ALARM_PARTS, CHANNELS, WARNING_PARTS
from calibration.gauge import NAMES
from calibration.msa import Analysis, analyse, read_study
from calibration.msa_page import grade_gauge, render
from calibration.record import Calibration, load_calibration, mismatches
from calibration.reference import load_reference, save_reference, take_reference
from engines import EngineError, console
from engines.atomic import write_file
from engines.bundle import load_bundle
from engines.images import list_images, read_image
from engines.inspector import Inspector
from engines.options import add_running, open_inspector


def add_commands(commands: Any, account: Callable[[], str]) -> None:
    """Add the commands to the door's; `account` names the person."""
    reference = commands.add_parser("reference", help="keep what the station looked like, for drift to be measured against")
    _add_station(reference)
    reference.add_argument("--images", required=True, type=Path, help="the good parts that the station was calibrated on")
    reference.add_argument("--out", required=True, type=Path, help="file to write, such as line-1.drift.json")
    reference.set_defaults(run=lambda arguments: _reference(arguments, account()))
    drift = commands.add_parser("drift", help="watch a folder of parts, in order, as a station would; 1 where it drifted")
    _add_station(drift)
    drift.add_argument("--reference", required=True, type=Path, help="of `calibration reference`")
    drift.add_argument("--images", required=True, type=Path, help="parts in the order in which they came")
    for level, parts in (("warning", WARNING_PARTS), ("alarm", ALARM_PARTS)):
        drift.add_argument(
            f"--{level}-parts",
            default=parts,
            type=console.positive_float,
            metavar="N",
            help=f"parts between false {level}s, on average at least (default: %(default)g)",
        )
    drift.set_defaults(run=_drift)
    challenge = commands.add_parser("challenge", help="judge labelled parts; 1 where one decision is wrong")
    _add_station(challenge)
    challenge.add_argument("--images", required=True, type=Path, help="folder with OK and NG, or a challenge.csv")
    challenge.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    challenge.set_defaults(run=lambda arguments: _challenge(arguments, account()))
    msa = commands.add_parser("msa", help="measurement-system analysis of a CSV file, as a page")
    msa.add_argument("--csv", required=True, type=Path, help="columns part, operator, repeat, score or decision, reference")
    msa.add_argument("--threshold", type=float, help="decides where the file has scores and no decisions")
    msa.add_argument("--out", required=True, type=Path, help="page to write, an .html file")
    msa.add_argument("--title", default="Measurement system analysis", help="default: %(default)s")
    msa.set_defaults(run=lambda arguments: _msa(arguments, account()))


def _add_station(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", required=True, type=Path, help="the bundle that the station runs")
    parser.add_argument("--calibration", required=True, type=Path, help="the record in force")
    add_running(parser)


def _open(arguments: argparse.Namespace) -> tuple[Inspector, Calibration]:
    """The inspector, closed by the caller, and the calibration, which must be made for it."""
    calibration = load_calibration(arguments.calibration)
    inspector = open_inspector(load_bundle(arguments.bundle), arguments)
    extractor = inspector.extractor
    faults = mismatches(
        calibration,
        bundle_digest=inspector.bundle.digest,
        backend=extractor.backend,
        precision=extractor.precision,
        engine_digest=extractor.engine_digest,
    )
    if faults:
        inspector.close()
        raise EngineError("; ".join(faults))
    return inspector, calibration


def _reference(arguments: argparse.Namespace, who: str) -> int:
    paths = list_images(arguments.images)
    inspector, calibration = _open(arguments)
    with inspector, console.progress("measuring") as advance:
        reference = take_reference(inspector, calibration, paths, who=who, progress=advance)
    tolerance = reference.monitor(calibration).tolerance
    save_reference(arguments.out, reference)
    values = np.array(reference.parts)
    console.table(
        f"{len(values)} good parts that pass",
        ("channel", "mean", "deviation", "a change that matters", "unit"),
        [
            (channel.name, f"{mean:.4g}", f"{spread:.3g}", f"{least:.3g}", channel.unit)
            for channel, mean, spread, least in zip(CHANNELS, values.mean(axis=0), values.std(axis=0), tolerance, strict=True)
        ],
    )
    console.say(f"parts pass at threshold {calibration.threshold:.6g}, {calibration.origin}")
    console.say(f"wrote {arguments.out} for calibration {reference.calibration[:12]}")
    return console.DONE


def _drift(arguments: argparse.Namespace) -> int:
    paths = list_images(arguments.images)
    reference = load_reference(arguments.reference)
    inspector, calibration = _open(arguments)
    warned = passed = 0
    with inspector, console.progress("watching") as advance:
        monitor = reference.monitor(calibration, warning_parts=arguments.warning_parts, alarm_parts=arguments.alarm_parts)
        for number, path in enumerate(paths, 1):
            image = read_image(path)
            score = inspector.score(image).value
            if score <= calibration.threshold:
                passed += 1
                alarm = monitor.observe(score, measure(inspector.preprocessor, image))
                if alarm is not None and (alarm.level == "alarm" or not warned):
                    console.say(f"{alarm.level} at {path.name}, part {number}: {alarm.message}")
                warned += alarm is not None
            advance(number, len(paths))
            if monitor.alarm is not None:
                break
    console.say(f"parts pass at threshold {calibration.threshold:.6g}, {calibration.origin}")
    if monitor.alarm is not None:
        return console.NO
    console.say(
        f"{passed} of {len(paths)} parts passed and were watched; {'drift was suspected' if warned else 'no drift was seen'}"
    )
    if passed == 0:
        console.warn("no part passed: drift is watched on passed parts alone, look at the station")
        return console.NO
    return console.NO if warned else console.DONE


def _challenge(arguments: argparse.Namespace, who: str) -> int:
    parts = find_challenge(arguments.images)
    inspector, calibration = _open(arguments)
    with inspector, console.progress("judging") as advance:
        result = run_challenge(inspector, calibration, parts, who=who, progress=advance)
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps(result.model_dump(mode="json"), indent=1) + "\n").encode())
    for part in result.wrong:
        said = part.why or f"score {part.score:.6g}, threshold {result.shown}"
        console.say(f"wrong: {part.name} is {'OK' if part.good else 'NG'} and was decided {part.decision}: {said}")
    console.say(
        f"{'passed' if result.passed else 'FAILED'}: {result}; {result.when}, {result.who}, challenge {result.challenge[:12]}"
    )
    console.say(f"judged at threshold {calibration.threshold:.6g}, {calibration.origin}")
    return console.DONE if result.passed else console.NO


def _msa(arguments: argparse.Namespace, who: str) -> int:
    if arguments.out.is_dir():
        raise EngineError(f"{arguments.out}: a folder, expected the path of the page to write, such as msa.html")
    if arguments.out.resolve() == arguments.csv.resolve():
        raise EngineError(f"{arguments.out}: the study itself, which the page would replace; give another --out")
    analysis = analyse(read_study(arguments.csv, arguments.threshold))
    when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    write_file(arguments.out, render(analysis, title=arguments.title, when=when, who=who))
    grades = _show(analysis)
    if analysis.study.threshold is not None:
        console.say(f"decided by threshold {analysis.study.threshold:.6g}, SET BY HAND for this study (--threshold)")
    console.say(f"wrote {arguments.out}")
    return console.NO if "unacceptable" in grades else console.DONE


def _show(analysis: Analysis) -> set[str]:
    """Print the figures; returns AIAG's grades of all of them."""
    study, agreement, gauge = analysis.study, analysis.agreement, analysis.gauge
    grades: set[str] = set()
    if agreement is not None:
        rows = []
        for name, one in zip(study.operators, agreement.operators, strict=True):
            figures = one.effectiveness, one.miss, one.false_alarm, one.truth
            grades.update(figure.grade for figure in figures)
            rows.append((name, *(f"{figure.value:.3f} {figure.grade}" for figure in figures)))
        console.table("decisions", ("operator", "effectiveness", "miss rate", "false alarm rate", "kappa with the truth"), rows)
    if gauge is not None:
        found = gauge.components
        grades.add(grade_gauge(found.share(found.gauge)))
        rows = [
            (words, f"{getattr(found, name) ** 0.5:.4g}", f"{found.share(getattr(found, name)):.1%}")
            for name, words in NAMES.items()
        ]
        console.table(
            f"score, {found.distinct} distinct categories", ("component", "deviation", "of the study's variation"), rows
        )
    return grades
