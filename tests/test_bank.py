"""Coreset selection against the plain greedy loop."""

from __future__ import annotations

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import EngineError
from engines.bank import PROJECTION_DIM, by_projection, coreset_size, k_centre, project

Floats = npt.NDArray[np.float32]


def squared_to(points: npt.NDArray, centre: npt.NDArray) -> npt.NDArray[np.float64]:
    return ((points.astype(np.float64) - centre.astype(np.float64)) ** 2).sum(axis=1)


def plain_greedy(points: npt.NDArray, count: int, *first: int) -> list[int]:
    """The definition: take the point farthest from those taken, the first of equals; never one twice."""
    taken = list(first)
    reach = np.min([squared_to(points, points[index]) for index in first], axis=0)
    while len(taken) < count:
        reach[taken] = -np.inf
        taken.append(int(reach.argmax()))
        reach = np.minimum(reach, squared_to(points, points[taken[-1]]))
    return taken


def radius(points: npt.NDArray, taken: npt.NDArray[np.int64] | list[int]) -> float:
    """Covering radius: how far the farthest point is from the taken ones."""
    return float(np.sqrt(np.min([squared_to(points, points[index]) for index in taken], axis=0).max()))


@given(st.integers(1, 120), st.integers(1, 8), st.sampled_from([0, 1, 3, 1000]), st.data())
def test_it_is_the_plain_greedy_loop_whatever_the_duplicates(count: int, dim: int, spread: int, data: st.DataObject) -> None:
    # whole numbers, so that float32 is exact and ties are true ties; spread 0 makes all points equal
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    points = rng.integers(-spread, spread + 1, (count, dim)).astype(np.float32)
    wanted = data.draw(st.integers(1, count))
    taken = k_centre(points, wanted, np.random.default_rng(0))
    assert taken.dtype == np.int64
    if wanted == count:
        assert taken.tolist() == list(range(count))
    else:
        assert taken.tolist() == plain_greedy(points, wanted, int(taken[0]))


@pytest.mark.parametrize("kind", ["random", "clustered", "grid", "line of twins"])
def test_kinds_of_data(kind: str) -> None:
    rng = np.random.default_rng(1)
    points = np.round(
        {
            "random": rng.normal(size=(900, 12)) * 100,
            "clustered": rng.normal(size=(9, 12))[rng.integers(0, 9, 900)] * 100 + rng.normal(size=(900, 12)),
            "grid": np.stack(np.meshgrid(np.arange(30), np.arange(30)), axis=-1).reshape(900, 2),
            "line of twins": np.repeat(np.arange(30), 30)[:, None],
        }[kind]
    ).astype(np.float32)  # whole numbers: float32 is exact
    taken = k_centre(points, 200, np.random.default_rng(2))
    assert len(set(taken.tolist())) == 200
    expected = plain_greedy(points, 200, int(taken[0]))
    assert radius(points, taken) <= radius(points, expected) * 1.0001
    assert taken.tolist() == expected


def test_more_equal_points_than_a_pass_looks_at() -> None:
    points = np.zeros((200, 4), np.float32)
    points[100:] = 1
    taken = k_centre(points, 150, np.random.default_rng(0))
    assert sorted(taken.tolist()) == sorted(set(taken.tolist()))
    assert {points[index, 0] for index in taken[:2]} == {0.0, 1.0}


@pytest.mark.parametrize("offset", [0, 1e4])
def test_an_offset_costs_no_accuracy(offset: float) -> None:
    points = (offset + np.random.default_rng(14).normal(size=(400, 12))).astype(np.float32)
    taken = k_centre(points, 100, np.random.default_rng(2))
    assert taken.tolist() == plain_greedy(points, 100, int(taken[0]))


