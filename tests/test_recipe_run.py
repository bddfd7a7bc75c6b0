"""A whole station whose recipe changes under load: no part is judged by a mix of two."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edge.run as assembly
from calibration.record import load_calibration
from edge import StationError
from edge.active import load_active
from edge.changeover import Changeover
from edge.config import load_recipes
from edge.events import read_events
from edge.rejector import DryRunRejector
from edge.verdict import Verdict
from engines.bundle import load_bundle
from engines.images import Image
from engines.inspector import Inspector
from tests.fakes import flat, journal_rows, textured, write_pictures, write_recipes, write_tiny_recipe

PARTS = 150
GREYS = {"gasket": 128, "bolt": 100, "nut": 140}
WHO = {"who": "Ada", "why": "order 7"}


@pytest.fixture
def changeovers(monkeypatch: pytest.MonkeyPatch) -> list[Changeover]:
    """Those of the stations that run, as control would hold them."""
    held: list[Changeover] = []
    real = assembly._changing

    def hold(*pieces: Any) -> Changeover:
        held.append(real(*pieces))
        return held[-1]

    monkeypatch.setattr(assembly, "_changing", hold)
    return held


def pictures(count: int) -> list[Image]:
    draw = random.Random(7)
    return [textured(number) if number % 9 == 0 else flat(draw.randrange(90, 155)) for number in range(count)]


def judged_alone(folder: Path, images: list[Image]) -> dict[str, tuple[str, float, dict[str, float]]]:
    """By calibration: digest, threshold and scores by file, of each bundle with nothing else beside it."""
    judges = {}
    for number, (name, grey) in enumerate([*GREYS.items(), ("nut", 141)]):
        alone = folder / f"alone-{number}"
        write_tiny_recipe(alone, name, grey)
        bundle, record = load_bundle(alone / "bundles" / name), load_calibration(alone / f"{name}.json")
        with Inspector(bundle, threads=1) as inspector:
            scores = {f"{at}.png": inspector.score(image).value for at, image in enumerate(images, start=1)}
        judges[record.digest] = (bundle.digest, record.threshold, scores)
    return judges


def run(config: Path) -> int:
    return assembly.run_station(load_recipes(config), lambda _: DryRunRejector(), service=config)


def check_words(journal: Path) -> None:
    """What `edge events` makes of the changes, done and refused."""
    told = [event for event in read_events(journal)[0] if event.name in ("recipe", "recipe-refused")]
    assert {event.who for event in told} == {"Ada"}
    choice = rf"({'|'.join(GREYS)}) \(bundle .{{12}}, calibration .{{12}}\)"
    change = rf"{choice} in place of {choice}: (rolled back: )?order 7; threshold 0.*, conformal .*"
    assert all(re.fullmatch(change, event.what) for event in told if event.name == "recipe")
    assert "screw: order 7; refused: expected one of: gasket, bolt, nut" in [event.what for event in told]


def test_under_changes_at_random_moments_each_part_is_judged_by_one_recipe_alone(
    tmp_path: Path, changeovers: list[Changeover], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_recipes(tmp_path, greys=GREYS)
    for path in (tmp_path / "parts").iterdir():
        path.unlink()
    images = pictures(PARTS)
    write_pictures(tmp_path / "parts", images)
    draw, over, done = random.Random(3), threading.Event(), []

    def change() -> None:
        while not changeovers:
            over.wait(0.001)
        while not over.wait(draw.uniform(0, 0.02)):
            try:
                if draw.random() < 0.2:
                    done.append(str(changeovers[0].roll_back(**WHO)))
                else:
                    done.append(str(changeovers[0].change(draw.choice([*GREYS, "screw"]), **WHO)))
            except StationError as error:
                done.append(str(error))
            if len(done) == 4:  # a new version of a recipe, while it runs
                write_tiny_recipe(tmp_path, "nut", 141)

    monkeypatch.setattr(assembly, "_print_verdict", lambda verdict: None)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        code = run(config)
    finally:
        over.set()
        thread.join()

    assert code == 0
    judges = judged_alone(tmp_path, images)
    rows = journal_rows(tmp_path / "journal.db")
    in_force, seen = "gasket", []
    for row in rows:
        if row.get("event") == "recipe":
            assert row["details"]["before"]["recipe"] == in_force
            in_force = row["details"]["after"]["recipe"]
        if "part" not in row:
            continue
        bundle_digest, threshold, scores = judges[row["calibration"]]
        assert (row["recipe"], row["bundle"], row["threshold"]) == (in_force, bundle_digest, threshold)
        assert row["score"] == scores[row["source"]]
        assert row["outcome"] == ("PASS" if row["score"] <= threshold else "REJECT")
        seen.append((row["recipe"], row["bundle"]))
    assert len(seen) == PARTS
    assert len(set(seen)) >= 3
    assert sum(row.get("event") == "recipe" for row in rows) >= 5
    assert any("screw is refused: expected one of: gasket, bolt, nut" in said for said in done)
    check_words(tmp_path / "journal.db")
    active = load_active(tmp_path / "journal-active.json")
    assert active is not None
    assert active.chosen.recipe == in_force


def test_it_starts_again_with_what_was_chosen_last(tmp_path: Path, changeovers: list[Changeover]) -> None:
    config = write_recipes(tmp_path)

    def change(verdict: Verdict) -> None:
        if verdict.part == 2 and not threads:
            threads.append(threading.Thread(target=changeovers[0].change, args=("bolt",), kwargs=WHO))
            threads[0].start()
            time.sleep(0.2)  # the deciding loop waits here, so that the change comes between two parts

    threads: list[threading.Thread] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(assembly, "_print_verdict", change)
        run(config)
    threads[0].join()
    run(config)
    rows = journal_rows(tmp_path / "journal.db")
    starts = [row["details"]["chosen"] for row in rows if row.get("event") == "started"]
    assert [chosen["recipe"] for chosen in starts] == ["gasket", "bolt"]
    assert [chosen["who"] for chosen in starts] == ["the configuration", "Ada"]
    second = [row["recipe"] for row in rows if "part" in row][6:]
    assert second == ["bolt"] * 6


def test_a_replay_remembers_nothing_and_asks_nobody(tmp_path: Path) -> None:
    config = write_recipes(tmp_path)
    (tmp_path / "journal-active.json").write_text("{")
    with pytest.raises(StationError, match="damaged"):
        run(config)
    recipes = {"gasket": load_recipes(config)["gasket"]}
    assert assembly.run_station(recipes, lambda _: DryRunRejector()) == 0


@pytest.fixture(autouse=True)
def _quiet(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    capsys.readouterr()
