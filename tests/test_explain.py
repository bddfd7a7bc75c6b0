"""What `edge check` says a configuration would do: each line of the file in words, with its figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.record import load_calibration, save_calibration
from edge.__main__ import main
from edge.active import Active, choose, configured, save_active
from edge.config import line_specs, load_recipes
from edge.explain import Span, draw, explain
from edge.sections import Gpio, LinesSection
from engines.bundle import bundle_digest
from tests.fakes import tiny_calibration, write_recipes, write_tiny_recipe

WIRED = """\
station: line-1
source: {kind: camera, device: 0}
deadline_ms: 250
rejector:
  kind: gpio
  lines:
    reject: 7
    ready: 8
    fault: {line: 9, active: low}
    heartbeat: 10
    trigger: {line: 11, bias: pull-up, active: low, debounce_ms: 1.5}
    confirm: 12
    exit: 13
  recipe_lines: [20, 21]
  recipe_strobe: 22
  travel_ms: 400
  pulse_ms: 20
  separation_ms: 10
  exit_ms: 300
  confirm_ms: 200
recipe: bolt
recipes:
  gasket: {bundle: bundles/gasket, calibration: gasket.json, code: 1, deadline_ms: 300, rejector: {travel_ms: 500}}
  bolt: {bundle: bundles/bolt, calibration: bolt.json, code: 2}
