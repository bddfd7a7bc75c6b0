"""A process that is killed while it writes the journal."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.crashes import crash


def test_a_writer_killed_at_random_points_leaves_a_journal_that_starts_again(tmp_path: Path) -> None:
    draw = random.Random(1)
    delays_s = [draw.uniform(0, 0.02) for _ in range(5)] + [draw.uniform(0, 0.15) for _ in range(10)]
    crashes = [crash(tmp_path / "journal.db", f"run-{number}", delay_s) for number, delay_s in enumerate(delays_s)]
    assert [found.wrong for found in crashes if found.wrong is not None] == []
    assert sum(found.acted for found in crashes) > 0
