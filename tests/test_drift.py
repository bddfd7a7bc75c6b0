"""The drift monitor: its evidence by hand, its promise on streams without a change, and what it says."""

from __future__ import annotations

import math
import tracemalloc
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration import CalibrationError
from calibration.drift import BETS, CHANNELS, GRID_FROM, Alarm, Monitor

NAMES = [channel.name for channel in CHANNELS]
LEVELS = np.array([1.0, 100, 80, 35, 30, 50, 50])
SPREADS = np.array([0.1, 2, 3, 0.3, 0.3, 0.5, 0.5])


def parts(count: int, seed: int = 0, **moved: float) -> np.ndarray:
    """Good parts, float64 (count, 7); `moved` shifts channels by name."""
    shift = np.array([moved.get(name, 0.0) for name in NAMES])
    return LEVELS + shift + SPREADS * np.random.default_rng(seed).normal(size=(count, 7))


def watch(monitor: Monitor, stream: np.ndarray) -> list[Alarm | None]:
    return [monitor.observe(row[0], row[1:]) for row in stream]


def test_the_evidence_of_one_part_by_hand() -> None:
    # 40 parts: 10 for the grid, 30 ranked, all below the new one in each channel and no ties: rank (30 + u) / 31
    reference = LEVELS + SPREADS * np.linspace(-1, 1, 40)[:, None]
    monitor = Monitor(reference, warning_parts=1, alarm_parts=1e6, seed=5)
    shares = np.random.default_rng(5).random(7)
    evidence = 0.0
    for channel, share in zip(CHANNELS, shares, strict=True):
        z = NormalDist().inv_cdf((30 + share) / 31)
        evidence += channel.weight / len(BETS) * sum(math.exp(bet * z - bet**2 / 2) for bet in BETS)
    far = LEVELS * 2  # a tenth of it is beyond every tolerance
    assert evidence > 1
    alarm = monitor.observe(far[0], far[1:])
    assert alarm is not None
    assert alarm.level == "warning"
    just_above = Monitor(reference, warning_parts=evidence * (1 + 1e-9), alarm_parts=1e6, seed=5)
    assert just_above.observe(far[0], far[1:]) is None


def test_bets_have_mean_one() -> None:
    at = (np.arange(100_000) + 0.5) / 100_000
    z = np.array([NormalDist().inv_cdf(rank) for rank in at])
    for bet in BETS:
        assert np.exp(bet * z - bet**2 / 2).mean() == pytest.approx(1, abs=2e-3)


def test_shares_are_a_whole() -> None:
    assert sum(channel.weight for channel in CHANNELS) == pytest.approx(1)


def test_without_a_change_false_alarms_are_rarer_than_promised() -> None:
    # limit 100: at most 1 in 100 parts on average; 30 calibrations of 30 parts, the fewest, with runs of 200 parts
    false = 0
    for seed in range(30):
        stream = parts(230, seed)
        monitor = Monitor(stream[:30], warning_parts=100, alarm_parts=100)
        for row in stream[30:]:
            if monitor.observe(row[0], row[1:]) is not None:
                false += 1
                monitor.reset()
    assert false / (30 * 200) < 0.01


@pytest.mark.parametrize(
    ("moved", "kind", "remedy"),
    [
        ({"brightness": -20}, "light", "lamp"),
        ({"sharpness": -12}, "focus", "lens"),
        ({"red": 2}, "colour", "white balance"),
        ({"down": 4}, "position", "fixture"),
        ({"score": 0.5}, "product", "surface"),
    ],
)
def test_what_drifted_is_said_with_value_expectation_and_remedy(moved: dict[str, float], kind: str, remedy: str) -> None:
    monitor = Monitor(parts(100))
    alarms = watch(monitor, np.concatenate([parts(50, 1), parts(60, 2, **moved)]))
    assert alarms[:50] == [None] * 50
    assert monitor.alarm is not None
    name = next(iter(moved))
    assert (monitor.alarm.level, monitor.alarm.kinds, monitor.alarm.channel) == ("alarm", (kind,), name)
    assert monitor.alarm.expected == pytest.approx(LEVELS[NAMES.index(name)], rel=0.05)
    assert (monitor.alarm.got - monitor.alarm.expected) * moved[name] > 0
    assert f"{kind} drifted: {name} {monitor.alarm.got:.4g}" in monitor.alarm.message
    assert remedy in monitor.alarm.message


def test_a_warning_comes_before_the_alarm_and_the_alarm_stays() -> None:
    monitor = Monitor(parts(100))
    levels = [alarm.level for alarm in watch(monitor, parts(60, 2, score=0.1)) if alarm is not None]
    assert levels[0] == "warning"
    assert levels.index("alarm") == levels.count("warning")
    assert monitor.alarm is monitor.observe(LEVELS[0], LEVELS[1:])
    monitor.reset()
    assert (monitor.alarm, monitor.parts) == (None, 0)
    assert monitor.observe(LEVELS[0], LEVELS[1:]) is None


