"""From one recipe to another: whole, between two parts, or not at all."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from calibration.record import load_calibration, save_calibration
from edge import StationError
from edge.active import Active, load_active, save_active
from edge.changeover import Change, Changeover, InForce, choose_for_next_start, start
from edge.config import load_recipes
from edge.recipes import Loaded, Shelf, open_recipe
from edge.sections import StationConfig
from engines import EngineError
from engines.bundle import bundle_digest
from tests.fakes import write_recipes, write_tiny_recipe

WHO = {"who": "Ada", "why": "order 7"}


class FakeLoop:
    """A deciding loop that tests turn by hand; `now` notes why nothing passes at each look.

    Attributes:
        parts: that wait to be judged; one is judged after each turn.
        looks: faults at each look at the conditions.
    """

    def __init__(self) -> None:
        self.posted: deque[Callable[[], None]] = deque()
        self.parts = 0
        self.judged: list[str] = []
        self.looks: list[str] = []
        self.changeover: Changeover | None = None

    def post(self, work: Callable[[], None]) -> None:
        self.posted.append(work)

    def waiting(self) -> int:
        return self.parts

    def turn(self) -> None:
        assert self.changeover is not None
        self.looks.append(self.changeover.fault())

    def between_parts(self) -> None:
        """One turn of the loop: look, do what was posted, judge a part."""
        self.turn()
        for _ in range(len(self.posted)):
            self.posted.popleft()()
        if self.parts > 0:
            assert self.changeover is not None
            self.parts -= 1
            self.judged.append(self.changeover.in_force.loaded.config.recipe)


class FakeEvents:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None

    def event(self, name: str, details: Mapping[str, object]) -> None:
        if self.error is not None:
            raise self.error
        self.events.append((name, dict(details)))

    def later(self, name: str, details: Mapping[str, object]) -> None:
        self.events.append((name, dict(details)))


class Bench:
    """A changeover over real bundles and a fake loop."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.recipes = load_recipes(folder / "station.yaml")
        self.path = next(iter(self.recipes.values())).active
        self.shelf = Shelf(open_recipe, keep=3)
        self.loop, self.journal = FakeLoop(), FakeEvents()
        self.switched: list[str] = []
        self.refuse: set[str] = set()
        in_force, self.said = start(self.recipes, self.shelf, self.path)
        self.changeover = Changeover(
            recipes=self.recipes,
            shelf=self.shelf,
            in_force=in_force,
            path=self.path,
            loop=self.loop,
            journal=self.journal,
            switch=self.switch,
            **more,
        )
        self.loop.changeover = self.changeover

    @property
    def recipe(self) -> str:
        return self.changeover.in_force.loaded.config.recipe

    def switch(self, loaded: Loaded) -> None:
        self.switched.append(loaded.config.recipe)
        if loaded.config.recipe in self.refuse:
            raise StationError("the camera does not take exposure 7")

    def ask(self, work: Callable[[], Change]) -> Future[str]:
        """Ask from another thread, as HTTP would, and turn the loop until it is answered."""
        answer: Future[str] = Future()

        def run() -> None:
            try:
                answer.set_result(str(work()))
            except BaseException as error:
                answer.set_exception(error)

        thread = threading.Thread(target=run)
        thread.start()
        while thread.is_alive():
            self.loop.between_parts()
            thread.join(0.002)
        return answer

    def change(self, name: str) -> str:
        return self.ask(lambda: self.changeover.change(name, **WHO)).result()

    def roll_back(self) -> str:
        return self.ask(lambda: self.changeover.roll_back(**WHO)).result()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    write_recipes(tmp_path)
    return Bench(tmp_path)


def on_disk(bench: Bench) -> tuple[str, str | None] | None:
    active = load_active(bench.path)
    return None if active is None else (active.chosen.recipe, None if active.before is None else active.before.recipe)


