"""Kills a process that changes recipes, at random points, and looks at what the next start would judge by.

`python -m benchmarks.recipe_crashes --points 200` starts a changeover that goes to and fro between two recipes without a pause,
kills it with SIGKILL at a random time, and checks each time: the choice that is kept is whole, it is one of the two, its files
are that recipe's, it is not older than the last change that was reported done and not newer than the last one that the journal
has. It ends with 1 if anything else is found.

The backend is left out, which would take most of the time and has no part in what is written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.writers import CALIBRATION
from calibration.record import load_calibration, save_calibration
from edge import StationError
from edge.active import load_active
from edge.audit import audit
from edge.chain import EVENT, open_for_reading, walk
from edge.config import load_recipes
from engines import console
from engines.atomic import write_file
from engines.bench import machine
from engines.bundle import MANIFEST

_LONGEST_S = 0.05
_NAMES = ("gasket", "bolt")
_CHANGER = """
import itertools, os, sys
from pathlib import Path
from calibration.record import load_calibration
from edge.changeover import Changeover, start
from edge.clock import SystemClock
from edge.config import load_recipes
from edge.journal import SqliteJournal
from edge.judge import Judge
from edge.recipes import Loaded, Shelf
from engines.bundle import bundle_digest

class Nobody:
    fault = ""
    def close(self): pass

class Loop:
    def post(self, work): work()
    def turn(self): pass
    def waiting(self): return 0

def open_one(config):
    record = load_calibration(config.calibration)
    return Loaded(config, bundle_digest(config.bundle), 1.0, Judge(config.recipe, Nobody(), record))

recipes = load_recipes(Path(sys.argv[1]))
first = next(iter(recipes.values()))
shelf = Shelf(open_one, 3)
in_force, _ = start(recipes, shelf, first.active)
journal = SqliteJournal(first.journal, sys.argv[2], SystemClock())
journal.event("started", {"chosen": in_force.active.chosen.model_dump(mode="json")})
changeover = Changeover(recipes=recipes, shelf=shelf, in_force=in_force, path=first.active, loop=Loop(), journal=journal,
                        switch=lambda loaded: None)
os.write(1, b".")
names = ["bolt", "gasket"] if in_force.loaded.config.recipe == "gasket" else ["gasket", "bolt"]
for name in itertools.cycle(names):
    changeover.change(name, who="benchmark", why="to and fro")
    os.write(1, name[0].encode())
"""


@dataclass(frozen=True)
class Crash:
    """What one kill left.

    Attributes:
        changes: that were reported done.
        ahead: the choice that was kept is newer than the last one that was reported.
        wrong: what should not be; None where all is well.
    """

    changes: int
    ahead: bool
    wrong: str | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 if any kill left something that should not be."""
    parser = argparse.ArgumentParser(prog="recipe_crashes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=console.positive_int, default=200, help="kills (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="10 kills")
    parser.add_argument("--seed", type=console.count, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.set_defaults(run=_run)
    arguments = parser.parse_args(argv)
    return console.run_door(arguments.run, arguments)


def write_choices(folder: Path) -> None:
    """A configuration of two recipes, each of a manifest and a calibration record alone."""
    for name in _NAMES:
        (folder / name).mkdir()
        (folder / name / MANIFEST).write_text(name)
        save_calibration(folder / f"{name}.json", CALIBRATION.model_copy(update={"recipe": name}))
    below = "".join(f"  {name}: {{bundle: {name}, calibration: {name}.json}}\n" for name in _NAMES)
    (folder / "station.yaml").write_text(
        f"station: line-1\nsource: {{kind: replay, path: .}}\njournal: journal.db\nrecipe: {_NAMES[0]}\nrecipes:\n{below}"
    )


def crash(folder: Path, run: str, delay_s: float) -> Crash:
    """Start a changer over `write_choices`, kill it `delay_s` after its first change begins, and look."""
    command = [sys.executable, "-c", _CHANGER, str(folder / "station.yaml"), run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent) as process:
        assert process.stdout is not None
        ready = process.stdout.read(1)
        time.sleep(delay_s)
        process.kill()
        done = process.stdout.read().decode()
    if ready != b"." or process.returncode != -9:
        return Crash(0, False, f"the changer ended by itself, with {process.returncode}")
    recipes = load_recipes(folder / "station.yaml")
    first = next(iter(recipes.values()))
    choices = []  # of this run, in order, as the journal has them
    with contextlib.closing(open_for_reading(first.journal)) as connection:
        for content in [json.loads(row.body) for row in walk(connection) if row.kind == EVENT]:
            if content["run"] == run and content["event"] in ("started", "recipe"):
                choices.append(content["details"]["chosen" if content["event"] == "started" else "after"])
    try:
        active = load_active(first.active)
    except StationError as error:
        return Crash(len(done), False, str(error))
    broken = audit(first.journal).broken
    if broken is not None:
        return Crash(len(done), False, broken)
    # change number n is kept, or number n + 1 whose row was written before it was
    kept = choices[0] if active is None else json.loads(active.chosen.model_dump_json())
    allowed = choices[len(done) : len(done) + 2]
    if kept not in allowed:
        names = [choice["recipe"] for choice in allowed]
        return Crash(len(done), False, f"{kept['recipe']} is kept after {len(done)} changes, expected one of {names}")
    config = recipes[kept["recipe"]]
    if (kept["bundle"], kept["calibration_digest"]) != (str(config.bundle), load_calibration(config.calibration).digest):
        return Crash(len(done), False, f"the files kept for {kept['recipe']} are another recipe's")
    return Crash(len(done), kept != allowed[0], None)


def _run(arguments: argparse.Namespace) -> int:
    draw = random.Random(arguments.seed)
    points = 10 if arguments.quick else arguments.points
    crashes = []
    with tempfile.TemporaryDirectory() as name, console.progress("killing") as advance:
        folder = Path(name)
        write_choices(folder)
        for point in range(points):
            crashes.append(crash(folder, f"run-{point}", draw.uniform(0, _LONGEST_S)))
            advance(point + 1, points)
    wrong = [found.wrong for found in crashes if found.wrong is not None]
    for line in wrong:
        console.say(f"WRONG  {line}")
    rows = [
        ("kills", len(crashes)),
        ("changes reported done", sum(found.changes for found in crashes)),
        ("the last one reported is kept", sum(found.wrong is None and not found.ahead for found in crashes)),
        ("the next one is kept, whole", sum(found.ahead for found in crashes)),
        ("choices that were not as they should be", len(wrong)),
    ]
    console.table("kill -9 of a changeover", ("", "count"), rows)
    console.say(f"on {machine()}")
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps([asdict(found) for found in crashes], indent=1) + "\n").encode())
    return console.DONE if not wrong else console.NO


if __name__ == "__main__":
    sys.exit(main())
