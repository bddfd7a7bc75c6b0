"""Would this station start? Every reason why not, at once."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from calibration.challenge import find_challenge, run_challenge, wrong_parts
from calibration.history import history_fault
from calibration.record import Calibration, load_calibration, mismatches
from calibration.reference import load_reference
from edge.active import check_chosen, config_to_start, load_active
from edge.agreement import parse_address
from edge.camera import Camera
from edge.chain import last_head, open_for_reading, refuse_other_station
from edge.commands import Handlers
from edge.config import rejector_setup
from edge.control import ControlServer, read_token
from edge.disk import MIN_FREE_BYTES
from edge.evidence import stored
from edge.intake import load_scene
from edge.lines import describe_line, open_lines
from edge.scanner import open_serial
from edge.sections import (
    EvidenceConfig,
    FilePartRef,
    PresenceTrigger,
    SerialPartRef,
    SoftwareTrigger,
    StationConfig,
    TimerTrigger,
)
from engines import InspectionError
from engines.bundle import bundle_digest, load_bundle
from engines.inspector import Inspector
from engines.verify import allowed_difference, verify_golden

_TIMED = 3


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, and why the station would refuse, one line a fault.

    Attributes:
        warnings: what a person should look into, though the station starts; one line each.
    """

    name: str
    found: str
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def check_station(recipes: Mapping[str, StationConfig], open_camera: Callable[[StationConfig], Camera]) -> list[Check]:
    """Look at everything that a start needs, and a change to any of its recipes; nothing is changed or written.

    Args:
        recipes: a valid configuration, as it is for each recipe; the one to start with first.
        open_camera: opens a configuration's source.
    """
    config = next(iter(recipes.values()))
    checks = []
    for name, each in recipes.items():
        of_recipe = "" if len(recipes) == 1 else f"{name}: "
        checks += [dataclasses.replace(check, name=of_recipe + check.name) for check in _check_recipe(each)]
    checks += _check_sources(recipes, open_camera)
    checks += [_check_lines(config), _check_trigger(config), *_check_part_ref(config), *_check_control(config)]
    checks.append(_check_journal(config.journal, config.station))
    if config.evidence is not None:
        checks.append(check_evidence(config.evidence))
    return [*checks, _check_active(config.active, recipes)]


def _check_sources(recipes: Mapping[str, StationConfig], open_camera: Callable[[StationConfig], Camera]) -> list[Check]:
    """Each way in which the source is set, once; the one to start with comes last, so that the camera is left with it."""
    checks: list[Check] = []
    looked_at: list[tuple[str, StationConfig]] = []
    for name, config in recipes.items():
        if config.source not in [other.source for _, other in looked_at]:
            looked_at.append((name, config))
    for name, config in reversed(looked_at):
        title = "source" if len(looked_at) == 1 else f"{name}: source"
        try:
            open_camera(config).close()
            checks.insert(0, Check(title, config.source.kind))
        except InspectionError as error:
            checks.insert(0, Check(title, config.source.kind, (str(error),)))
    return checks


def _check_recipe(config: StationConfig) -> list[Check]:
    """Its bundle, its calibration, whether they go together, the golden images, and the time that an image takes."""
    checks = []
    inspector: Inspector | None = None
    calibration: Calibration | None = None
    try:
        bundle = load_bundle(config.bundle)
        inspector = Inspector(bundle, config.backend, precision=config.precision, threads=config.threads, search=config.search)
        runs = f"{config.precision}, {inspector.extractor.provider}, bank searched on the {inspector.searched_on.upper()}"
        checks.append(Check("bundle", f"{config.bundle} ({bundle.digest[:12]}), {runs}"))
    except InspectionError as error:
        checks.append(Check("bundle", str(config.bundle), (str(error),)))
    try:
        calibration = load_calibration(config.calibration)
        found = f"threshold {calibration.threshold:.6g}, {calibration.origin}"
        doubt = history_fault(config.calibration)
        checks.append(Check("calibration", found, warnings=(doubt,) if doubt else ()))
    except InspectionError as error:
        checks.append(Check("calibration", str(config.calibration), (str(error),)))
    if inspector is not None and calibration is not None:
        faults = tuple(binding_faults(inspector, calibration, config.station, config.camera))
        checks.append(Check("calibration fits", f"station {config.station}, camera {config.camera}", faults))
    if config.drift is not None and calibration is not None:
        checks.append(_check_drift(config.drift_reference, calibration))
    if inspector is not None:
        checks += [self_test(inspector), _check_speed(inspector, config.deadline_ms)]
        if config.challenge is not None and config.challenge.path is not None and calibration is not None:
            checks.append(_check_challenge(config.challenge.path, inspector, calibration))
        inspector.close()
    return checks