def test_clusters_are_covered_first() -> None:
    points = np.repeat(np.eye(5, dtype=np.float32) * 100, 50, axis=0)
    points += np.random.default_rng(3).normal(size=points.shape).astype(np.float32)
    taken = k_centre(points, 5, np.random.default_rng(0))
    assert sorted(index // 50 for index in taken.tolist()) == [0, 1, 2, 3, 4]


def test_the_first_is_a_member_farthest_from_the_mean_of_ten() -> None:
    points = np.random.default_rng(4).normal(size=(300, 6)).astype(np.float32)
    first = k_centre(points, 1, np.random.default_rng(5))
    middle = points[np.random.default_rng(5).choice(300, 10, replace=False)].mean(axis=0)
    assert first.tolist() == [int(squared_to(points, middle).argmax())]


def test_wide_features_are_selected_in_their_projection_and_the_last_in_50_by_themselves() -> None:
    features = np.random.default_rng(6).normal(size=(400, 300)).astype(np.float32)
    taken = k_centre(features, 150, np.random.default_rng(7)).tolist()
    points = project(features, PROJECTION_DIM, np.random.default_rng(7))
    assert points.shape == (400, PROJECTION_DIM)
    assert points.dtype == np.float32
    assert taken[:147] == plain_greedy(points, 147, taken[0])
    assert taken == plain_greedy(features, 150, *taken[:147])
    assert taken != plain_greedy(points, 150, taken[0])


def test_what_the_projection_leaves_uncovered_is_covered_last() -> None:
    # two far outliers, in directions that the projection does not see: it takes each for the middle of the cloud
    rng = np.random.default_rng(15)
    features = rng.normal(size=(300, 200)).astype(np.float32)
    matrix = np.random.default_rng(7).normal(size=(200, PROJECTION_DIM))  # of the seed that selects below
    unseen = np.linalg.svd(matrix.T)[2][PROJECTION_DIM:]  # directions that the projection maps to 0
    features[[30, 60]] = 1000 * unseen[:2]
    taken = k_centre(features, 100, np.random.default_rng(7)).tolist()
    assert sorted(taken[98:]) == [30, 60]


@pytest.mark.parametrize(("dim", "expected"), [(PROJECTION_DIM, 100), (PROJECTION_DIM + 1, 98)])
def test_rows_taken_on_the_projection(dim: int, expected: int) -> None:
    assert by_projection(100, dim) == expected
    assert by_projection(49, dim) == 49


def test_memory_is_below_twice_the_projection() -> None:
    features = np.random.default_rng(16).normal(size=(20_000, 200)).astype(np.float32)
    k_centre(features[:300], 100, np.random.default_rng(0))
    tracemalloc.start()
    try:
        k_centre(features, 100, np.random.default_rng(0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(features) * PROJECTION_DIM * 4


def test_projection_keeps_distances_on_average() -> None:
    features = np.random.default_rng(8).normal(size=(50, 600)).astype(np.float32)
    points = project(features, PROJECTION_DIM, np.random.default_rng(9))
    ratio = [squared_to(points[1:], points[0]).mean() / squared_to(features[1:], features[0]).mean()]
    assert ratio[0] == pytest.approx(1, abs=0.1)


def test_a_projection_is_about_the_first_row() -> None:
    features = np.random.default_rng(17).normal(size=(9, 200)).astype(np.float32)
    points = project(features, PROJECTION_DIM, np.random.default_rng(18))
    assert (points[0] == 0).all()
    matrix = np.random.default_rng(18).normal(0, 1 / np.sqrt(PROJECTION_DIM), (200, PROJECTION_DIM))
    np.testing.assert_allclose(points, (features - features[0]) @ matrix, atol=1e-4)


def test_narrow_features_are_not_projected() -> None:
    features = np.random.default_rng(0).normal(size=(5, PROJECTION_DIM)).astype(np.float32)
    assert (project(features, PROJECTION_DIM, np.random.default_rng(0)) == features - features[0]).all()


def test_the_same_seed_takes_the_same_rows() -> None:
    features = np.random.default_rng(10).normal(size=(200, 200)).astype(np.float32)
    one, two = (k_centre(features, 40, np.random.default_rng(11)).tolist() for _ in range(2))
    assert one == two


def test_features_are_left_as_they_were() -> None:
    features = np.random.default_rng(12).normal(size=(100, 4)).astype(np.float32)
    features.flags.writeable = False
    k_centre(features, 30, np.random.default_rng(0))


def test_progress_grows_to_its_total() -> None:
    calls: list[tuple[int, int]] = []
    points = np.random.default_rng(13).normal(size=(300, 4)).astype(np.float32)
    k_centre(points, 100, np.random.default_rng(0), progress=lambda done, total: calls.append((done, total)))
    done = [call[0] for call in calls]
    assert done == sorted(set(done))
    assert calls[-1] == (100, 100)


@pytest.mark.parametrize("count", [0, -1, 6])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(EngineError, match=f"coreset of {count} rows, expected 1 to 5"):
        k_centre(np.zeros((5, 2), np.float32), count, np.random.default_rng(0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    points = np.zeros((50, 2), np.float32)
    points[7, 1] = bad
    with pytest.raises(EngineError, match="not finite"):
        k_centre(points, 10, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("amount", "patches", "expected"),
    [
        *[(1.0, 1024, 1024), (0.1, 1024, 102), (0.001, 10, 1), (1e-9, 1, 1), (0.5, 3, 2), (0.25, 8, 2)],
        *[(100, 1024, 100), (2048.0, 10_000, 2048), (2048, 2000, 2000)],
    ],
)
def test_coreset_size(amount: float, patches: int, expected: int) -> None:
    assert coreset_size(amount, patches) == expected


@pytest.mark.parametrize("amount", [0.0, -0.1, 1.0001, 2.0, 99, 2048.5, float("nan"), float("inf")])
def test_an_amount_that_is_neither_a_fraction_nor_a_number_of_rows_is_refused(amount: float) -> None:
    with pytest.raises(EngineError, match=rf"coreset {amount:g}, expected a fraction above 0 .*, 100 or more"):
        coreset_size(amount, 1000)