def test_another_product_changes_many_kinds_at_once() -> None:
    monitor = Monitor(parts(100))
    watch(monitor, parts(60, 2, brightness=-20, sharpness=-12, red=2, down=4))
    assert monitor.alarm is not None
    assert set(monitor.alarm.kinds) >= {"light", "focus"}
    assert "another product" in monitor.alarm.message


def test_a_change_within_the_tolerance_says_nothing_however_sure_it_is() -> None:
    reference = parts(100)
    reference[:, 1] = 100 + 0.01 * (reference[:, 1] - 100)  # a lamp that hardly varies, so 3 grey levels are 150 deviations
    stream = parts(200, 1)
    stream[:, 1] = 103 + 0.01 * (stream[:, 1] - 100)
    assert watch(Monitor(reference), stream) == [None] * 200
    stream[:, 1] += 4  # 7 % in all, and 5 % matter
    assert any(watch(Monitor(reference), stream))


@given(st.integers(0, len(CHANNELS) - 1), st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 20))
def test_a_number_that_is_none_is_an_alarm_at_once(channel: int, value: float, after: int) -> None:
    monitor = Monitor(parts(40))
    watch(monitor, parts(after, 1))
    broken = parts(1, 2)[0]
    broken[channel] = value
    alarm = monitor.observe(broken[0], broken[1:])
    assert alarm is not None
    assert (alarm.level, alarm.channel) == ("alarm", CHANNELS[channel].name)
    assert "expected a number near" in alarm.message
    assert monitor.observe(LEVELS[0], LEVELS[1:]) is alarm


@given(st.lists(st.floats(-1e308, 1e308), min_size=7, max_size=7))
def test_any_finite_numbers_are_taken(values: list[float]) -> None:
    monitor = Monitor(parts(40))
    for _ in range(3):
        monitor.observe(values[0], np.array(values[1:]))
    assert monitor.parts == 3 or monitor.alarm is not None


@given(st.floats(0.01, 100), st.floats(-1e4, 1e4))
def test_ranks_do_not_care_for_scale_and_origin(scale: float, origin: float) -> None:
    # the score has no absolute tolerance and the finest resolution: its alarms come at the same part
    stream = np.concatenate([parts(40), parts(60, 1, score=0.4)])
    other = stream.copy()
    other[:, 0] = stream[:, 0] * scale + origin
    places = []
    for rows in (stream, other):
        alarms = watch(Monitor(rows[:40]), rows[40:])
        places.append(next(at for at, alarm in enumerate(alarms) if alarm is not None))
    assert abs(places[0] - places[1]) <= 1  # a value on a cell's edge may change cells


def test_equal_values_are_no_evidence() -> None:
    grey = parts(100)
    grey[:, 3:5] = 100 / 3
    stream = parts(1000, 1)
    stream[:, 3:5] = 100 / 3
    assert watch(Monitor(grey), stream) == [None] * 1000


def test_memory_does_not_grow() -> None:
    monitor = Monitor(parts(40))
    stream = parts(1000, 1)
    watch(monitor, stream[:300])
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for row in stream[300:]:
            monitor.observe(row[0], row[1:])
        assert tracemalloc.get_traced_memory()[0] - before < 5_000
    finally:
        tracemalloc.stop()


def test_what_was_seen_is_known_after_a_reset_and_not_in_a_new_monitor() -> None:
    # 300 parts of a changed light are the majority then: the same light again is no news to the one, and is to the other
    dark = parts(300, 1, brightness=-20)
    monitor = Monitor(parts(40))
    for row in dark:
        if monitor.observe(row[0], row[1:]) is not None:
            monitor.reset()
    monitor.reset()
    assert watch(monitor, parts(20, 2, brightness=-20)) == [None] * 20
    assert any(watch(Monitor(parts(40)), parts(20, 2, brightness=-20)))


def test_the_grid_does_not_depend_on_the_parts_that_are_ranked() -> None:
    one, other = parts(40), parts(40)
    other[GRID_FROM:] += 5
    assert (Monitor(one).grid.middle == Monitor(other).grid.middle).all()
    assert (Monitor(one).grid.pitch == Monitor(other).grid.pitch).all()


def test_a_reference_that_cannot_be_compared_with_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"reference is \(29, 7\), expected 30 or more"):
        Monitor(parts(29))
    broken = parts(40)
    broken[3, 2] = math.nan
    with pytest.raises(CalibrationError, match="good part 4: sharpness is nan, expected a finite number"):
        Monitor(broken)
    with pytest.raises(CalibrationError, match=r"reference is \(40, 6\), expected 30 or more good parts of 7 numbers"):
        Monitor(parts(40)[:, :6])


@pytest.mark.parametrize(("warning", "alarm"), [(0.5, 10), (100, 50), (math.nan, 10), (10, math.inf), (10, 1e12)])
def test_limits_that_are_none_are_refused(warning: float, alarm: float) -> None:
    with pytest.raises(CalibrationError, match="a false warning in"):
        Monitor(parts(40), warning_parts=warning, alarm_parts=alarm)


def test_statistics_of_another_kind_are_refused() -> None:
    with pytest.raises(CalibrationError, match="5 statistics, expected 6"):
        Monitor(parts(40)).observe(1.0, np.zeros(5))
