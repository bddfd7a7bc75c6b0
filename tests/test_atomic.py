"""Files and folders that are wholly there or not there: full disks, Ctrl-C, and kill -9 in the middle."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from engines import EngineError, atomic
from engines.atomic import new_folder, write_file

ROOT = Path(__file__).parents[1]


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def old_folder(tmp_path: Path) -> Path:
    """A folder that stands, with two files."""
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "a").write_text("old a")
    (path / "b").write_text("old b")
    return path


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


OLD = {"a": "old a", "b": "old b"}
NEW = {"a": "new a", "c": "new c"}


def write_new(path: Path) -> None:
    with new_folder(path) as folder:
        for name, text in NEW.items():
            (folder / name).write_text(text)


def raiser(error: BaseException) -> object:
    def fail(*_: object) -> None:
        raise error

    return fail


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, in which the project can be imported."""
    code = textwrap.dedent(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.bin"
    write_file(path, b"one")
    assert path.read_bytes() == b"one"
    write_file(str(path), b"")
    assert path.read_bytes() == b""
    assert path.stat().st_mode & 0o777 == 0o644
    assert entries(path.parent) == ["file.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace", "fdopen"])
def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, step, raiser(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(EngineError, match=r"No space left on device.*free some space.*still stands"):
        write_file(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert entries(tmp_path) == ["file"]


def test_ctrl_c_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", raiser(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert entries(tmp_path) == ["file"]


def test_a_folder_in_the_way_of_a_file_is_refused(tmp_path: Path) -> None:
    path = old_folder(tmp_path)
    with pytest.raises(EngineError, match="could not be written"):
        write_file(path, b"new")
    with pytest.raises(EngineError, match="could not be written"):
        write_file(path / "a" / "file", b"new")
    assert contents(path) == OLD
    assert entries(tmp_path) == ["bundle"]


def test_a_file_size_limit_leaves_the_old_file_and_folder_whole(tmp_path: Path) -> None:
    # a real refusal by the kernel in the middle of the data: the first 4,096 bytes are written, the rest is not
    path, file = old_folder(tmp_path), tmp_path / "file"
    file.write_bytes(b"old")
    result = run(
        """
        import resource, signal, sys
        from engines import EngineError
        from engines.atomic import new_folder, write_file
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_file(sys.argv[1], bytes(100_000))
        except EngineError as error:
            print(error)
        try:
            with new_folder(sys.argv[2]) as folder:
                (folder / "a").write_text("new a")
                (folder / "big").write_bytes(bytes(100_000))
        except EngineError as error:
            print(error)
        """,
        file,
        path,
    )
    assert result.stderr == ""
    assert result.stdout.count("File too large") == 2
    assert file.read_bytes() == b"old"
    assert contents(path) == OLD
    assert entries(tmp_path) == ["bundle", "file"]


@pytest.fixture(params=["exchange", "two renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to replace a folder: the kernel's exchange, and the fallback where it has none."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    return str(request.param)


@pytest.mark.usefixtures("swap")
def test_a_folder_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bundle"
    write_new(path)
    assert contents(path) == NEW
    assert path.stat().st_mode & 0o777 == 0o755
    with new_folder(str(path)) as folder:
        assert folder.parent == path.parent
        (folder / "z").write_text("newest")
        assert contents(path) == NEW
    assert contents(path) == {"z": "newest"}
    assert entries(path.parent) == ["bundle"]


def test_everything_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    at_rename: list[set[int]] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        fsync(handle)

    def note_rename(source: Path, target: Path) -> None:
        at_rename.append(set(synced))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    path = tmp_path / "bundle"
    write_new(path)
    assert at_rename == [{each.stat().st_ino for each in (path, *path.iterdir())}]
    assert synced[-1] == tmp_path.stat().st_ino


@pytest.mark.usefixtures("swap")
def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    write_new(tmp_path / "bundle")
    assert contents(tmp_path / "bundle") == NEW


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_linux_exchanges_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_folder(tmp_path)
    monkeypatch.setattr(os, "rename", raiser(AssertionError("renamed in two steps")))
    write_new(path)
    assert contents(path) == NEW


@pytest.mark.usefixtures("swap")
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError("no")])
def test_a_failure_while_filling_leaves_the_old_folder_whole(tmp_path: Path, error: BaseException) -> None:
    path = old_folder(tmp_path)
    expected = EngineError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), new_folder(path) as folder:
        (folder / "a").write_text("half of the new")
        raise error
    assert contents(path) == OLD
    assert entries(tmp_path) == ["bundle"]


@pytest.mark.usefixtures("swap")
def test_a_full_disk_at_fsync_leaves_the_old_folder_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", raiser(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(EngineError, match="free some space"):
        write_new(path)
    assert contents(path) == OLD
    assert entries(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_rename_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: BaseException
) -> None:
    path = old_folder(tmp_path)
    rename, calls = os.rename, []

    def fail_once(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == failing:
            raise error
        rename(source, target)

    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(EngineError if isinstance(error, OSError) else KeyboardInterrupt):
        write_new(path)
    assert contents(path) == OLD
    assert entries(tmp_path) == ["bundle"]


def test_an_unconfirmed_write_does_not_claim_that_the_old_still_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_folder(tmp_path)
    fsync, seen = os.fsync, []

    def fail_for_the_parent(handle: int) -> None:
        seen.append(os.fstat(handle).st_ino)
        if seen[-1] == tmp_path.stat().st_ino:
            raise OSError(errno.EIO, "Input/output error")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fail_for_the_parent)
    with pytest.raises(EngineError, match="written, but the disk did not confirm"):
        write_new(path)
    with pytest.raises(EngineError, match="written, but the disk did not confirm"):
        write_file(tmp_path / "file", b"new")
    assert contents(path) == NEW
    assert entries(tmp_path) == ["bundle", "file"]


def test_a_file_system_that_cannot_sync_folders_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refuse_folders(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}") if sys.platform == "linux" else False:
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_file(tmp_path / "file", b"new")
    write_new(tmp_path / "bundle")
    assert contents(tmp_path / "bundle") == NEW


@pytest.mark.usefixtures("swap")
def test_a_file_in_the_way_of_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.write_text("a report")
    with pytest.raises(EngineError, match="Not a directory"):
        write_new(path)
    assert path.read_text() == "a report"
    assert entries(tmp_path) == ["bundle"]


@pytest.mark.usefixtures("swap")
def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    path = old_folder(tmp_path)
    link = tmp_path / "current"
    link.symlink_to("bundle")
    write_new(link)
    assert link.is_symlink()
    assert contents(path) == NEW
    assert entries(tmp_path) == ["bundle", "current"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("moment", ["filling", "syncing"])
def test_kill_9_leaves_the_old_folder_and_file_whole(tmp_path: Path, moment: str) -> None:
    path, file = old_folder(tmp_path), tmp_path / "file"
    file.write_bytes(b"old")
    script = """
        import os, signal, sys
        from engines.atomic import new_folder, write_file
        die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        if sys.argv[3] == "file":
            os.fsync = die
            write_file(sys.argv[2], bytes(1000))
        with new_folder(sys.argv[1]) as folder:
            (folder / "a").write_text("new a")
            if sys.argv[3] == "filling":
                die()
            os.fsync = die
    """
    for what in (moment, "file"):
        assert run(script, path, file, what).returncode == -signal.SIGKILL
    assert contents(path) == OLD
    assert file.read_bytes() == b"old"
    write_new(path)
    assert contents(path) == NEW


def test_folders_that_are_made_on_the_way_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is lost with its folder where the folder's own name was not synced."""
    synced: list[Path] = []
    usual = atomic.sync_folder
    monkeypatch.setattr(atomic, "sync_folder", lambda folder: (synced.append(folder), usual(folder)))
    write_file(tmp_path / "a/b/c.json", b"new")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a/b"]
    synced.clear()
    atomic.make_folder(tmp_path / "a/b")
    assert synced == []
    with new_folder(tmp_path / "a/d/e") as folder:
        (folder / "f").write_text("new")
    assert synced[0] == tmp_path / "a"
    assert synced[-1] == tmp_path / "a/d"
