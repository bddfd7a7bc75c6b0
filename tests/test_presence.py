"""Presence: what enters, stands and leaves is one part, taken when it is fully in view; none is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import StationError
from edge.presence import EmptyScene, Presence, learn_empty, load_empty
from edge.sections import Side
from edge.verdict import Arrival, Frame, Missing
from engines.bundle import pack_npz
from engines.images import Image, read_image
from tests.fakes import flat

SIZE = 256
LIGHT, PART = 90, 200


class Belt:
    """Frames of a belt with sensor noise; parts are squares of `part` px, given by where their centres are."""

    def __init__(self, seed: int = 1, part: int = 64) -> None:
        random = np.random.default_rng(seed)
        self._noise = [random.normal(0, 2, (SIZE, SIZE)).astype(np.float32) for _ in range(7)]
        self._drawn = 0
        self._part = part
        self.light = float(LIGHT)
        self.frame_ns = 10**9
        self.frames = 0

    def image(self, *centres: tuple[float, float]) -> Image:
        self._drawn += 1
        picture = cv2.add(self._noise[self._drawn % 7], self.light)
        half = self._part // 2
        for x, y in centres:
            left, right = (int(np.clip(x + side * half, 0, SIZE)) for side in (-1, 1))
            top, bottom = (int(np.clip(y + side * half, 0, SIZE)) for side in (-1, 1))
            picture[top:bottom, left:right] += PART - LIGHT
        return np.asarray(cv2.cvtColor(cv2.convertScaleAbs(picture), cv2.COLOR_GRAY2RGB), np.uint8)

    def frame(self, *centres: tuple[float, float]) -> Frame:
        self.frames += 1
        self.frame_ns += 33_000_000
        return Frame(self.image(*centres), self.frames, self.frame_ns, self.frame_ns, f"#{self.frames}")

    def empty(self) -> EmptyScene:
        return learn_empty([self.image() for _ in range(20)], None, 0.02)


def pass_by(step: float = 16, margin: float = 60) -> Iterator[tuple[float, float]]:
    """A part's way from the left to the right, out of view at both ends."""
    x = -margin
    while x <= SIZE + margin:
        yield x, 128.0
        x += step


def watch(presence: Presence, frames: list[Frame]) -> list[tuple[int, Arrival]]:
    """Parts, each with the index of the frame at which it was seen."""
    found = [(index, presence.see(frame)) for index, frame in enumerate(frames)]
    return [(index, part) for index, part in found if part is not None]


@pytest.mark.parametrize("enters", ["any", "left"])
def test_one_that_enters_stands_and_leaves_is_one_part_seen_when_it_is_fully_in_view(enters: Side) -> None:
    belt = Belt()
    presence = Presence(belt.empty(), enters=enters)
    way = list(pass_by())
    middle = way.index(next(place for place in way if place[0] >= 128))
    places = [None] * 5 + way[:middle] + [way[middle]] * 40 + way[middle:] + [None] * 5
    frames = [belt.frame(*([] if place is None else [place])) for place in places]
    ((index, part),) = watch(presence, frames)
    place = places[index]
    assert place is not None
    # a cell is 4 px: at the first frame whose left edge is 2 cells clear of the border, x - 32 >= 8
    assert place[0] == next(x for x, _ in way if x - 32 >= 8)
    assert isinstance(part, Frame)
    assert (part.part, part.captured_ns, part.trigger_ns) == (1, frames[index].captured_ns, frames[index].captured_ns)
    assert part.image is frames[index].image
    assert presence.state == "empty"


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(st.floats(10, 30), st.integers(2, 4)), min_size=1, max_size=3),
    st.sampled_from(["any", "left"]),
    st.integers(0, 99),
)
def test_parts_with_an_empty_view_between_them_are_each_seen_once_at_any_speed(
    ways: list[tuple[float, int]], enters: Side, seed: int
) -> None:
    belt = Belt(seed)
    presence = Presence(belt.empty(), enters=enters)
    frames = []
    for step, gap in ways:
        frames += [belt.frame(place) for place in pass_by(step)] + [belt.frame() for _ in range(gap)]
    parts = watch(presence, frames)
    assert [part.part for _, part in parts] == list(range(1, len(ways) + 1))
    assert all(isinstance(part, Frame) for _, part in parts)


