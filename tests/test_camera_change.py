"""A live camera that is set otherwise between two parts: opened again and read back, or as it was before; never a mix."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import edge.run as assembly
from edge import StationError
from edge.camera_sections import AnyLive, LiveSource, Region
from edge.changeover import Changeover
from edge.clock import SystemClock
from edge.config import load_recipes
from edge.device import DeviceLostError, Grab, Setting
from edge.live import LiveCamera
from edge.rejector import DryRunRejector
from edge.station import Station
from edge.verdict import Frame, Missing
from engines.bundle import load_bundle
from engines.images import Image
from engines.inspector import Inspector
from tests.fake_aravis import GigE, gige, trigger
from tests.fake_device import FakeDevice
from tests.fakes import FakeClock, flat, journal_rows, textured, write_recipes

OLD = LiveSource(exposure_us=500, timeout_ms=30_000, stale_ms=30_000)
NEW = OLD.model_copy(update={"exposure_us": 800.0})
REFUSED = [Setting("exposure_us", 800, 1000, 100)]


class Beats:
    """What is called while somebody waits; `work` is done once at the first beat of a wait."""

    def __init__(self) -> None:
        self.work: Callable[[], None] = lambda: None

    def __call__(self) -> None:
        work, self.work = self.work, lambda: None
        work()


class Bench:
    """A camera over one fake device, which is fed; `other` is the same camera with other settings."""

    def __init__(self, clock: FakeClock | SystemClock, *, parts_by_trigger: bool = False) -> None:
        self.device, self.other = FakeDevice(SystemClock()), FakeDevice(SystemClock())
        self.beats = Beats()
        self.camera = LiveCamera(self.device, OLD, clock, beat=self.beats, parts_by_trigger=parts_by_trigger)
        self.frames = self.camera.frames()
        self.device.feed(flat(11))
        assert grey(next(self.frames)) == 11


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(SystemClock())
    yield made
    made.camera.close()


def grey(arrival: object) -> int:
    assert isinstance(arrival, Frame)
    return int(arrival.image[0, 0, 0])


def test_after_a_change_no_picture_of_before_is_given(bench: Bench) -> None:
    bench.device.feed(flat(12))  # held, and not taken
    bench.device.put(flat(13), flat(14))  # in the driver's queue
    bench.other.put(flat(21), flat(22))
    bench.camera.change(bench.other, NEW)
    assert bench.camera.source == NEW
    assert bench.camera.healthy
    assert bench.device.closed_by == ["camera fake"]
    assert grey(next(bench.frames)) in (21, 22)


def test_pictures_that_wait_for_triggers_are_dropped_as_well() -> None:
    bench = Bench(SystemClock(), parts_by_trigger=True)
    bench.device.feed(*(flat(12 + number) for number in range(6)))
    bench.other.put(flat(50), flat(51))
    bench.camera.change(bench.other, NEW)
    assert isinstance(next(bench.frames), Missing)  # for a part that triggered before them
    assert grey(next(bench.frames)) in (50, 51)
    bench.camera.close()


def test_a_picture_that_was_on_its_way_when_the_change_was_asked_for_is_dropped(bench: Bench) -> None:
    bench.device.hang()
    bench.device.put(flat(13))
    bench.other.put(flat(21), flat(22))
    bench.beats.work = bench.device.let_go  # the read of before ends during the change
    bench.camera.change(bench.other, NEW)
    assert grey(next(bench.frames)) in (21, 22)


def test_during_the_change_it_is_not_healthy_and_says_why(bench: Bench) -> None:
    seen = []

    def look() -> None:
        seen.append((bench.camera.healthy, bench.camera.status))
        bench.other.put(flat(21))  # the change waits for a picture

    bench.beats.work = look
    bench.camera.change(bench.other, NEW)
    assert seen == [(False, "camera fake: its settings change")]


def test_the_same_settings_change_nothing(bench: Bench) -> None:
    bench.camera.change(bench.other, OLD.model_copy())
    assert bench.other.opened_ns == []
    assert bench.device.closed_by == []


def refused_settings(device: FakeDevice) -> None:
    device.settings = REFUSED


def lost(device: FakeDevice) -> None:
    device.refusals = [DeviceLostError("it is gone")]


def bad_pictures(device: FakeDevice) -> None:
    device.put(StationError("source.region is outside"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (refused_settings, "camera fake: exposure_us is 1000 after 800 was set; change the configuration"),
        (lost, "camera fake: it is gone"),
        (bad_pictures, "camera fake: source.region is outside"),
    ],
)
def test_what_does_not_hold_is_refused_and_the_former_settings_are_set_again(
    bench: Bench, spoil: Callable[[FakeDevice], None], reason: str
) -> None:
    spoil(bench.other)
    with pytest.raises(StationError) as caught:
        bench.camera.change(bench.other, NEW)
    assert str(caught.value) == f"{reason}; the former settings are set again"
    assert bench.camera.source == OLD
    assert len(bench.device.opened_ns) == 2
    assert not bench.camera.healthy  # until it delivers again
    bench.device.feed(flat(15))
    assert grey(next(bench.frames)) == 15
    assert bench.camera.healthy


def test_new_settings_with_which_nothing_comes_are_refused(bench: Bench) -> None:
    with pytest.raises(StationError, match=r"no frame yet; the former settings are set again"):
        bench.camera.change(bench.other, NEW.model_copy(update={"timeout_ms": 20.0}))
    assert bench.camera.source == OLD


def test_a_camera_that_takes_neither_is_opened_again_with_the_former_settings(bench: Bench) -> None:
    bench.other.settings = REFUSED
    bench.device.refusals = [DeviceLostError("it is gone")]
    with pytest.raises(StationError, match=r"could not be set again yet \(camera fake: it is gone\)"):
        bench.camera.change(bench.other, NEW)
    assert not bench.camera.healthy
    bench.device.feed(flat(15))  # opened once more, after half a second
    assert grey(next(bench.frames)) == 15
    assert len(bench.other.opened_ns) == 1


class HangingDevice(FakeDevice):
    """Hangs when it is opened, until it is let go."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.go_on = threading.Event()

    def open(self) -> None:
        super().open()
        assert self.go_on.wait(30)


