"""What a person sees of a running station, on a terminal and elsewhere."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from edge.screen import Screen, draw
from edge.verdict import Outcome, Verdict
from engines import console

STATUS: dict[str, Any] = {
    "recipe": "gasket",
    "state": "executing",
    "state_seconds": 61.2,
    "reason": "part 1 came",
    "parts": 3,
    "outcomes": {"PASS": 2, "REJECT": 1, "FAULT": 0},
    "rate_per_minute": 12.34,
    "waiting": 1,
    "threshold": 1.25,
    "threshold_from": "SET BY HAND by Ada, 2024: lamp [/] changed",
    "deadline_ms": 200.0,
    "latency_ms": {"p50": 20.0, "p95": 40.0, "p99": 50.0},
    "stages_ms": {"search": {"p50": 10.0, "p95": 20.0, "p99": 30.0}, "line": {"p50": None, "p95": None, "p99": None}},
}
VERDICT = Verdict(3, Outcome.REJECT, 2.0, 1.0, 20.0, "score 2 is above the threshold 1", "3.png", "conformal")
SECOND_NS = 10**9


def test_what_breaks_a_line_is_shown_as_what_it_is() -> None:
    page = io.StringIO()
    Console(file=page, width=100).print(
        draw({**STATUS, "threshold_from": "by Ada: lamp\nchanged"}, "part 3: FAULT, a\x1b[2J.png")
    )
    lines = [line.strip() for line in page.getvalue().splitlines()]
    assert r"threshold 1.25, by Ada: lamp\nchanged" in lines
    assert r"part 3: FAULT, a\x1b[2J.png" in lines


def test_the_table_has_the_state_the_counts_and_each_stages_share_of_the_deadline() -> None:
    page = io.StringIO()
    Console(file=page, width=100).print(draw(STATUS, "part 3: REJECT"))
    lines = page.getvalue().splitlines()
    assert [line.strip() for line in lines[:4]] == [
        "gasket: executing for 61 s (part 1 came)",
        "3 parts, 2 PASS, 1 REJECT, 0 FAULT; 12.3 a minute, 1 waiting",
        "threshold 1.25, SET BY HAND by Ada, 2024: lamp [/] changed",
        "part 3: REJECT",
    ]
    rows = [[cell.strip() for cell in line.split("│")[1:6]] for line in lines if line.startswith("│")]
    assert rows == [
        ["search", "10.0", "20.0", "30.0", "15 %"],
        ["line", "-", "-", "-", "-"],
        ["trigger to verdict", "20.0", "40.0", "50.0", "25 %"],
    ]


def test_a_terminal_is_redrawn_twice_a_second_and_not_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(console, "out", Console(file=io.StringIO(), force_terminal=True, width=100))
    lines: list[Verdict] = []
    screen = Screen(lambda: asked.append(1) or STATUS, lines.append)  # type: ignore[func-returns-value]
    for tenth in range(1, 21):
        screen.verdict(VERDICT, SECOND_NS + tenth * SECOND_NS // 10)
    screen.close()
    screen.close()
    assert len(asked) == 4
    assert lines == []


def test_elsewhere_each_part_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "out", Console(file=io.StringIO(), force_terminal=False))
    lines: list[Verdict] = []
    screen = Screen(lambda: pytest.fail("nobody looks"), lines.append)
    screen.verdict(VERDICT, SECOND_NS)
    screen.turn(2 * SECOND_NS)
    screen.close()
    assert lines == [VERDICT]
