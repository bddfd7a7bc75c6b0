"""What a disk may show after a power cut: a model of a file system, driven by the system calls that a program made.

The model, which is weaker than ext4 in its default mode and no weaker than what POSIX promises:

- A write is on the disk for good once an `fsync` or `fdatasync` of its file returned that began after it. Before that the disk
  may show it, not show it, show the file's new size with zeros, show some of its 512-byte sectors, or show it without
  writes that came before it. A sector is whole: old or new.
- A name (made, renamed, exchanged, removed) is on the disk for good once an `fsync` of its folder returned that began after the
  change. That a file was synced does not keep its name. Before that the disk may show any beginning of the changes in
  their order, or the last one alone. A rename or an exchange is one change: it is seen wholly or not at all.
- Written and synced bytes stay, and come back as they were: a disk that lies about its cache, or that damages neighbouring
  sectors when its power fails, is not modelled. Neither are writes through `mmap`: SQLite makes them to its `-shm` file alone,
  which it builds anew after a crash; nor a file that is read and written through one position.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.strace import Call, DiskError

SECTOR = 512


@dataclass(eq=False)
class File:
    """An inode's writes, (offset, data), or (size, None) for a truncation; the first `synced` are on the disk for good."""

    writes: list[tuple[int, bytes | None]] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)  # number of the call that made each
    synced: int = 0

    def size(self) -> int:
        """As running programs see it."""
        size = 0
        for at, data in self.writes:
            size = at if data is None else max(size, at + len(data))
        return size


@dataclass(eq=False)
class Folder:
    """A folder's names as running programs see them."""

    names: dict[str, File | Folder] = field(default_factory=dict)


@dataclass(eq=False)
class Change:
    """One change of names that happens wholly or not at all: in each folder a name gets a node, or none."""

    edits: tuple[tuple[Folder, str, File | Folder | None], ...]
    ended: int
    durable: bool = False


@dataclass
class Handle:
    """An open file descriptor."""

    node: File | Folder
    position: int
    append: bool


State = dict[str, bytes | None]  # by path below the root; None for a folder


