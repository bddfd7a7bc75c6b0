"""Files and folders that are either wholly there or not there at all, whatever dies while they are written."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from engines import EngineError

_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100


def write_file(path: Path | str, data: bytes) -> None:
    """Write a file under a temporary name, fsync it, and rename it into place.

    A process that is killed meanwhile leaves `.NAME.*.tmp` behind. The next writer does not tidy it: nothing in it says whether
    its own writer still lives, and two may write the same file at once.

    Raises:
        EngineError: the disk is full or the folder cannot be written; what stood at `path` still stands.
    """
    path = Path(path)
    temporary = None
    try:
        make_folder(path.parent)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_parent(path)
    except OSError as error:
        raise _refused(path, error) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """Give a temporary folder to fill; on success fsync it and swap it into `path`, on any failure remove it.

    A folder that stands at `path` is exchanged in one step where the kernel can (Linux renameat2), so that a reader
    sees the old one whole or the new one whole. A link at `path` stays a link: the folder it names is replaced.

    Raises:
        EngineError: the disk is full, the parent cannot be written, or `path` is a file; what stood there still stands.
    """
    path = Path(os.path.realpath(path))
    temporary = None
    try:
        make_folder(path.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporary.chmod(0o755)
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        sync_folder(temporary)
        _swap(temporary, path)
        _sync_parent(path)
    except OSError as error:
        raise _refused(path, error) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def check_place(path: Path | str) -> None:
    """Refuse a path where nothing can be written, before the work whose result is to go there. Raises EngineError."""
    path = Path(os.path.realpath(path))
    try:
        above = next(folder for folder in path.parents if folder.exists())
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=above))
    except OSError as error:
        raise _refused(path, error) from None


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, and make their names last. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a power cut. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network file systems that cannot sync a folder
            raise
    finally:
        os.close(handle)


def _swap(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.rename(temporary, path)
        return
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if sys.platform == "linux" and _exchange(temporary, path):
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    try:
        os.rename(path, old / path.name)
        os.rename(temporary, path)
    except BaseException:  # Ctrl-C between the two as well
        if not path.exists():
            os.rename(old / path.name, path)
        raise
    finally:
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the C library or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    if ctypes.get_errno() in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))


def _sync_parent(path: Path) -> None:
    """Make the rename last. It has happened already, so this failure has a message of its own."""
    try:
        sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise EngineError(f"{path}: written, but the disk did not confirm it ({reason}); check the disk") from None


def _refused(path: Path, error: OSError) -> EngineError:
    remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder and its permissions"
    reason = error.strerror or error
    return EngineError(f"{path}: could not be written ({reason}); {remedy}; what stood there before still stands")
