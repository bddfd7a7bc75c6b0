"""LDKNN against its definition in float64, by hand and by property."""

from __future__ import annotations

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import EngineError
from engines.ldknn import LDKNN, QUERY_BLOCK, ROW_BLOCK, density, nearest

Floats = npt.NDArray[np.float32]


def squared_distances(queries: npt.NDArray, rows: npt.NDArray) -> npt.NDArray[np.float64]:
    """The definition: (q, d) and (n, d) to float64 (q, n)."""
    difference = queries[:, None, :].astype(np.float64) - rows[None, :, :].astype(np.float64)
    return (difference**2).sum(axis=2)


def plain_density(bank: npt.NDArray, features: npt.NDArray, k: int, metric: str = "sqeuclidean") -> npt.NDArray[np.float64]:
    """The definition: the mean distance of each bank row to its K nearest others, itself left out by index."""
    values = []
    for index in bank:
        squared = np.delete(squared_distances(features[index : index + 1], features)[0], index)
        near = np.sort(squared)[:k]
        values.append((np.sqrt(near) if metric == "euclidean" else near).mean())
    return np.array(values)


def plain_score(
    queries: npt.NDArray, rows: npt.NDArray, dense: npt.NDArray, alpha: float, metric: str = "sqeuclidean"
) -> npt.NDArray[np.float64]:
    """The definition: distance to the nearest row less alpha times that row's density; the first of equals is nearest."""
    squared = squared_distances(queries, rows)
    row = squared.argmin(axis=1)
    least = squared[np.arange(len(queries)), row]
    return (np.sqrt(least) if metric == "euclidean" else least) - alpha * dense[row].astype(np.float64)


def column(*values: float) -> Floats:
    """Points on a line, float32 (n, 1)."""
    return np.array(values, np.float32)[:, None]


def nearest_neighbour(rows: Floats) -> LDKNN:
    return LDKNN(rows, np.zeros(len(rows), np.float32), alpha=0.0)


LINE = column(0, 1, 3, 7)


@pytest.mark.parametrize(
    ("k", "metric", "expected"),
    [
        (1, "sqeuclidean", [1, 1, 4, 16]),
        (2, "sqeuclidean", [(1 + 9) / 2, (1 + 4) / 2, (4 + 9) / 2, (16 + 36) / 2]),
        (3, "sqeuclidean", [(1 + 9 + 49) / 3, (1 + 4 + 36) / 3, (4 + 9 + 16) / 3, (16 + 36 + 49) / 3]),
        (9, "sqeuclidean", [(1 + 9 + 49) / 3, (1 + 4 + 36) / 3, (4 + 9 + 16) / 3, (16 + 36 + 49) / 3]),
        (1, "euclidean", [1, 1, 2, 4]),
        (2, "euclidean", [2, 1.5, 2.5, 5]),
    ],
)
def test_density_by_hand(k: int, metric: str, expected: list[float]) -> None:
    got = density(np.arange(4), LINE, k, metric=metric)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_density_is_searched_in_all_features_not_in_the_bank() -> None:
    np.testing.assert_array_equal(density(np.array([3, 0]), LINE, 1), [16, 1])


def test_a_twin_counts_at_distance_zero_and_only_the_row_itself_is_left_out() -> None:
    twins = column(0, 0, 5)
    np.testing.assert_array_equal(density(np.arange(3), twins, 1), [0, 0, 25])
    np.testing.assert_array_equal(density(np.arange(3), twins, 2), [12.5, 12.5, 25])


def test_density_of_a_single_feature_is_zero() -> None:
    assert density(np.array([0]), column(3), 9).tolist() == [0]