def test_a_change_is_whole_and_remembered(bench: Bench) -> None:
    assert (bench.recipe, on_disk(bench)) == ("gasket", None)
    said = bench.change("bolt")
    assert said.startswith("bolt (bundle ")
    assert "in place of gasket (bundle " in said
    assert (bench.recipe, on_disk(bench)) == ("bolt", ("bolt", "gasket"))
    assert bench.switched == ["bolt"]
    ((name, details),) = bench.journal.events
    assert name == "recipe"
    assert [details[side]["recipe"] for side in ("before", "after")] == ["gasket", "bolt"]
    assert details["after"]["bundle_digest"] == bench.changeover.in_force.loaded.bundle_digest
    assert (details["after"]["who"], details["after"]["why"]) == ("Ada", "order 7")
    assert details["calibration"] == bench.changeover.in_force.loaded.calibration.model_dump()  # says if it was set by hand


def test_nothing_passes_from_before_the_change_until_after_it(bench: Bench) -> None:
    faults: list[str] = []
    real = bench.switch

    def switch(loaded: Loaded) -> None:
        faults.append(bench.changeover.fault())
        assert bench.loop.looks[-1].startswith("the recipe changes from gasket")  # the line was told before
        real(loaded)

    bench.changeover._switch = switch
    bench.change("bolt")
    assert faults
    assert faults[0].startswith("the recipe changes from gasket")
    assert bench.changeover.fault() == ""


def test_parts_that_wait_are_judged_by_the_old_one_and_later_ones_by_the_new(bench: Bench) -> None:
    bench.loop.parts = 5
    bench.change("bolt")
    assert bench.loop.judged == ["gasket"] * 5
    bench.loop.parts = 2
    bench.loop.between_parts()
    bench.loop.between_parts()
    assert bench.loop.judged[5:] == ["bolt"] * 2


def test_an_unknown_name_is_refused_and_the_old_one_goes_on(bench: Bench) -> None:
    with pytest.raises(StationError, match=r"recipe nut is refused: expected one of: gasket, bolt; gasket \(bundle .* stays"):
        bench.change("nut")
    assert (bench.recipe, on_disk(bench), bench.switched) == ("gasket", None, [])
    assert bench.journal.events[0][0] == "recipe-refused"
    assert bench.journal.events[0][1]["who"] == "Ada"


@pytest.mark.parametrize("spoil", ["bundle", "golden", "calibration", "missing"])
def test_what_does_not_verify_is_refused_and_the_old_one_goes_on(tmp_path: Path, spoil: str) -> None:
    write_recipes(tmp_path, golden_off={"bolt"} if spoil == "golden" else ())
    bench = Bench(tmp_path)
    if spoil == "bundle":
        (tmp_path / "bundles" / "bolt" / "bank.npz").write_bytes(b"x")
    elif spoil == "calibration":
        (tmp_path / "bolt.json").write_bytes((tmp_path / "gasket.json").read_bytes())
    elif spoil == "missing":
        (tmp_path / "bolt.json").unlink()
    with pytest.raises(StationError, match=r"recipe bolt is refused: .* stays in force"):
        bench.change("bolt")
    assert (bench.recipe, on_disk(bench), bench.switched) == ("gasket", None, [])
    assert bench.loop.looks == [""] * len(bench.loop.looks)  # it never stopped being ready
    assert [name for name, _ in bench.journal.events] == ["recipe-refused"]


def test_a_camera_that_does_not_take_its_settings_gets_the_old_ones_back(bench: Bench) -> None:
    bench.refuse = {"bolt"}
    with pytest.raises(StationError, match=r"refused: the camera does not take exposure 7; gasket"):
        bench.change("bolt")
    assert bench.switched == ["bolt", "gasket"]
    assert (bench.recipe, on_disk(bench)) == ("gasket", None)
    assert bench.changeover.fault() == ""


def test_a_line_that_takes_neither_timing_ends_the_run(bench: Bench) -> None:
    bench.refuse = {"bolt", "gasket"}
    bench.loop.post(lambda: None)
    answers: list[BaseException] = []

    def ask() -> None:
        try:
            bench.changeover.change("bolt", **WHO)
        except BaseException as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    with pytest.raises(StationError, match=r"exposure 7"):
        while thread.is_alive():
            bench.loop.between_parts()
    thread.join()
    assert len(answers) == 1
    assert bench.recipe == "gasket"


