"""The writer of `benchmarks` that changes recipes: what its check takes for wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.writers import check
from benchmarks.writers_recipe import write_recipe
from edge.active import Active, load_active, save_active

ROUNDS = 3
CHOICE = "journal-active.json"


@pytest.fixture
def station(tmp_path: Path) -> Path:
    """A station's folder after three changes, and beside it copies of what it was after none, one, two and three."""
    folder = tmp_path / "station"
    folder.mkdir()

    def rounds() -> Iterator[int]:
        for number in range(1, ROUNDS + 1):
            yield number
            shutil.copytree(folder, tmp_path / f"after-{number}")

    write_recipe(folder, iter(()))
    shutil.copytree(folder, tmp_path / "after-0")
    shutil.rmtree(folder)
    write_recipe(folder, rounds())
    return folder


def mix(station: Path, choice: int, others: int) -> None:
    """The choice as it was after so many changes, and all other files as they were after so many others."""
    shutil.rmtree(station)
    shutil.copytree(station.with_name(f"after-{others}"), station)
    (station / CHOICE).unlink(missing_ok=True)
    kept = station.with_name(f"after-{choice}") / CHOICE
    if kept.exists():
        shutil.copy(kept, station)


@pytest.mark.parametrize(
    ("choice", "journal", "begun", "acked", "wrong"),
    [
        (0, 0, 0, 0, None),
        (0, 1, 1, 0, None),
        (3, 3, 3, 3, None),
        (3, 3, 3, 2, None),
        (2, 3, 3, 2, None),
        (0, 1, 1, 1, "change 0 is kept, of 1 in the journal, 1 begun and 1 done"),
        (2, 3, 3, 3, "change 2 is kept, of 3 in the journal, 3 begun and 3 done"),
        (1, 3, 3, 1, "change 1 is kept, of 3 in the journal, 3 begun and 1 done"),
        (3, 3, 2, 2, "change 3 is kept, of 3 in the journal, 2 begun and 2 done"),
        (1, 0, 1, 0, "change 1 is kept, which is none of the 0 changes in the journal"),
        (3, 2, 3, 2, "change 3 is kept, which is none of the 2 changes in the journal"),
    ],
)
def test_a_choice_older_than_what_was_done_or_newer_than_the_journal_is_wrong(
    choice: int, journal: int, begun: int, acked: int, wrong: str | None, station: Path
) -> None:
    mix(station, choice, journal)
    found = check("recipe", station, begun, acked)
    assert found == wrong if wrong is None else found is not None and found.endswith(wrong)


def test_a_choice_that_is_not_whole_is_wrong(station: Path) -> None:
    (station / CHOICE).write_bytes((station / CHOICE).read_bytes()[:512])
    assert "does not start again: StationError" in str(check("recipe", station, ROUNDS, ROUNDS))


def changed(active: Active, **fields: object) -> Active:
    return active.model_copy(update={"chosen": active.chosen.model_copy(update=fields)})


def test_a_choice_with_the_other_recipes_files_is_wrong(station: Path) -> None:
    active = load_active(station / CHOICE)
    assert active is not None
    assert active.before is not None
    other = active.before
    save_active(station / CHOICE, changed(active, bundle=other.bundle))
    assert "another one" in str(check("recipe", station, ROUNDS, ROUNDS))
    save_active(station / CHOICE, changed(active, bundle=other.bundle, bundle_digest=other.bundle_digest))
    assert "none of the 3 changes" in str(check("recipe", station, ROUNDS, ROUNDS))


def test_a_choice_with_another_one_before_it_is_wrong(station: Path) -> None:
    active = load_active(station / CHOICE)
    assert active is not None
    save_active(station / CHOICE, active.model_copy(update={"before": active.chosen}))
    assert "none of the 3 changes" in str(check("recipe", station, ROUNDS, ROUNDS))
