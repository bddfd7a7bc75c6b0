"""The fast image score is the slow one: on real-looking banks, on banks made to deceive it, and on numbers that are none."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import EngineError, grouped
from engines.grouped import Grouped
from engines.ldknn import LDKNN, Floats
from engines.pooling import Windows
from engines.verdict_first import VerdictFirst

GRID = (8, 9)
ALL = np.ones(GRID, bool)
PATCHES = GRID[0] * GRID[1]


def like_embeddings(rng: np.random.Generator, count: int, dim: int) -> Floats:
    """A few clusters in few directions, some wide and some narrow, and a common offset, as embeddings have."""
    centres = rng.normal(size=(5, dim)) * np.geomspace(3, 0.01, dim)
    width = np.geomspace(0.05, 0.5, 5)
    which = rng.integers(5, size=count)
    return (centres[which] + width[which, None] * rng.normal(size=(count, dim)) + 2).astype(np.float32)


def slow(search: LDKNN, queries: Floats, judged: np.ndarray = ALL, pooling: str = "cover") -> float:
    return float(Windows(judged, pooling).pool(search.score(queries).reshape(judged.shape)))


def agree(search: LDKNN, queries: Floats, judged: np.ndarray = ALL, pooling: str = "cover") -> None:
    first = VerdictFirst(search, judged, pooling)
    assert first.score(queries) == slow(search, queries, judged, pooling)
    assert np.array_equal(first.patches(queries), search.score(queries), equal_nan=True)


@pytest.mark.parametrize("rows", [1, 2, 17, 255, 256, 257, 700, 2048, 2049, 2500, 4096, 4500])
@pytest.mark.parametrize("dim", [3, 64, 100])
def test_it_scores_as_the_search_of_every_patch_does(rows: int, dim: int) -> None:
    rng = np.random.default_rng([rows, dim])
    bank = like_embeddings(rng, rows, dim)
    density = rng.gamma(2, 0.2, rows).astype(np.float32)
    for alpha in (0.0, 0.5, 1.0, 3.0):
        for metric in ("sqeuclidean", "euclidean"):
            search = LDKNN(bank, density, alpha=alpha, metric=metric)
            agree(search, like_embeddings(rng, PATCHES, dim))


@pytest.mark.parametrize("pooling", ["cover", "paper"])
def test_patches_that_are_not_judged_are_left_out(pooling: str) -> None:
    rng = np.random.default_rng(5)
    bank, queries = like_embeddings(rng, 400, 32), like_embeddings(rng, PATCHES, 32)
    search = LDKNN(bank, rng.random(400, np.float32), alpha=1.0)
    judged = rng.random(GRID) < 0.6
    judged[:3, :3] = False
    queries[np.flatnonzero(~judged.ravel())[:4]] = 1e3
    agree(search, queries, judged, pooling)


def deceiving(name: str, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Bank, densities and queries for which the bounds say little or rounding is all there is."""
    bank, queries = like_embeddings(rng, 600, 48), like_embeddings(rng, PATCHES, 48)
    density = rng.gamma(2, 0.2, 600).astype(np.float32)
    if name == "all rows alike":
        bank[:] = bank[0]
    if name == "rows within rounding":
        bank = bank[0] + 1e-7 * rng.normal(size=bank.shape).astype(np.float32)
    if name == "queries are rows":
        queries = bank[rng.integers(600, size=PATCHES)]
    if name == "far from zero":
        bank, queries = bank + 1000, queries + 1000
    if name == "no density":
        density[:] = 0
    if name == "one density far below the others":
        density[300] = -50
    if name == "densities of no relation to distances":
        density = (100 * rng.random(600)).astype(np.float32)
    if name == "huge":
        bank, queries = bank * 1e15, queries * 1e15
    if name == "tiny":
        bank, queries = bank * 1e-15, queries * 1e-15
    if name == "one row far away":
        bank[0] = 1e6
    if name == "noise alone":
        bank, queries = rng.normal(size=bank.shape).astype(np.float32), rng.normal(size=queries.shape).astype(np.float32)
    return bank, density, queries