def test_with_a_side_the_next_part_may_enter_before_the_one_before_left() -> None:
    belt = Belt()
    presence = Presence(belt.empty(), enters="left")
    count, gap_px = 5, 120  # two and more parts in view at once
    frames = []
    for shift in range(0, SIZE + 60 + count * gap_px, 8):
        frames.append(belt.frame(*[(shift - 60 - number * gap_px, 128.0) for number in range(count)]))
    parts = watch(presence, frames)
    assert [part.part for _, part in parts] == [1, 2, 3, 4, 5]
    assert all(isinstance(part, Frame) for _, part in parts)
    # each when it itself is clear of the left border: 40 px in, 8 px a frame
    assert [index * 8 - 60 - number * gap_px for number, (index, _) in enumerate(parts)] == [44, 44, 44, 44, 44]


def test_a_part_from_above_and_one_put_down_between_two_frames_are_seen() -> None:
    belt = Belt()
    presence = Presence(belt.empty())
    fall = [belt.frame((128.0, y)) for y in range(-40, 129, 24)]
    assert [part.part for _, part in watch(presence, [*fall, belt.frame(), belt.frame((128.0, 128.0)), belt.frame()])] == [1, 2]


@pytest.mark.parametrize("enters", ["any", "left"])
def test_one_that_comes_and_goes_without_being_fully_in_view_is_a_fault(enters: Side) -> None:
    belt = Belt()
    presence = Presence(belt.empty(), enters=enters)
    places = [-20.0, 0.0, 10.0, 0.0, -20.0]
    ((_, part),) = watch(presence, [belt.frame((x, 128.0)) for x in places] + [belt.frame()])
    assert isinstance(part, Missing)
    assert (part.part, part.reason) == (1, "a part came and went without being fully in view")


def test_a_part_that_is_longer_than_the_region_is_a_fault() -> None:
    belt = Belt(part=300)
    presence = Presence(belt.empty(), enters="left")
    ((_, part),) = watch(presence, [belt.frame((x, 128.0)) for x in range(-160, 420, 20)])
    assert isinstance(part, Missing)
    assert part.reason == "the part is cut off by the border of the region"


def test_frames_that_end_while_a_part_enters_leave_a_fault() -> None:
    belt = Belt()
    presence = Presence(belt.empty())
    assert presence.end(5) is None
    assert presence.see(belt.frame((10.0, 128.0))) is None
    assert presence.end(5) == Missing(1, 5, "presence", "the frames ended before the part was fully in view")
    assert presence.end(6) is None


def test_light_that_drifts_slowly_is_no_part_and_light_that_jumps_ends_the_run() -> None:
    belt = Belt()
    presence = Presence(belt.empty(), blind_s=2)
    for _ in range(300):
        belt.light += 0.1  # 30 grey levels in 10 s, three times what counts as changed
        assert presence.see(belt.frame()) is None
    assert presence.share < 0.005
    belt.light += 40
    with pytest.raises(StationError, match="100 % of the scene is changed for 2 s and nothing is fully in view"):
        for _ in range(100):
            assert presence.see(belt.frame()) is None


def test_what_is_too_small_to_be_a_part_does_not_become_the_scene() -> None:
    belt = Belt(part=32)  # 1.6 % of the region
    presence = Presence(belt.empty())
    for _ in range(200):
        assert presence.see(belt.frame((128.0, 128.0))) is None
    assert presence.share > 0.01