class Disk:
    """Executes calls below a root folder that is empty, and on the disk, at the start.

    Attributes:
        begun, acked: how many `+` and `-` the program wrote to its standard output: rounds begun, and rounds it was done with.
        touched: the call that was executed last changed what a disk may show.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(os.path.realpath(root))
        self._top = Folder()
        self._handles: dict[int, Handle] = {}
        self._changes: list[Change] = []
        self._files: list[File] = []
        self._last: tuple[File, int] | None = None
        self.begun = self.acked = 0
        self.touched = False
        self._now = 0

    def execute(self, call: Call, number: int) -> None:
        """Execute call `number` of the log. Raises DiskError for one that changes what is below the root in an unknown way."""
        self.touched, self._now = False, number
        act: Callable[[Call], None] | None = getattr(self, f"_do_{call.name}", None)
        if act is not None:
            act(call)
        elif any(text is not None and self._inside(text) for text in call.texts):
            raise DiskError(f"{call.name} is not in the model")

    def states(self) -> Iterator[State]:
        """What the disk may show if the power fails now; some come twice."""
        waiting = [change for change in self._changes if not change.durable]
        half = len(waiting) // 2
        beginnings = [tuple(waiting[:count]) for count in (0, half, len(waiting) - 1, len(waiting)) if count >= 0]
        for kept in dict.fromkeys([*beginnings, tuple(waiting[-1:])]):
            tree = self._tree(set(kept))
            for show in self._shows():
                yield {path: None if isinstance(node, Folder) else show(node) for path, node in tree.items()}

    def _shows(self) -> Iterator[Callable[[File], bytes]]:
        """Ways in which the writes that are not synced may have come to the disk."""
        yield lambda file: _content(file.writes[: file.synced])
        if all(file.synced == len(file.writes) for file in self._files):
            return
        yield lambda file: _content(file.writes)
        yield lambda file: _content(file.writes[: file.synced]).ljust(file.size(), b"\0")
        yield lambda file: _content(file.writes[: (file.synced + len(file.writes)) // 2])
        if self._last is None or self._last[0].synced > self._last[1]:
            return
        last, index = self._last
        at, data = last.writes[index]
        if data is None:
            return
        pieces = _sectors(at, data)
        for keeps in (_head_half, _tail_half, _first, _all_but_last, _odd):
            torn = [piece for number, piece in enumerate(pieces) if keeps(number, len(pieces))]
            yield _instead(last, [*last.writes[:index], *torn], lambda file: file.writes)
            yield _instead(last, [*last.writes[: last.synced], *torn], lambda file: file.writes[: file.synced])
        yield _instead(last, [*last.writes[: last.synced], (at, data)], lambda file: file.writes[: file.synced])

    def _tree(self, chosen: set[Change]) -> dict[str, File | Folder]:
        names: dict[Folder, dict[str, File | Folder]] = {}
        for change in self._changes:
            if change.durable or change in chosen:
                for folder, name, node in change.edits:
                    entries = names.setdefault(folder, {})
                    if node is None:
                        entries.pop(name, None)
                    else:
                        entries[name] = node
        found: dict[str, File | Folder] = {}

        def visit(folder: Folder, prefix: str) -> None:
            for name, node in names.get(folder, {}).items():
                found[prefix + name] = node
                if isinstance(node, Folder):
                    visit(node, f"{prefix}{name}/")

        visit(self._top, "")
        return found

    # -- calls -------------------------------------------------------------------------------------------------------------

    def _do_openat(self, call: Call) -> None:
        path = self._path(call, 0)
        self._handles.pop(call.result, None)
        if path is None:
            return
        folder, name = self._parent(path)
        node = self._top if name == "" else folder.names.get(name)
        flags = str(call.words[2])
        if node is None:
            if "O_CREAT" not in flags:
                raise DiskError(f"{path.decode()} was opened and is not in the model")
            node = File()
            self._files.append(node)
            self._change((folder, name, node))
        if isinstance(node, File) and "O_TRUNC" in flags:
            self._write(node, 0, None)
        self._handles[call.result] = Handle(node, 0, "O_APPEND" in flags)

    def _do_write(self, call: Call) -> None:
        data = call.texts[1] or b""
        if call.words[0] == "1":
            self.begun += data.count(b"+")
            self.acked += data.count(b"-")
            return
        handle = self._file(call)
        if handle is not None and isinstance(handle.node, File):
            at = handle.node.size() if handle.append else handle.position
            self._write(handle.node, at, data[: call.result])
            handle.position = at + call.result

    def _do_pwrite64(self, call: Call) -> None:
        handle = self._file(call)
        if handle is not None and isinstance(handle.node, File):
            self._write(handle.node, int(str(call.words[3])), (call.texts[1] or b"")[: call.result])

    def _do_lseek(self, call: Call) -> None:
        handle = self._file(call)
        if handle is not None:
            handle.position = call.result

    def _do_dup(self, call: Call) -> None:
        handle = self._file(call)
        if handle is not None:
            self._handles[call.result] = handle

    _do_dup2 = _do_dup3 = _do_dup

    def _do_fcntl(self, call: Call) -> None:
        if str(call.words[1]).startswith("F_DUPFD"):
            self._do_dup(call)

    def _do_ftruncate(self, call: Call) -> None:
        handle = self._file(call)
        if handle is not None and isinstance(handle.node, File):
            self._write(handle.node, int(str(call.words[1])), None)

    def _do_fsync(self, call: Call) -> None:
        handle = self._file(call)
        if handle is None:
            return
        self.touched = True
        if isinstance(handle.node, File):
            handle.node.synced = max(handle.node.synced, sum(ended < call.begun for ended in handle.node.ended))
            return
        for change in self._changes:
            if change.ended < call.begun and any(folder is handle.node for folder, _, _ in change.edits):
                change.durable = True

    _do_fdatasync = _do_fsync

    def _do_mkdir(self, call: Call) -> None:
        self._make(self._inside_path(call.texts[0]))

    def _do_mkdirat(self, call: Call) -> None:
        self._make(self._path(call, 0))

    def _make(self, path: bytes | None) -> None:
        if path is not None:
            folder, name = self._parent(path)
            self._change((folder, name, Folder()))

    def _do_unlink(self, call: Call) -> None:
        self._remove(self._inside_path(call.texts[0]))

    _do_rmdir = _do_unlink

    def _do_unlinkat(self, call: Call) -> None:
        self._remove(self._path(call, 0))

    def _remove(self, path: bytes | None) -> None:
        if path is not None:
            folder, name = self._parent(path)
            self._change((folder, name, None))

    def _do_rename(self, call: Call) -> None:
        self._rename(self._inside_path(call.texts[0]), self._inside_path(call.texts[1]), exchange=False)

    def _do_renameat(self, call: Call) -> None:
        self._rename(self._path(call, 0), self._path(call, 2), exchange=False)

    def _do_renameat2(self, call: Call) -> None:
        self._rename(self._path(call, 0), self._path(call, 2), exchange="RENAME_EXCHANGE" in str(call.words[4]))

    def _rename(self, source: bytes | None, target: bytes | None, *, exchange: bool) -> None:
        if source is None and target is None:
            return
        if source is None or target is None:
            raise DiskError("a rename across the root is not in the model")
        (one, old), (other, new) = self._parent(source), self._parent(target)
        node = one.names[old]
        self._change((one, old, other.names[new] if exchange else None), (other, new, node))

    # -- helpers -----------------------------------------------------------------------------------------------------------

    def _write(self, file: File, at: int, data: bytes | None) -> None:
        file.writes.append((at, data))
        file.ended.append(self._now)
        self._last = file, len(file.writes) - 1
        self.touched = True

    def _change(self, *edits: tuple[Folder, str, File | Folder | None]) -> None:
        for folder, name, node in edits:
            if node is None:
                folder.names.pop(name, None)
            else:
                folder.names[name] = node
        self._changes.append(Change(edits, self._now))
        self.touched = True

    def _file(self, call: Call) -> Handle | None:
        """The open file of a call's first argument; None where it is not below the root."""
        path = call.texts[0]
        if path is None or not self._inside(path):
            return None
        handle = self._handles.get(int(str(call.words[0])))
        if handle is None:
            raise DiskError(f"{call.name} of {path.decode()}, which was not opened in the log")
        return handle

    def _path(self, call: Call, at: int) -> bytes | None:
        """The path of a folder's descriptor and a name beside it, both as strace gives them."""
        return self._inside_path(os.path.join(call.texts[at] or b"", call.texts[at + 1] or b""))

    def _inside_path(self, path: bytes | None) -> bytes | None:
        return path if path is not None and self._inside(path) else None

    def _inside(self, path: bytes) -> bool:
        return path == self._root or path.startswith(self._root + b"/")

    def _parent(self, path: bytes) -> tuple[Folder, str]:
        *above, name = os.path.relpath(path, self._root).split(b"/")
        if name == b".":
            return self._top, ""
        folder = self._top
        for part in above:
            inner = folder.names.get(part.decode())
            if not isinstance(inner, Folder):
                raise DiskError(f"{path.decode()}: no such folder in the model")
            folder = inner
        return folder, name.decode()