journal: journal.db
evidence: {quota_mb: 500, every: 0}
"""


def topics(folder: Path, text: str) -> dict[str, list[str]]:
    (folder / "station.yaml").write_text(text)
    return {topic.title: list(topic.lines) for topic in explain(load_recipes(folder / "station.yaml"))}


def test_every_line_has_its_place_and_the_meaning_of_both_levels(tmp_path: Path) -> None:
    said = topics(tmp_path, WIRED)["Lines"]
    at = said.index("reject: output 7 of /dev/gpiochip0")
    assert said[at + 1] == "    high  lets parts pass"
    assert said[at + 2].startswith("    low   rejects, and so does a station without power")
    at = said.index("trigger: input 11 of /dev/gpiochip0, bias pull-up, debounced for 1.5 ms")
    assert said[at + 1] == "    low   a part is there: the change to this is the trigger"
    at = said.index("fault: output 9 of /dev/gpiochip0")
    assert said[at + 1 : at + 3] == ["    low   the station stopped itself", "    high  no fault, or no program"]
    at = said.index("code-1: input 21 of /dev/gpiochip0")
    assert said[at + 1] == "    high  counts 2 in the recipe's code"


def test_every_line_that_a_configuration_can_name_is_described(tmp_path: Path) -> None:
    text = WIRED.replace("    exit: 13\n", "    exit: 13\n    encoder: 14\n")
    text = text.replace("travel_ms: 400", "travel_pulses: 80").replace("pulse_ms: 20", "pulse_pulses: 4")
    text = text.replace("separation_ms: 10", "separation_pulses: 2").replace("exit_ms: 300", "exit_pulses: 60")
    text = text.replace(", rejector: {travel_ms: 500}", ", rejector: {travel_pulses: 100}")
    said = topics(tmp_path, text)
    rejector = next(iter(load_recipes(tmp_path / "station.yaml").values())).rejector
    assert isinstance(rejector, Gpio)
    names = [spec.name for spec in line_specs(rejector)]
    assert {*LinesSection.model_fields} < {*names}
    for name in names:
        assert [line for line in said["Lines"] if line.startswith(f"{name}: ")], name
    assert "a PASS counts until 250 ms after the trigger, and before the part is at the ejector" in said["Timing of bolt"]
    assert any(line.endswith("80 to 84 pulses  rejected, unless a PASS came") for line in said["Timing of bolt"])
    assert any("100 to 104 pulses" in line for line in said["Timing of gasket"])


def test_the_time_line_is_to_scale(tmp_path: Path) -> None:
    said = topics(tmp_path, WIRED)
    assert said["Timing of bolt"][:5] == [
        "trigger  ||                                               |  0 ms           the part is seen",
        "verdict  |====================                            |  0 to 250 ms    a PASS that comes later does not count",
        "exit     |                      ==                        |  295 to 305 ms"
        "  the exit sensor sees it; one unannounced is rejected",
        "ejector  |                              ===               |  400 to 420 ms  rejected, unless a PASS came",
        "confirm  |                              ==================|  400 to 620 ms  the sensor must see a rejected part",
    ]
    assert "parts whose windows are no more than 10 ms apart are rejected together" in said["Timing of bolt"]
    assert any(line.startswith("verdict") and "0 to 300 ms" in line for line in said["Timing of gasket"])


def test_a_bar_is_never_empty_and_ends_where_the_axis_does() -> None:
    lines = draw([Span("a", 0, 0, "x"), Span("bb", 999, 1000, "y"), Span("c", 1000, 1000, "z")], "ms")
    bars = [line.split("|", 1)[1].rsplit("|  ", 1)[0] for line in lines]
    assert [len(bar) for bar in bars] == [48] * 3
    assert [bar.strip() for bar in bars] == ["|", "=", "|"]
    assert bars[1].rstrip() == bars[1]


def test_a_recipe_is_said_with_its_threshold_n_and_rate(tmp_path: Path) -> None:
    (tmp_path / "station.yaml").write_text(WIRED)
    save_calibration(tmp_path / "bolt.json", tiny_calibration(1.25))
    said = topics(tmp_path, WIRED)
    assert list(said)[3] == "Recipe bolt"  # the one that it starts with
    assert any("made 2024-01-01T00:00:00+00:00 by test for bundle bbbbbbbbbbbb" in line for line in said["Recipe bolt"])
    assert any("threshold 1.25, conformal from 99 parts" in line for line in said["Recipe bolt"])
    assert any("1 % of good parts or fewer are rejected: on average" in line for line in said["Recipe bolt"])
    assert any("gasket.json: cannot be used, see below" in line for line in said["Recipe gasket"])
    assert "asked for by code 2 on the recipe lines" in said["Recipe bolt"]


def test_camera_settings_are_said_once_or_with_each_recipe_that_has_its_own(tmp_path: Path) -> None:
    text = WIRED.replace("device: 0}", "device: 0, gain: 2, exposure_us: 800}")
    same = topics(tmp_path, text)
    assert "exposure_us: 800.0" in same["Pictures"]
    assert not any("told" in line for line in same["Recipe bolt"])
    bolt = "calibration: bolt.json,"
    assert bolt in text
    said = topics(tmp_path, text.replace(bolt, f"{bolt} source: {{exposure_us: 300}},"))
    assert "gain: 2.0" in said["Pictures"]
    assert "exposure_us: as each recipe says; the camera is opened again at a change" in said["Pictures"]
    assert "camera told exposure_us 300.0; refused unless that reads back" in said["Recipe bolt"]
    assert "camera told exposure_us 800.0; refused unless that reads back" in said["Recipe gasket"]


def test_what_is_kept_and_who_may_control_it(tmp_path: Path) -> None:
    said = topics(tmp_path, WIRED)
    assert f"journal {tmp_path}/journal.db: a row for each part, for ever" in said["Kept"]
    assert any("of every REJECT and FAULT, of each PASS within 0.5 spreads" in line for line in said["Kept"])
    assert any("up to 500 MB" in line for line in said["Kept"])
    assert any("at the strobe: 1 gasket, 2 bolt; any other code" in line for line in said["Control"])
    assert "nobody by HTTP: the section control is not there" in said["Control"]
    held = topics(tmp_path, WIRED + "control: {address: '0.0.0.0:8090', token: t}\npart_ref: {kind: http}\n")
    assert any(
        line.startswith(f"by HTTP at 0.0.0.0:8090 whoever has the token in {tmp_path}/t: halt") for line in held["Control"]
    )
    assert any(line.startswith("named by: `POST /part_ref` sets") for line in held["Parts"])
    no_more = topics(tmp_path, WIRED.replace("evidence: {quota_mb: 500, every: 0}\n", ""))
    assert "no pictures: the section evidence is not there" in no_more["Kept"]


def test_what_is_missing_for_a_safe_line_is_said(tmp_path: Path) -> None:
    text = WIRED.replace("    ready: 8\n", "").replace("    confirm: 12\n", "").replace("  confirm_ms: 200\n", "")
    said = topics(tmp_path, text)["Lines"]
    assert any("nothing stops the conveyor" in line for line in said)
    assert any("nobody sees whether a rejected part really left" in line for line in said)
    dry = topics(tmp_path, "station: s\nbundle: b\ncalibration: c\nsource: {kind: replay, path: p, fps: 4}\njournal: j.db\n")
    assert dry["Lines"] == ["dry run: no line is driven, so nothing is ever rejected"]
    assert dry["Parts"][0] == "each file, or frame of the video, is a part, 4 a second"
    assert "fps: 4.0" in dry["Pictures"]
    dry = topics(
        tmp_path,
        "station: s\nbundle: b\ncalibration: c\nsource: {kind: replay, path: p}\njournal: j.db\n"
        "trigger: {kind: timer, period_ms: 50}\n",
    )
    assert dry["Parts"][0] == "a part each period (period_ms 50.0)"


def test_the_door_explains_before_it_looks_and_checks_every_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_recipes(tmp_path)
    assert main(["check", "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert said.index("Recipe gasket") < said.index("What was looked at") < said.index("ok     gasket: bundle")
    for name in ("gasket", "bolt"):
        for check in ("bundle", "calibration", "calibration fits", "self-test", "speed"):
            assert f"ok     {name}: {check}: " in said
    assert "ok     starts with: gasket, as the configuration says" in said
    assert said.splitlines()[-1] == "line-1: ready to start"
    (tmp_path / "bolt.json").unlink()
    assert main(["check", "--config", str(config)]) == 1
    assert "FAULT  bolt: calibration: " in capsys.readouterr().out


def test_the_door_says_what_was_chosen_and_when_that_is_no_longer_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_recipes(tmp_path)
    bolt = load_recipes(config)["bolt"]
    digest, record = bundle_digest(bolt.bundle), load_calibration(bolt.calibration)
    save_active(bolt.active, Active(chosen=choose(bolt, digest, record, configured(bolt), who="Ada", why="order 7")))
    assert main(["check", "--config", str(config)]) == 0
    assert "ok     starts with: bolt (bundle " in (said := capsys.readouterr().out)
    assert "chosen by Ada, " in said
    assert ": order 7" in said
    write_tiny_recipe(tmp_path, "bolt", 61)
    assert main(["check", "--config", str(config)]) == 1
    assert "bundles/bolt: another one (" in capsys.readouterr().out
    bolt.active.write_text("{")
    assert main(["check", "--config", str(config)]) == 1
    assert "damaged, so that nobody knows" in capsys.readouterr().out
