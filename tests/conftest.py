"""Fixtures and settings that every test file shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fake_gpu import driver, kernels_on_host, library  # noqa: F401  # fixtures
from tests.fake_tensorrt import tensorrt, tensorrt_rtx  # noqa: F401  # fixtures

# the same examples on every run and machine; no deadline, so that a busy machine fails nothing
settings.register_profile("project", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("project")


@pytest.fixture(autouse=True, scope="session")
def heed_ctrl_c() -> Iterator[None]:
    """A shell's background job ignores Ctrl-C, and so would every process that a test starts."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real image sets, from the environment variable REB_DATA; the test is skipped without it."""
    return _folder_from("REB_DATA")


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """Folder of pretrained weights, from the environment variable REB_WEIGHTS; the test is skipped without it."""
    return _folder_from("REB_WEIGHTS")


def _folder_from(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: no real data on this machine")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"{variable}={value}: no such folder")
    return folder
