"""How long a change of recipe takes, and for how long nothing can pass, while parts are judged.

`python -m benchmarks.changeover` fits two bundles of ResNet18 (256 x 256, 2,048 rows, untrained: the time does not depend on
the weights), judges pictures as fast as it can with the journal and the rejector's process (dry lines), and changes to and
fro between the two: once with both kept loaded, once with one alone, so that the other is loaded and verified first. Where
Aravis is installed, once more with both kept loaded and a camera that each sets otherwise: the library's own fake camera, which
shows what the station itself takes. A real camera adds what it needs to open and to give its first picture.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from calibration.__main__ import main as calibrate
from edge import StationError, aravis
from edge.camera import Camera
from edge.camera_sections import GenicamSource, Region
from edge.changeover import Changeover, start
from edge.clock import SystemClock
from edge.config import load_recipes, rejector_setup
from edge.genicam import GenicamDevice
from edge.journal import SqliteJournal
from edge.live import LiveCamera
from edge.recipes import Loaded, Shelf, open_recipe
from edge.rejector import ProcessRejector
from edge.station import Condition, Station
from edge.verdict import Arrival, Frame, Outcome
from engines import console
from engines.atomic import write_file
from engines.bench import machine
from engines.images import Image, list_images, read_image
from train.fit import fit
from train.product import Console, Settings
from train.sample import write_sample

_ROWS = 2048
_NAMES = ("gasket", "bolt")
_KEPT, _LOADED_FIRST, _CAMERA = "kept loaded", "loaded and verified first", "kept loaded, camera set otherwise"
_SOURCES = {
    name: GenicamSource(
        kind="genicam",
        device="Fake_1",
        pixel_format="Mono8",
        region=Region(width=320, height=320),
        frame_rate=50,
        exposure_us=exposure_us,
    )
    for name, exposure_us in zip(_NAMES, (2000, 5000), strict=True)
}


@dataclass(frozen=True)
class Measured:
    """One change, in milliseconds: from the request to its answer, and the time in which nothing could pass."""

    kind: str
    asked_ms: float
    not_ready_ms: float


class Pictures:
    """A camera that always has the next picture, until it is stopped."""

    healthy = True
    status = ""

    def __init__(self, images: Sequence[Image]) -> None:
        self._images = images
        self.stopped = False

    def frames(self) -> Iterator[Arrival]:
        """A part each time."""
        part = 0
        while not self.stopped:
            part += 1
            now_ns = time.monotonic_ns()
            yield Frame(self._images[part % len(self._images)], part, now_ns, now_ns, "picture")

    def close(self) -> None:
        """Nothing to release."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns an exit code."""
    parser = argparse.ArgumentParser(prog="changeover", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 changes of each kind instead of 20")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    changes = 4 if arguments.quick else 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with console.progress("drawing") as advance:
            write_sample(folder / "product", progress=advance)
        _write_station(folder)
        measured = []
        outcomes = []
        for kind in _kinds():
            found, counts = _measure(folder, kind, changes)
            measured += found
            outcomes.append((kind, counts))
    rows = []
    for kind, _ in outcomes:
        for what in ("asked_ms", "not_ready_ms"):
            times = [getattr(found, what) for found in measured if found.kind == kind]
            label = "from request to answer" if what == "asked_ms" else "nothing can pass"
            rows.append((f"{kind}: {label}", len(times), f"{np.median(times):.0f}", f"{max(times):.0f}"))
    console.table("change of recipe", ("", "changes", "p50 ms", "largest ms"), rows)
    for kind, counts in outcomes:
        console.say(f"{kind}: " + ", ".join(f"{count} {outcome.value}" for outcome, count in counts.items()))
    console.say(f"on {machine()}")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps([asdict(found) for found in measured], indent=1) + "\n").encode())
    return console.DONE


def _kinds() -> tuple[str, ...]:
    try:
        aravis.library().arv_enable_interface(b"Fake")
    except StationError as error:
        console.warn(f"no camera is set otherwise: {error}")
        return _KEPT, _LOADED_FIRST
    return _KEPT, _LOADED_FIRST, _CAMERA


