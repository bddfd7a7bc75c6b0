"""The sections `drift` and `challenge`: where their files are, which faults they have, and what `edge check` says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.config import ConfigError, load_config, load_recipes
from edge.explain import explain

ONE = "station: s\nbundle: b\ncalibration: c.json\nsource: {kind: replay, path: p}\njournal: j.db\n"
MANY = """\
station: s
source: {kind: replay, path: p}
journal: j.db
recipe: bolt
recipes:
  bolt: {bundle: b, calibration: bolt.json, challenge: of-bolt}
  nut: {bundle: n, calibration: nut.json, challenge: of-nut}
challenge: {every_hours: 8}
drift: {}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "station.yaml"
    path.write_text(text)
    return path


def test_the_reference_is_beside_the_calibration_unless_it_is_named(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, ONE + "drift: {}\n"))
    assert config.drift_reference == tmp_path / "c.drift.json"
    config = load_config(write(tmp_path, ONE + "drift: {reference: light/r.json}\nchallenge: {path: set}\n"))
    assert config.drift_reference == tmp_path / "light/r.json"
    assert config.challenge is not None
    assert config.challenge.path == tmp_path / "set"


def test_drift_stops_the_station_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    drift = load_config(write(tmp_path, ONE + "drift: {}\n")).drift
    assert drift is not None
    assert (drift.on_alarm, drift.reject_run, drift.warning_parts, drift.alarm_parts) == ("stop", 20, 10_000, 100_000)


def test_each_recipe_has_its_own_parts_and_reference(tmp_path: Path) -> None:
    recipes = load_recipes(write(tmp_path, MANY))
    assert {name: config.challenge.path for name, config in recipes.items() if config.challenge} == {
        "bolt": tmp_path / "of-bolt",
        "nut": tmp_path / "of-nut",
    }
    assert recipes["nut"].drift_reference == tmp_path / "nut.drift.json"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (ONE + "drift: {on_alarm: shrug}\n", "station.yaml:6: 'drift.on_alarm' is 'shrug'"),
        (ONE + "drift: {alarm_parts: 10}\n", "station.yaml:6: 'drift' is {'alarm_parts': 10}; expected 1 <= warning_parts"),
        (ONE + "drift: {speed: 1}\n", "station.yaml:6: unknown key 'drift.speed'; expected one of: alarm_parts, on_alarm"),
        (ONE + "challenge: {}\n", "station.yaml:6: key 'challenge.path' is missing: its labelled parts; add it"),
        (ONE + "challenge: {path: x, at_start: false}\n", "station.yaml:6: 'challenge' is"),
        (ONE + "challenge: {path: x, every_hours: 0}\n", "station.yaml:6: 'challenge.every_hours' is 0"),
        (MANY.replace(", challenge: of-nut", ""), "station.yaml:7: recipe nut: key 'challenge' is missing"),
        (MANY.replace("challenge: {every_hours: 8}\n", ""), "station.yaml:6: recipe bolt: key 'challenge' needs the section"),
        (MANY.replace("{every_hours: 8}", "{path: x}"), "station.yaml:8: key 'challenge.path' does not go with 'recipes'"),
        (
            MANY.replace("drift: {}", "drift: {reference: x}"),
            "station.yaml:9: key 'drift.reference' does not go with 'recipes'",
        ),
    ],
)
def test_faults_have_their_line(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_recipes(write(tmp_path, text))
    assert refusal.value.faults[0].removeprefix(f"{tmp_path}/").startswith(fault)


def watched(folder: Path, text: str) -> list[str]:
    topics = {topic.title: list(topic.lines) for topic in explain(load_recipes(write(folder, text)))}
    return topics["Watched"]


def test_check_says_in_words_what_is_watched(tmp_path: Path) -> None:
    said = watched(tmp_path, MANY)
    assert "at an alarm the station is not ready, until a person resets it" in said
    assert "20 rejects in a row are an alarm too" in said
    assert f"nut is measured against {tmp_path}/nut.drift.json" in said
    assert f"nut is challenged with {tmp_path}/of-nut" in said
    assert any(line.startswith("labelled parts, at each start and every 8 h") for line in said)
    assert "at an alarm it is said, and judged on" in watched(tmp_path, ONE + "drift: {on_alarm: warn}\n")


def test_check_says_what_nobody_watches(tmp_path: Path) -> None:
    assert watched(tmp_path, ONE) == [
        "no drift: nobody sees light, focus or parts change; add the section drift",
        "no labelled parts: nobody sees that bad ones pass; add the section challenge",
    ]
