"""The benchmark of pulse starts measures pulses, and leaves out windows that find the line rejecting."""

from __future__ import annotations

import pytest

from benchmarks.reject_timing import MS, lateness_ms


def test_a_pulse_is_late_by_the_time_from_its_window_to_the_line() -> None:
    levels = [(0, True), (10 * MS, False), (101 * MS, True), (140 * MS, False), (203 * MS, True)]
    assert lateness_ms(levels, [100 * MS, 200 * MS]) == pytest.approx([1.0, 3.0])


def test_a_window_that_opens_while_the_line_rejects_is_left_out() -> None:
    # held up from before the end of the first window, 140, to after the beginning of the second, 150
    levels = [(0, True), (10 * MS, False), (100 * MS, True), (190 * MS, False), (200 * MS, True)]
    assert lateness_ms(levels, [100 * MS, 150 * MS, 199 * MS]) == pytest.approx([1.0])


def test_a_pulse_that_comes_after_its_window_is_measured_too() -> None:
    levels = [(0, True), (10 * MS, False), (160 * MS, True)]
    assert lateness_ms(levels, [100 * MS]) == pytest.approx([60.0])