@pytest.mark.parametrize(
    ("alpha", "expected"), [(1.0, [1 - 4, 4 - 4, 0 - 1, 1 - 1]), (0.5, [-1, 2, -0.5, 0.5]), (0.0, [1, 4, 0, 1])]
)
def test_score_by_hand(alpha: float, expected: list[float]) -> None:
    # bank {0, 3} with K = 1: density(0) = 1, density(3) = 4; queries 2 and 5 go to 3, queries 0 and -1 to 0
    bank = np.array([0, 2])
    ldknn = LDKNN(LINE[bank], density(bank, LINE, 1), alpha=alpha)
    got = ldknn.score(column(2, 5, 0, -1))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_euclidean_score_by_hand() -> None:
    bank = np.array([0, 2])
    ldknn = LDKNN(LINE[bank], density(bank, LINE, 2, metric="euclidean"), alpha=1.0, metric="euclidean")
    np.testing.assert_allclose(ldknn.score(column(2, 6)), [1 - 2.5, 3 - 2.5], rtol=1e-6)


def test_k_one_and_k_two_by_hand_in_the_plane() -> None:
    # a 3-4-5 triangle: distances squared 9, 16, 25
    features = np.array([[0, 0], [3, 0], [0, 4]], np.float32)
    np.testing.assert_array_equal(density(np.arange(3), features, 1), [9, 9, 16])
    np.testing.assert_array_equal(density(np.arange(3), features, 2), [12.5, 17, 20.5])
    query = np.array([[3, 1]], np.float32)  # 1 from (3, 0)
    for k, expected in ((1, 1 - 9), (2, 1 - 17)):
        ldknn = LDKNN(features, density(np.arange(3), features, k), alpha=1.0)
        assert ldknn.score(query).tolist() == [expected]