def test_a_part_that_seems_smaller_for_a_while_is_still_the_same_one() -> None:
    large, small = Belt(part=64), Belt(part=48)  # 6.3 and 3.5 % of the region
    presence = Presence(large.empty(), share=0.05)
    frames = [belt.frame((128.0, 128.0)) for belt in (large, small, small, large, small)]
    assert [index for index, _ in watch(presence, frames)] == [0]


def test_drift_is_not_followed_while_a_part_stands_there() -> None:
    belt = Belt()
    presence = Presence(belt.empty())
    frames = [belt.frame((128.0, 128.0)) for _ in range(300)] + [belt.frame(), belt.frame((128.0, 128.0))]
    assert [index for index, _ in watch(presence, frames)] == [0, 301]


def test_a_part_that_stands_fully_in_view_for_too_long_is_told_once_and_one_half_in_view_ends_the_run() -> None:
    belt = Belt()
    notes: list[tuple[str, Mapping[str, object]]] = []
    presence = Presence(belt.empty(), blind_s=1, note=lambda name, details: notes.append((name, details)))
    assert len(watch(presence, [belt.frame((128.0, 128.0)) for _ in range(100)])) == 1
    ((name, details),) = notes
    assert name == "scene changed"
    assert (details["state"], details["seconds"]) == ("in view", 1.0)
    assert presence.see(belt.frame()) is None
    with pytest.raises(StationError, match="parts would be missed"):
        watch(presence, [belt.frame((10.0, 128.0)) for _ in range(100)])


def test_a_frame_that_is_missing_or_of_another_size_is_a_part_without_a_picture() -> None:
    belt = Belt()
    presence = Presence(belt.empty())
    assert presence.see(Missing(9, 7, "cam", "frozen")) == Missing(1, 7, "cam", "frozen")
    other = presence.see(Frame(flat(90, (128, 256)), 1, 8, 8, "cam"))
    assert isinstance(other, Missing)
    assert (other.part, other.reason) == (2, "frame is 256 x 128, the empty scene was learnt at 256 x 256; learn it again")


def test_what_moves_outside_the_region_is_no_part() -> None:
    belt = Belt()
    scene = learn_empty([belt.image() for _ in range(20)], (0, 0, 256, 64), 0.02)
    presence = Presence(scene)
    assert watch(presence, [belt.frame(place) for place in pass_by()]) == []


def test_too_small_a_change_is_no_part() -> None:
    belt = Belt(part=32)  # 1.6 % of the region
    scene = belt.empty()
    frames = [belt.frame((128.0, 128.0)) for _ in range(5)]
    assert watch(Presence(scene, share=0.02), frames) == []
    assert len(watch(Presence(scene, share=0.01), frames)) == 1


def test_a_scene_that_moves_is_refused() -> None:
    belt = Belt()
    images = [belt.image() for _ in range(20)]
    images[13] = belt.image((128.0, 128.0))
    with pytest.raises(StationError, match=r"the scene moves: frame 14 of 20 differs .* in 6.\d % .* expected 1.0 % at most"):
        learn_empty(images, None, 0.02)


