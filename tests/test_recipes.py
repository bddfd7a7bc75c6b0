"""Recipes that are open: verified before they may judge, kept while there is room, and never an old version as a new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from calibration.record import save_calibration
from edge import StationError
from edge.config import load_recipes
from edge.judge import Judge
from edge.recipes import Loaded, SelfTestError, Shelf, memory_is_free, open_recipe
from edge.sections import StationConfig
from engines import InspectionError
from engines.bundle import load_bundle
from engines.inspector import Inspector
from tests.fakes import flat, tiny_calibration, write_recipes


class Spy:
    """Opens recipes that are none, and remembers which were opened and closed."""

    def __init__(self, config: StationConfig) -> None:
        self.config = config
        self.closed = False

    fault = ""

    def score(self, image: object, timeout_s: float) -> float:
        raise AssertionError("nothing is scored here")

    def close(self) -> None:
        self.closed = True


class Opener:
    def __init__(self) -> None:
        self.spies: list[Spy] = []

    def __call__(self, config: StationConfig) -> Loaded:
        self.spies.append(Spy(config))
        return Standing(config, "d" * 64, 1.0, Judge(config.recipe, self.spies[-1], tiny_calibration()))  # type: ignore[arg-type]

    @property
    def open(self) -> list[str]:
        return [spy.config.recipe for spy in self.spies if not spy.closed]


class Standing(Loaded):
    changed: frozenset[str] = frozenset()

    def stands(self) -> bool:
        return self.config.recipe not in Standing.changed


@pytest.fixture
def configs(tmp_path: Path) -> dict[str, StationConfig]:
    names = "abcd"
    below = "".join(f"  {name}: {{bundle: {name}, calibration: {name}.json}}\n" for name in names)
    text = f"station: s\nsource: {{kind: replay, path: p}}\njournal: j.db\nrecipe: a\nrecipes:\n{below}"
    (tmp_path / "station.yaml").write_text(text)
    return load_recipes(tmp_path / "station.yaml")


def test_a_recipe_is_opened_once(configs: dict[str, StationConfig]) -> None:
    opener = Opener()
    shelf = Shelf(opener, keep=2)
    assert shelf.take(configs["a"]).judge is shelf.take(configs["a"]).judge
    assert opener.open == ["a"]


def test_another_timing_needs_no_other_inspector_and_is_taken(configs: dict[str, StationConfig]) -> None:
    opener = Opener()
    shelf = Shelf(opener, keep=2)
    first = shelf.take(configs["a"])
    second = shelf.take(configs["a"].model_copy(update={"deadline_ms": 77.0}))
    assert second.judge is first.judge
    assert (second.config.deadline_ms, opener.open, len(shelf.loaded)) == (77.0, ["a"], 1)
    shelf.take(configs["a"].model_copy(update={"precision": "fp16"}))
    assert opener.open == ["a", "a"]


def test_a_new_version_is_opened_beside_the_old_one_which_goes_when_nobody_needs_it(
    configs: dict[str, StationConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    opener = Opener()
    shelf = Shelf(opener, keep=4)
    old = shelf.take(configs["a"])
    monkeypatch.setattr(Standing, "changed", frozenset("a"))
    new = shelf.take(configs["a"])
    assert new is not old
    assert opener.open == ["a", "a"]
    monkeypatch.setattr(Standing, "changed", frozenset())
    shelf.trim(new)
    assert opener.open == ["a", "a"]
    monkeypatch.setattr(Standing, "changed", frozenset("a"))
    shelf.trim(new)
    assert [spy.closed for spy in opener.spies] == [True, False]


def test_the_one_not_used_for_longest_goes_and_never_the_one_in_force(configs: dict[str, StationConfig]) -> None:
    opener = Opener()
    shelf = Shelf(opener, keep=2)
    first = shelf.take(configs["a"])
    for name in "bcd":
        shelf.take(configs[name])
    shelf.trim(first)
    assert opener.open == ["a", "d"]
    shelf = Shelf(opener := Opener(), keep=1)
    first = shelf.take(configs["a"])
    shelf.take(configs["b"])
    shelf.trim(first)
    assert opener.open == ["a"]


def room_for(opener: Opener, count: int) -> Callable[[], bool]:
    return lambda: len(opener.open) < count


def test_without_a_number_the_machine_s_memory_says_how_many_stay(configs: dict[str, StationConfig]) -> None:
    opener = Opener()
    shelf = Shelf(opener, None, room_for(opener, 3))
    first = shelf.take(configs["a"])
    shelf.fill([configs[name] for name in "bcd"], lambda config, error: None)
    assert opener.open == ["a", "b", "c"]
    shelf.take(configs["d"])
    shelf.trim(first)
    assert opener.open == ["a", "d"]


def test_filling_passes_over_what_cannot_be_opened_and_says_so(configs: dict[str, StationConfig]) -> None:
    opener, said = Opener(), []

    def open_one(config: StationConfig) -> Loaded:
        if config.recipe == "b":
            raise StationError("damaged")
        return opener(config)

    shelf = Shelf(open_one, keep=3)
    shelf.take(configs["a"])
    shelf.fill([configs[name] for name in "bcd"], lambda config, error: said.append((config.recipe, str(error))))
    assert opener.open == ["a", "c", "d"]
    assert said == [("b", "damaged")]


def test_closing_closes_all(configs: dict[str, StationConfig]) -> None:
    opener = Opener()
    shelf = Shelf(opener, keep=4)
    for name in "abc":
        shelf.take(configs[name])
    shelf.close()
    shelf.close()
    assert opener.open == []


def test_a_quarter_of_the_memory_stays_free(tmp_path: Path) -> None:
    for available, free in ((250, True), (249, False)):
        (tmp_path / "meminfo").write_text(f"MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:   {available} kB\n")
        assert memory_is_free(tmp_path / "meminfo") is free
    assert memory_is_free() in (True, False)


# with real bundles


def test_an_opened_recipe_scores_as_its_bundle_does_and_knows_its_files(tmp_path: Path) -> None:
    config = load_recipes(write_recipes(tmp_path))["bolt"]
    loaded = open_recipe(config)
    try:
        with Inspector(load_bundle(config.bundle), threads=1) as inspector:
            assert loaded.judge.scorer.score(flat(60), 60.0).value == inspector.score(flat(60)).value
        assert (loaded.bundle_digest, loaded.judge.name) == (load_bundle(config.bundle).digest, "bolt")
        assert loaded.stands()
        save_calibration(config.calibration, loaded.calibration.model_copy(update={"who": "somebody else"}))
        assert not loaded.stands()
        save_calibration(config.calibration, loaded.calibration)
        assert loaded.stands()
        (config.bundle / "manifest.json").unlink()
        assert not loaded.stands()
    finally:
        loaded.judge.scorer.close()


def test_a_calibration_of_another_bundle_is_refused(tmp_path: Path) -> None:
    recipes = load_recipes(write_recipes(tmp_path))
    config = recipes["bolt"].model_copy(update={"calibration": recipes["gasket"].calibration})
    with pytest.raises(StationError, match="calibration is for bundle"):
        open_recipe(config)


def test_golden_images_that_score_otherwise_are_refused_by_a_name_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_recipes(write_recipes(tmp_path, golden_off={"bolt"}))["bolt"]
    with pytest.raises(SelfTestError, match="does not score as the bundle says"):
        open_recipe(config)
    closed: list[object] = []
    real = Inspector.close
    monkeypatch.setattr(Inspector, "close", lambda self: (closed.append(self), real(self))[1])
    with pytest.raises(InspectionError):
        open_recipe(config)
    assert len(closed) == 1


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    config = load_recipes(write_recipes(tmp_path))["bolt"]
    data = (config.bundle / "bank.npz").read_bytes()
    (config.bundle / "bank.npz").write_bytes(data[:-1])
    with pytest.raises(InspectionError, match=r"bank\.npz: damaged"):
        open_recipe(config)
