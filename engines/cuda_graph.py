"""CUDA graphs: work recorded once from a stream, and put into it again with one call. The driver's own functions, by ctypes.

PyCUDA has no graphs. Functions, types and constants are those of the CUDA driver API reference, sections "Stream Management"
and "Graph Management"; all are in every driver from CUDA 11.4 on.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from engines import EngineError

_LIBRARY = "libcuda.so.1"
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads of this process may go on with their own work


class Graph:
    """Recorded work. Its memory is the driver's until `close`."""

    def __init__(self, driver: Any, executable: ctypes.c_void_p) -> None:
        """Hold what the driver instantiated."""
        self._driver = driver
        self._executable = executable

    def launch(self, stream: int) -> None:
        """Put the work into a stream. Raises EngineError."""
        _check(self._driver, "cuGraphLaunch", self._executable, ctypes.c_void_p(stream))

    def close(self) -> None:
        """Give the memory back; may be called twice. The context must be current."""
        if self._executable:
            self._driver.cuGraphExecDestroy(self._executable)
            self._executable = ctypes.c_void_p()


def capture(stream: int, work: Callable[[], None]) -> Graph:
    """Record what `work` puts into a stream, which does not run meanwhile. The context must be current.

    Raises:
        EngineError: the driver refuses, work was put there that cannot be recorded, or what `work` raises; the stream takes
            work as before.
    """
    driver = _load_driver()
    on = ctypes.c_void_p(stream)
    graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
    _check(driver, "cuStreamBeginCapture_v2", on, ctypes.c_int(_THREAD_LOCAL))
    try:
        work()
    except BaseException:
        driver.cuStreamEndCapture(on, ctypes.byref(graph))  # the stream must leave this state whatever happened in it
        if graph:
            driver.cuGraphDestroy(graph)
        raise
    _check(driver, "cuStreamEndCapture", on, ctypes.byref(graph))
    try:
        _check(driver, "cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
    finally:
        driver.cuGraphDestroy(graph)
    return Graph(driver, executable)


def _check(driver: Any, function: str, *arguments: Any) -> None:
    code = getattr(driver, function)(*arguments)
    if code != 0:
        raise EngineError(f"{function} failed with CUDA's error {code}; start the program again, and check dmesg")


def _load_driver() -> Any:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise EngineError(f"{_LIBRARY} cannot be loaded ({error}); check that NVIDIA's driver is installed") from None
