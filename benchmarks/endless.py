"""A whole station, as `edge run` joins it, over a camera that always has the next picture: what its benchmarks share.

It imports nothing of `train`, so that the process is as large as a station's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from edge.camera import Camera
from edge.config import load_recipes, rejector_setup
from edge.rejector import ProcessRejector
from edge.run import run_station
from edge.sections import StationConfig
from edge.verdict import Frame
from engines import EngineError
from engines.bench import machine
from engines.bundle import load_bundle
from engines.images import Image, list_images, read_image

ROWS = 2048
_PATCHES = 54 * 1024  # of the sample's images in the bank


def write_station(folder: Path, evidence: str | None = "") -> Path:
    """Draw a product, fit an untrained ResNet18 of 256 x 256 with 2,048 rows, calibrate it; the configuration's path.

    Args:
        folder: to write to; bundle and record are made once.
        evidence: further keys of the section `evidence`; None for no such section.
    """
    product, bundle, record = folder / "product", folder / "bundle", folder / "line.json"
    if not record.exists():
        _run("train", "sample", "--out", product)
        share = f"{ROWS / _PATCHES:.6f}"
        _run("train", "fit", "--data", product, "--weights", "none", "--coreset", share, "--out", bundle)
        good = product / "calibration" / "good"
        _run("calibration", "fit", "--bundle", bundle, "--images", good, "--station", "line", "--out", record)
    rows = len(load_bundle(bundle).bank.rows)
    if rows != ROWS:
        raise EngineError(f"{bundle}: {rows} rows, expected {ROWS}; the sample's size has changed")
    config = folder / "station.yaml"
    kept = "" if evidence is None else f"evidence: {{folder: evidence{evidence}}}\n"
    config.write_text(
        f"station: line\nbundle: {bundle}\ncalibration: {record}\njournal: journal.db\n{kept}"
        f"source: {{kind: replay, path: {product / 'test' / 'good'}}}\ndeadline_ms: 5000\n"
        "rejector: {kind: dry-run, heartbeat_ms: 5000}\n"  # a machine that is busy for seconds ends no run
    )
    return config


def good_pictures(config: StationConfig) -> list[Image]:
    """Those of its source, in memory."""
    assert config.source.kind == "replay"
    return [read_image(path) for path in list_images(config.source.path, recursive=True)]


class EndlessCamera:
    """Has the next picture whenever it is asked, until `more` says that there is none."""

    healthy = True
    status = ""

    def __init__(self, images: list[Image], more: Callable[[int], bool]) -> None:
        """`more` is asked before each part, with its number."""
        self._images = images
        self._more = more

    def frames(self) -> Iterator[Frame]:
        """A part each time, triggered now."""
        for part in itertools.count(1):
            if not self._more(part):
                return
            now_ns = time.monotonic_ns()
            yield Frame(self._images[part % len(self._images)], part, now_ns, now_ns, "picture")

    def close(self) -> None:
        """Nothing to release."""


def run_over(
    path: Path,
    open_camera: Callable[[Callable[[], None]], Camera],
    log: Path,
    on_rejector: Callable[[int], None] = lambda pid: None,
) -> dict[str, int]:
    """Run the station of a configuration, as `edge run` does: parts by outcome, and how many `pictures` were kept.

    Args:
        path: of the configuration.
        open_camera: gives the camera in place of the configuration's; it is given what to call while the station waits.
        log: file for what the station prints, a line a part, as a service's goes to its log.
        on_rejector: told the id of the rejector's process.
    """

    def take_lines(config: StationConfig) -> ProcessRejector:
        rejector = ProcessRejector(rejector_setup(config))
        on_rejector(rejector.pid)
        return rejector

    recipes = load_recipes(path)
    journal = next(iter(recipes.values())).journal
    journal.unlink(missing_ok=True)
    camera = mock.patch("edge.run.open_camera", lambda config, beat: open_camera(beat))
    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file), camera:
        run_station(recipes, take_lines, service=path)
    with contextlib.closing(sqlite3.connect(journal)) as connection:
        counts = dict(connection.execute("SELECT outcome, count(*) FROM parts GROUP BY outcome ORDER BY outcome"))
        (counts["pictures"],) = connection.execute("SELECT count(*) FROM evidence").fetchone()
        return counts


def where() -> str:
    """The machine, and the scheduling that this process has."""
    policy = {os.SCHED_OTHER: "ordinary scheduling", os.SCHED_FIFO: f"SCHED_FIFO {os.sched_getparam(0).sched_priority}"}
    return f"{machine()}, {policy.get(os.sched_getscheduler(0), 'other scheduling')}"


def _run(*words: object) -> None:
    done = subprocess.run([sys.executable, "-m", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EngineError(f"{words[0]} {words[1]} ended with {done.returncode}: {done.stderr.strip()}")
