"""Recipes in `station.yaml`: both forms give one list, each recipe is the whole station, and faults have their line."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.camera_sections import CameraSource
from edge.config import ConfigError, load_config, load_recipes, rejector_setup
from edge.lines import LineSpec

MANY = """\
station: line-1
source: {kind: camera, device: 0}
deadline_ms: 250
rejector:
  kind: gpio
  lines: {reject: 7, trigger: 11}
  travel_ms: 400
  pulse_ms: 20
  separation_ms: 10
  recipe_lines: [20, {line: 21, active: low}]
recipe: bolt
recipes:
  gasket:
    bundle: bundles/gasket
    calibration: gasket.json
    deadline_ms: 300
    code: 1
    rejector: {travel_ms: 500, pulse_ms: 30, separation_ms: 0}
  bolt:
    bundle: bundles/bolt
    calibration: bolt.json
    code: 2
journal: logs/journal.db
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good configuration of two recipes."""
    (tmp_path / "station.yaml").write_text(MANY)
    return tmp_path / "station.yaml"


def faults_of(path: Path, text: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        load_recipes(path)
    return [fault.removeprefix(f"{path.parent}/") for fault in refusal.value.faults]


def test_each_recipe_is_the_whole_station_and_the_one_to_start_with_is_first(path: Path) -> None:
    recipes = load_recipes(path)
    assert list(recipes) == ["bolt", "gasket"]
    assert load_config(path) == recipes["bolt"]
    bolt, gasket = recipes["bolt"], recipes["gasket"]
    assert (bolt.recipe, bolt.bundle, bolt.calibration) == ("bolt", path.parent / "bundles/bolt", path.parent / "bolt.json")
    assert (gasket.recipe, gasket.bundle, gasket.code) == ("gasket", path.parent / "bundles/gasket", 1)
    assert (bolt.deadline_ms, gasket.deadline_ms) == (250, 300)
    timing = {name: rejector_setup(config).settings for name, config in recipes.items()}
    assert [timing["bolt"].travel, timing["bolt"].pulse, timing["bolt"].separation] == [400e6, 20e6, 10e6]
    assert [timing["gasket"].travel, timing["gasket"].pulse, timing["gasket"].separation] == [500e6, 30e6, 0]
    assert [timing["bolt"].deadline_ns, timing["gasket"].deadline_ns] == [250e6, 300e6]
    # all else is the same
    same = {"recipe", "bundle", "calibration", "code", "deadline_ms", "rejector"}
    assert bolt.model_dump(exclude=same) == gasket.model_dump(exclude=same)
    assert bolt.active == gasket.active == path.parent / "logs" / "journal-active.json"


def test_the_short_form_is_one_recipe_named_after_the_bundle_or_as_it_says(path: Path) -> None:
    short = "station: s\nbundle: bundles/carpet\ncalibration: c.json\nsource: {kind: replay, path: p}\njournal: j.db\n"
    path.write_text(short)
    assert {name: config.recipe for name, config in load_recipes(path).items()} == {"carpet": "carpet"}
    path.write_text(short + "recipe: red carpet\n")
    assert list(load_recipes(path)) == ["red carpet"]


def test_recipe_lines_are_lines_like_others_and_settle_or_strobe(path: Path) -> None:
    setup = rejector_setup(load_config(path))
    assert setup.settle_ns == 50e6
    assert setup.lines[2:] == (
        LineSpec("code-0", False, "/dev/gpiochip0", 20),
        LineSpec("code-1", False, "/dev/gpiochip0", 21, active_low=True),
    )
    path.write_text(MANY.replace("21, active: low}]", "21}]\n  recipe_strobe: 22"))
    setup = rejector_setup(load_config(path))
    assert setup.settle_ns is None
    assert setup.lines[-1] == LineSpec("strobe", False, "/dev/gpiochip0", 22)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("recipe: bolt", "recipe: nut", "station.yaml:11: 'recipe' is 'nut'; expected one of: gasket, bolt"),
        ("recipe: bolt\n", "", "station.yaml:1: key 'recipe' is missing; add it"),
        (
            "deadline_ms: 300",
            "deadline: 300",
            "station.yaml:16: unknown key 'recipes.gasket.deadline'; expected one of: bundle",
        ),
        ("    bundle: bundles/bolt\n", "", "station.yaml:19: key 'recipes.bolt.bundle' is missing; add it"),
        ("deadline_ms: 300", "deadline_ms: fast", "station.yaml:16: 'recipes.gasket.deadline_ms' is 'fast'; "),
        ("{travel_ms: 500,", "{lines: 7,", "station.yaml:18: unknown key 'recipes.gasket.rejector.lines'; expected one of"),
        ("{travel_ms: 500,", "{travel_ms: 299,", "station.yaml:18: recipe gasket: the deadline of 300 ms is after the part's"),
        ("{travel_ms: 500,", "{travel_pulses: 5,", "station.yaml:18: recipe gasket: key 'rejector.travel_pulses' does not go"),
        ("journal: logs", "bundle: b\njournal: logs", "station.yaml:23: key 'bundle' does not go with 'recipes'"),
        ("journal: logs", "kode: 3\njournal: logs", "station.yaml:23: unknown key 'kode'; expected one of: backend, bundle"),
        ("code: 2", "code: 1", "station.yaml:19: recipe bolt: code 1 is also that of recipe gasket; give each its own"),
        ("code: 2", "code: 4", "station.yaml:19: recipe bolt: code is 4, expected 0 to 3 for 2 recipe_lines"),
        ("    code: 2\n", "", "station.yaml:19: recipe bolt: code is None, expected 0 to 3"),
        (
            "[20, {line: 21, active: low}]",
            "[20, 20]",
            "station.yaml:18: recipe gasket: lines 'code-0' and 'code-1' are both 20",
        ),
        (
            "  recipe_lines: [20, {line: 21, active: low}]\n",
            "",
            "station.yaml:17: recipe gasket: code 1 can't be given by any line",
        ),
        ("recipes:\n", "recipes: {}\nmore:\n", "station.yaml:12: 'recipes' is {}"),
        (
            "    code: 2\n",
            "    code: 2\n    source: {gain: 4, white_balance: {kelvin: 4600}}\n",
            "station.yaml:13: recipe gasket does not give source.gain, source.white_balance, source.white_balance.kelvin, which"
            " bolt does, and a camera keeps what it was last told; give it in each recipe, or at the top",
        ),
        (
            "    code: 2\n",
            "    code: 2\n    source: {device: 1}\n",
            "station.yaml:23: unknown key 'recipes.bolt.source.device'; ",
        ),
        ("    code: 2\n", "    code: 2\n    source: {gain: -1}\n", "station.yaml:23: 'recipes.bolt.source.gain' is -1; "),
    ],
)
def test_faults_have_their_line(path: Path, old: str, new: str, fault: str) -> None:
    assert old in MANY
    found = faults_of(path, MANY.replace(old, new))
    assert [line for line in found if line.startswith(fault)], found


def with_cameras(top: str, gasket: str, bolt: str) -> str:
    text = MANY.replace("{kind: camera, device: 0}", f"{{kind: camera, device: 0{top}}}")
    return text.replace("    code: 1\n", f"    code: 1\n    source: {{{gasket}}}\n").replace(
        "    code: 2\n", f"    code: 2\n    source: {{{bolt}}}\n"
    )


def test_a_recipe_has_its_own_camera_settings_and_otherwise_those_of_the_top(path: Path) -> None:
    balances = "white_balance: {kelvin: 4000}", "white_balance: {kelvin: 5000}"
    path.write_text(with_cameras(", exposure_us: 800, rotation: 90", f"exposure_us: 500, {balances[0]}", balances[1]))
    recipes = load_recipes(path)
    found = []
    for name in ("gasket", "bolt"):
        source = recipes[name].source
        assert isinstance(source, CameraSource)
        assert source.white_balance is not None
        found.append((source.device, source.rotation, source.exposure_us, source.white_balance.kelvin, source.gain))
    assert found == [(0, 90, 500, 4000, None), (0, 90, 800, 5000, None)]


def test_of_a_white_balance_each_colour_is_given_by_all_recipes(path: Path) -> None:
    red, both = "white_balance: {red: 1.5}", "white_balance: {red: 1.5, blue: 2}"
    (fault,) = faults_of(path, with_cameras("", red, both))
    assert fault.startswith("station.yaml:13: recipe gasket does not give source.white_balance.blue, which bolt does")


def test_a_replay_and_a_presence_test_take_no_settings_of_recipes(path: Path) -> None:
    text = with_cameras("", "gain: 1", "gain: 2")
    (fault,) = faults_of(path, text.replace("{kind: camera, device: 0}", "{kind: replay, path: parts}"))
    assert fault == "station.yaml:18: recipe gasket: a source of kind replay has no camera settings; remove gain"
    text = text.replace(", trigger: 11", "") + "trigger: {kind: presence, empty: empty.npz}\n"
    text = text.replace("device: 0", "device: 0, timeout_ms: 50")
    (fault,) = faults_of(path, text)
    assert fault.startswith("station.yaml:18: recipe gasket: a trigger of kind presence knows its empty scene as one setting")
    assert fault.endswith("give gain at the top, for all recipes")


def test_a_dry_run_takes_no_distances_in_pulses(path: Path) -> None:
    text = MANY[: MANY.index("rejector:\n  kind")] + "rejector: {kind: dry-run}\n" + MANY[MANY.index("recipe: bolt") :]
    text = text.replace("    code: 1\n", "").replace("    code: 2\n", "")
    path.write_text(text)
    assert rejector_setup(load_recipes(path)["gasket"]).settings.travel == 500e6
    (fault,) = faults_of(path, text.replace("{travel_ms: 500,", "{travel_pulses: 5, travel_ms: 500,"))
    assert "recipe gasket: travel_pulses in a recipe, which a rejector of kind dry-run does not have" in fault


def test_a_strobe_without_lines_is_refused(path: Path) -> None:
    text = MANY.replace("  recipe_lines: [20, {line: 21, active: low}]\n", "  recipe_strobe: 22\n")
    assert any("'rejector.recipe_strobe' needs 'rejector.recipe_lines'" in fault for fault in faults_of(path, text))