@st.composite
def clouds(draw: st.DrawFn) -> tuple[Floats, Floats, npt.NDArray[np.int64], int]:
    """Queries, features, bank indices and K, on a coarse lattice: many duplicates and ties, exact in float32."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, dim = draw(st.integers(2, 40)), draw(st.integers(1, 9))
    spread = draw(st.sampled_from([1, 2, 50]))
    features = rng.integers(-spread, spread + 1, (count, dim)).astype(np.float32)
    queries = rng.integers(-spread, spread + 1, (draw(st.integers(1, 12)), dim)).astype(np.float32)
    bank = np.sort(rng.choice(count, draw(st.integers(1, count)), replace=False))
    return queries, features, bank, draw(st.integers(1, 12))


@given(clouds(), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(["sqeuclidean", "euclidean"]))
def test_density_and_score_follow_their_definition(
    cloud: tuple[Floats, Floats, npt.NDArray[np.int64], int], alpha: float, metric: str
) -> None:
    queries, features, bank, k = cloud
    dense = density(bank, features, k, metric=metric)
    np.testing.assert_allclose(dense, plain_density(bank, features, k, metric), rtol=1e-5)
    ldknn = LDKNN(features[bank], dense, alpha=alpha, metric=metric)
    np.testing.assert_allclose(
        ldknn.score(queries), plain_score(queries, features[bank], dense, alpha, metric), rtol=1e-5, atol=1e-4
    )
    assert ldknn.search(queries)[1].tolist() == squared_distances(queries, features[bank]).argmin(axis=1).tolist()


@given(clouds())
def test_nearest_follows_its_definition(cloud: tuple[Floats, Floats, npt.NDArray[np.int64], int]) -> None:
    queries, rows, _, k = cloud
    squared, index = nearest(queries, rows, k)
    expected = np.sort(squared_distances(queries, rows), axis=1)[:, :k]
    np.testing.assert_array_equal(squared, expected)
    np.testing.assert_array_equal(np.take_along_axis(squared_distances(queries, rows), index, axis=1), expected)
    assert all(len(set(found)) == len(found) for found in index.tolist())


@pytest.mark.parametrize("count", [1, 2, 3, 4, ROW_BLOCK - 1, ROW_BLOCK, ROW_BLOCK + 1, 2 * ROW_BLOCK + 2])
def test_every_size_of_bank_is_searched_to_its_last_row(count: int) -> None:
    rng = np.random.default_rng(count)
    rows = rng.normal(size=(count, 6)).astype(np.float32)
    picks = np.unique([0, count // 2, count - 1, min(ROW_BLOCK, count - 1)])
    queries = np.concatenate([rows[picks] + np.float32(1e-3), rng.normal(size=(20, 6)).astype(np.float32)])
    squared, index = nearest_neighbour(rows).search(queries)
    expected = squared_distances(queries, rows)
    assert index.tolist() == expected.argmin(axis=1).tolist()
    np.testing.assert_allclose(squared, expected.min(axis=1), rtol=1e-5)


@pytest.mark.parametrize("count", [1, QUERY_BLOCK, QUERY_BLOCK + 1])
def test_every_query_is_answered(count: int) -> None:
    rng = np.random.default_rng(0)
    rows, queries = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=(count, 3)).astype(np.float32)
    np.testing.assert_allclose(
        nearest_neighbour(rows).score(queries), squared_distances(queries, rows).min(axis=1), rtol=1e-5, atol=1e-9
    )


def test_ties_go_to_the_lower_index_within_and_across_blocks() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(2 * ROW_BLOCK + 9, 4)).astype(np.float32) + 10
    for equal in (3, 70, ROW_BLOCK, ROW_BLOCK + 1, 2 * ROW_BLOCK + 8):
        rows[equal] = 0
    rows[[500, 5]] = [[0, 1, 0, 0], [1, 0, 0, 0]]  # as far from the query below as each other
    ldknn = LDKNN(rows, np.arange(len(rows), dtype=np.float32), alpha=1.0)
    queries = np.array([[0, 0, 0, 0], [1, 1, 0, 0]], np.float32)
    squared, index = ldknn.search(queries)
    assert index.tolist() == [3, 5]
    assert squared.tolist() == [0, 1]
    assert ldknn.score(queries).tolist() == [-3, -4]


def test_equal_rows_keep_the_indices_and_densities_of_the_bank_as_it_was_given() -> None:
    rows = column(5, 5, 1, 5, 9, 1)
    ldknn = LDKNN(rows, np.arange(6, dtype=np.float32), alpha=1.0)
    assert ldknn.search(column(9, 1, 5))[1].tolist() == [4, 2, 0]
    assert ldknn.score(column(9, 1, 5)).tolist() == [-4, -2, 0]


@pytest.mark.parametrize("count", [2, 3, 200, ROW_BLOCK + 100])
@pytest.mark.parametrize("dim", [8, 512])
def test_near_ties_within_rounding_are_decided_as_in_float64(count: int, dim: int) -> None:
    # all rows lie on a sphere around the query, but for float32 rounding, and far from the origin: |q|^2 - 2 q.c + |c|^2
    # is off by much more than what tells the rows apart
    rng = np.random.default_rng(count + dim)
    query = (100 + rng.normal(size=(1, dim))).astype(np.float32)
    rays = rng.normal(size=(count, dim))
    rows = (query + rays / np.linalg.norm(rays, axis=1, keepdims=True)).astype(np.float32)
    expected = squared_distances(query, rows)[0]
    expanded = np.float32(-2) * (rows @ query[0]) + (rows * rows).sum(axis=1)
    assert np.ptp(expected) < np.abs(expanded + (query * query).sum() - expected).max() * 10
    squared, index = nearest_neighbour(rows).search(query)
    assert index[0] == expected.argmin()
    np.testing.assert_allclose(squared[0], expected.min(), rtol=1e-5)


@pytest.mark.parametrize("count", [3, 50])
def test_what_float32_sums_cannot_tell_apart_is_decided_as_in_float64(count: int) -> None:
    # the same 256 differences in another order for each row, so equally far but for the last row, nearer by 1e-8 of it
    rng = np.random.default_rng(16)
    ray = rng.normal(size=256).astype(np.float32)
    rows = np.stack([rng.permutation(ray) for _ in range(count)])
    rows[-1, np.abs(rows[-1]).argmin()] = 0
    assert nearest_neighbour(rows).search(np.zeros((1, 256), np.float32))[1].tolist() == [count - 1]


def test_a_tie_of_more_rows_than_a_block_goes_to_the_lowest_index() -> None:
    signs = np.array(np.meshgrid(*[[-1, 1]] * 12), np.float32).reshape(12, -1).T  # 4,096 rows, all at distance 12
    rows = np.concatenate([np.full((1, 12), 9, np.float32), signs])
    squared, index = nearest_neighbour(rows).search(np.zeros((1, 12), np.float32))
    assert (squared.tolist(), index.tolist()) == ([12], [1])


def test_neighbours_in_tight_groups_far_apart_are_found_in_order() -> None:
    # five rows a group: the distances inside are far below what float32 leaves of the expanded square
    rng = np.random.default_rng(15)
    groups = np.repeat(rng.normal(size=(30, 16)) * 100, 5, axis=0)
    rows = (groups + rng.normal(size=groups.shape) * 1e-2).astype(np.float32)
    expected = squared_distances(rows, rows)
    np.fill_diagonal(expected, np.inf)
    squared, index = nearest(rows, rows, 1, exclude=np.arange(len(rows)))
    assert index[:, 0].tolist() == expected.argmin(axis=1).tolist()
    np.testing.assert_allclose(squared[:, 0], expected.min(axis=1), rtol=1e-5)


def test_a_close_pair_among_many_far_rows_is_decided_as_in_float64() -> None:
    rng = np.random.default_rng(3)
    rows = (50 + rng.normal(size=(5000, 64))).astype(np.float32)
    query = rows[4000:4001] + np.float32(0.01)
    rows[17] = rows[4000]
    rows[17, 5] -= np.spacing(rows[17, 5])  # one ulp farther
    expected = squared_distances(query, rows)[0]
    assert expected[17] > expected[4000]
    assert nearest_neighbour(rows).search(query)[1].tolist() == [4000]


@pytest.mark.parametrize("count", [1, 2, 300])
def test_a_huge_offset_costs_no_accuracy(count: int) -> None:
    rng = np.random.default_rng(4)
    rows = (1e4 + rng.normal(size=(count, 32))).astype(np.float32)
    queries = (1e4 + rng.normal(size=(40, 32))).astype(np.float32)
    expected = squared_distances(queries, rows)
    squared, index = nearest_neighbour(rows).search(queries)
    assert index.tolist() == expected.argmin(axis=1).tolist()
    np.testing.assert_allclose(squared, expected.min(axis=1), rtol=1e-5)


def test_a_huge_offset_costs_the_density_no_accuracy() -> None:
    features = (1e4 + np.random.default_rng(5).normal(size=(400, 32))).astype(np.float32)
    bank = np.arange(0, 400, 3)
    np.testing.assert_allclose(density(bank, features, 9), plain_density(bank, features, 9), rtol=1e-5)


def test_a_query_equal_to_a_row_is_at_distance_zero() -> None:
    rows = np.random.default_rng(6).normal(size=(100, 512)).astype(np.float32)
    squared, index = nearest_neighbour(rows).search(rows)
    assert index.tolist() == list(range(100))
    assert (squared == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_scores_nan_and_spoils_no_other(bad: float) -> None:
    rng = np.random.default_rng(7)
    rows, queries = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(30, 8)).astype(np.float32)
    ldknn = LDKNN(rows, rng.random(50).astype(np.float32), alpha=1.0)
    clean = ldknn.score(queries)
    queries[[0, 11], [7, 0]] = bad
    with np.errstate(invalid="ignore"):
        scores = ldknn.score(queries)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [0, 11]
    kept = np.delete(np.arange(30), [0, 11])
    np.testing.assert_allclose(scores[kept], clean[kept], rtol=1e-6)


def test_alpha_zero_is_nearest_neighbour_whatever_the_density() -> None:
    rng = np.random.default_rng(8)
    rows, queries = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(30, 8)).astype(np.float32)
    scores = LDKNN(rows, rng.random(50).astype(np.float32), alpha=0.0).score(queries)
    np.testing.assert_array_equal(scores, nearest_neighbour(rows).search(queries)[0])


def test_the_bank_is_left_as_it_was_and_may_be_read_only() -> None:
    rows = np.random.default_rng(9).normal(size=(50, 8)).astype(np.float32)
    dense = np.zeros(50, np.float32)
    rows.flags.writeable = dense.flags.writeable = False
    LDKNN(np.asfortranarray(rows), dense, alpha=1.0).score(rows)


def peak_mib(ldknn: LDKNN, queries: Floats) -> float:
    tracemalloc.start()
    ldknn.score(queries)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def test_scoring_against_a_large_bank_needs_bounded_memory() -> None:
    rng = np.random.default_rng(10)
    rows = rng.standard_normal((50_000, 64), np.float32)
    queries = rng.standard_normal((1024, 64), np.float32)
    assert peak_mib(nearest_neighbour(rows), queries) < 64  # all 1024 x 50,000 distances would take 195


def test_a_large_bank_of_near_ties_needs_bounded_memory() -> None:
    rng = np.random.default_rng(11)
    rows = 1e4 + rng.standard_normal((50_000, 64), np.float32)
    assert peak_mib(nearest_neighbour(rows), rows[:3] + np.float32(0.5)) < 64


def test_repeated_patches_in_the_bank_need_no_exact_search(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(12).normal(size=(1000, 16)).astype(np.float32)
    rows[200:] = rows[0]  # a plain background
    ldknn = nearest_neighbour(rows)
    monkeypatch.setattr(ldknn, "nearest_of", None)  # any exact search would fail
    assert set(ldknn.search(np.repeat(rows[:1], 600, axis=0))[1].tolist()) == {0}


def test_neighbours_leave_the_excluded_row_out_by_its_index() -> None:
    squared, index = nearest(LINE, LINE, 2, exclude=np.array([0, 1, -1, 3]))
    assert index.tolist() == [[1, 2], [0, 2], [2, 1], [2, 1]]
    assert squared.tolist() == [[1, 9], [1, 4], [0, 4], [16, 36]]


def test_there_are_never_more_neighbours_than_rows() -> None:
    assert nearest(LINE, LINE, 99)[1].shape == (4, 4)
    assert nearest(LINE, LINE, 99, exclude=np.arange(4))[1].shape == (4, 3)


def test_progress_reaches_its_total() -> None:
    calls: list[tuple[int, int]] = []
    rows = np.zeros((QUERY_BLOCK + 1, 2), np.float32)
    density(np.arange(len(rows)), rows, 1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(QUERY_BLOCK, QUERY_BLOCK + 1), (QUERY_BLOCK + 1, QUERY_BLOCK + 1)]


@pytest.mark.parametrize("rows", [np.zeros((0, 3), np.float32), np.zeros(3, np.float32), np.zeros((2, 3))])
def test_a_bank_that_is_none_is_refused(rows: Floats) -> None:
    with pytest.raises(EngineError, match="bank is"):
        LDKNN(rows, np.zeros(len(rows), np.float32), alpha=1.0)


def test_wrong_arguments_are_refused() -> None:
    ldknn = nearest_neighbour(LINE)
    wrong: tuple[npt.NDArray, ...] = (
        np.zeros((2, 2), np.float32),
        np.zeros((2, 1)),
        np.zeros((0, 1), np.float32),
        np.zeros(2, np.float32),
    )
    for queries in wrong:
        with pytest.raises(EngineError, match="queries"):
            ldknn.search(queries)
    with pytest.raises(EngineError, match="density is"):
        LDKNN(LINE, np.zeros(3, np.float32), alpha=1.0)
    with pytest.raises(EngineError, match="metric 'cosine'"):
        LDKNN(LINE, np.zeros(4, np.float32), alpha=1.0, metric="cosine")
    with pytest.raises(EngineError, match="metric 'cosine'"):
        density(np.arange(4), LINE, 1, metric="cosine")
    with pytest.raises(EngineError, match="no neighbour"):
        nearest(LINE[:1], LINE[:1], 1, exclude=np.array([0]))
