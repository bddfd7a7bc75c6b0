"""`edge calibrate` as its user sees it: what counts, what is said of it, and that only a person's yes puts it in force."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import edge.calibrate as door
from calibration.history import read_history
from calibration.record import load_calibration
from calibration.reference import load_reference
from edge.__main__ import main
from engines import EngineError, console
from engines.images import Image, pixel_digest, read_image
from engines.inspector import Inspector, Score
from tests.fakes import FakeRejector, cells, flat, journal_rows, textured, write_pictures, write_tiny_bundle, write_tiny_recipe

SIDE = 64
PARTS = 40


def part(seed: int, level: float = 0.0) -> Image:
    """A good part: a grey of its own near 128 with a grain of its own, of which the bank knows the grey 128."""
    rng = np.random.default_rng(seed)
    grain = cv2.GaussianBlur(rng.normal(0, 1, (SIDE, SIDE)).astype(np.float32), (0, 0), 1.2)
    image = 128 + level + rng.normal(0, 2) + 60 * grain
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A station that replays forty good parts and was never calibrated."""
    write_tiny_bundle(
        tmp_path / "bundle", rows=cells(128), golden=(flat(128), textured(1)), normals=(part(999),), spread=0.02, threshold=None
    )
    write_pictures(tmp_path / "parts", [part(seed) for seed in range(PARTS)])
    config = tmp_path / "station.yaml"
    config.write_text(
        "station: line-1\nbundle: bundle\ncalibration: line-1.json\nthreads: 1\ndeadline_ms: 60000\njournal: journal.db\n"
        "source: {kind: replay, path: parts}\n"
    )
    return config


def calibrate(config: Path, *more: str) -> int:
    return main(["calibrate", "--config", str(config), "--false-reject", "0.05", "--who", "Ada", *more])


def taken(config: Path, *more: str) -> int:
    return calibrate(config, "--count", str(PARTS), "--yes", *more)


def written(config: Path) -> list[str]:
    """What there is beside the station's own files."""
    own = {"bundle", "parts", "station.yaml", "line-1.parts"}
    return sorted(path.name for path in config.parent.iterdir() if path.name not in own)