def test_a_run_that_ends_right_after_a_change_does_not_call_it_refused(bench: Bench) -> None:
    class Stop(BaseException):
        pass

    real, answers = bench.loop.turn, []

    def turn() -> None:
        real()
        if bench.recipe == "bolt":
            raise Stop

    bench.loop.turn = turn  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: answers.append(bench.changeover.change("bolt", **WHO)))
    thread.start()
    with pytest.raises(Stop):
        while thread.is_alive():
            bench.loop.between_parts()
    thread.join()
    assert [answer.after.recipe for answer in answers] == ["bolt"]
    assert on_disk(bench) == ("bolt", "gasket")


def test_without_a_row_in_the_journal_or_a_file_on_the_disk_there_is_no_change(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.journal.error = StationError("the journal cannot be written")
    with pytest.raises(StationError, match=r"the journal cannot be written; gasket .* stays in force"):
        bench.change("bolt")
    assert (bench.recipe, on_disk(bench), bench.switched) == ("gasket", None, ["bolt", "gasket"])
    bench.journal.error = None

    def full(path: Path, active: Active) -> None:
        raise EngineError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr("edge.changeover.save_active", full)
        with pytest.raises(StationError, match=r"disk full; gasket"):
            bench.change("bolt")
    assert (bench.recipe, on_disk(bench)) == ("gasket", None)
    assert [name for name, _ in bench.journal.events][-2:] == ["recipe", "recipe-refused"]
    bench.change("bolt")
    assert (bench.recipe, on_disk(bench)) == ("bolt", ("bolt", "gasket"))


def test_a_file_that_the_disk_took_and_did_not_confirm_is_put_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Active] = []

    def unsure(path: Path, active: Active) -> None:
        save_active(path, active)
        calls.append(active)
        if len(calls) == 1:
            raise EngineError("written, but the disk did not confirm it")

    monkeypatch.setattr("edge.changeover.save_active", unsure)
    with pytest.raises(StationError, match=r"did not confirm"):
        bench.change("bolt")
    assert (bench.recipe, on_disk(bench)) == ("gasket", ("gasket", None))


def test_a_change_to_what_is_in_force_does_nothing(bench: Bench) -> None:
    assert bench.change("gasket").endswith("is in force already")
    assert (bench.switched, bench.journal.events, on_disk(bench)) == ([], [], None)


def test_a_new_version_takes_the_old_one_s_place_and_is_rolled_back_to_the_very_files(tmp_path: Path, bench: Bench) -> None:
    old = bench.changeover.in_force.loaded
    kept = tmp_path / "kept"
    os.rename(tmp_path / "bundles" / "gasket", kept)
    os.rename(tmp_path / "gasket.json", tmp_path / "kept.json")
    write_tiny_recipe(tmp_path, "gasket", 90)
    said = bench.change("gasket")
    new = bench.changeover.in_force.loaded
    assert new.bundle_digest != old.bundle_digest
    assert f"gasket (bundle {new.bundle_digest[:12]}" in said
    # the old files are not where they were, so it says so and the new version goes on
    with pytest.raises(StationError, match=r"bundles/gasket: another one .* than the configuration chose"):
        bench.roll_back()
    assert bench.changeover.in_force.loaded is new
    os.rename(tmp_path / "bundles" / "gasket", tmp_path / "newer")
    os.rename(kept, tmp_path / "bundles" / "gasket")
    os.rename(tmp_path / "gasket.json", tmp_path / "newer.json")
    os.rename(tmp_path / "kept.json", tmp_path / "gasket.json")
    bench.roll_back()
    assert bench.changeover.in_force.loaded.bundle_digest == old.bundle_digest
    assert bench.journal.events[-1][1]["after"]["why"] == "rolled back: order 7"


