"""A bank that is extended on the station, against numbers derived by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from calibration import CalibrationError
from calibration.station_bank import Candidates, extend_bank, isotonic, measure_density
from engines.bundle import Bank


def bank_of(points: list[list[float]], density: list[float]) -> Bank:
    rows = np.array(points, np.float32)
    return Bank(rows, np.array(density, np.float32), np.zeros(len(rows), np.int32), np.arange(len(rows), dtype=np.int32))


def candidates(*images: list[list[float]]) -> Candidates:
    return Candidates(
        np.concatenate([np.array(image, np.float32) for image in images]),
        len(images),
        np.arange(len(images[0]), dtype=np.int32) + 7,
    )


def measured(isolation: list[float], *by_row: list[float]) -> list[float]:
    """Densities of rows that each have patches at these distances."""
    row = np.repeat(np.arange(len(by_row)), [len(distances) for distances in by_row])
    return measure_density(np.array(isolation, np.float32), np.concatenate(by_row).astype(np.float32), row).tolist()


def test_a_density_is_the_mean_and_the_deviation_of_its_patches() -> None:
    # means 3 and 5 rise with the isolation, so rows like each are each itself; mean squares 10 and 25
    assert measured([1, 2], [2.0, 4.0] * 50, [5.0] * 100) == pytest.approx([3 + 1, 5 + 0])


def test_a_row_without_patches_has_what_rows_as_isolated_have() -> None:
    # halfway: mean 4, mean square 17.5
    assert measured([1, 2, 1.5], [2.0, 4.0] * 50, [5.0] * 100, [])[2] == pytest.approx(4 + math.sqrt(17.5 - 16))
    assert measured([1, 2, 9], [2.0, 4.0] * 50, [5.0] * 100, [])[2] == pytest.approx(5)  # beyond: as the last


def test_rows_that_fall_where_they_should_rise_are_pooled_by_their_patches() -> None:
    # 100 at 5, then 300 at 3: pooled mean 3.5 and mean square 13; row 0: (500 + 350) / 200 and (2500 + 1300) / 200
    expected = 4.25 + math.sqrt(19 - 4.25**2)
    assert measured([1, 2], [5.0] * 100, [3.0] * 300)[0] == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(-5, 5), st.integers(1, 9)), min_size=1, max_size=30))
def test_isotonic_regression_is_scikit_learns(points: list[tuple[int, int, int]]) -> None:
    at, value, weight = (np.array(column) for column in zip(*points, strict=True))
    x, y = isotonic(at.astype(np.float64), value.astype(np.float64), weight)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(at, value, sample_weight=weight)
    between = np.linspace(-1, 9, 41)
    assert np.interp(between, x, y) == pytest.approx(theirs.predict(between), abs=1e-9)


def test_what_the_old_bank_lacks_is_taken_and_says_where_it_is_from() -> None:
    old = bank_of([[0, 0], [1, 0], [0, 1], [0.1, 0.1]], [0.5] * 4)
    added = candidates([[10, 10], [0.1, 0.0]], [[10.2, 10], [0.0, 0.1]])
    new = extend_bank(old, added, 4, first_image=1, k=1, metric="sqeuclidean", rng=np.random.default_rng(0))
    assert new.rows.shape == (4, 2) and new.density.dtype == np.float32
    far = new.rows[:, 0] > 5
    assert np.count_nonzero(far) == 1  # one of the two far patches covers the other
    assert new.image[far][0] in (1, 2) and new.patch[far][0] == 7
    assert set(new.image[~far]) == {0}


def test_with_room_for_all_every_row_stays_and_none_is_judged_by_its_own_image() -> None:
    old = bank_of([[0, 0], [1, 0]], [0.5, 0.5])
    new = extend_bank(
        old,
        candidates([[5, 0], [6, 0]], [[5, 1], [6, 1]]),
        6,
        first_image=1,
        k=1,
        metric="sqeuclidean",
        rng=np.random.default_rng(0),
    )
    assert np.array_equal(new.rows[:2], old.rows)
    assert new.image.tolist() == [0, 0, 1, 1, 2, 2]
    # each added patch is nearest to its fellow of the other image, at squared distance 1, deviation 0: usual everywhere
    assert new.density.tolist() == pytest.approx([1.0] * 6)


@pytest.mark.parametrize(("metric", "expected"), [("sqeuclidean", 4.0), ("euclidean", 2.0)])
def test_densities_are_in_the_metric_of_the_score(metric: str, expected: float) -> None:
    new = extend_bank(
        bank_of([[100, 0]], [0.5]),
        candidates([[0, 0]], [[2, 0]]),
        3,
        first_image=1,
        k=1,
        metric=metric,
        rng=np.random.default_rng(0),
    )
    assert new.density[1:].tolist() == pytest.approx([expected] * 2)


def test_a_smaller_budget_keeps_what_covers_most() -> None:
    rng = np.random.default_rng(3)
    old = bank_of(rng.normal(size=(200, 8)).tolist(), [1.0] * 200)
    added = Candidates(rng.normal(3, 1, (400, 8)).astype(np.float32), 4, np.arange(100, dtype=np.int32))
    new = extend_bank(old, added, 200, first_image=5, k=9, metric="sqeuclidean", rng=rng)
    assert len(new.rows) == 200 and len(np.unique(new.rows, axis=0)) == 200
    assert 60 < np.count_nonzero(new.image >= 5) < 140


def test_what_cannot_be_extended_is_refused() -> None:
    old = bank_of([[0, 0]], [1.0])
    with pytest.raises(CalibrationError, match="1 images to add, expected 2 or more"):
        extend_bank(old, candidates([[1, 1]]), 1, first_image=1, k=1, metric="sqeuclidean", rng=np.random.default_rng(0))
    with pytest.raises(CalibrationError, match="4 rows, expected 2 to 3"):
        extend_bank(
            old, candidates([[1, 1]], [[2, 2]]), 4, first_image=1, k=1, metric="sqeuclidean", rng=np.random.default_rng(0)
        )


def test_only_keeps_whole_images() -> None:
    some = candidates([[1, 1], [2, 2]], [[3, 3], [4, 4]], [[5, 5], [6, 6]]).only(np.array([True, False, True]))
    assert some.images == 2
    assert some.features.tolist() == [[1, 1], [2, 2], [5, 5], [6, 6]]
