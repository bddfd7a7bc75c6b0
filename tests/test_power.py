"""Watts are read from what Jetsons and NVIDIA's cards tell, and none are made up."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from engines.power import PowerMeter, parse_watts

ORIN_NANO = (
    "11-25-2026 10:00:00 RAM 2890/7620MB (lfb 4x4MB) CPU [5%@1510,2%@1510] GR3D_FREQ 30% cpu@48.5C"
    " VDD_IN 4950mW/4870mW VDD_CPU_GPU_CV 1080mW/1000mW VDD_SOC 1470mW/1460mW"
)
AGX_ORIN = "RAM 3000/62800MB GR3D_FREQ 0% VDD_GPU_SOC 2400mW/2400mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 3800mW/3800mW"


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        (ORIN_NANO, 4.95),
        (AGX_ORIN, 6.6),
        ("VDD_GPU 5000mW/4000mW VIN 23000mW/22000mW", 23.0),
        ("87.31\n", 87.31),
        ("[N/A]", None),
        ("", None),
        ("RAM 2890/7620MB", None),
    ],
)
def test_watts_are_those_of_the_whole(line: str, watts: float | None) -> None:
    assert parse_watts(line) == (None if watts is None else pytest.approx(watts))


def test_a_tool_is_read_while_the_block_runs_and_stopped_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "tegrastats"
    tool.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n'
        "for watts in 1000 3000 9000; do echo VDD_IN ${watts}mW/1mW; done\n"
        f"touch {tmp_path}/told\nexec sleep 60\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with PowerMeter() as meter:
        while not (tmp_path / "told").exists():
            time.sleep(0.01)
    assert meter.watts == 3.0
    assert (tmp_path / "asked").read_text() == "--interval 100\n"


def test_a_machine_that_tells_nothing_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with PowerMeter() as meter:
        pass
    assert meter.watts is None
