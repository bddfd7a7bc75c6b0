"""LDKNN on an NVIDIA GPU: the answers of `LDKNN`, from products in half precision on tensor cores that are then proved.

Half-precision products alone choose wrong rows. Here they only exclude rows. Queries q and rows b are taken about the bank's
mean and scaled by powers of two, and q^, b^ are what half precision keeps of them. How much it lost is measured, not
estimated, so by Cauchy-Schwarz the inner product that the tensor cores give is off by no more than

    |q| |b - b^| + |q - q^| |b^| + gamma |q^| |b^|,        gamma = 2 d 2^-23,

whatever was rounded, or lost below 2^-24. gamma covers sums of d exact products in float32 by blocks of four or more that are
truncated rather than rounded, which is what tensor cores do (Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA
tensor cores", PeerJ Computer Science 7:e330, 2021; Blanchard, Higham, Lopez, Mary and Pranesh, "Mixed precision block fused
multiply-add", SIAM J. Sci. Comput. 42(3), 2020). Everything else is float32, with sums of d / 32 terms and five more: off by
less than d / 32 + 32 units of |q|^2 + |b|^2 (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1).
Taking all of it away from |q|^2 - 2 <q^, b^> + |b|^2 leaves a lower bound of |q - b|^2.

Rows are dealt into lists, and each list keeps its four least bounds. The rows kept are compared by float32 differences while
their bounds allow them to be nearest. Where the greatest bound that a full list kept does not exceed the distance found, a row
that it dropped could be nearer: that query is compared with every row, by differences. So the row found is the nearest but
for ties within float32's rounding of the differences (about 1e-6 of the squared distance); of equal ones, the lower.

The matrix of distances is never written. The kernels are `kernels/ldknn.cu`; this module lays out their memory and grids and
prepares the bank, in plain NumPy; `engines/cuda.py` compiles them and holds the GPU.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from engines import EngineError
from engines.cuda import THREADS, Gpu, Grids, Kernels, Shared
from engines.ldknn import LDKNN, Floats
from engines.pooling import Windows

SOURCE = Path(__file__).parent / "kernels" / "ldknn.cu"
KERNELS = ("prepare", "nearest", "recheck", "brute", "pool")

# as in the source, which a test compares
QUERY_TILE, ROW_TILE, DEPTH = 128, 128, 32
LISTS = 2  # of a split
KEPT = 4  # of a list
WARP = 32
_PITCH = DEPTH + 8
_HALF_BANK = 2.0**14  # a bank of spread 1 is kept times this in half precision
_ALIGNED = 256  # bytes, an array in the workspace
_BLOCKS = 2  # on a multiprocessor, that the grid is laid out for
_UNIT = 2.0**-24  # of float32's rounding
_LEAST_EXPONENT = -20  # of the bank's spread; a smaller one is not scaled up further, so that no query overflows for it

_ADDRESSES = (
    *("queries", "rows", "row_halves", "row_terms", "centre", "density", "windows", "judged"),
    *("query_halves", "query_terms", "bounds", "bound_rows", "best", "open", "map", "scores"),
)
_COUNTS = (
    *("query_count", "row_count", "dim", "depth", "row_tiles", "split_tiles", "lists"),
    *("patches", "window_count", "window_size", "euclidean"),
)
_REALS = ("scale", "rounding", "gamma", "alpha")

# the structure that every kernel takes, field by field
PARAMETERS = np.dtype(
    [(name, kind) for names, kind in ((_ADDRESSES, "u8"), (_COUNTS, "i4"), (_REALS, "f4")) for name in names], align=True
)


@dataclass(frozen=True)
class Plan:
    """How a search is laid out on a GPU: tiles, splits of the rows so that few queries still fill it, and memory.

    Attributes:
        queries: of all images of a call.
        rows, dim: of the bank.
        patches: of an image.
        multiprocessors: of the GPU.
    """

    queries: int
    rows: int
    dim: int
    patches: int
    multiprocessors: int

    @property
    def query_tiles(self) -> int:
        """Tiles of queries; the last is padded."""
        return -(-self.queries // QUERY_TILE)

    @property
    def row_tiles(self) -> int:
        """Tiles of rows; the last is padded with rows of infinite norm."""
        return -(-self.rows // ROW_TILE)

    @property
    def depth(self) -> int:
        """Dimensions, padded with zeros to what is multiplied at a time."""
        return -(-self.dim // DEPTH) * DEPTH

    @cached_property
    def split_tiles(self) -> int:
        """Row tiles of a split: those that finish first, with one more tile's time to start a block and end it."""
        room = self.multiprocessors * _BLOCKS

        def duration(tiles: int) -> int:
            blocks = self.query_tiles * -(-self.row_tiles // tiles)
            return -(-blocks // room) * (tiles + 1)

        return min(range(self.row_tiles, 0, -1), key=duration)

    @property
    def splits(self) -> int:
        """Parts of the rows; the last may have fewer tiles."""
        return -(-self.row_tiles // self.split_tiles)

    @property
    def lists(self) -> int:
        """Lists of a query's least bounds."""
        return self.splits * LISTS

    @property
    def grids(self) -> Grids:
        """Blocks of each kernel, in the order of their launch."""
        by_warp = self.query_tiles * QUERY_TILE * WARP // THREADS
        every = (self.multiprocessors * _BLOCKS, 1)
        blocks = ((by_warp, 1), (self.splits, self.query_tiles), (by_warp, 1), every, (self.queries // self.patches, 1))
        return dict(zip(KERNELS, blocks, strict=True))

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block of `nearest`: two of a queries' and a rows' tile of half precision, and the rows' terms."""
        return 2 * ((QUERY_TILE + ROW_TILE) * _PITCH * 2 + 3 * ROW_TILE * 4)

    @property
    def workspace(self) -> dict[str, int]:
        """Bytes of each array that a call needs on the GPU, by its name in `PARAMETERS`."""
        padded = self.query_tiles * QUERY_TILE
        return {
            "queries": self.queries * self.dim * 4,
            "query_halves": padded * self.depth * 2,
            "query_terms": padded * 16,
            "bounds": padded * self.lists * KEPT * 4,
            "bound_rows": padded * self.lists * KEPT * 4,
            "best": padded * 8,
            "open": (1 + padded) * 4,
        }


@dataclass(frozen=True)
class HalfBank:
    """A bank about its mean, in half precision, with what that lost.

    Attributes:
        centre: float32 (d,), the mean.
        scale: a power of two that brings the largest element about the mean below 1, and half of that or more.
        halves: float16 (row_tiles * ROW_TILE, depth), rows about the mean times scale times 2^14, padded with zeros.
        terms: float32 (row_tiles, 3, ROW_TILE), for each row about the mean times scale its squared norm, rounded down, the
            length of what half precision lost, and the length of what it kept. Padding has an infinite norm.
    """

    centre: Floats
    scale: float
    halves: npt.NDArray[np.float16]
    terms: Floats

    @classmethod
    def of(cls, rows: Floats) -> HalfBank:
        """Prepare float32 (n, d) rows. Raises EngineError where they are not finite or too far apart for float32."""
        plan = Plan(1, rows.shape[0], rows.shape[1], 1, 1)
        centre = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        blocks = [slice(start, start + 16 * ROW_TILE) for start in range(0, len(rows), 16 * ROW_TILE)]
        with np.errstate(over="ignore", invalid="ignore"):
            spread = np.max([np.abs(rows[block] - centre).max() for block in blocks])
        if not np.isfinite(spread):
            raise EngineError("the bank holds numbers that are not finite, or too far apart for float32; train again")
        scale = 2.0 ** -max(int(np.frexp(spread)[1]) if spread > 0 else 0, _LEAST_EXPONENT)
        halves = np.zeros((plan.row_tiles * ROW_TILE, plan.depth), np.float16)
        terms = np.zeros((3, len(halves)))
        terms[0] = np.inf
        for block in blocks:
            exact = (rows[block] - centre).astype(np.float64) * scale
            part = slice(block.start, block.start + len(exact))
            halves[part, : plan.dim] = exact * _HALF_BANK
            kept = halves[part, : plan.dim].astype(np.float64) / _HALF_BANK
            terms[0, part] = (exact**2).sum(axis=1) * (1 - rounding(plan.dim))
            terms[1:, part] = [np.sqrt((of**2).sum(axis=1)) for of in (exact - kept, kept)]
        by_tile = terms.reshape(3, plan.row_tiles, ROW_TILE).transpose(1, 0, 2)
        return cls(centre, scale, halves, np.ascontiguousarray(by_tile, np.float32))


def rounding(dim: int) -> float:
    """Relative error of what is summed in float32: d / 32 terms by each lane of a warp, their sum, and the steps beside."""
    return (-(-dim // WARP) + WARP) * _UNIT


def gamma(dim: int) -> float:
    """Error of tensor cores, relative to the product of the lengths of what is multiplied."""
    return 2 * dim * 2 * _UNIT


class CudaLDKNN:
    """Image scores and maps against one bank on one GPU. Used from one thread at a time, as the GPU is.

    Embeddings come from this machine (`score`, `map`, `images`), or are written to `queries` by work in the GPU's stream; then
    `enqueue` follows it there, and `result` has the answer once the stream is empty.
    """

    def __init__(self, search: LDKNN, judged: npt.NDArray[np.bool_], pooling: str = "cover", *, gpu: Gpu) -> None:
        """Prepare a bank and copy it to the GPU.

        Args:
            search: the exact search, which this one agrees with.
            judged, pooling: how patches become an image score, as for `Windows`.
            gpu: that searches; it is closed after this, by the caller.

        Raises:
            EngineError: a bank that is not finite, windows that judge nothing, or what `Gpu` raises.
        """
        if not np.isfinite(search.density).all():
            raise EngineError("the bank's densities are not finite; train again")
        half_bank = HalfBank.of(search.rows)
        windows = Windows(judged, pooling).index
        self._judged = judged
        self._rows, self._dim = search.rows.shape
        self._layouts: list[tuple[bytes, Grids]] = []
        self._workspace = 0
        self._bank: list[int] = []
        self._shared: tuple[Shared, ...] = ()  # embeddings, maps and scores
        self._parameters = np.zeros((), PARAMETERS)
        self._gpu = gpu
        self._kernels: Kernels | None = None
        try:
            self._kernels = gpu.load(SOURCE, KERNELS)
            plan = self._plan(1)
            self._set(
                row_count=self._rows,
                dim=self._dim,
                depth=plan.depth,
                row_tiles=plan.row_tiles,
                patches=judged.size,
                window_count=windows.shape[0],
                window_size=windows.shape[1],
                euclidean=search.metric == "euclidean",
                scale=half_bank.scale,
                rounding=rounding(self._dim),
                gamma=gamma(plan.depth),
                alpha=search.alpha,
                rows=self._upload(search.rows),
                row_halves=self._upload(half_bank.halves),
                row_terms=self._upload(half_bank.terms),
                centre=self._upload(half_bank.centre),
                density=self._upload(search.density),
                windows=self._upload(windows.astype(np.int32)),
                judged=self._upload(judged.astype(np.uint8)),
            )
            self._make_room(1)
        except BaseException:
            self.close()
            raise

    @property
    def queries(self) -> int:
        """Address on the GPU of the embeddings, float32 (patches, d), of one image; another after `images` was given more."""
        return int(self._parameters["queries"])

    def score(self, embeddings: Floats) -> float:
        """Image score of float32 (patches, d), higher is more anomalous; NaN where a judged embedding is not finite.

        Raises:
            EngineError: wrong shape or dtype, or the GPU failed.
        """
        return float(self.one(embeddings)[0][0])

    def map(self, embeddings: Floats) -> Floats:
        """Patch scores of one image, float32 (rows, columns); NaN where a patch is ignored. Raises as `score`."""
        return self.one(embeddings)[1][0]

    def one(self, embeddings: Floats) -> tuple[Floats, Floats]:
        """Score float32 (1,) and map float32 (1, rows, columns) of float32 (patches, d). Raises as `score`."""
        if np.shape(embeddings) != (self._judged.size, self._dim):
            raise EngineError(f"embeddings is {_named(embeddings)}, expected float32 ({self._judged.size}, {self._dim})")
        return self.images(embeddings)

    def images(self, embeddings: Floats) -> tuple[Floats, Floats]:
        """Scores float32 (b,) and maps float32 (b, rows, columns) of b images: float32 (b * patches, d).

        Memory is allocated where there are more images than in any call before. Raises as `score`.
        """
        patches = self._judged.size
        fits = isinstance(embeddings, np.ndarray) and embeddings.dtype == np.float32 and embeddings.ndim == 2
        if not fits or embeddings.shape[1] != self._dim or len(embeddings) == 0 or len(embeddings) % patches > 0:
            raise EngineError(
                f"embeddings is {_named(embeddings)}, expected float32 (b * {patches}, {self._dim}), b of 1 or more"
            )
        self._check_open()
        images = len(embeddings) // patches
        if images > len(self._layouts):
            self._make_room(images)
        given, _, _ = self._shared
        np.copyto(given.array[: len(embeddings)], embeddings)
        self._gpu.send(given, embeddings.size)
        self.enqueue(images)
        self._gpu.wait()
        return self.result(images)

    def enqueue(self, images: int = 1) -> None:
        """Put the search of what is at `queries`, and the copy of its answer, into the GPU's stream. Raises EngineError."""
        kernels = self._check_open()
        parameters, grids = self._layouts[images - 1]
        self._gpu.launch(kernels, parameters, grids)
        _, maps, scores = self._shared
        self._gpu.fetch(maps, images * self._judged.size)
        self._gpu.fetch(scores, images)

    def result(self, images: int = 1) -> tuple[Floats, Floats]:
        """Scores float32 (b,) and maps float32 (b, rows, columns) of what was enqueued last, after the stream is empty."""
        _, maps, scores = self._shared
        taken = maps.array[: images * self._judged.size]
        answer = scores.array[:images].copy(), taken.reshape(images, *self._judged.shape).copy()
        scores.array[:images] = np.nan  # a run that writes nothing must not give the last image's score again
        return answer

    def close(self) -> None:
        """Give the GPU's memory back; may be called twice."""
        bank, shared, workspace = self._bank, self._shared, self._workspace
        self._layouts, self._bank, self._shared, self._workspace, self._kernels = [], [], (), 0, None
        with contextlib.suppress(EngineError):  # after a failure of the GPU, or its end, there is nothing left to free
            for address in (*bank, workspace):
                self._gpu.free(address)
            for one in shared:
                self._gpu.release(one)

    def __enter__(self) -> CudaLDKNN:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_open(self) -> Kernels:
        if self._kernels is None:
            raise EngineError("the search on the GPU is closed; open it again")
        return self._kernels

    def _plan(self, images: int) -> Plan:
        return Plan(images * self._judged.size, self._rows, self._dim, self._judged.size, self._gpu.multiprocessors)

    def _make_room(self, images: int) -> None:
        """Lay out every count of images up to this one: fewer are split into more lists, which can take more room."""
        plans = [self._plan(count) for count in range(1, images + 1)]
        sizes = {name: max(plan.workspace[name] for plan in plans) for name in plans[0].workspace}
        offsets = np.cumsum([0, *(-(-size // _ALIGNED) * _ALIGNED for size in sizes.values())])
        self._layouts = []
        self._gpu.free(self._workspace)
        self._workspace = 0
        self._workspace = self._gpu.allocate(int(offsets[-1]))
        self._set(**{name: self._workspace + int(offset) for name, offset in zip(sizes, offsets, strict=False)})
        for one in self._shared:
            self._gpu.release(one)
        self._shared = ()
        given = self._gpu.share((images * self._judged.size, self._dim), self.queries)
        maps, scores = self._gpu.share((images * self._judged.size,)), self._gpu.share((images,))
        self._shared = (given, maps, scores)
        self._set(map=maps.address, scores=scores.address)
        for plan in plans:
            self._set(query_count=plan.queries, split_tiles=plan.split_tiles, lists=plan.lists)
            self._layouts.append((self._parameters.tobytes(), plan.grids))

    def _upload(self, array: npt.NDArray) -> int:
        address = self._gpu.allocate(array.nbytes)
        self._bank.append(address)
        self._gpu.upload(address, np.ascontiguousarray(array))
        return address

    def _set(self, **values: float) -> None:
        for name, value in values.items():
            self._parameters[name] = value


def _named(embeddings: object) -> str:
    return f"{embeddings.dtype} {embeddings.shape}" if isinstance(embeddings, np.ndarray) else type(embeddings).__name__