def test_a_driver_that_hangs_is_given_up_and_never_ends_up_with_the_new_settings() -> None:
    clock = FakeClock()
    bench, hanging = Bench(clock), HangingDevice()
    hanging.put(flat(21), flat(22))
    bench.beats.work = lambda: clock.advance_ms(9000)
    with pytest.raises(StationError, match=r"not changed after 8 s; the former settings are set again"):
        bench.camera.change(hanging, NEW)
    assert not bench.camera.healthy
    with pytest.raises(StationError, match="an earlier change of its settings hangs"):
        bench.camera.change(bench.other, NEW)
    hanging.go_on.set()
    bench.device.feed(flat(15))
    assert grey(next(bench.frames)) == 15
    assert bench.camera.source == OLD
    assert hanging.closed_by == ["camera fake"]
    bench.camera.close()


def test_whoever_ends_the_wait_leaves_the_former_settings(bench: Bench) -> None:
    hanging = HangingDevice()
    hanging.put(flat(21))

    def stop() -> None:
        raise StationError("the rejector is not there")

    bench.beats.work = stop
    with pytest.raises(StationError, match="the rejector is not there"):
        bench.camera.change(hanging, NEW)
    hanging.go_on.set()
    bench.device.feed(flat(15))
    assert grey(next(bench.frames)) == 15
    assert bench.camera.source == OLD


def test_a_camera_whose_thread_failed_refuses_a_change() -> None:
    bench = Bench(SystemClock())

    def interrupted() -> Grab | None:
        raise KeyboardInterrupt

    bench.device.read = interrupted  # type: ignore[method-assign]
    with pytest.raises(StationError, match="KeyboardInterrupt"):
        next(bench.frames)
    with pytest.raises(StationError, match="KeyboardInterrupt"):
        bench.camera.change(bench.other, NEW)
    bench.camera.close()


# over a GigE Vision camera


@pytest.fixture
def fake() -> Iterator[GigE]:
    with gige() as camera:
        yield camera