@pytest.mark.parametrize(
    "name",
    [
        "all rows alike",
        "rows within rounding",
        "queries are rows",
        "far from zero",
        "no density",
        "one density far below the others",
        "densities of no relation to distances",
        "huge",
        "tiny",
        "one row far away",
        "noise alone",
    ],
)
def test_banks_that_deceive_the_bounds_cost_time_and_no_correctness(name: str) -> None:
    for seed in range(3):
        bank, density, queries = deceiving(name, np.random.default_rng(seed))
        for alpha in (0.0, 1.0, 20.0):
            agree(LDKNN(bank, density, alpha=alpha), queries)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 600),
    dim=st.integers(1, 80),
    scale=st.floats(-6, 6),
    offset=st.floats(-3, 3),
    alpha=st.floats(0, 4),
)
def test_no_score_exceeds_its_bound(seed: int, rows: int, dim: int, scale: float, offset: float, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    spread = np.geomspace(1, 1e-3, dim)
    bank = ((rng.normal(size=(rows, dim)) * spread + offset) * 10**scale).astype(np.float32)
    queries = ((rng.normal(size=(PATCHES, dim)) * spread + offset) * 10**scale).astype(np.float32)
    density = (rng.gamma(1, 1, rows) * 10 ** (2 * scale)).astype(np.float32)
    search = LDKNN(bank, density, alpha=alpha)
    assert (search.score(queries) <= Grouped(search).bound(queries)).all()
    agree(search, queries)


def test_few_patches_are_searched_where_one_window_stands_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    bank, queries = like_embeddings(rng, 2000, 100), like_embeddings(rng, PATCHES, 100)
    queries[np.ravel_multi_index((4, 4), GRID)] += 3
    search = LDKNN(bank, np.full(2000, 0.1, np.float32), alpha=1.0)
    searched: list[int] = []
    score = LDKNN.score

    def counted(self: LDKNN, part: Floats) -> Floats:
        searched.append(len(part))
        return score(self, part)

    monkeypatch.setattr(LDKNN, "score", counted)
    VerdictFirst(search, ALL).score(queries)
    assert 0 < sum(searched) <= 36


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_no_number_scores_nan_as_before(value: float) -> None:
    rng = np.random.default_rng(9)
    bank, queries = like_embeddings(rng, 300, 20), like_embeddings(rng, PATCHES, 20)
    queries[17, 3] = value
    with np.errstate(over="ignore", invalid="ignore"):
        first = VerdictFirst(LDKNN(bank, np.zeros(300, np.float32), alpha=1.0), ALL)
        assert np.isnan(first.score(queries))
        queries[17, 3] = 1
        assert np.isfinite(first.score(queries))


def test_it_judges_alike_again_and_from_several_threads() -> None:
    rng = np.random.default_rng(10)
    bank = like_embeddings(rng, 900, 64)
    first = VerdictFirst(LDKNN(bank, rng.random(900, np.float32), alpha=1.0), ALL)
    images = [like_embeddings(rng, PATCHES, 64) for _ in range(12)]
    expected = [first.score(image) for image in images]
    found: dict[int, list[float]] = {}

    def work(number: int) -> None:
        found[number] = [first.score(image) for image in images]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(scores == expected for scores in found.values())
    assert len(found) == 4


def test_memory_is_kept_from_call_to_call() -> None:
    rng = np.random.default_rng(11)
    bank, images = like_embeddings(rng, 4000, 128), [like_embeddings(rng, 1024, 128) for _ in range(4)]
    # one thread: of several, each gets its memory with its first piece of work, whenever that comes
    search = LDKNN(bank, rng.gamma(2, 0.2, 4000).astype(np.float32), alpha=1.0, threads=1)
    first = VerdictFirst(search, np.ones((32, 32), bool))
    for image in images:
        first.score(image)
    for image in images:
        assert allocated(first, image) < image.nbytes // 2  # no copy of the image, and far less than the products' 2 MiB


def allocated(first: VerdictFirst, image: Floats) -> int:
    """Most bytes that scoring an image held at a time."""
    tracemalloc.start()
    first.score(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_score_is_the_same_with_any_number_of_threads(threads: int) -> None:
    rng = np.random.default_rng(12)
    bank, density = like_embeddings(rng, 2500, 64), rng.gamma(2, 0.2, 2500).astype(np.float32)
    image = like_embeddings(rng, 1024, 64)
    judged = np.ones((32, 32), bool)
    one = LDKNN(bank, density, alpha=1.0, threads=1)
    other = LDKNN(bank, density, alpha=1.0, threads=threads)
    assert np.array_equal(one.score(image), other.score(image))
    assert VerdictFirst(one, judged).score(image) == VerdictFirst(other, judged).score(image)


def test_wrong_embeddings_are_refused() -> None:
    first = VerdictFirst(LDKNN(np.ones((3, 4), np.float32), np.zeros(3, np.float32), alpha=1.0), ALL)
    for wrong in (np.ones((PATCHES, 5), np.float32), np.ones((PATCHES, 4)), np.ones(PATCHES, np.float32)):
        with pytest.raises(EngineError, match=r"embeddings is .*, expected float32 \(72, 4\)"):
            first.score(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["rows", "density"])
def test_a_bank_that_is_not_finite_is_refused(where: str) -> None:
    rows, density = np.ones((3, 4), np.float32), np.zeros(3, np.float32)
    {"rows": rows[1:2], "density": density}[where][0] = np.nan
    with pytest.raises(EngineError, match="the bank holds numbers that are not finite"):
        VerdictFirst(LDKNN(rows, density, alpha=1.0), ALL)


@pytest.mark.parametrize("count", [1, 127, 128, 129, 300, 1024, 1500])
def test_rows_are_dealt_into_whole_groups_and_one_rest(count: int) -> None:
    points = np.random.default_rng(count).normal(size=(count, 5))
    groups = grouped._halve(points, 128)
    assert np.array_equal(np.sort(np.concatenate(groups)), np.arange(count))
    assert sorted(map(len, groups)) == sorted([128] * (count // 128) + [count % 128] * (count % 128 > 0))


def test_equal_points_are_dealt_too() -> None:
    assert sorted(map(len, grouped._halve(np.ones((300, 3)), 128))) == [44, 128, 128]


def test_near_rows_share_a_group() -> None:
    rng = np.random.default_rng(3)
    points = np.repeat(100 * rng.normal(size=(4, 6)), 128, axis=0) + rng.normal(size=(512, 6))
    groups = grouped._halve(points, 128)
    assert sorted(group[0] for group in groups) == [0, 128, 256, 384]


def test_groups_far_away_are_not_searched() -> None:
    rng = np.random.default_rng(4)
    bank = (np.repeat(100 * rng.normal(size=(8, 40)), 128, axis=0) + rng.normal(size=(1024, 40))).astype(np.float32)
    search = LDKNN(bank, np.zeros(1024, np.float32), alpha=1.0)
    left = Grouped(search).left(bank[:PATCHES] + np.float32(0.1))
    assert (np.count_nonzero(left, axis=0) <= 128 // grouped.GROUPS[0]).all()


def test_products_have_room_for_whole_groups() -> None:
    assert all(grouped._ROWS % size == 0 for size in grouped.GROUPS)


@pytest.mark.parametrize("kept", [1, 64, 1000])
def test_the_map_is_the_same_however_few_products_are_kept_at_a_time(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(13)
    bank, queries = like_embeddings(rng, 900, 48), like_embeddings(rng, 300, 48)
    bank[7], bank[500:504] = bank[600], bank[600] + np.float32(1e-7)
    queries[:40] = bank[600]
    search = LDKNN(bank, rng.random(900, np.float32), alpha=1.0, threads=1)
    monkeypatch.setattr(grouped, "_KEPT", kept)
    assert np.array_equal(Grouped(search).score(queries), search.score(queries))


@pytest.mark.parametrize("scale", [1e17, 1e18, 3e18, 1e19, 1e20])
def test_products_that_overflow_rule_nothing_out(scale: float) -> None:
    rng = np.random.default_rng(14)
    bank, queries = like_embeddings(rng, 200, 40), like_embeddings(rng, 100, 40)
    with np.errstate(over="ignore", invalid="ignore"):
        search = LDKNN(np.float32(scale) * bank, np.zeros(200, np.float32), alpha=1.0)
        grouped_scores, plain = Grouped(search).score(np.float32(scale) * queries), search.score(np.float32(scale) * queries)
    assert np.array_equal(grouped_scores, plain, equal_nan=True)
