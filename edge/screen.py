"""What a person sees of a running station."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from edge.statistics import PERCENTS
from edge.verdict import Verdict
from engines import console

_REDRAW_NS = 500_000_000


class Screen:
    """On a terminal, one table, redrawn twice a second by the deciding loop; what is said meanwhile scrolls above it.

    Elsewhere each part is a line.
    """

    def __init__(self, status: Callable[[], dict[str, Any]], line: Callable[[Verdict], None]) -> None:
        """`status` is the station's; `line` prints a part."""
        self._status = status
        self._line = line
        self._last = "no part yet"
        self._drawn_ns = 0
        self._live = Live(console=console.out, auto_refresh=False) if console.out.is_terminal else None
        if self._live is not None:
            self._live.start()

    def verdict(self, verdict: Verdict, now_ns: int) -> None:
        """One part was judged."""
        if self._live is None:
            self._line(verdict)
        self._last = f"part {verdict.part}: {verdict.outcome.value}, {verdict.reason}"
        self.turn(now_ns)

    def turn(self, now_ns: int) -> None:
        """Redraw where that is due."""
        if self._live is not None and now_ns >= self._drawn_ns + _REDRAW_NS:
            self._drawn_ns = now_ns
            self._live.update(draw(self._status(), self._last), refresh=True)

    def close(self) -> None:
        """Leave the last table where it is; may be called twice."""
        if self._live is not None:
            self._live.stop()


def draw(status: dict[str, Any], last: str) -> Table:
    """A station's status as a table: counts above, and what each stage takes of the deadline below."""
    outcomes = ", ".join(f"{number} {name}" for name, number in status["outcomes"].items())
    lines = (
        f"{status['recipe']}: {status['state']} for {status['state_seconds']:.0f} s ({status['reason']})",
        f"{status['parts']} parts, {outcomes}; {status['rate_per_minute']:.1f} a minute, {status['waiting']} waiting",
        f"threshold {status['threshold']:.6g}, {status['threshold_from']}",
        last,
    )
    table = Table(title=Text("\n".join(console.one_line(line) for line in lines)), title_justify="left", title_style="none")
    for name in ("stage", *(f"p{percent} ms" for percent in PERCENTS), "p99 of the deadline"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage, took in (*status["stages_ms"].items(), ("trigger to verdict", status["latency_ms"])):
        cells = ["-" if took[f"p{percent}"] is None else f"{took[f'p{percent}']:.1f}" for percent in PERCENTS]
        share = "-" if took["p99"] is None else f"{100 * took['p99'] / status['deadline_ms']:.0f} %"
        table.add_row(stage, *cells, share)
    return table
