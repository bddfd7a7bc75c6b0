"""What the machine draws while something runs, where it tells: `tegrastats` on a Jetson, `nvidia-smi` with an NVIDIA card."""

from __future__ import annotations

import math
import re
import shutil
import statistics
import subprocess
import threading
from types import TracebackType

_INTERVAL_MS = "100"
_COMMANDS = {
    "tegrastats": ("--interval", _INTERVAL_MS),
    "nvidia-smi": ("-i", "0", "--query-gpu=power.draw", "--format=csv,noheader,nounits", "-lms", _INTERVAL_MS),
}
_RAIL = re.compile(r"\b(V\w+) (\d+)mW/")  # VDD_IN 4950mW/4870mW: now, and the mean since it was started
_WHOLE = ("VDD_IN", "VIN")  # rails that all others are fed from


class PowerMeter:
    """Watts while the `with` block runs. On a Jetson the whole module's, with a card the first card's alone."""

    def __init__(self) -> None:
        """Look for the tool; nothing runs yet."""
        self._tool = next((name for name in _COMMANDS if shutil.which(name) is not None), None)
        self._lines: list[str] = []

    @property
    def watts(self) -> float | None:
        """Median of what was told, in watts; None where nothing was."""
        told = [watts for line in self._lines if (watts := parse_watts(line)) is not None]
        return statistics.median(told) if told else None

    def __enter__(self) -> PowerMeter:
        self._process = None
        if self._tool is not None:
            command = (self._tool, *_COMMANDS[self._tool])
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
            self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._reader.join()

    def _read(self, process: subprocess.Popen[str]) -> None:
        if process.stdout is not None:
            with process.stdout as lines:
                self._lines.extend(lines)


def parse_watts(line: str) -> float | None:
    """Watts that a line of `tegrastats` or of `nvidia-smi` tells; None where it tells none.

    Of `tegrastats`, the rail that feeds the module, or where there is none (AGX Orin), the sum of all.
    """
    rails = {name: int(milliwatts) / 1000 for name, milliwatts in _RAIL.findall(line)}
    if rails:
        whole = [rails[name] for name in _WHOLE if name in rails]
        return whole[0] if whole else sum(rails.values())
    try:
        watts = float(line)
    except ValueError:
        return None
    return watts if math.isfinite(watts) else None