@pytest.mark.parametrize(
    ("images", "region", "reason"),
    [
        ([flat(9)] * 9, None, "9 frames of the empty scene, expected 10 or more"),
        ([], None, "0 frames"),
        ([flat(9)] * 5 + [flat(9, (64, 32))] * 9, None, "frame 6 is 32 x 64, expected 64 x 64 like the first"),
        ([flat(9)] * 12, (10, 0, 60, 10), r"region \[10, 0, 60, 10\] reaches out of the frame, 64 x 64"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(
    images: list[Image], region: tuple[int, int, int, int] | None, reason: str
) -> None:
    with pytest.raises(StationError, match=reason):
        learn_empty(images, region, 0.02)


def test_an_empty_scene_is_the_same_after_reading(tmp_path: Path) -> None:
    belt = Belt()
    scene = learn_empty([belt.image() for _ in range(12)], (8, 16, 200, 100), 0.02)
    scene.save(tmp_path / "empty.npz")
    read = load_empty(tmp_path / "empty.npz")
    np.testing.assert_array_equal(read.mean, scene.mean)
    np.testing.assert_array_equal(read.spread, scene.spread)
    assert (read.frame, read.region, read.frames) == ((256, 256), (8, 16, 200, 100), 12)
    assert scene.mean.shape == (32, 64)
    np.testing.assert_allclose(scene.mean, LIGHT, atol=2)


def numbers(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        (b"", "not an empty scene"),
        (b"PK\x03\x04 no zip", "not an empty scene"),
        (pack_npz({"mean": np.zeros((2, 2), np.float32)}), "not an empty scene"),
        (
            pack_npz({"mean": np.zeros((8, 8), np.float32), "spread": np.zeros((8, 8), np.float32), "numbers": numbers(2)}),
            "another version",
        ),
        (
            pack_npz(
                {
                    "mean": np.zeros((8, 8), np.float32),
                    "spread": np.zeros((8, 8), np.float32),
                    "numbers": numbers(1, 8, 8, 1, 0, 8, 8, 20),
                }
            ),
            r"expected float32 None",
        ),
        (
            pack_npz(
                {
                    "mean": np.full((8, 8), np.nan, np.float32),
                    "spread": np.zeros((8, 8), np.float32),
                    "numbers": numbers(1, 8, 8, 0, 0, 8, 8, 20),
                }
            ),
            r"expected float32 \(8, 8\)",
        ),
    ],
)
def test_a_file_that_is_no_empty_scene_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "empty.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StationError, match=reason) as refusal:
        load_empty(path)
    assert "learn it with `python -m edge empty`" in str(refusal.value)


@pytest.mark.realdata
def test_real_parts_on_a_real_background_are_each_seen_once() -> None:
    """Hazelnuts, cut from their photos, pass before the photos' own background."""
    if "REB_DATA" not in os.environ:
        pytest.skip("needs REB_DATA")
    photos = [read_image(path) for path in sorted((Path(os.environ["REB_DATA"]) / "hazelnut" / "train" / "good").iterdir())]
    random = np.random.default_rng(3)
    scene, cut_out = _belt_of(photos[0])
    view: Callable[[], Image] = lambda: _noisy(scene, random)  # noqa: E731
    presence = Presence(learn_empty([view() for _ in range(20)], None, 0.02), enters="left")
    nuts = [cut_out] + [_belt_of(photo)[1] for photo in photos[1:5]]
    parts: list[Arrival] = []
    at_ns = 0
    for nut, mask in nuts:
        for x in range(-SIZE, SIZE + 1, 16):
            image = view()
            source = slice(max(0, -x), SIZE - max(0, x))
            target = slice(max(0, x), SIZE - max(0, -x))
            shown = mask[:, source]
            image[:, target][shown] = nut[:, source][shown]
            at_ns += 33_000_000
            part = presence.see(Frame(image, 1, at_ns, at_ns, "belt"))
            parts += [] if part is None else [part]
    assert [(part.part, isinstance(part, Frame)) for part in parts] == [(number, True) for number in range(1, 6)]


def _belt_of(photo: Image) -> tuple[Image, tuple[Image, npt.NDArray[np.bool_]]]:
    """A photo's background alone, smooth, and the part with its mask."""
    small = np.asarray(cv2.resize(photo, (SIZE, SIZE), interpolation=cv2.INTER_AREA), np.uint8)
    grey = np.asarray(cv2.GaussianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), (9, 9), 0))
    _, mask = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    part = labels == 1 + int(np.argmax(stats[1:count, cv2.CC_STAT_AREA]))
    corner = small[:24, :24].reshape(-1, 3).mean(axis=0)
    return np.broadcast_to(corner, small.shape).astype(np.uint8), (small, part)


def _noisy(scene: Image, random: np.random.Generator) -> Image:
    return np.clip(scene + random.normal(0, 2, scene.shape), 0, 255).astype(np.uint8)