def test_a_rollback_goes_back_to_an_older_folder_and_survives_a_restart(tmp_path: Path, bench: Bench) -> None:
    first = bench.changeover.in_force.loaded.bundle_digest
    write_tiny_recipe(tmp_path, "gasket-2", 90)
    text = (tmp_path / "station.yaml").read_text()
    (tmp_path / "station.yaml").write_text(
        text.replace("bundles/gasket,", "bundles/gasket-2,").replace("gasket.json", "gasket-2.json")
    )
    choose(tmp_path, "gasket")  # with the station stopped
    again = Bench(tmp_path)
    assert again.changeover.in_force.loaded.bundle_digest != first
    save_active(
        again.path, again.changeover.in_force.active.model_copy(update={"before": bench.changeover.in_force.active.chosen})
    )
    again = Bench(tmp_path)
    again.roll_back()
    assert again.changeover.in_force.loaded.bundle_digest == first
    assert Bench(tmp_path).changeover.in_force.loaded.bundle_digest == first  # and not what the configuration names
    again.roll_back()  # forth again
    assert again.changeover.in_force.loaded.config.bundle == tmp_path / "bundles" / "gasket-2"


def choose(folder: Path, name: str) -> Active:
    recipes = load_recipes(folder / "station.yaml")
    loaded = open_recipe(recipes[name])
    loaded.judge.scorer.close()
    return choose_for_next_start(recipes, loaded, recipes[name].active, **WHO)


def reconfigured(bench: Bench, recipes: dict[str, StationConfig]) -> None:
    def work() -> Change:
        bench.changeover.reconfigure(recipes, **WHO)
        return Change(bench.changeover.in_force.active.chosen, None, 0.0)

    bench.ask(work).result()


def test_a_configuration_read_again_changes_what_the_recipe_in_force_became(bench: Bench) -> None:
    slower = {name: config.model_copy(update={"deadline_ms": 77.0}) for name, config in bench.recipes.items()}
    judge = bench.changeover.in_force.loaded.judge
    reconfigured(bench, slower)
    assert bench.changeover.in_force.loaded.config.deadline_ms == 77.0
    assert bench.changeover.in_force.loaded.judge is judge
    reconfigured(bench, slower)
    assert bench.switched == ["gasket"]  # the second time there was nothing to do
    record = load_calibration(slower["gasket"].calibration)
    save_calibration(slower["gasket"].calibration, record.model_copy(update={"threshold": record.threshold + 1}))
    reconfigured(bench, slower)
    assert bench.changeover.in_force.loaded.judge.threshold == record.threshold + 1


@pytest.mark.parametrize("field", ["station", "camera", "bundle_digest", "backend", "precision", "engine_digest"])
def test_one_whose_calibration_is_for_anything_else_is_refused_and_forgotten(bench: Bench, field: str) -> None:
    path = bench.recipes["gasket"].calibration
    save_calibration(path, load_calibration(path).model_copy(update={field: "another"}))
    only = {"gasket": bench.recipes["gasket"]}
    with pytest.raises(StationError, match=r"recipe gasket is refused: .*gasket.json: calibration is for .*another"):
        reconfigured(bench, only)
    assert bench.change("bolt").startswith("bolt")  # still there


def test_there_is_nothing_to_roll_back_to_at_first(bench: Bench) -> None:
    with pytest.raises(StationError, match=r"nothing to roll back to"):
        bench.roll_back()


def test_a_loop_that_never_comes_to_it_refuses_and_does_not_change_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.changeover._TAKEN_S", 0.05)
    with pytest.raises(StationError, match=r"did not come to it within 0\.05 s; gasket"):
        bench.changeover.change("bolt", **WHO)
    bench.loop.between_parts()
    assert (bench.recipe, bench.switched, on_disk(bench)) == ("gasket", [], None)


# at the start


def restart(folder: Path) -> InForce:
    recipes = load_recipes(folder / "station.yaml")
    shelf = Shelf(open_recipe, keep=3)
    try:
        return start(recipes, shelf, next(iter(recipes.values())).active)[0]
    finally:
        shelf.close()


def test_what_was_chosen_survives_a_restart(tmp_path: Path, bench: Bench) -> None:
    bench.change("bolt")
    assert restart(tmp_path).loaded.config.recipe == "bolt"
    assert restart(tmp_path).active == load_active(bench.path)