def digest(state: State) -> bytes:
    """Equal for states that show the same."""
    total = hashlib.sha256()
    for path in sorted(state):
        data = state[path]
        total.update(f"{path}\0{-1 if data is None else len(data)}\0".encode())
        total.update(data or b"")
    return total.digest()


def materialise(state: State, root: Path) -> None:
    """Write a state below an empty folder."""
    for path in sorted(state):
        data = state[path]
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)


Writes = Sequence[tuple[int, bytes | None]]


def _instead(special: File, writes: Writes, others: Callable[[File], Writes]) -> Callable[[File], bytes]:
    """Shows these writes of one file, and of the other files what `others` gives."""
    return lambda file: _content(writes if file is special else others(file))


def _content(writes: Writes) -> bytes:
    content = bytearray()
    for at, data in writes:
        if data is None:
            del content[at:]
            content.extend(bytes(max(0, at - len(content))))
        else:
            content.extend(bytes(max(0, at - len(content))))
            content[at : at + len(data)] = data
    return bytes(content)


def _sectors(at: int, data: bytes) -> list[tuple[int, bytes]]:
    """A write cut where sectors of the file begin."""
    bounds = [at, *range((at // SECTOR + 1) * SECTOR, at + len(data), SECTOR), at + len(data)]
    return [(begin, data[begin - at : end - at]) for begin, end in itertools.pairwise(bounds)]


def _head_half(number: int, count: int) -> bool:
    return number < count / 2


def _tail_half(number: int, count: int) -> bool:
    return number >= count / 2


def _first(number: int, count: int) -> bool:
    return number == 0


def _all_but_last(number: int, count: int) -> bool:
    return number < count - 1


def _odd(number: int, count: int) -> bool:
    return number % 2 == 1
