"""The model of a disk, by hand: what a power cut may show after a few calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.disk import Disk, State, digest, materialise
from benchmarks.strace import DiskError, read_log

ROOT = "/r"


def hexed(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def quoted(text: str) -> str:
    return f'"{hexed(text)}"'


def opened(path: str, flags: str, fd: int) -> str:
    return f"openat(AT_FDCWD<{hexed('/')}>, {quoted(path)}, {flags}, 0600) = {fd}<{hexed(path)}>"


def on(name: str, fd: int, path: str, *rest: str, result: int = 0) -> str:
    return f"{name}({', '.join([f'{fd}<{hexed(path)}>', *rest])}) = {result}"


def wrote(fd: int, path: str, text: str) -> str:
    return on("write", fd, path, quoted(text), str(len(text)), result=len(text))


CREATE = "O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC"


def run(tmp_path: Path, lines: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk after these lines of a log, of one process unless they name another."""
    log = tmp_path / "log"
    log.write_text("".join(line if line[0].isdigit() else f"7 {line}" for line in (f"{line}\n" for line in lines)))
    monkeypatch.setattr("os.path.realpath", lambda path: path)
    disk = Disk(Path(ROOT))
    for number, call in enumerate(read_log(log)):
        disk.execute(call, number)
    return disk


def shown(disk: Disk) -> list[State]:
    """Its different states, in the order in which they come."""
    return list({digest(state): state for state in disk.states()}.values())


def test_nothing_is_sure_of_a_file_that_was_written_and_renamed_and_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        opened("/r/t", CREATE, 3),
        wrote(3, "/r/t", "new"),
        f"rename({quoted('/r/t')}, {quoted('/r/a')}) = 0",
    ]
    found = shown(run(tmp_path, lines, monkeypatch))
    for state in ({}, {"t": b"new"}, {"t": b""}, {"a": b"new"}, {"a": b""}, {"a": b"\0\0\0"}):
        assert state in found


def test_what_was_synced_in_order_is_sure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        opened("/r/t", CREATE, 3),
        wrote(3, "/r/t", "new"),
        on("fsync", 3, "/r/t"),
        f"rename({quoted('/r/t')}, {quoted('/r/a')}) = 0",
        opened("/r", "O_RDONLY|O_CLOEXEC", 4),
        on("fsync", 4, "/r"),
    ]
    assert shown(run(tmp_path, lines, monkeypatch)) == [{"a": b"new"}]
    assert {"a": b"new"} in (before := shown(run(tmp_path, lines[:-1], monkeypatch)))
    assert {} in before  # a synced file's name is not sure
    assert {"a": b""} not in before
    assert all(set(state) <= {"a"} or set(state) == {"t"} for state in before)  # a rename is seen wholly or not at all


def test_a_write_that_began_after_the_sync_began_is_not_sure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        opened("/r/a", CREATE, 3),
        opened("/r", "O_RDONLY", 4),
        on("fsync", 4, "/r"),
        wrote(3, "/r/a", "one"),
        f"8 fdatasync(3<{hexed('/r/a')}> <unfinished ...>",
        wrote(3, "/r/a", "two"),
        "8 <... fdatasync resumed>) = 0",
    ]
    found = shown(run(tmp_path, lines, monkeypatch))
    assert {"a": b"one"} in found
    assert {"a": b"onetwo"} in found
    assert {"a": b"one\0\0\0"} in found
    assert all(state["a"] is not None and state["a"].startswith(b"one") for state in found)


def test_the_last_write_is_torn_where_sectors_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = "o" * 1536, "n" * 1536
    lines = [
        opened("/r/a", CREATE, 3),
        wrote(3, "/r/a", old),
        on("fsync", 3, "/r/a"),
        opened("/r", "O_RDONLY", 4),
        on("fsync", 4, "/r"),
        on("pwrite64", 3, "/r/a", quoted(new), "1536", "0", result=1536),
    ]
    seen = {bytes(state["a"] or b"")[::512] for state in shown(run(tmp_path, lines, monkeypatch))}
    assert seen == {b"ooo", b"nnn", b"nno", b"oon", b"noo", b"ono"}