def _write_station(folder: Path) -> None:
    """Two recipes of one product, told apart by their seeds."""
    good = folder / "product" / "calibration" / "good"
    below = ""
    for seed, name in enumerate(_NAMES):
        bundle, record = folder / name, folder / f"{name}.json"
        settings = Settings(data=folder / "product", weights="none", coreset=_ROWS / (54 * 1024), seed=seed)
        fit(settings, bundle, Console(lambda line: None, lambda line: None, console.progress))
        words = ["fit", "--bundle", bundle, "--images", good, "--station", "line", "--out", record]
        with contextlib.redirect_stdout(None):
            calibrate([str(word) for word in words])
        below += f"  {name}: {{bundle: {name}, calibration: {name}.json}}\n"
    (folder / "station.yaml").write_text(
        f"station: line\nsource: {{kind: replay, path: product/test}}\njournal: journal.db\nrecipe: gasket\nrecipes:\n{below}"
        "deadline_ms: 5000\nrejector: {kind: dry-run, heartbeat_ms: 5000}\n"
    )


def _measure(folder: Path, kind: str, changes: int) -> tuple[list[Measured], dict[Outcome, int]]:
    keep = 1 if kind == _LOADED_FIRST else 2
    recipes = load_recipes(folder / "station.yaml")
    first = next(iter(recipes.values()))
    pictures = Pictures([read_image(path) for path in list_images(folder / "product" / "test", recursive=True)[:20]])
    found: list[Measured] = []
    with contextlib.ExitStack() as closing:
        live = None
        if kind == _CAMERA:
            live = LiveCamera(_device(_NAMES[0]), _SOURCES[_NAMES[0]], SystemClock(), beat=lambda: station.turn())  # noqa: PLW0108
            closing.callback(live.close)
        camera: Camera = pictures if live is None else live
        shelf = Shelf(lambda config: open_recipe(config, lambda: station.turn()), keep)  # noqa: PLW0108  # made below
        closing.callback(shelf.close)
        in_force, _ = start(recipes, shelf, None)
        shelf.fill([config for config in recipes.values() if config is not first], lambda config, error: None)
        journal = SqliteJournal(first.journal, kind, SystemClock())
        closing.callback(journal.close)
        rejector = ProcessRejector(rejector_setup(first))
        closing.callback(rejector.close)
        station = Station(
            judge=in_force.loaded.judge,
            rejector=rejector,
            journal=journal,
            clock=SystemClock(),
            deadline_ms=first.deadline_ms,
        )

        def switch(loaded: Loaded) -> None:
            if live is not None:
                live.change(_device(loaded.config.recipe), _SOURCES[loaded.config.recipe])
            rejector.retime(rejector_setup(loaded.config).settings)
            station.change(loaded.judge)

        path = folder / f"active-{kind}.json"
        changeover = Changeover(
            recipes=recipes, shelf=shelf, in_force=in_force, path=path, loop=station, journal=journal, switch=switch
        )
        station.require(Condition("recipe", changeover.fault))

        def stop() -> None:
            pictures.stopped = True
            station.stop("all changes are done")

        thread = threading.Thread(target=_change, args=(changeover, kind, changes, found.append, stop))
        thread.start()
        station.run(camera, lambda verdict: None)
        thread.join()
    return found, {outcome: station.statistics.outcomes[outcome] for outcome in Outcome}


def _device(name: str) -> GenicamDevice:
    return GenicamDevice(_SOURCES[name], SystemClock())


def _change(
    changeover: Changeover, kind: str, changes: int, found: Callable[[Measured], None], stop: Callable[[], None]
) -> None:
    try:
        for number in range(changes):
            time.sleep(0.1)
            begun = time.monotonic()
            change = changeover.change(_NAMES[(number + 1) % 2], who="benchmark", why="to and fro")
            found(Measured(kind, 1e3 * (time.monotonic() - begun), change.not_ready_ms))
    finally:
        stop()


if __name__ == "__main__":
    sys.exit(main())
