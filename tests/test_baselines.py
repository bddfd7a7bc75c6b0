"""Baseline scores against numbers worked out by hand and against scikit-learn."""

from __future__ import annotations

import warnings
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.neighbors import LocalOutlierFactor

from engines import EngineError
from engines.ldknn import LDKNN
from train import TrainError, baselines
from train.baselines import BASELINES, Neighbourhood

LINE = np.array([[0.0], [1.0], [3.0]], np.float32)
FOUR = np.array([[4.0]], np.float32)


def drawn(seed: int, count: int, dim: int = 6) -> np.ndarray:
    """Seeded normal vectors, float32 (count, dim)."""
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def test_distances_by_hand() -> None:
    scores = Neighbourhood(LINE, 2, metric="euclidean").scores(FOUR)
    # the nearest two of 4 are 3 (distance 1) and 1 (distance 3)
    assert (scores["nn"][0], scores["knn"][0], scores["kth-nn"][0]) == (1, 2, 3)


def test_distances_are_squared_by_default() -> None:
    scores = Neighbourhood(LINE, 2).scores(FOUR)
    assert (scores["nn"][0], scores["knn"][0], scores["kth-nn"][0]) == (1, 5, 9)


def test_ldof_by_hand() -> None:
    # mean distance 2 to the neighbours 3 and 1, which are 2 apart
    assert Neighbourhood(LINE, 2).scores(FOUR)["ldof"][0] == pytest.approx(1.0)
    # all three: (1 + 3 + 4) / 3 over (1 + 2 + 3) / 3
    assert Neighbourhood(LINE, 3).scores(FOUR)["ldof"][0] == pytest.approx(8 / 6)


def test_lof_by_hand() -> None:
    # K 2: k-distances 3, 2, 3; reachability densities 1/2.5, 1/3, 1/2.5; that of 4 is 1/3: (1/2.5 + 1/3) / 2 / (1/3)
    assert Neighbourhood(LINE, 2).scores(FOUR)["lof"][0] == pytest.approx(1.1)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize(("count", "k"), [(60, 1), (60, 5), (300, 9), (4, 9), (2, 1)])
def test_lof_matches_scikit_learn(count: int, k: int, metric: str) -> None:
    rows, queries = drawn(1, count), drawn(2, 40) * 2
    theirs = LocalOutlierFactor(n_neighbors=k, novelty=True, metric="euclidean")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # K above the number of rows: it takes all but one, as here
        theirs.fit(rows)
    ours = Neighbourhood(rows, k, metric=metric).scores(queries)["lof"]
    np.testing.assert_allclose(ours, -theirs.score_samples(queries), rtol=2e-5)


def test_lof_matches_scikit_learn_with_some_equal_rows() -> None:
    rows = np.concatenate([np.repeat(drawn(3, 1), 12, axis=0), drawn(4, 50)])
    queries = np.concatenate([rows[:1], drawn(5, 20)])
    theirs = LocalOutlierFactor(n_neighbors=5, novelty=True, metric="euclidean").fit(rows)
    ours = Neighbourhood(rows, 5).scores(queries)["lof"]
    np.testing.assert_allclose(ours, -theirs.score_samples(queries), rtol=2e-5)


def test_nn_is_ldknn_without_density() -> None:
    rows, queries = drawn(6, 80), drawn(7, 30)
    plain = LDKNN(rows, np.ones(80, np.float32), alpha=0.0).score(queries)
    np.testing.assert_allclose(Neighbourhood(rows, 5).scores(queries)["nn"], plain, rtol=1e-5)


def test_fewer_rows_than_k_are_all_neighbours() -> None:
    few, exact = Neighbourhood(LINE, 9).scores(FOUR), Neighbourhood(LINE, 3).scores(FOUR)
    assert few["knn"][0] == exact["knn"][0] == pytest.approx((1 + 9 + 16) / 3)
    assert few["kth-nn"][0] == 16
    assert few["ldof"][0] == exact["ldof"][0]


def test_k_of_one() -> None:
    scores = Neighbourhood(LINE, 1).scores(FOUR)
    assert scores["nn"][0] == scores["knn"][0] == scores["kth-nn"][0] == 1
    assert scores["ldof"][0] == pytest.approx(1.0)  # two neighbours all the same: one has no distance within


def test_equal_rows_give_no_infinity_and_keep_order() -> None:
    rows = np.ones((5, 3), np.float32)
    queries = np.array([[1, 1, 1], [1, 1, 1.5], [1, 1, 3]], np.float32)
    scores = Neighbourhood(rows, 3).scores(queries)
    for name in BASELINES:
        assert np.isfinite(scores[name]).all(), name
        assert (np.diff(scores[name]) > 0).all(), name
    assert scores["lof"][0] == pytest.approx(1.0)
    assert scores["ldof"][0] == 0


def test_bank_of_one_row_ranks_by_distance() -> None:
    scores = Neighbourhood(LINE[:1], 9).scores(np.array([[0.0], [1.0], [5.0]], np.float32))
    for name in BASELINES:
        assert np.isfinite(scores[name]).all() and (np.diff(scores[name]) > 0).all(), name
    assert scores["knn"].tolist() == [0, 1, 25]


def test_one_search_serves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = Neighbourhood(drawn(8, 20), 3)
    search = Mock(wraps=baselines.nearest)
    monkeypatch.setattr(baselines, "nearest", search)
    assert tuple(bank.scores(drawn(9, 4))) == BASELINES
    assert search.call_count == 1


def test_spread_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = drawn(10, 40), drawn(11, 25)
    whole = Neighbourhood(rows, 4).scores(queries)["ldof"]
    monkeypatch.setattr(baselines, "_BLOCK", 4 * 6 * 3)  # three queries at a time, one in the last block
    np.testing.assert_array_equal(Neighbourhood(rows, 4).scores(queries)["ldof"], whole)


def test_shapes_and_dtypes() -> None:
    for values in Neighbourhood(drawn(12, 20), 3).scores(drawn(13, 7)).values():
        assert values.shape == (7,) and values.dtype == np.float32


def test_progress_counts_rows() -> None:
    calls: list[tuple[int, int]] = []
    Neighbourhood(drawn(14, 600), 3, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (600, 600)


def test_k_below_one_is_refused() -> None:
    with pytest.raises(TrainError, match="K is 0, expected 1 or more"):
        Neighbourhood(LINE, 0)


def test_queries_of_another_width_are_refused() -> None:
    with pytest.raises(EngineError, match="queries"):
        Neighbourhood(LINE, 2).scores(np.zeros((1, 2), np.float32))


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(-3, 3).map(float)),
    st.integers(1, 10),
)
def test_scores_are_finite_and_ordered_on_any_bank(rows: np.ndarray, k: int) -> None:
    queries = np.concatenate([rows, rows + 0.5])
    scores = Neighbourhood(rows, k).scores(queries)
    for name, values in scores.items():
        assert np.isfinite(values).all() and (values >= 0).all(), name
    assert (scores["nn"] <= scores["knn"] * (1 + 1e-6)).all() and (scores["knn"] <= scores["kth-nn"] * (1 + 1e-6)).all()


@given(st.integers(-8, 8))
def test_factors_do_not_change_with_scale(power: int) -> None:
    rows, queries = drawn(15, 30), drawn(16, 10)
    plain, scaled = (
        Neighbourhood(rows * s, 4).scores(queries * np.float32(s)) for s in (np.float32(1), np.float32(2.0**power))
    )
    np.testing.assert_allclose(scaled["lof"], plain["lof"], rtol=1e-5)
    np.testing.assert_allclose(scaled["ldof"], plain["ldof"], rtol=1e-5)