def test_files_that_were_exchanged_while_it_was_down_are_refused_until_somebody_chooses_them(
    tmp_path: Path, bench: Bench
) -> None:
    bench.change("bolt")
    write_tiny_recipe(tmp_path, "bolt", 61)
    with pytest.raises(StationError, match=r"bundles/bolt: another one \(.*\) than Ada chose"):
        restart(tmp_path)
    active = choose(tmp_path, "bolt")
    assert restart(tmp_path).active == active
    assert active.before is not None
    assert active.before.recipe == "bolt"


def test_a_damaged_file_is_refused_until_somebody_chooses(tmp_path: Path, bench: Bench) -> None:
    bench.change("bolt")
    bench.path.write_bytes(bench.path.read_bytes()[:-40])
    with pytest.raises(StationError, match=r"damaged, so that nobody knows which recipe was chosen"):
        restart(tmp_path)
    assert choose(tmp_path, "gasket").before is None
    assert restart(tmp_path).loaded.config.recipe == "gasket"


def test_a_version_that_fails_its_self_test_at_the_start_is_rolled_back_to_the_one_before(tmp_path: Path) -> None:
    write_recipes(tmp_path)
    recipes = load_recipes(tmp_path / "station.yaml")
    good = choose(tmp_path, "gasket")
    write_tiny_recipe(tmp_path, "gasket-2", 90)
    text = (tmp_path / "station.yaml").read_text()
    (tmp_path / "station.yaml").write_text(
        text.replace("bundles/gasket,", "bundles/gasket-2,").replace("gasket.json", "gasket-2.json")
    )
    bad = choose(tmp_path, "gasket")
    assert bad.before == good.chosen
    write_tiny_recipe(tmp_path, "gasket-2", 90, golden_off=True)  # a machine that computes otherwise now
    digests = {
        "bundle_digest": bundle_digest(tmp_path / "bundles" / "gasket-2"),
        "calibration_digest": load_calibration(tmp_path / "gasket-2.json").digest,
    }
    pinned = bad.chosen.model_copy(update=digests)
    path = next(iter(recipes.values())).active
    save_active(path, bad.model_copy(update={"chosen": pinned}))
    bench = Bench(tmp_path)
    assert bench.said.startswith("rolled back from gasket (bundle ")
    assert bench.changeover.in_force.loaded.bundle_digest == good.chosen.bundle_digest
    active = load_active(path)
    assert active is not None
    assert active.chosen.who == "the station"
    assert "does not score as the bundle says" in active.chosen.why
    # of another recipe nothing takes its place
    save_active(path, Active(chosen=pinned, before=good.chosen.model_copy(update={"recipe": "bolt"})))
    with pytest.raises(StationError, match=r"does not score as the bundle says"):
        restart(tmp_path)
    # nor does a version that is not what it was
    save_calibration(good.chosen.calibration, bench.changeover.in_force.loaded.calibration.model_copy(update={"who": "x"}))
    save_active(path, Active(chosen=pinned, before=good.chosen))
    with pytest.raises(StationError, match=r"nor can the version before it be used: .*gasket.json: another one"):
        restart(tmp_path)


# asked for by lines


@pytest.fixture
def lines(tmp_path: Path) -> tuple[Bench, deque[int]]:
    """A station whose recipe lines choose: 1 is gasket, 2 bolt."""
    write_recipes(tmp_path)
    codes: deque[int] = deque()
    bench = Bench(tmp_path, codes=codes, code_at_start=True)
    for code, name in enumerate(list(bench.recipes), start=1):
        bench.recipes[name] = bench.recipes[name].model_copy(update={"code": code})
    return bench, codes


def settle(bench: Bench, until: Callable[[], bool]) -> None:
    """Turn the loop until something holds; a test that waits for ever is stopped by its count."""
    for _ in range(5000):
        bench.loop.between_parts()
        if until():
            return
        threading.Event().wait(0.002)
    raise AssertionError(bench.changeover.fault())


