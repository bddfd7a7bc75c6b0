"""What was chosen survives as it was, or is refused: nothing is judged by what nobody chose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge import StationError
from edge.active import Active, Chosen, check_chosen, choose, config_of, config_to_start, configured, load_active, save_active
from edge.config import load_recipes
from edge.sections import StationConfig
from engines import EngineError
from tests.fakes import tiny_calibration

TWO = """\
station: line-1
source: {kind: replay, path: parts}
recipe: gasket
recipes:
  gasket: {bundle: b/gasket, calibration: gasket.json}
  bolt: {bundle: b/bolt, calibration: bolt.json, deadline_ms: 300}
journal: journal.db
"""


@pytest.fixture
def recipes(tmp_path: Path) -> dict[str, StationConfig]:
    (tmp_path / "station.yaml").write_text(TWO)
    return load_recipes(tmp_path / "station.yaml")


def chosen(config: StationConfig, digest: str = "a" * 64) -> Chosen:
    return choose(config, digest, tiny_calibration(), configured(config), who="Ada", why="order 7")


def test_what_is_written_comes_back(tmp_path: Path, recipes: dict[str, StationConfig]) -> None:
    active = Active(chosen=chosen(recipes["bolt"]), before=chosen(recipes["gasket"]))
    save_active(tmp_path / "active.json", active)
    assert load_active(tmp_path / "active.json") == active
    assert active.chosen.bundle == tmp_path / "b/bolt"
    assert str(active.chosen) == f"bolt (bundle aaaaaaaaaaaa, calibration {tiny_calibration().digest[:12]})"


def test_none_is_where_nothing_was_ever_chosen(tmp_path: Path) -> None:
    assert load_active(tmp_path / "active.json") is None


def test_every_changed_byte_is_refused(tmp_path: Path, recipes: dict[str, StationConfig]) -> None:
    path = tmp_path / "active.json"
    active = Active(chosen=chosen(recipes["bolt"]))
    save_active(path, active)
    good = path.read_bytes()
    for at in range(0, len(good) - 1, 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        if good[at : at + 1].isspace():
            continue
        with pytest.raises(StationError, match=r"edge recipe --config FILE NAME"):
            load_active(path)
    for cut in range(0, len(good) - 2, 5):
        path.write_bytes(good[:cut])
        with pytest.raises(StationError, match=r"damaged"):
            load_active(path)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "7", '{"schema_version": 1}', "\x00\xff", '{"schema_version": 2}', "[" * 9999]
)
def test_what_is_no_choice_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "active.json").write_text(text)
    with pytest.raises(StationError, match=r"choose a recipe with"):
        load_active(tmp_path / "active.json")


def test_a_choice_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, recipes: dict[str, StationConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "active.json"
    old = Active(chosen=chosen(recipes["gasket"]))
    save_active(path, old)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EngineError, match=r"free some space"):
        save_active(path, Active(chosen=chosen(recipes["bolt"])))
    assert load_active(path) == old


def test_it_starts_with_what_was_chosen_last(recipes: dict[str, StationConfig]) -> None:
    assert config_to_start(None, recipes) == recipes["gasket"]
    assert config_to_start(Active(chosen=chosen(recipes["bolt"])), recipes) == recipes["bolt"]


def test_after_a_rollback_it_starts_with_the_older_version_that_was_chosen(
    tmp_path: Path, recipes: dict[str, StationConfig]
) -> None:
    older = chosen(recipes["bolt"]).model_copy(update={"bundle": tmp_path / "old" / "bolt"})
    config = config_to_start(Active(chosen=older), recipes)
    assert config == recipes["bolt"].model_copy(update={"bundle": tmp_path / "old" / "bolt"})
    assert config_of(older, recipes) == config


def test_other_files_in_the_configuration_than_when_it_was_chosen_are_refused(
    tmp_path: Path, recipes: dict[str, StationConfig]
) -> None:
    active = Active(chosen=chosen(recipes["bolt"]))
    (tmp_path / "station.yaml").write_text(TWO.replace("b/bolt", "b/bolt-2"))
    with pytest.raises(StationError, match=r"names .*b/bolt-2 .*, which were .*b/bolt and .* when Ada chose it"):
        config_to_start(active, load_recipes(tmp_path / "station.yaml"))


def test_a_recipe_that_is_not_there_any_more_is_refused(recipes: dict[str, StationConfig]) -> None:
    active = Active(chosen=chosen(recipes["bolt"]))
    with pytest.raises(StationError, match=r"recipe bolt was chosen by Ada, .*, and the configuration has gasket; choose"):
        config_to_start(active, {"gasket": recipes["gasket"]})


def test_other_files_than_were_chosen_are_refused(recipes: dict[str, StationConfig]) -> None:
    choice = chosen(recipes["bolt"])
    check_chosen(choice, "a" * 64, tiny_calibration())
    with pytest.raises(StationError, match=r"b/bolt: another one \(bbbbbbbbbbbb\) than Ada chose, .* \(aaaaaaaaaaaa\)"):
        check_chosen(choice, "b" * 64, tiny_calibration())
    with pytest.raises(StationError, match=r"bolt.json: another one"):
        check_chosen(choice, "a" * 64, tiny_calibration(threshold=2))


def test_a_newer_schema_is_refused(tmp_path: Path, recipes: dict[str, StationConfig]) -> None:
    path = tmp_path / "active.json"
    save_active(path, Active(chosen=chosen(recipes["bolt"])))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 2}))
    with pytest.raises(StationError, match=r"schema 2, expected 1"):
        load_active(path)
