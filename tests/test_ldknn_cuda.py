"""LDKNN on a GPU answers as LDKNN does: its bounds, its plan, its source on a processor, compiled by nvcc, and on a GPU."""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import EngineError, cuda, ldknn_cuda
from engines.cuda import Gpu, compile_kernels
from engines.ldknn import LDKNN, Floats, distance
from engines.ldknn_cuda import KEPT, KERNELS, LISTS, PARAMETERS, ROW_TILE, SOURCE, CudaLDKNN, HalfBank, Plan, gamma, rounding
from engines.pooling import Windows
from tests.fake_gpu import FakeDriver, twin_of

GRID = (8, 9)
ALL = np.ones(GRID, bool)
PATCHES = GRID[0] * GRID[1]
ARCHITECTURES = ("sm_75", "sm_80", "sm_87", "sm_90", "sm_120")


def like_embeddings(rng: np.random.Generator, count: int, dim: int) -> Floats:
    """A few clusters in few directions, some wide and some narrow, and a common offset, as embeddings have."""
    centres = rng.normal(size=(5, dim)) * np.geomspace(3, 0.01, dim)
    width = np.geomspace(0.05, 0.5, 5)
    which = rng.integers(5, size=count)
    return (centres[which] + width[which, None] * rng.normal(size=(count, dim)) + 2).astype(np.float32)


BANKS = (
    *("one row", "17 rows", "ordinary", "duplicates", "all rows alike", "rows within rounding", "queries are rows"),
    *("far from zero", "huge", "tiny", "hugest", "tiniest", "a cluster far away", "one row far away", "queries far away"),
    *("a tiny bank and queries far away", "rows on a sphere", "zeros", "noise alone"),
)