def _check_drift(path: Path, calibration: Calibration) -> Check:
    try:
        reference = load_reference(path)
        reference.monitor(calibration)
    except InspectionError as error:
        return Check("drift", str(path), (str(error),))
    return Check("drift", f"{path}, {len(reference.parts)} parts, {reference.when} by {reference.who}")


def _check_challenge(path: Path, inspector: Inspector, calibration: Calibration) -> Check:
    """Are the labelled parts judged rightly now? A start judges them again."""
    try:
        result = run_challenge(inspector, calibration, find_challenge(path), who="edge check")
    except InspectionError as error:
        return Check("challenge", str(path), (str(error),))
    wrong = wrong_parts(result)
    return Check("challenge", f"{path}: {result}", (wrong,) if wrong else ())


def binding_faults(inspector: Inspector, calibration: Calibration, station: str, camera: str) -> list[str]:
    """Why a calibration may not be used here: made for another station, camera, bundle, backend or engine."""
    faults = [
        f"calibration is for {name} '{made}', configured is '{wanted}'; calibrate this station"
        for name, made, wanted in (("station", calibration.station, station), ("camera", calibration.camera, camera))
        if made != wanted
    ]
    extractor = inspector.extractor
    return faults + mismatches(
        calibration,
        bundle_digest=inspector.bundle.digest,
        backend=extractor.backend,
        precision=extractor.precision,
        engine_digest=extractor.engine_digest,
    )


def self_test(inspector: Inspector) -> Check:
    """Re-run the bundle's golden images."""
    manifest = inspector.bundle.manifest
    try:
        result = verify_golden(
            inspector,
            inspector.bundle.golden(),
            manifest.threshold,
            manifest.golden.spread,
            tolerance=allowed_difference(manifest, inspector.extractor.precision),
        )
    except InspectionError as error:
        return Check("self-test", "golden images", (str(error),))
    if result.passed:
        return Check("self-test", str(result))
    return Check(
        "self-test", str(result), (f"{result}: this machine does not score as the bundle says; train or copy it again",)
    )


def _check_speed(inspector: Inspector, deadline_ms: float) -> Check:
    """Can a verdict come by the deadline at all? The fastest of a few images, after the self-test warmed everything up."""
    try:
        image = inspector.bundle.golden().images[0]
        times_ms = []
        for _ in range(_TIMED):
            begun = time.monotonic()
            inspector.score(image)
            times_ms.append(1000 * (time.monotonic() - begun))
    except InspectionError as error:
        return Check("speed", "not measured", (str(error),))
    found = f"{min(times_ms):.1f} ms an image at best, deadline {deadline_ms:g} ms"
    if min(times_ms) <= deadline_ms:
        return Check("speed", found)
    return Check("speed", found, (f"{found}: every part would be a FAULT; raise deadline_ms or use a faster machine",))


def _check_active(path: Path, recipes: Mapping[str, StationConfig]) -> Check:
    """Which recipe would be started with, and is that still what somebody chose?"""
    try:
        active = load_active(path)
        config = config_to_start(active, recipes)
        if active is None:
            return Check("starts with", f"{config.recipe}, as the configuration says: no other was ever chosen")
        chosen = active.chosen
        check_chosen(chosen, bundle_digest(config.bundle), load_calibration(config.calibration))
    except InspectionError as error:
        return Check("starts with", str(path), (str(error),))
    return Check("starts with", f"{chosen}, chosen by {chosen.who}, {chosen.when}: {chosen.why}")


