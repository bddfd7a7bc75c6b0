"""A recipe's code on lines: read whole, when it is valid, and never while it changes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge.code_lines import STROBE, CodeLines

SETTLE_NS = 100


class Wires:
    """Levels that tests set."""

    def __init__(self, bits: int, code: int = 0, strobe: bool = False) -> None:
        self.levels = {f"code-{bit}": bool(code >> bit & 1) for bit in range(bits)} | {STROBE: strobe}

    def set(self, lines: CodeLines, name: str, active: bool, at_ns: int) -> None:
        self.levels[name] = active
        lines.edge(name, active, at_ns)


def test_without_lines_nothing_is_ever_due() -> None:
    lines = CodeLines(0, None, lambda name: False, 0)
    assert (lines.due_ns, lines.read(10**9)) == (None, None)


def test_the_code_at_the_start_counts_once_it_stood_still() -> None:
    wires = Wires(3, code=5)
    lines = CodeLines(3, SETTLE_NS, wires.levels.__getitem__, 1000)
    assert lines.due_ns == 1100
    assert lines.read(1099) is None
    assert lines.read(1100) == 5
    assert (lines.due_ns, lines.read(5000)) == (None, None)


def test_a_code_on_its_way_is_never_told() -> None:
    wires = Wires(2, code=1)
    lines = CodeLines(2, SETTLE_NS, wires.levels.__getitem__, 0)
    assert lines.read(100) == 1
    wires.set(lines, "code-0", False, 200)  # 0 for a moment
    assert lines.read(299) is None
    wires.set(lines, "code-1", True, 299)
    assert lines.read(398) is None
    assert lines.read(399) == 2
    wires.set(lines, "code-1", False, 500)
    wires.set(lines, "code-1", True, 550)  # a spike
    assert lines.read(650) is None
    assert lines.due_ns is None


def test_with_a_strobe_the_code_counts_at_its_rising_edge_alone_and_each_time() -> None:
    wires = Wires(2, code=3)
    lines = CodeLines(2, None, wires.levels.__getitem__, 0)
    assert lines.read(10**9) is None
    wires.set(lines, "code-1", False, 10)
    assert lines.due_ns is None
    wires.set(lines, STROBE, True, 20)
    assert lines.read(20) == 1
    wires.set(lines, STROBE, False, 30)
    assert lines.read(40) is None
    wires.set(lines, STROBE, True, 50)
    assert lines.read(50) == 1


def test_a_strobe_that_is_up_at_the_start_counts() -> None:
    wires = Wires(2, code=2, strobe=True)
    assert CodeLines(2, None, wires.levels.__getitem__, 7).read(7) == 2


def test_other_lines_do_not_matter() -> None:
    wires = Wires(1, code=1)
    lines = CodeLines(1, SETTLE_NS, wires.levels.__getitem__, 0)
    lines.edge("trigger", True, 90)
    assert lines.due_ns == 100


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(1, 300)), max_size=30))
def test_what_is_told_stood_still_for_the_whole_time(changes: list[tuple[int, bool, int]]) -> None:
    wires = Wires(3)
    lines = CodeLines(3, SETTLE_NS, wires.levels.__getitem__, 0)
    now_ns, still_since_ns, told = 0, 0, []
    for bit, active, after_ns in changes:
        now_ns += after_ns
        code = lines.read(now_ns)
        if code is not None:
            told.append(code)
            assert now_ns - still_since_ns >= SETTLE_NS
            assert code == sum(wires.levels[f"code-{bit}"] << bit for bit in range(3))
        if wires.levels[f"code-{bit}"] != active:
            wires.set(lines, f"code-{bit}", active, now_ns)
            still_since_ns = now_ns
    assert all(one != other for one, other in pairwise(told))
