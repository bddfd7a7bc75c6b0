"""Threads that share the search's work, and memory that each keeps to work in.

OpenBLAS splits a product over threads that wait for each other at its end, and where another process takes a core, they all
wait for the one that has none: a search of 13 ms was seen to take 130. Here each thread takes the next piece of work when it is
done with one, its products run on one thread, and a thread that never gets a core costs nothing: the others do its pieces. What
comes between the products is shared too, which BLAS leaves to one core.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from types import TracebackType

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController


class Workers:
    """So many threads, that of the caller among them. Safe to share between threads."""

    def __init__(self, threads: int = 0) -> None:
        """Prepare; threads start when there is work for them. 0 is one for each core that this process may use."""
        self.threads = threads if threads > 0 else len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(max(1, self.threads - 1), thread_name_prefix="search")

    def each(self, work: Callable[[int], None], count: int) -> None:
        """Call `work` with 0 to count - 1, in any order and at the same time, and wait; raises the first error.

        It must not be called by `work` itself.
        """
        numbers = iter(range(count))

        def run() -> None:
            for number in numbers:
                work(number)

        with _PRODUCTS_ON_ONE_THREAD:
            helping = [self._pool.submit(run) for _ in range(min(self.threads, count) - 1)]
            try:
                run()
            finally:
                failures = [one.exception() for one in helping if not one.cancel()]
        for failure in failures:
            if failure is not None:
                raise failure


class Rooms(threading.local):
    """Arrays to work in, of each thread its own, kept from call to call."""

    def __init__(self) -> None:
        self._kept: dict[str, npt.NDArray] = {}

    def get(self, name: str, shape: tuple[int, ...], kind: type[np.generic] = np.float32) -> npt.NDArray:
        """An array of that shape, whose contents are whatever was left there. One name is always of one dtype."""
        size = int(np.prod(shape))
        kept = self._kept.get(name)
        if kept is None or kept.size < size:
            kept = self._kept[name] = np.empty(size, kind)
        return kept[:size].reshape(shape)


class _ProductsOnOneThread:
    """NumPy's BLAS on one thread while anyone is inside: the setting is the process's, so the last one out restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limits = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limits.enter_context(self._blas.limit(limits=1, user_api="blas"))
            self._inside += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limits.close()

    @cached_property
    def _blas(self) -> ThreadpoolController:
        return ThreadpoolController()  # looks through the libraries that are loaded, so not at import


_PRODUCTS_ON_ONE_THREAD = _ProductsOnOneThread()