def test_it_writes_the_record_its_history_and_the_reference_of_drift(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert taken(config, "--why", "first start", "--shift", "8000") == 0
    record = load_calibration(config.parent / "line-1.json")
    assert (record.station, record.n, record.rate, record.who, record.why) == ("line-1", PARTS, 0.05, "Ada", "first start")
    history = read_history(config.parent / "line-1.json")
    assert (len(history.entries), history.faults) == (1, ())
    reference = load_reference(config.parent / "line-1.drift.json")
    assert reference.calibration == record.digest
    assert len(reference.parts) == sum(one.score < record.threshold for one in history.entries[0].parts)
    assert written(config) == ["line-1.drift.json", "line-1.history.jsonl", "line-1.json"]
    said = capsys.readouterr().out
    assert "nothing is judged now, and the line rejects" in said
    assert "of 1,000 further good parts about" in said
    assert re.search(r"in a shift of 8,000 good parts about \d+ \(95 % confidence: \d+ to \d+\) are rejected", said)
    assert "40 parts can bound the rate of false rejects at 2.4 % at best" in said
    assert "#" in said


def test_an_auditor_finds_the_very_pictures_that_the_threshold_is_from(config: Path) -> None:
    assert taken(config) == 0
    (entry,) = read_history(config.parent / "line-1.json").entries
    for number, one in enumerate(entry.parts, start=1):
        picture = read_image(config.parent / one.name)
        assert one.pixels == pixel_digest(picture)
        assert np.array_equal(picture, part(number - 1))


def test_without_a_yes_nothing_is_written_and_it_ends_with_1(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate(config, "--count", str(PARTS)) == 1
    assert written(config) == []
    caught = capsys.readouterr()
    assert caught.err.splitlines()[0].startswith("warning: nobody can be asked here")  # before anybody shows a part
    assert "not put in force" in caught.out


def answers(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """A terminal at which somebody says these."""
    left: Iterator[str] = iter(texts)
    monkeypatch.setattr(door.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(type(console.out), "is_terminal", property(lambda self: self is console.out))
    monkeypatch.setattr("builtins.input", lambda prompt: next(left))


def test_a_person_at_a_terminal_leaves_a_part_out_and_says_yes(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "perhaps", "7.png: finger in the picture", "2: scratched", "99: none", "yes")
    assert calibrate(config, "--count", str(PARTS)) == 0
    (entry,) = read_history(config.parent / "line-1.json").entries
    assert entry.calibration.n == PARTS - 2
    names = {Path(one.name).name for one in entry.parts}
    assert not names & {"part-000002.png"}
    left_out = [line for line in entry.warnings if "left out" in line and line.startswith("part ")]
    assert len(left_out) == 2
    assert left_out[0].endswith("left out: finger in the picture, by Ada")
    assert f"pixels {pixel_digest(part(1))}" in left_out[1]
    assert any("good parts like those left out will be rejected" in line for line in entry.warnings)


def test_a_person_who_says_no_leaves_all_as_it_was(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(config) == 0
    before = {path: path.read_bytes() for path in config.parent.glob("line-1.*") if path.is_file()}
    answers(monkeypatch, "no")
    assert calibrate(config, "--count", str(PARTS)) == 1
    assert {path: path.read_bytes() for path in config.parent.glob("line-1.*") if path.is_file()} == before


@pytest.mark.parametrize(("text", "said"), [("41: gone", "'41' is 0 of the parts"), ("7", "expected a part and a reason")])
def test_what_cannot_be_left_out_is_refused(config: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert taken(config, "--exclude", text) == 2
    assert said in capsys.readouterr().err
    assert written(config) == []


def test_the_part_is_the_unit_and_a_burst_of_one_counts_once(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = [np.clip(part(3).astype(np.int16) + shade, 0, 255).astype(np.uint8) for shade in range(1, 11)]
    write_pictures(config.parent / "parts", [*(part(seed) for seed in range(PARTS)), *again])
    assert taken(config, "--count", str(PARTS + 10)) == 0
    record = load_calibration(config.parent / "line-1.json")
    assert record.n == PARTS
    said = capsys.readouterr().err
    assert "near-duplicate: correlates" in said
    assert "look like one part and count as one" in said
    reference = load_reference(config.parent / "line-1.drift.json")
    assert len(reference.parts) < PARTS  # and for drift too


def test_what_says_nothing_is_not_counted(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "parts/5a.png").write_bytes(b"no picture")
    write_pictures(config.parent / "more", [part(999), part(4)])
    for path in (config.parent / "more").iterdir():
        path.rename(config.parent / "parts" / f"x{path.name}")
    assert calibrate(config, "--count", str(PARTS + 1), "--yes") == 0
    caught = capsys.readouterr()
    assert "not counted, known to the bundle: x1.png" in caught.err
    assert "not counted, duplicate: x2.png: same pixels as part" in caught.err
    assert "not counted, no picture: 5a.png" in caught.err
    assert f"the source ended after {PARTS} of {PARTS + 1} parts" in caught.err
    (entry,) = read_history(config.parent / "line-1.json").entries
    assert entry.calibration.n == PARTS
    assert any(line.startswith("1 parts had no picture or no score") for line in entry.warnings)


def test_a_part_without_a_score_is_not_counted_and_is_told(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, broken = Inspector.score, {pixel_digest(part(5)): math.nan, pixel_digest(part(9)): math.inf}

    def score(inspector: Inspector, image: Image) -> Score:
        if pixel_digest(image) == pixel_digest(part(11)):
            raise EngineError("frame is 7 x 7")
        found = real(inspector, image)
        return dataclasses.replace(found, value=broken.get(pixel_digest(image), found.value))

    monkeypatch.setattr(Inspector, "score", score)
    assert taken(config) == 0
    said = capsys.readouterr().err
    assert "not counted, no score: 6.png: its score is nan; at the station it is a FAULT" in said
    assert "not counted, no score: 10.png: its score is inf" in said
    assert "not counted, no score: 12.png: frame is 7 x 7; at the station it is a FAULT" in said
    (entry,) = read_history(config.parent / "line-1.json").entries
    assert entry.calibration.n == PARTS - 3
    assert any(line.startswith("3 parts had no picture or no score") for line in entry.warnings)


def test_odd_parts_are_told_and_not_left_out(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blurred = cv2.GaussianBlur(part(100), (0, 0), 2)
    write_pictures(config.parent / "parts", [*(part(seed) for seed in range(PARTS)), blurred, part(101, level=60)])
    assert taken(config, "--count", str(PARTS + 2)) == 0
    said = capsys.readouterr().err
    assert f"part {PARTS + 1}: blurred: fine detail" in said
    assert f"part {PARTS + 2}: over-exposed: mean level" in said
    assert "is it really a good part?" in said
    assert load_calibration(config.parent / "line-1.json").n == PARTS + 2


def test_a_method_that_needs_bad_parts_says_how_this_door_takes_them(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "no bad parts; confirm some of the journal with `edge label --ng`, or give scores of some with --bad-csv"
    assert taken(config) == 0
    assert f"no f-beta: {told}" in " ".join(capsys.readouterr().out.split())
    assert taken(config, "--method", "f-beta") == 2
    assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("method", ["f-beta", "cost", "zero-escape"])
def test_a_method_that_needs_bad_parts_is_refused_before_anybody_shows_a_good_one(
    config: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    assert taken(config, "--method", method) == 2
    assert "no bad parts" in capsys.readouterr().err
    assert not (config.parent / "line-1.parts").exists()


def test_pictures_enough_and_parts_too_few_lose_no_picture(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = [np.clip(part(3).astype(np.int16) + shade, 0, 255).astype(np.uint8) for shade in range(1, 11)]
    write_pictures(config.parent / "parts", [*(part(seed) for seed in range(15)), *again])
    assert taken(config, "--count", "25") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    (folder,) = (config.parent / "line-1.parts").iterdir()
    assert "15 good parts (on 25 images), expected at least 19 for a false-reject rate of 0.05" in said
    assert f"the pictures stay in {folder}: begin again with a higher --count" in said
    assert len(list(folder.iterdir())) == 25
    assert written(config) == []


def test_a_part_too_many_left_out_loses_no_picture(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, "2: scratched")
    assert calibrate(config, "--count", "19") == 2
    assert "18 good images, expected at least 19" in capsys.readouterr().err
    (folder,) = (config.parent / "line-1.parts").iterdir()
    assert len(list(folder.iterdir())) == 19
    assert written(config) == []


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_whoever_goes_away_at_the_question_has_said_no(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: type[BaseException]
) -> None:
    answers(monkeypatch)

    def gone(prompt: str) -> str:
        raise end

    monkeypatch.setattr("builtins.input", gone)
    assert calibrate(config, "--count", str(PARTS)) == (1 if end is EOFError else 130)
    assert written(config) == []
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == ("not put in force: {} is as it was".format(config.parent / "line-1.json") if end is EOFError else "")


def test_a_history_that_is_not_whole_is_refused_before_anybody_shows_a_part(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert taken(config) == 0
    shown = sorted((config.parent / "line-1.parts").iterdir())
    (config.parent / "line-1.history.jsonl").write_text("")
    capsys.readouterr()
    assert taken(config) == 2
    assert "keep both files for whoever looks into it" in capsys.readouterr().err
    assert sorted((config.parent / "line-1.parts").iterdir()) == shown


def test_too_few_for_the_rate_are_refused_before_anybody_shows_one(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate(config, "--count", "18", "--yes") == 2
    assert "19" in capsys.readouterr().err
    assert not (config.parent / "line-1.parts").exists()


def test_a_machine_that_scores_otherwise_than_the_bundle_says_takes_nothing(config: Path) -> None:
    write_tiny_recipe(config.parent, "off", 128, golden_off=True)
    config.write_text(config.read_text().replace("bundle: bundle", "bundle: bundles/off"))
    assert taken(config) == 2
    assert not (config.parent / "line-1.parts").exists()


def test_the_threshold_in_force_is_compared_with(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert taken(config) == 0
    old = load_calibration(config.parent / "line-1.json")
    write_pictures(config.parent / "parts", [part(seed) for seed in range(200, 200 + PARTS)])
    capsys.readouterr()
    assert taken(config) == 0
    new = load_calibration(config.parent / "line-1.json")
    said = capsys.readouterr().out
    assert f"in force is {old.threshold:.6g}, conformal from {PARTS} parts" in said
    assert f"the new one is {new.threshold - old.threshold:+.6g}; of these {PARTS} pictures the one in force rejects" in said
    history = read_history(config.parent / "line-1.json")
    assert [entry.calibration.threshold for entry in history.entries] == [old.threshold, new.threshold]


def test_the_line_is_held_and_never_told_that_it_may_pass(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = FakeRejector()
    monkeypatch.setattr(door, "ProcessRejector", lambda setup: held)
    lines = "{kind: gpio, lines: {reject: 7, ready: 8}, travel_ms: 60000, pulse_ms: 20}"
    config.write_text(f"{config.read_text()}rejector: {lines}\n")
    assert taken(config) == 0
    assert held.beats >= PARTS
    assert (held.ready, held.trace, set(held.levels)) == ([], [], {True})


def test_of_several_recipes_one_must_be_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = config.read_text().replace("bundle: bundle\ncalibration: line-1.json\n", "")
    below = "{bundle: bundle, calibration: %s.json}"
    config.write_text(f"{text}recipe: bolt\nrecipes:\n  bolt: {below % 'bolt'}\n  nut: {below % 'nut'}\n")
    assert taken(config) == 2
    assert "expected --recipe and one of: bolt, nut" in capsys.readouterr().err
    assert taken(config, "--recipe", "screw") == 2
    assert taken(config, "--recipe", "nut") == 0
    assert {"nut.json", "nut.history.jsonl", "nut.drift.json"} <= set(written(config))
    assert not (config.parent / "bolt.json").exists()


def label(config: Path, truths: dict[int, str]) -> None:
    """Say of the journal's parts what they are."""
    (run,) = {row["run"] for row in journal_rows(config.parent / "journal.db") if "part" in row}
    lines = [f"{run},{number},{truth},,Bo," for number, truth in truths.items()]
    table = config.parent / "labels.csv"
    table.write_text("\n".join(["run,part,truth,kind,by,note", *lines]) + "\n")
    assert main(["label", "--journal", str(config.parent / "journal.db"), "--csv", str(table)]) == 0


@pytest.fixture
def judged(config: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The station after a run over its good parts and three bad ones, all of them labelled."""
    assert taken(config) == 0
    bad = [part(1, level) for level in (1, 40, 90)]
    write_pictures(config.parent / "parts", [*(part(seed) for seed in range(300, 300 + PARTS)), *bad])
    assert main(["run", "--config", str(config)]) == 0
    names = [row for row in journal_rows(config.parent / "journal.db") if row["kind"] == "part" and "outcome" in row]
    truths = {row["part"]: "NG" if int(Path(row["source"]).stem) > PARTS else "OK" for row in names}
    label(config, truths)
    capsys.readouterr()
    return config


def test_confirmed_bad_parts_are_held_against_the_proposal(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert taken(judged, "--count", str(PARTS + 3)) == 0
    said = capsys.readouterr().out
    assert "of 3 confirmed bad parts" in said
    assert "would have passed: " in said
    entry = read_history(judged.parent / "line-1.json").entries[-1]
    assert sum(not one.good for one in entry.parts) == 3
    assert entry.calibration.escape is not None


def test_scores_come_from_the_journals_confirmed_parts(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = sorted((judged.parent / "line-1.parts").iterdir())
    assert calibrate(judged, "--from-journal", "--yes") == 0
    entry = read_history(judged.parent / "line-1.json").entries[-1]
    assert (entry.calibration.n, sum(one.good for one in entry.parts)) == (PARTS, PARTS)
    assert all("/" in one.name for one in entry.parts)
    assert any("all good parts are of one run" in line for line in entry.warnings)
    assert "no drift reference, since scores alone do not say what parts look like" in capsys.readouterr().err
    assert sorted((judged.parent / "line-1.parts").iterdir()) == pictures


def test_scores_of_another_bundle_are_not_taken_from_the_journal(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_bundle(judged.parent / "bundle", rows=cells(127, 128), golden=(flat(128), textured(1)), threshold=None)
    assert calibrate(judged, "--from-journal", "--yes") == 2
    assert "no parts that a person found good with this bundle and engine" in capsys.readouterr().err
    assert taken(judged) == 0
    assert "what bad parts would have done is not known" in capsys.readouterr().out


def test_a_person_who_looks_at_rejects_first_is_told_what_that_does(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert taken(config) == 0
    assert main(["run", "--config", str(config)]) == 0
    rows = [row for row in journal_rows(config.parent / "journal.db") if row["kind"] == "part" and row.get("score") is not None]
    rejects = [row["part"] for row in rows if row["outcome"] == "REJECT"]
    passes = [row["part"] for row in rows if row["outcome"] == "PASS"]
    assert rejects
    label(config, dict.fromkeys([*rejects, *passes[:18]], "OK"))
    assert calibrate(config, "--from-journal", "--yes") == 0
    assert "100% of the rejected parts and" in capsys.readouterr().err


def test_a_journal_without_confirmed_parts_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate(config, "--from-journal", "--yes") == 2
    assert "no parts that a person found good" in capsys.readouterr().err


def test_bad_parts_come_from_a_table_too(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = config.parent / "bad.csv"
    table.write_text("part,score,label\nb1,5.5,bad\nb2,-9,bad\ng1,0,good\n")
    assert taken(config, "--bad-csv", str(table)) == 0
    assert "of 2 confirmed bad parts 1 would have been rejected and 1 would have passed: b2 -9" in capsys.readouterr().out
    table.write_text("part,score,label\ng1,0,good\n")
    assert taken(config, "--bad-csv", str(table)) == 2


def test_the_challenge_is_told_where_it_would_fail(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(config.parent / "challenge/OK", [part(500)])
    write_pictures(config.parent / "challenge/NG", [part(501)])
    config.write_text(config.read_text() + "challenge: {path: challenge}\n")
    assert taken(config) == 0
    said = capsys.readouterr().err
    assert (
        "challenge FAILS, and so the station would not be ready: 1 of 2 labelled parts judged wrongly: NG/1.png is NG" in said
    )


def test_another_record_leaves_the_stations_as_it_is(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert taken(config, "--out", str(config.parent / "trial.json")) == 0
    assert {"trial.json", "trial.drift.json"} <= set(written(config))
    assert not (config.parent / "line-1.json").exists()
    assert "as before" in capsys.readouterr().out


def test_a_station_that_remembers_a_choice_says_how_it_is_put_in_force(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "journal-active.json").write_text(json.dumps({}))
    assert taken(config) == 0
    assert "put it in force with `edge recipe --config" in capsys.readouterr().out