def bank(name: str, rows: int = 300, dim: int = 40) -> tuple[LDKNN, Floats]:
    """A search and queries for which half precision says little, overflows, or decides nothing."""
    rng = np.random.default_rng([BANKS.index(name), rows, dim])
    rows = {"one row": 1, "17 rows": 17}.get(name, rows)
    given, queries = like_embeddings(rng, rows, dim), like_embeddings(rng, PATCHES, dim)
    if name == "duplicates":
        given[rows // 2 :] = given[: rows - rows // 2]
    if name == "all rows alike":
        given[:] = given[0]
    if name == "rows within rounding":
        given = given[0] + np.float32(1e-7) * rng.normal(size=given.shape).astype(np.float32)
    if name == "queries are rows":
        queries = given[rng.integers(rows, size=PATCHES)]
    if name == "far from zero":
        given, queries = given + 1000, queries + 1000
    scale = {"huge": 1e15, "tiny": 1e-15, "hugest": 1e17, "tiniest": 1e-18}.get(name, 1)
    given, queries = given * np.float32(scale), queries * np.float32(scale)
    if name == "a cluster far away":
        given[:20] += 1e6
        queries[:5] += 1e6
    if name == "one row far away":
        given[0] = 1e6
    if name == "queries far away":
        queries *= 1e12
    if name == "a tiny bank and queries far away":  # in units of the bank, beyond float32's squares
        given = np.ldexp(rng.integers(1, 5, (rows // 2, dim)).astype(np.float32), -27)
        given, queries = np.concatenate([given, -given]), queries * np.float32(1e14)
    if name == "rows on a sphere":
        rays = rng.normal(size=given.shape)
        given = (queries[:1] + rays / np.linalg.norm(rays, axis=1, keepdims=True)).astype(np.float32)
    if name == "zeros":
        given[:], queries[: PATCHES // 2] = 0, 0
    if name == "noise alone":
        given, queries = rng.standard_normal(given.shape, np.float32), rng.standard_normal(queries.shape, np.float32)
    return LDKNN(given, rng.gamma(2, 0.2, len(given)).astype(np.float32) * np.float32(scale**2), alpha=1.0), queries


def squared_distances(queries: Floats, rows: Floats) -> npt.NDArray[np.float64]:
    return np.stack([np.square(query.astype(np.float64) - rows).sum(axis=1) for query in queries])


def agrees(search: LDKNN, queries: Floats, scores: Floats) -> bool:
    """Whether float32 (q,) scores are those of the nearest rows, or of rows that tie with them in float32."""
    exact = squared_distances(queries, search.rows)
    nearest = exact.min(axis=1, keepdims=True)
    near = distance(exact, search.metric)
    expected = near - search.alpha * search.density.astype(np.float64)
    room = 1e-5 * (near + search.alpha * np.abs(search.density)) + 1e-37
    right = (exact <= nearest * (1 + 1e-5) + 1e-37) & (np.abs(scores[:, None] - expected) <= room)
    return bool(right.any(axis=1).all())


# --- the plan


@given(
    queries=st.integers(1, 20_000), rows=st.integers(1, 200_000), dim=st.integers(1, 1100), multiprocessors=st.integers(1, 200)
)
def test_every_row_is_in_one_split_and_none_is_empty(queries: int, rows: int, dim: int, multiprocessors: int) -> None:
    plan = Plan(queries, rows, dim, 1, multiprocessors)
    assert (plan.splits - 1) * plan.split_tiles < plan.row_tiles <= plan.splits * plan.split_tiles
    assert (plan.row_tiles - 1) * ROW_TILE < rows <= plan.row_tiles * ROW_TILE
    assert plan.depth % 32 == 0
    assert dim <= plan.depth < dim + 32
    assert plan.grids["nearest"] == (plan.splits, plan.query_tiles)
    assert plan.lists == LISTS * plan.splits


@pytest.mark.parametrize(
    ("queries", "rows", "multiprocessors", "splits", "split_tiles"),
    [
        (1024, 20_000, 16, 4, 40),  # 8 tiles of queries, 157 of rows, 32 blocks at a time: one wave of 4 splits
        (1024, 2048, 16, 4, 4),
        (8192, 20_000, 16, 1, 157),  # 64 tiles of queries fill two waves
        (1024, 20_000, 132, 32, 5),
        (1, 100_001, 8, 16, 49),
        (1, 1, 132, 1, 1),
    ],
)
def test_few_queries_fill_the_gpu(queries: int, rows: int, multiprocessors: int, splits: int, split_tiles: int) -> None:
    plan = Plan(queries, rows, 512, 1024, multiprocessors)
    assert (plan.splits, plan.split_tiles) == (splits, split_tiles)


def test_shared_memory_fits_without_asking_for_more() -> None:
    assert Plan(1, 1, 1, 1, 1).shared_bytes == 44_032 <= 48 * 1024


def test_the_plan_s_numbers_are_the_source_s() -> None:
    source = SOURCE.read_text()
    found = {name: int(value) for name, value in re.findall(r"\b(k[A-Z]\w*) = (\d+)[,;]", source)}
    plan = {"kQueries": ldknn_cuda.QUERY_TILE, "kRows": ROW_TILE, "kDepth": ldknn_cuda.DEPTH, "kLists": LISTS}
    assert found.items() >= {**plan, "kThreads": cuda.THREADS, "kWarp": ldknn_cuda.WARP}.items()
    structure = source[source.index("struct Search") : source.index("__device__ float warp_sum")]
    declared = re.sub(r"//.*", "", structure).split("{")[1]
    assert tuple(re.findall(r"(\w+)[,;]", declared)) == PARAMETERS.names
    assert tuple(re.findall(r"void __launch_bounds__\([^)]*\) (\w+)\(", source)) == KERNELS


# --- bounds, and the search that they make, in NumPy


def halved(queries: Floats, half_bank: HalfBank, dim: int, depth: int) -> tuple[npt.NDArray[np.float16], Floats]:
    """What the kernel `prepare` makes of queries: half precision, and float32 (q, 4) terms."""
    with np.errstate(over="ignore", invalid="ignore"):
        centred = ((queries - half_bank.centre) * np.float32(half_bank.scale)).astype(np.float32)
        norm = (centred * centred).sum(axis=1)
    finite = np.isfinite(queries).all(axis=1)
    near = finite & (norm < 1e30)
    centred[~near], norm[~near] = 0, 0
    exponent = np.frexp(np.maximum(np.abs(centred).max(axis=1), np.float32(1e-12)))[1] - 1
    halves = np.ldexp(centred, 13 - exponent[:, None]).astype(np.float16)
    lost = centred - np.ldexp(halves.astype(np.float32), exponent[:, None] - 13)
    error, length = np.sqrt((lost * lost).sum(axis=1)), np.sqrt(norm)
    product = np.ldexp(np.float32(-2), exponent - 13 - 14)
    terms = [product, -2.002 * length, -2.002 * (error + gamma(depth) * (length + error)), norm * (1 - rounding(dim))]
    terms[3] = np.where(near, terms[3], np.where(finite, -np.inf, np.nan))
    return halves, np.stack(terms, axis=1).astype(np.float32)


def lower_bounds(queries: Floats, rows: Floats) -> tuple[Floats, Floats, float]:
    """The bounds of the kernel `nearest`, float32 (q, n), less the queries' norms, which follow, and the bank's scale."""
    half_bank = HalfBank.of(rows)
    plan = Plan(len(queries), len(rows), rows.shape[1], len(queries), 1)
    halves, terms = halved(queries, half_bank, plan.dim, plan.depth)
    products = halves.astype(np.float32) @ half_bank.halves[:, : plan.dim].astype(np.float32).T
    norm, error, length = half_bank.terms.transpose(1, 0, 2).reshape(3, -1)
    bounds = products * terms[:, :1] + (error * terms[:, 1:2] + (length * terms[:, 2:3] + norm))
    return bounds, terms[:, 3], half_bank.scale


@np.errstate(over="ignore")
def emulate(search: LDKNN, queries: Floats, multiprocessors: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Scores float32 (q,) as the kernels find them, list by list, and which queries were compared with every row."""
    plan = Plan(len(queries), len(search.rows), search.rows.shape[1], len(queries), multiprocessors)
    bounds, norms, scale = lower_bounds(queries, search.rows)
    bounds = bounds[:, : plan.rows]  # padding, of infinite norm, is never kept
    row = np.arange(plan.rows)
    in_list = row // ROW_TILE // plan.split_tiles * LISTS + row % ROW_TILE // (ROW_TILE // LISTS)
    scores, brute = np.full(len(queries), np.nan, np.float32), np.zeros(len(queries), bool)
    for number, query in enumerate(queries):
        if np.isnan(norms[number]):
            continue
        squared = np.square(search.rows - query).sum(axis=1)
        lists = [np.flatnonzero(in_list == chosen) for chosen in range(plan.lists)]
        kept = [members[np.argsort(bounds[number, members], kind="stable")[:KEPT]] for members in lists]
        candidates = np.concatenate(kept)
        start = squared[candidates[bounds[number, candidates].argmin()]]
        below = bounds[number] + norms[number]
        found = candidates[(below[candidates] <= reach(float(start), scale, plan.dim)) | np.isinf(start)]
        nearest = squared[found].min()
        full = [members[-1] for members in kept if len(members) == KEPT]
        brute[number] = bool((below[full] <= reach(float(nearest), scale, plan.dim)).any())
        among = np.arange(len(squared)) if brute[number] else np.sort(found)
        best = among[squared[among].argmin()]
        if np.isfinite(squared[best]):
            scores[number] = distance(squared[best], search.metric) - np.float32(search.alpha) * search.density[best]
    return scores, brute


def reach(squared: float, scale: float, dim: int) -> float:
    return (squared * (1 + rounding(dim)) + dim * 1e-44) * scale * scale + 1e-37


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 200),
    dim=st.integers(1, 80),
    scale=st.floats(-15, 15),
    offset=st.floats(-4, 4),
    apart=st.floats(-8, 8),
)
def test_no_bound_exceeds_the_distance(seed: int, rows: int, dim: int, scale: float, offset: float, apart: float) -> None:
    rng = np.random.default_rng(seed)
    spread = np.geomspace(1, 1e-3, dim)
    given = ((rng.normal(size=(rows, dim)) * spread + offset) * 10**scale).astype(np.float32)
    queries = ((rng.normal(size=(20, dim)) * spread * 10**apart + offset) * 10**scale).astype(np.float32)
    queries[0], given[-1] = given[0], given[-1] * 1000
    bounds, norms, unit = lower_bounds(queries, given)
    exact = squared_distances(queries, given) * unit**2
    assert (bounds[:, :rows].astype(np.float64) + norms[:, None] <= exact).all()
    assert (bounds[:, rows:] == np.inf).all()


def test_bounds_are_close_to_the_distance() -> None:
    rng = np.random.default_rng(0)
    rows, queries = like_embeddings(rng, 500, 512), like_embeddings(rng, 50, 512)
    bounds, norms, unit = lower_bounds(queries, rows)
    exact = squared_distances(queries, rows) * unit**2
    lengths = [np.linalg.norm((of - rows.mean(axis=0)) * unit, axis=1) for of in (queries, rows)]
    taken = (exact - bounds[:, :500] - norms[:, None]) / np.multiply.outer(*lengths)
    assert 0 < taken.min() < taken.max() < 4e-3  # four units of half precision are 2e-3


@pytest.mark.parametrize("name", BANKS)
@pytest.mark.parametrize("multiprocessors", [1, 5])
def test_the_search_by_bounds_finds_what_ldknn_finds(name: str, multiprocessors: int) -> None:
    search, queries = bank(name)
    scores, _ = emulate(search, queries, multiprocessors)
    assert agrees(search, queries, scores)


def test_ordinary_banks_leave_nothing_to_compare_with_every_row() -> None:
    for name in ("ordinary", "17 rows", "duplicates", "far from zero", "huge", "tiny", "noise alone"):
        assert not emulate(*bank(name), 1)[1].any()
    assert emulate(*bank("rows within rounding"), 1)[1].all()


def test_a_bank_that_is_not_finite_is_refused() -> None:
    rows = np.ones((3, 4), np.float32)
    for bad in (np.nan, np.inf, [3e38, 3e38, -3e38]):
        rows[:, 1] = bad
        with pytest.raises(EngineError, match="not finite, or too far apart"):
            HalfBank.of(rows)


def test_a_half_bank_by_hand() -> None:
    # about the mean (2, 0), the rows are (2, 1) and (-2, -1), of spread 2, which 2^-2 brings to 1/2
    half_bank = HalfBank.of(np.array([[4, 1], [0, -1]], np.float32))
    assert half_bank.centre.tolist() == [2, 0]
    assert half_bank.scale == 0.25
    assert half_bank.halves.shape == (ROW_TILE, 32)
    assert half_bank.halves[:2, :3].tolist() == [[2**13, 2**12, 0], [-(2**13), -(2**12), 0]]
    assert half_bank.terms.shape == (1, 3, ROW_TILE)
    norm, error, length = half_bank.terms[0, :, :3]
    np.testing.assert_allclose(norm, [5 / 16, 5 / 16, np.inf], rtol=1e-5)
    assert (norm[:2] < 5 / 16).all()
    assert error.tolist() == [0, 0, 0]
    np.testing.assert_allclose(length, [np.sqrt(5 / 16), np.sqrt(5 / 16), 0])


# --- the source, on a processor, below a stand-in for PyCUDA's driver


@pytest.mark.parametrize("name", BANKS)
def test_the_kernels_find_what_ldknn_finds(name: str, driver: FakeDriver) -> None:
    search, queries = bank(name)
    with twin_of(search, ALL) as twin:
        scores, maps = twin.images(queries)
    assert agrees(search, queries, maps.ravel())
    assert scores[0] == pytest.approx(float(Windows(ALL).pool(maps[0])), rel=1e-6)
    assert driver.open == emulate(search, queries, 2)[1].sum()


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("dim", [1, 16, 33, 100])
def test_the_kernels_score_in_every_dimension_and_metric(dim: int, metric: str, driver: FakeDriver) -> None:
    rng = np.random.default_rng(dim)
    rows, dense = like_embeddings(rng, 1000, dim), rng.random(1000).astype(np.float32)
    queries = like_embeddings(rng, PATCHES, dim)
    search = LDKNN(rows, dense, alpha=0.7, metric=metric)
    with twin_of(search, ALL) as twin:
        assert agrees(search, queries, twin.map(queries).ravel())


def test_several_images_are_scored_as_each_by_itself_and_memory_is_kept(driver: FakeDriver) -> None:
    search, _ = bank("ordinary", 2000)
    queries = np.concatenate([bank("ordinary", 2000 + more)[1] for more in range(4)])
    with twin_of(search, ALL) as twin:
        alone = [twin.images(part) for part in np.split(queries, 4)]
        scores, maps = twin.images(queries)
        allocations, staged = driver.allocations, driver.staged
        assert (twin.images(queries)[0] == scores).all()
        assert twin.score(queries[:PATCHES]) == scores[0]
        assert (driver.allocations, driver.staged) == (allocations, staged)
    assert scores.tolist() == [float(score[0]) for score, _ in alone]
    assert (maps == np.concatenate([one for _, one in alone])).all()
    assert len(set(scores.tolist())) == 4


@pytest.mark.parametrize("pooling", ["cover", "paper"])
def test_the_kernels_pool_as_windows_do(pooling: str, driver: FakeDriver) -> None:
    search, queries = bank("ordinary")
    judged = np.random.default_rng(5).random(GRID) < 0.5
    judged[:3, :3] = False
    with twin_of(search, judged, pooling) as twin:
        scores, maps = twin.images(queries)
    assert np.array_equal(np.isnan(maps[0]), ~judged)
    expected = Windows(judged, pooling).pool(search.score(queries).reshape(GRID))
    assert scores[0] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_query_that_is_no_number_gives_nan_and_spoils_no_other(bad: float, driver: FakeDriver) -> None:
    search, queries = bank("ordinary")
    broken = np.concatenate([queries, queries])
    broken[17, 3] = bad
    judged = ALL.copy()
    judged.ravel()[17] = False
    with twin_of(search, ALL) as twin, twin_of(search, judged) as blind:
        twin.images(np.concatenate([queries, queries]))
        scores, maps = twin.images(broken)
        assert driver.open == (1 if np.isfinite(bad) else 0)
        assert np.isnan(scores).tolist() == [True, False]
        assert np.flatnonzero(np.isnan(maps)).tolist() == [17]
        assert np.isfinite(blind.score(broken[:PATCHES]))


@pytest.mark.parametrize("integrated", [False, True])
def test_what_a_gpu_shares_with_the_machine_is_not_copied(integrated: bool, driver: FakeDriver) -> None:
    search, queries = bank("ordinary")
    driver.integrated = integrated
    with twin_of(search, ALL) as twin:
        assert agrees(search, queries, twin.map(queries).ravel())
        answers = [] if integrated else [PATCHES * 4, 4]
        assert driver.copied == [queries.nbytes, *answers]  # the embeddings are read more than once, and go to the GPU


def test_embeddings_that_are_there_already_are_searched(driver: FakeDriver) -> None:
    search, queries = bank("ordinary")
    with Gpu() as gpu, CudaLDKNN(search, ALL, gpu=gpu) as twin:
        expected = twin.images(queries)
        gpu.upload(twin.queries, np.zeros_like(queries))
        assert twin.images(queries[::-1].copy())[0] is not None
        gpu.upload(twin.queries, queries)
        twin.enqueue()
        gpu.wait()
        got = twin.result()
    assert np.array_equal(got[0], expected[0])
    assert np.array_equal(got[1], expected[1])


def test_of_equally_near_rows_the_first_is_found(driver: FakeDriver) -> None:
    signs = np.array(np.meshgrid(*[[-1, 1]] * 10), np.float32).reshape(10, -1).T  # 1,024 rows at distance 10 of zero
    rows = np.concatenate([np.full((1, 10), 9, np.float32), signs])
    search = LDKNN(rows, np.arange(len(rows), dtype=np.float32), alpha=1.0)
    queries = np.zeros((PATCHES, 10), np.float32)
    queries[1:3, 0], queries[2, 1:] = 0.5, signs[700, 1:]  # 512 rows tie, and none
    with twin_of(search, ALL) as twin:
        assert np.array_equal(twin.map(queries).ravel(), search.score(queries))
        assert driver.open == PATCHES - 1


def test_ties_of_few_rows_go_to_the_first_of_them(driver: FakeDriver) -> None:
    rng = np.random.default_rng(9)
    rows = rng.integers(-3, 4, (400, 4)).astype(np.float32)
    queries = (rng.integers(-6, 7, (PATCHES, 4)) / 2).astype(np.float32)
    search = LDKNN(rows, np.arange(len(rows), dtype=np.float32), alpha=1.0)
    with twin_of(search, ALL) as twin:
        assert np.array_equal(twin.map(queries).ravel(), search.score(queries))
    assert driver.open == 0


def test_many_splits_and_a_list_that_ends_early_are_searched_to_the_last_row(driver: FakeDriver) -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((ROW_TILE * 9 + 1, 8), np.float32)
    queries = np.resize(rows[:: ROW_TILE // 2], (PATCHES, 8)) + np.float32(1e-3)
    queries[0] = rows[-1]
    search = LDKNN(rows, np.arange(len(rows), dtype=np.float32), alpha=1.0)
    with twin_of(search, ALL) as twin:
        np.testing.assert_allclose(twin.map(queries).ravel(), search.score(queries), rtol=1e-5)


def test_wrong_embeddings_are_refused(driver: FakeDriver) -> None:
    search, queries = bank("ordinary")
    with twin_of(search, ALL) as twin:
        for wrong in (queries[:-1], queries[:, :-1], queries.astype(np.float64), queries[:0], queries[0], queries.tolist()):
            with pytest.raises(EngineError, match="embeddings is"):
                twin.images(wrong)  # type: ignore[arg-type]
        with pytest.raises(EngineError, match=r"\(144, 40\), expected float32 \(72, 40\)"):
            twin.score(np.concatenate([queries, queries]))


def test_densities_that_are_not_finite_are_refused(driver: FakeDriver) -> None:
    search = LDKNN(np.zeros((1, 2), np.float32), np.array([np.nan], np.float32), alpha=1.0)
    with pytest.raises(EngineError, match="densities are not finite"), twin_of(search, ALL):
        pass


def test_everything_is_given_back_and_what_is_closed_says_so(driver: FakeDriver) -> None:
    search, queries = bank("one row")
    with Gpu() as gpu:
        twin = CudaLDKNN(search, ALL, gpu=gpu)
        twin.images(np.concatenate([queries, queries]))
        assert len(driver.memory) == 10  # seven of the bank, the workspace, maps and scores
        twin.close()
        twin.close()
        assert driver.memory == {}
        with pytest.raises(EngineError, match="the search on the GPU is closed"):
            twin.score(queries)
        other = CudaLDKNN(search, ALL, gpu=gpu)
    assert driver.memory == {}
    assert driver.pushed == 0
    with pytest.raises(EngineError, match="the GPU is closed"):
        other.score(queries)
    other.close()
    gpu.close()


@pytest.mark.parametrize("failing", ["synchronize", "nearest", "memcpy_htod_async", "memcpy_dtoh_async"])
def test_a_gpu_that_fails_says_so_and_leaves_the_thread_its_context(failing: str, driver: FakeDriver) -> None:
    search, queries = bank("one row")
    with twin_of(search, ALL) as twin:
        driver.failing = failing
        with pytest.raises(EngineError, match=rf"the GPU failed \({failing} failed"):
            twin.score(queries)
        assert driver.pushed == 0


@pytest.mark.parametrize("failing", ["Stream", "module_from_buffer", "mem_alloc", "memcpy_htod", "pagelocked_empty"])
def test_what_fails_while_it_opens_leaves_nothing_behind(failing: str, driver: FakeDriver) -> None:
    driver.failing = failing
    with pytest.raises(EngineError, match="the GPU failed"), twin_of(bank("one row")[0], ALL):
        pass
    assert driver.memory == {}
    assert driver.pushed == 0


def test_a_call_that_finds_no_memory_can_be_followed_by_one_that_does(driver: FakeDriver) -> None:
    search, queries = bank("one row")
    with twin_of(search, ALL) as twin:
        score = twin.score(queries)
        driver.failing = "mem_alloc"
        with pytest.raises(EngineError, match="mem_alloc failed"):
            twin.images(np.concatenate([queries, queries]))
        driver.failing = None
        assert twin.score(queries) == score


def test_no_gpu_and_a_gpu_that_is_not_there_are_named(driver: FakeDriver) -> None:
    with pytest.raises(EngineError, match="GPU 1 was asked for and 1 are there"):
        Gpu(1)
    driver.failing = "init"
    with pytest.raises(EngineError, match=r"no NVIDIA GPU can be used \(no CUDA-capable"):
        Gpu()


# --- what is missing


def test_without_pycuda_or_the_driver_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(error: ImportError) -> Callable[[str], ModuleType]:
        def imported(name: str) -> ModuleType:
            raise error

        return imported

    monkeypatch.setattr(importlib, "import_module", refuse(ModuleNotFoundError("No module named 'pycuda'")))
    with pytest.raises(EngineError, match=r"PyCUDA is not installed.*pip install '\.\[cuda\]'"):
        Gpu()
    monkeypatch.setattr(importlib, "import_module", refuse(ImportError("libcuda.so.1: cannot open shared object file")))
    with pytest.raises(EngineError, match=r"libcuda\.so\.1.*driver is installed"):
        Gpu()


@pytest.fixture
def fake_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes down how it was called, its version in a file beside it; the folder that holds both."""
    script = tmp_path / "nvcc"
    script.write_text(
        f"""#!/bin/sh
if [ "$1" = --version ]; then exec cat '{tmp_path}/version'; fi
echo "$@" >> '{tmp_path}/calls'
if grep -q wrong "$7"; then echo 'error: this is wrong' >&2; exit 1; fi
printf '\\177ELF of %s' "$4" > "$6"
"""
    )
    script.chmod(0o755)
    (tmp_path / "version").write_text("13.0")
    (tmp_path / "kernel.cu").write_text("right")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def test_kernels_are_compiled_once_for_each_source_architecture_and_compiler(fake_nvcc: Path) -> None:
    source = fake_nvcc / "kernel.cu"
    assert compile_kernels(source, "sm_87") == compile_kernels(source, "sm_87") == b"\x7fELF of -arch=sm_87"
    assert calls(fake_nvcc) == 1
    assert compile_kernels(source, "sm_90").endswith(b"sm_90")
    assert calls(fake_nvcc) == 2
    (fake_nvcc / "version").write_text("13.1")
    compile_kernels(source, "sm_87")
    assert calls(fake_nvcc) == 3
    source.write_text("right again")
    compile_kernels(source, "sm_87")
    assert calls(fake_nvcc) == 4
    assert len(list((fake_nvcc / "cache" / "reb-inspection").iterdir())) == 4


def test_a_cache_that_is_spoilt_or_cannot_be_written_is_no_obstacle(fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fake_nvcc / "kernel.cu"
    compiled = compile_kernels(source, "sm_87")
    next((fake_nvcc / "cache" / "reb-inspection").iterdir()).write_bytes(b"")
    assert compile_kernels(source, "sm_87") == compile_kernels(source, "sm_87") == compiled
    assert calls(fake_nvcc) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(source))  # a file
    assert compile_kernels(source, "sm_87") == compiled


def test_a_compiler_that_refuses_or_is_missing_is_named(fake_nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fake_nvcc / "kernel.cu"
    source.write_text("wrong")
    with pytest.raises(EngineError, match="failed: error: this is wrong"):
        compile_kernels(source, "sm_87")
    assert not (fake_nvcc / "cache").exists()
    (fake_nvcc / "nvcc").unlink()
    monkeypatch.setenv("PATH", str(fake_nvcc))
    monkeypatch.setattr(cuda, "_USUAL", fake_nvcc / "nowhere")
    with pytest.raises(EngineError, match=r"nvcc is neither on the path nor .*nowhere"):
        compile_kernels(source, "sm_87")


# --- nvcc


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvcc_compiles_the_source_for_tensor_cores_without_warnings_or_spills(architecture: str, tmp_path: Path) -> None:
    try:
        nvcc = cuda._find_nvcc()
    except EngineError as error:
        pytest.skip(str(error))
    known = subprocess.run([nvcc, "--list-gpu-code"], check=True, capture_output=True, text=True).stdout.split()
    if architecture not in known:
        pytest.skip(f"this nvcc knows no {architecture}")
    made = tmp_path / "kernels.cubin"
    strict = (
        "-Xcompiler=-Wall,-Wextra",
        "--Werror=all-warnings",
        "-Xptxas=-v,-warn-spills",
        "--keep",
        f"--keep-dir={tmp_path}",
    )
    command = [nvcc, *cuda._FLAGS, *strict, f"-arch={architecture}", "-o", str(made), str(SOURCE)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "warning" not in said
    assert made.read_bytes().startswith(b"\x7fELF")
    assert said.count(" 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == len(KERNELS)
    used = dict(re.findall(r"Compiling entry function '(\w+)'(?:.|\n)*?(Used .*)", said))
    assert set(used) == set(KERNELS)
    registers = {name: int(re.findall(r"Used (\d+) registers", line)[0]) for name, line in used.items()}
    assert max(registers.values()) <= 65_536 // (2 * cuda.THREADS)  # two blocks on a multiprocessor
    assert f"{Plan(1, 1, 1, 1, 1).shared_bytes} bytes smem" in used["nearest"]
    (ptx,) = tmp_path.glob("*.ptx")
    assert ptx.read_text().count("wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32") == 16  # 2 x 4 products of 2 depths


# --- a GPU


@pytest.fixture(scope="session")
def gpu() -> None:
    """Skips where there is none."""
    try:
        with Gpu() as opened:
            opened.load(SOURCE, KERNELS)
    except EngineError as error:
        pytest.skip(str(error))


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", BANKS)
@pytest.mark.parametrize(("rows", "dim"), [(300, 40), (2048, 512), (2049, 1024)])
def test_a_gpu_finds_what_ldknn_finds(name: str, rows: int, dim: int) -> None:
    search, queries = bank(name, rows, dim)
    with twin_of(search, ALL) as twin:
        scores, maps = twin.images(np.concatenate([queries, queries]))
    assert np.array_equal(*maps)
    assert agrees(search, queries, maps[0].ravel())
    assert scores[0] == pytest.approx(float(Windows(ALL).pool(maps[0])), rel=1e-6)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_a_gpu_searches_a_large_bank_to_its_last_row() -> None:
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((100_001, 64), np.float32)
    queries = rng.standard_normal((PATCHES, 64), np.float32)
    queries[:3] = rows[[0, 50_000, 100_000]]
    search = LDKNN(rows, rng.random(len(rows)).astype(np.float32), alpha=1.0)
    queries[5, 7] = np.nan
    with twin_of(search, ALL) as twin:
        got = twin.map(queries).ravel()
        assert np.isnan(twin.score(queries))
    np.testing.assert_allclose(got, search.score(queries), rtol=1e-3)