def test_nothing_passes_before_the_lines_have_said_a_code(lines: tuple[Bench, deque[int]]) -> None:
    bench, codes = lines
    assert bench.changeover.fault() == "the recipe lines have not said a code yet"
    codes.append(1)
    settle(bench, lambda: bench.changeover.fault() == "")
    assert (bench.recipe, bench.switched) == ("gasket", [])


def test_a_code_changes_the_recipe_and_nothing_passes_until_it_did(lines: tuple[Bench, deque[int]]) -> None:
    bench, codes = lines
    codes.append(2)
    settle(bench, lambda: bench.changeover.fault() == "")
    assert (bench.recipe, on_disk(bench)) == ("bolt", ("bolt", "gasket"))
    details = bench.journal.events[-1][1]["after"]
    assert (details["who"], details["why"]) == ("recipe lines", "code 2")
    assert "" not in bench.loop.looks[: bench.loop.looks.index("code 2 of the recipe lines asks for bolt")]


def test_an_unknown_code_is_an_event_and_nothing_passes_until_a_known_one(lines: tuple[Bench, deque[int]]) -> None:
    bench, codes = lines
    codes.append(3)
    settle(bench, lambda: "code 3 of the recipe lines is no recipe's" in bench.changeover.fault())
    assert bench.journal.events == [("recipe-code", {"code": 3, "fault": bench.changeover.fault()})]
    assert bench.recipe == "gasket"
    codes.append(1)
    settle(bench, lambda: bench.changeover.fault() == "")


def test_a_code_whose_recipe_is_refused_keeps_everything_from_passing(tmp_path: Path, lines: tuple[Bench, deque[int]]) -> None:
    bench, codes = lines
    (tmp_path / "bolt.json").unlink()
    codes.append(2)
    settle(bench, lambda: "recipe bolt is refused" in bench.changeover.fault())
    codes.append(1)
    settle(bench, lambda: bench.changeover.fault() == "")
    assert bench.recipe == "gasket"


def test_a_code_whose_recipe_the_backend_fails_to_load_says_so(
    monkeypatch: pytest.MonkeyPatch, lines: tuple[Bench, deque[int]]
) -> None:
    bench, codes = lines

    def take(config: object) -> Loaded:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(bench.shelf, "take", take)
    codes.append(2)
    settle(bench, lambda: "recipe bolt is refused: RuntimeError: out of memory" in bench.changeover.fault())
    assert bench.journal.events[-1][0] == "recipe-refused"


def test_only_the_last_of_many_codes_holds(lines: tuple[Bench, deque[int]]) -> None:
    bench, codes = lines
    codes.extend([2, 1, 2, 1, 2, 3, 1])
    settle(bench, lambda: bench.changeover.fault() == "" and not bench.loop.posted)
    for _ in range(20):
        bench.loop.between_parts()
        threading.Event().wait(0.002)
    assert (bench.recipe, bench.changeover.fault()) == ("gasket", "")


def test_a_person_may_not_choose_another_recipe_than_the_lines_but_another_version(
    tmp_path: Path, lines: tuple[Bench, deque[int]]
) -> None:
    bench, codes = lines
    codes.append(1)
    settle(bench, lambda: bench.changeover.fault() == "")
    with pytest.raises(StationError, match=r"the recipe lines choose the recipe, gasket now; change to bolt there"):
        bench.changeover.change("bolt", **WHO)
    write_tiny_recipe(tmp_path, "gasket", 90)
    assert "in place of gasket" in bench.change("gasket")


def test_one_change_waits_for_the_other(bench: Bench) -> None:
    threads = [
        threading.Thread(target=bench.changeover.change, args=(name,), kwargs=WHO) for name in ("bolt", "gasket", "bolt")
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        bench.loop.between_parts()
        threads[0].join(0.002)
    assert [name for name, _ in bench.journal.events] == ["recipe"] * len(bench.switched)
    assert bench.recipe == bench.switched[-1]
    assert on_disk(bench) is not None
    assert on_disk(bench)[0] == bench.recipe  # type: ignore[index]