def _check_lines(config: StationConfig) -> Check:
    """Can the lines be had? Opening them makes all outputs inactive, and so they reject, as before the start."""
    setup = rejector_setup(config)
    if setup.driver == "dry-run":
        return Check("lines", "dry run: none is driven")
    try:
        open_lines(setup.driver, setup.lines).close()
    except InspectionError as error:
        return Check("lines", setup.driver, (str(error),))
    return Check("lines", "; ".join(describe_line(spec) for spec in setup.lines))


def _check_trigger(config: StationConfig) -> Check:
    wanted = config.triggered
    if isinstance(wanted, TimerTrigger):
        return Check("trigger", f"a part each {wanted.period_ms:g} ms")
    if isinstance(wanted, SoftwareTrigger):
        return Check("trigger", f"by {' and '.join(wanted.by or ())}")
    if not isinstance(wanted, PresenceTrigger):
        return Check(
            "trigger", "each edge of the line trigger" if wanted.kind == "line" else "each frame that the station takes"
        )
    try:
        scene = load_scene(wanted)
    except InspectionError as error:
        return Check("trigger", "by presence", (str(error),))
    return Check("trigger", f"what comes fully into view, empty scene of {scene.frames} frames, region {list(scene.region)}")


def _check_part_ref(config: StationConfig) -> list[Check]:
    wanted = config.part_ref
    if wanted is None:
        return []
    if not isinstance(wanted, SerialPartRef):
        where = f"file {wanted.path}" if isinstance(wanted, FilePartRef) else "POST /part_ref"
        return [Check("part_ref", where)]
    try:
        os.close(open_serial(wanted.device, wanted.baud))
    except InspectionError as error:
        return [Check("part_ref", str(wanted.device), (str(error),))]
    return [Check("part_ref", f"scanner at {wanted.device}, {wanted.baud} baud")]


def _check_control(config: StationConfig) -> list[Check]:
    if config.control is None:
        return []
    try:
        token = None if config.control.token is None else read_token(config.control.token)
        ControlServer(parse_address(config.control.address), Handlers(status=dict), token).close()
    except InspectionError as error:
        return [Check("control", config.control.address, (str(error),))]
    return [Check("control", config.control.address)]


def _check_journal(path: Path, station: str) -> Check:
    check = check_file("journal", path, MIN_FREE_BYTES)
    if check.faults or not os.path.exists(path) or os.path.getsize(path) == 0:
        return check
    try:
        with contextlib.closing(open_for_reading(path)) as connection:
            head = last_head(connection)
            refuse_other_station(path, connection, station)
    except (InspectionError, sqlite3.Error, ValueError, KeyError) as error:
        return Check("journal", str(path), (str(error),))
    return Check("journal", f"{check.found}, {head.row} rows")


def check_evidence(config: EvidenceConfig) -> Check:
    """Can pictures be written, and is there room for the quota?"""
    held = sum(size for _, size in stored(config.folder))
    room = MIN_FREE_BYTES + round(config.quota_mb * 1e6) - held
    found = f"{config.folder}, {held / 1e6:.0f} of {config.quota_mb:g} MB"
    return Check("evidence", found, check_file("evidence", config.folder / "run" / "picture", room).faults)


def check_file(name: str, path: Path, free_bytes: int) -> Check:
    """Can a file be written at `path`, and is there room for so many bytes?"""
    folder = path.parent
    while not os.path.exists(folder) and folder != folder.parent:  # pathlib's raises where a parent is closed to us
        folder = folder.parent
    if os.path.isdir(path):
        return Check(name, str(path), (f"{path}: a folder, expected the path of a file",))
    if not os.path.isdir(folder):
        return Check(name, str(path), (f"{folder}: a file, expected a folder to write the {name} in",))
    target = path if os.path.exists(path) else folder
    if not os.access(target, os.W_OK):
        return Check(name, str(path), (f"{target}: cannot be written; change its permissions or the path of the {name}",))
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(name, str(path), (f"{folder}: cannot be looked at ({error.strerror}); check the disk and permissions",))
    if free < free_bytes:
        fault = f"{folder}: {free >> 20} MiB free, expected {free_bytes >> 20} or more; free some space"
        return Check(name, str(path), (fault,))
    return Check(name, f"{path}, {free / 2**30:.1f} GiB free")