def test_a_genicam_camera_takes_another_exposure_and_region_and_refuses_what_it_cannot(fake: GigE) -> None:
    def told(**settings: Any) -> tuple[Any, Any]:
        source = fake.source().model_copy(update=settings)
        return type(fake.device())(source, SystemClock()), source

    device, old = told(exposure_us=5000.0)
    camera = LiveCamera(device, old, SystemClock())
    frames = camera.frames()
    fake.show(textured(1))
    trigger(device)
    assert isinstance(next(frames), Frame)

    device, new = told(exposure_us=2000.0, region=Region(x=0, y=0, width=32, height=48))
    camera.change(device, new)
    got = {setting.name: setting.got for setting in camera.settings}
    assert (got["exposure_us"], got["region.width"], got["region.height"]) == (2000, 32, 48)
    fake.show(textured(2, (48, 32)))
    trigger(device)
    arrival = next(frames)
    assert isinstance(arrival, Frame)
    assert arrival.image.shape == (48, 32, 3)

    with pytest.raises(StationError, match=r"exposure_us is 1, the camera offers 10 .*; the former settings are set again"):
        camera.change(*told(exposure_us=1.0, region=new.region))
    assert camera.source == new
    assert {setting.name: setting.got for setting in camera.settings} == got
    camera.close()


# a whole station


class LitDevice:
    """A camera whose pictures are as light as its exposure, and no two in a row alike."""

    triggered = False
    name = "lit"
    exposures: set[float] = set()  # noqa: RUF012  # that it does not take

    def __init__(self, source: AnyLive) -> None:
        assert source.exposure_us is not None
        self._exposure_us = source.exposure_us
        self._number = 0

    def open(self) -> None:
        """Always there."""

    def apply(self, source: LiveSource) -> Sequence[Setting]:
        wanted = source.exposure_us or 0
        return [Setting("exposure_us", wanted, 7 if wanted in self.exposures else wanted)]

    def read(self) -> Grab | None:
        time.sleep(0.001)
        self._number += 1
        return Grab(self.picture(self._number), time.monotonic_ns())

    def picture(self, number: int) -> Image:
        return flat(round(self._exposure_us) + number % 5)

    def counts(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        """Nothing to release."""


GREYS = {"gasket": 128, "bolt": 60}


def test_no_part_of_a_station_is_judged_with_one_recipe_on_a_picture_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_recipes(tmp_path, greys=GREYS)
    text = config.read_text().replace("{kind: replay, path: parts}", "{kind: camera, device: 0, frame_rate: 200}")
    for name, grey_ in GREYS.items():
        text = text.replace(f"calibration: {name}.json", f"calibration: {name}.json, source: {{exposure_us: {grey_}}}")
    text += "  bad: {bundle: bundles/bolt, calibration: bolt.json, source: {exposure_us: 61}}\n"
    config.write_text(text)
    monkeypatch.setattr(assembly, "make_device", LitDevice)
    monkeypatch.setattr(LitDevice, "exposures", {61.0})
    monkeypatch.setattr(assembly, "_print_verdict", lambda verdict: None)
    real, answers = assembly._changing, []
    threads = []

    def change(changeover: Changeover, station: Station) -> None:
        draw = random.Random(5)
        try:
            for number in range(12):
                parts = station.statistics.parts
                while station.statistics.parts < parts + draw.randrange(1, 6):
                    time.sleep(0.001)
                name = "bad" if number % 4 == 3 else ("bolt", "gasket")[number % 2]
                try:
                    answers.append(str(changeover.change(name, who="Ada", why="order 7")))
                except StationError as error:
                    answers.append(str(error))
        finally:
            station.stop("the test is over")

    def hold(*pieces: Any) -> Changeover:
        made = real(*pieces)
        threads.append(threading.Thread(target=change, args=(made, pieces[3])))
        threads[0].start()
        return made

    monkeypatch.setattr(assembly, "_changing", hold)
    assembly.run_station(load_recipes(config), lambda _: DryRunRejector(), service=config)
    threads[0].join()

    refusals = [answer for answer in answers if "is refused" in answer]
    said = "exposure_us is 7 after 61 was set; change the configuration; the former settings are set again"
    assert [said in refusal for refusal in refusals] == [True] * 3
    scores = {}
    for name, grey_ in GREYS.items():
        with Inspector(load_bundle(tmp_path / "bundles" / name), threads=1) as inspector:
            scores[name] = {inspector.score(flat(grey_ + step)).value for step in range(5)}
    judged = [row for row in journal_rows(tmp_path / "journal.db") if "part" in row and row["score"] is not None]
    assert {row["recipe"] for row in judged} == {"gasket", "bolt"}
    for row in judged:
        assert row["score"] in scores[row["recipe"]]
    assert len(judged) >= 12
