"""The power is cut, on the model of a disk, while a station writes; and mistakes that would cost data are found out."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import benchmarks.power_loss as door
from benchmarks.power_loss import MUTATIONS, Found, cut_power
from benchmarks.strace import DiskError
from benchmarks.writers import WRITERS, check


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder, in memory where there is some: disks are built in it. Skips where processes cannot be traced."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("strace may not trace here")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize("writer", WRITERS)
def test_after_a_power_cut_the_station_starts_again_and_what_was_promised_is_there(writer: str, memory: Path) -> None:
    found = cut_power(writer, memory, rounds=2, every=5)
    assert (found.wrong, found.first) == (0, ())
    assert found.cuts >= 3
    assert found.states >= 1


@pytest.mark.parametrize(("writer", "mutant"), MUTATIONS)
def test_a_program_that_does_not_sync_is_found_out(writer: str, mutant: str, memory: Path) -> None:
    assert cut_power(writer, memory, rounds=2, mutant=mutant, every=3).wrong > 0


@pytest.mark.parametrize("writer", WRITERS)
def test_an_empty_disk_is_wrong_once_something_was_promised_and_not_before(writer: str, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "lost").mkdir()
    assert check(writer, tmp_path / "new", 0, 0) is None
    if writer != "evidence":  # a picture is promised by its row alone
        assert check(writer, tmp_path / "lost", 2, 2) is not None


@pytest.mark.parametrize(
    ("mutant", "wrong", "code"), [(None, 0, 0), (None, 1, 1), ("without fsync", 0, 1), ("without fsync", 1, 0)]
)
def test_the_door_ends_with_1_where_something_is_wrong_or_a_mistake_is_not_found_out(
    mutant: str | None,
    wrong: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def cut(writer: str, folder: Path, rounds: int, made: str | None = None, every: int = 1) -> Found:
        count = wrong if made == mutant else int(made is not None)
        return Found(writer, made, 5, 6, 7, count, ("half of it",) * count)

    monkeypatch.setattr(door, "cut_power", cut)
    monkeypatch.setattr(door, "MUTATIONS", (("calibration", "without fsync"),))
    assert door.main(["--writers", "calibration", "--json", str(tmp_path / "figures.json")]) == code
    assert len(json.loads((tmp_path / "figures.json").read_text())) == 2
    assert ("WRONG" in capsys.readouterr().out) == (code == 1)


def test_no_strace_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_arguments: object, **_options: object) -> Found:
        raise DiskError("strace is not installed; apt-get install strace")

    monkeypatch.setattr(door, "cut_power", refuse)
    assert door.main(["--writers", "calibration"]) == 2
    assert "apt-get install strace" in capsys.readouterr().err