def test_writes_may_come_to_the_disk_without_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        opened("/r/a", CREATE, 3),
        opened("/r", "O_RDONLY", 4),
        on("fsync", 4, "/r"),
        wrote(3, "/r/a", "one"),
        wrote(3, "/r/a", "two"),
    ]
    assert {"a": b"\0\0\0two"} in shown(run(tmp_path, lines, monkeypatch))


def test_a_folder_that_was_made_is_lost_with_all_that_was_synced_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        f"mkdir({quoted('/r/d')}, 0777) = 0",
        opened("/r/d/a", CREATE, 3),
        wrote(3, "/r/d/a", "new"),
        on("fsync", 3, "/r/d/a"),
        opened("/r/d", "O_RDONLY", 4),
        on("fsync", 4, "/r/d"),
    ]
    found = shown(run(tmp_path, lines, monkeypatch))
    assert {} in found
    assert {"d": None, "d/a": b"new"} in found
    assert {"d": None} not in found


def test_an_exchange_is_one_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cwd = f"AT_FDCWD<{hexed('/')}>"
    lines = [
        f"mkdir({quoted('/r/old')}, 0777) = 0",
        f"mkdir({quoted('/r/new')}, 0777) = 0",
        opened("/r/new/a", CREATE, 3),
        opened("/r", "O_RDONLY", 4),
        opened("/r/new", "O_RDONLY", 5),
        on("fsync", 4, "/r"),
        on("fsync", 5, "/r/new"),
        f"renameat2({cwd}, {quoted('/r/new')}, {cwd}, {quoted('/r/old')}, RENAME_EXCHANGE) = 0",
    ]
    before, after = ({"old": None, "new": None, path: b""} for path in ("new/a", "old/a"))
    assert shown(run(tmp_path, lines, monkeypatch)) == [before, after]


def test_a_removed_name_may_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        opened("/r/a", CREATE, 3),
        opened("/r", "O_RDONLY", 4),
        on("fsync", 4, "/r"),
        f"unlink({quoted('/r/a')}) = 0",
    ]
    assert sorted(map(str, shown(run(tmp_path, lines, monkeypatch)))) == ["{'a': b''}", "{}"]


def test_marks_are_counted_and_failed_calls_and_other_folders_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        on("write", 1, "pipe:[1]", quoted("+-+"), "3", result=3),
        f"mkdir({quoted('/r/d')}, 0777) = -1 EEXIST (File exists)",
        opened("/elsewhere/a", CREATE, 3),
        wrote(3, "/elsewhere/a", "x"),
        "--- SIGCHLD {si_signo=SIGCHLD} ---",
        "+++ exited with 0 +++",
    ]
    disk = run(tmp_path, lines, monkeypatch)
    assert (disk.begun, disk.acked) == (2, 1)
    assert shown(disk) == [{}]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"link({quoted('/r/a')}, {quoted('/r/b')}) = 0", "link is not in the model"),
        (wrote(9, "/r/a", "x"), "not opened in the log"),
        (f"rename({quoted('/r/a')}, {quoted('/elsewhere')}) = 0", "across the root"),
        ('write(1</x>, "\\x61"..., 100) = 100', "cut off in the log"),
        ("nonsense", "not a call with a result"),
    ],
)
def test_what_the_model_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str) -> None:
    with pytest.raises(DiskError, match=said):
        run(tmp_path, [line], monkeypatch)


def test_a_state_is_written_as_it_is(tmp_path: Path) -> None:
    materialise({"d": None, "d/a": b"new", "b": b""}, tmp_path)
    assert (tmp_path / "d/a").read_bytes() == b"new"
    assert (tmp_path / "b").read_bytes() == b""
