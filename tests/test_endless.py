"""What the benchmarks of a whole station share: a camera that never ends, and the station of `edge run` over it."""

from __future__ import annotations

from pathlib import Path
from typing import cast
from unittest import mock

from benchmarks.endless import EndlessCamera, run_over
from benchmarks.memory import Sample, _show
from benchmarks.throughput import _TIMED, _UNTIMED, TurnsCamera
from engines.images import Image
from engines.inspector import Inspector
from tests.fakes import flat, write_station


def test_the_whole_station_judges_endless_pictures_and_its_lines_go_to_the_log(tmp_path: Path) -> None:
    config, log, rejectors = write_station(tmp_path), tmp_path / "log", []
    images = [flat(130), flat(139)]
    for _ in range(2):  # a second run begins a journal of its own
        counts = run_over(config, lambda beat: EndlessCamera(images, lambda part: part <= 6), log, rejectors.append)
        assert counts == {"PASS": 3, "REJECT": 3, "pictures": 0}
    assert sum(line.startswith("part ") for line in log.read_text().splitlines()) == 6
    assert len(set(rejectors)) == 2


def test_turns_alternate_and_only_their_timed_images_count() -> None:
    scored: list[int] = []
    beats: list[int] = []

    class Counting:
        def score(self, image: Image) -> None:
            scored.append(int(image[0, 0, 0]))

    camera = TurnsCamera([flat(1), flat(2)], 2, cast("Inspector", Counting()), lambda: beats.append(len(scored)))
    seen = [len(scored) for _ in camera.frames()]
    turn = _UNTIMED + _TIMED
    assert seen == [turn] * turn + [2 * turn] * turn
    assert beats == list(range(1, 2 * turn + 1))  # the rejector hears of the station all the while
    assert len(camera.bare) == len(camera.station) == 2
    assert min(*camera.bare, *camera.station) > 0


def test_growth_is_told_from_filling() -> None:
    told: list[str] = []
    samples = [Sample(60.0 * at, 6000 * at, 200_000 + 10 * at, 20_000) for at in range(4)]
    with mock.patch("benchmarks.memory.console.say", told.append):
        _show(samples)
        assert told[0] == "from part 12000 to 18000: vision +10 kB, rejector +0 kB"
        _show(samples[:3])
        assert "too short to tell growth from filling" in told[2]
