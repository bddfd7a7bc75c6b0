"""Work that is shared between threads is done once each, its errors come back, and BLAS is left as it was."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from engines.workers import Rooms, Workers


def blas_threads() -> list[int]:
    """Threads that each BLAS of this process may use."""
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_each_number_is_worked_on_once(threads: int, count: int) -> None:
    done: list[int] = []
    Workers(threads).each(done.append, count)
    assert sorted(done) == list(range(count))


def test_the_threads_asked_for_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=30)
    seen = set()

    def work(number: int) -> None:
        seen.add(threading.get_ident())
        together.wait()

    Workers(3).each(work, 3)
    assert len(seen) == 3
    assert threading.get_ident() in seen


def test_no_more_threads_work_than_were_asked_for() -> None:
    seen = set()
    workers = Workers(2)
    for _ in range(5):
        workers.each(lambda number: seen.add(threading.get_ident()), 50)
    assert len(seen) <= 2


def test_no_number_of_threads_is_one_a_core() -> None:
    assert Workers().threads == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_comes_back_when_nobody_works_any_more(threads: int) -> None:
    working: set[int] = set()

    def work(number: int) -> None:
        working.add(number)
        try:
            if number == 5:
                raise ValueError("number 5")
        finally:
            working.discard(number)

    workers = Workers(threads)
    with pytest.raises(ValueError, match="number 5"):
        workers.each(work, 20)
    assert not working
    done: list[int] = []
    workers.each(done.append, 3)
    assert sorted(done) == [0, 1, 2]


def test_products_run_on_one_thread_inside_and_as_before_outside() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    before = blas_threads()
    inside: list[list[int]] = []
    Workers(2).each(lambda number: inside.append(blas_threads()), 1)
    assert all(count == 1 for count in inside[0])
    assert len(inside[0]) == len(before) > 0
    assert blas_threads() == before


def test_blas_is_restored_by_the_last_of_several_callers() -> None:
    before = blas_threads()
    both = threading.Barrier(2, timeout=30)
    first_left = threading.Event()
    seen: list[list[int]] = []

    def early(number: int) -> None:
        both.wait()

    def late(number: int) -> None:
        both.wait()
        assert first_left.wait(30)
        seen.append(blas_threads())

    other = threading.Thread(target=Workers(1).each, args=(late, 1))
    other.start()
    Workers(1).each(early, 1)
    first_left.set()
    other.join()
    assert all(count == 1 for count in seen[0])
    assert blas_threads() == before


def test_a_room_is_kept_and_grows_and_is_each_thread_s_own() -> None:
    rooms = Rooms()
    small = rooms.get("a", (2, 3))
    assert small.shape == (2, 3)
    assert small.dtype == np.float32
    large = rooms.get("a", (4, 5))
    assert np.shares_memory(rooms.get("a", (1, 2)), large)
    assert not np.shares_memory(rooms.get("b", (4, 5), np.int64), large)
    elsewhere: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: elsewhere.append(rooms.get("a", (4, 5))))
    thread.start()
    thread.join()
    assert not np.shares_memory(elsewhere[0], large)
