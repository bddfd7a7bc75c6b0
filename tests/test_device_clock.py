"""A camera's times on the station's clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge.device_clock import DeviceClock

MS = 10**6
START_NS = 5_000 * MS  # of the camera's clock when the station's is at 0


def test_the_fastest_picture_gives_the_offset_and_slow_ones_are_told_without_their_delay() -> None:
    clock = DeviceClock()
    # taken at 0, 100, 200 and 300 ms; 10, 30, 5 and 80 ms on the way
    taken_and_delay = ((0, 10), (100, 30), (200, 5), (300, 80))
    got = [clock.captured_ns(START_NS + taken * MS, (taken + delay) * MS) for taken, delay in taken_and_delay]
    # until the 5 ms come, the offset holds the first picture's 10 ms
    assert got == [10 * MS, 110 * MS, 205 * MS, 305 * MS]


def test_a_camera_without_a_clock_has_the_times_of_arrival() -> None:
    clock = DeviceClock()
    assert [clock.captured_ns(0, at) for at in (7 * MS, 9 * MS)] == [7 * MS, 9 * MS]


def test_a_clock_that_was_set_back_is_learnt_anew() -> None:
    clock = DeviceClock()
    assert clock.captured_ns(START_NS, 10 * MS) == 10 * MS
    assert clock.captured_ns(50 * MS, 120 * MS) == 120 * MS
    assert clock.captured_ns(150 * MS, 260 * MS) == 220 * MS


def test_an_offset_is_forgotten_after_64_pictures_so_that_drift_does_not_add_up() -> None:
    clock = DeviceClock()
    clock.captured_ns(START_NS, 0)
    # the station's clock gains 1 ms on the camera's from the second picture on
    for number in range(1, 64):
        assert clock.captured_ns(START_NS + number * 100 * MS, number * 100 * MS + MS) == number * 100 * MS
    assert clock.captured_ns(START_NS + 6_400 * MS, 6_401 * MS) == 6_401 * MS


@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 10**9)), min_size=1, max_size=200),
    st.integers(1, 10**12),
)
def test_times_never_go_back_nor_lie_ahead_of_the_arrival(steps: list[tuple[int, int]], start: int) -> None:
    clock = DeviceClock()
    device = start
    arrived = before = 0
    for gap, delay in steps:
        device += gap
        arrived = max(arrived, device - start + delay)
        got = clock.captured_ns(device, arrived)
        assert before <= got <= arrived
        before = got
