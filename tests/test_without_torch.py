"""The station runs where torch and everything else that only training needs is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import journal_rows, write_station

BLOCKED = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "sklearn",
    "scipy",
    "matplotlib",
    "jinja2",
    "safetensors",
    "pandas",
    "PIL",
)

# None in sys.modules makes every import of that name fail, as if it were not installed
BLOCK = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
"""

IMPORT_ALL = """
import importlib, pkgutil
names = []
for room in ("engines", "calibration", "edge"):
    names.append(room)
    names += [f"{room}.{module.name}" for module in pkgutil.iter_modules(importlib.import_module(room).__path__)]
for name in names:
    importlib.import_module(name)
assert not [name for name in sys.modules if name == "train" or name.startswith("train.")]
print(len(names))
"""

RUN_DOOR = """
import importlib
sys.exit(importlib.import_module(sys.argv[2] + ".__main__").main(sys.argv[3:]))
"""


def without(code: str, *arguments: str, blocked: tuple[str, ...] = BLOCKED) -> subprocess.CompletedProcess[str]:
    """Run code in a process that cannot import `blocked`."""
    command = [sys.executable, "-c", BLOCK + code, ",".join(blocked), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_block_blocks() -> None:
    done = without("import onnx")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def test_every_module_of_the_three_rooms_imports() -> None:
    done = without(IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 25


def test_the_doors_work_from_end_to_end(tmp_path: Path) -> None:
    write_station(tmp_path)
    where = ["--bundle", str(tmp_path / "bundle")]
    record = str(tmp_path / "new.json")
    fit = ["fit", *where, "--images", str(tmp_path / "parts"), "--station", "line-1", "--false-reject", "0.3", "--out", record]
    replay = ["replay", *where, "--calibration", record, "--images", str(tmp_path / "parts"), "--deadline-ms", "60000"]
    for room, argv in (
        ("engines", ["verify", *where]),
        ("calibration", fit),
        ("edge", replay),
        ("edge", ["check", "--config", str(tmp_path / "station.yaml")]),
        ("edge", ["run", "--config", str(tmp_path / "station.yaml")]),
        ("edge", ["audit", "--journal", str(tmp_path / "journal.db")]),
    ):
        done = without(RUN_DOOR, room, *argv)
        assert done.returncode == 0, (room, argv, done.stdout, done.stderr)
    assert sum(row["kind"] == "part" for row in journal_rows(tmp_path / "journal.db")) == 8


@pytest.mark.parametrize("room", ["engines", "calibration", "edge"])
def test_the_help_needs_no_inference_runtime(room: str) -> None:
    done = without(RUN_DOOR, room, "--help", blocked=(*BLOCKED, "onnxruntime"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_a_runtime_that_is_not_installed_is_one_line(tmp_path: Path) -> None:
    write_station(tmp_path)
    done = without(RUN_DOOR, "edge", "run", "--config", str(tmp_path / "station.yaml"), blocked=(*BLOCKED, "onnxruntime"))
    assert done.returncode == 2
    assert "ONNX Runtime cannot be imported" in done.stderr
    assert "Traceback" not in done.stderr
