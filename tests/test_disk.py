"""Room on the journal's disk, as a condition of the station."""

from __future__ import annotations

from pathlib import Path

from edge.disk import MIN_FREE_BYTES, DiskSpace
from tests.fakes import FakeClock

HERE = Path("/var/lib/station")


def test_full_and_freed_are_seen_within_a_second_and_the_disk_is_not_asked_more_often() -> None:
    clock, asked, free = FakeClock(), [], MIN_FREE_BYTES

    def look(folder: Path) -> int:
        asked.append(folder)
        return free

    disk = DiskSpace(HERE, clock, look)
    assert disk.fault() == ""
    free = MIN_FREE_BYTES - 1
    assert disk.fault() == ""
    clock.advance_ms(1000)
    assert disk.fault() == "/var/lib/station: less than 100 MiB free; free some space"
    free = MIN_FREE_BYTES
    clock.advance_ms(1000)
    assert disk.fault() == "/var/lib/station: less than 110 MiB free; free some space"  # no turns at the edge
    free = MIN_FREE_BYTES * 11 // 10
    clock.advance_ms(1000)
    assert disk.fault() == ""
    assert asked == [HERE] * 4


def test_a_disk_that_cannot_be_looked_at_is_not_good() -> None:
    def look(folder: Path) -> int:
        raise OSError(5, "Input/output error")

    assert DiskSpace(HERE, FakeClock(), look).fault() == (
        "/var/lib/station: cannot be looked at (Input/output error); check the disk and permissions"
    )


def test_a_real_disk(tmp_path: Path) -> None:
    assert DiskSpace(tmp_path, FakeClock()).fault() == ""
    assert "cannot be looked at (No such file or directory)" in DiskSpace(tmp_path / "none", FakeClock()).fault()
