"""Collects good parts' pictures in a folder that `train fit` takes, and refuses on the way what `train audit` would flag."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from calibration.copies import Gallery
from calibration.looks import Looks, grey_of, look, oddities
from calibration.twins import thumbnail
from edge import StationError
from engines import EngineError
from engines.atomic import make_folder, write_file
from engines.images import Image, encode_png, list_images, pixel_digest, read_image
from engines.ldknn import Floats, Progress
from engines.preprocess import MIN_SIDE_PX

ASIDE = "set-aside"
_NAME = re.compile(r"part-(\d+)\b.*\.png")
_BLANK = 0.995  # share of pixels: a lid on the lens, or light straight into it, which even the first picture may not be
_NOTED_EVERY = 25  # pictures, so that a power cut costs the notes on few


@dataclass(frozen=True)
class Kept:
    """A picture that was kept: its file's name and the digest of its pixels."""

    file: str
    pixels: str
    source: str
    recorded: str


@dataclass(frozen=True)
class Refused:
    """A picture that was not kept.

    Attributes:
        problem: in a word or two.
        detail: value got and the usual value, for a person.
        source: where it came from.
        file: where it was set aside, below the folder; None where it was not, because a like one is there already.
    """

    problem: str
    detail: str
    source: str
    file: str | None = None


class TrainingFolder:
    """One recording of good parts.

    A picture is kept if it is no copy or near copy of one that is there already and, among those that are, neither odd in
    size nor, from 8 pictures on, in focus or exposure. Copies are let go; the others go to the folder `set-aside` with the
    problem in their names. The first pictures of a set have no usual to be held against: `review` holds all of the
    recording's against the whole set.

    Attributes:
        good: the folder of the pictures: `root`, or its `train/good` or `train/ok` where there is one.
        unreadable: files that were there and cannot be read, one line each.
        kept, refused: in this recording.
    """

    def __init__(self, root: Path, about: Mapping[str, object], progress: Progress | None = None) -> None:
        """Make the folder, or read what is in it.

        Args:
            root: a new or empty folder, or one of good parts; nothing in it is ever overwritten.
            about: what the recording's notes begin with: station, camera, settings.
            progress: called with (pictures read, pictures in all) of those that are there already.

        Raises:
            StationError: a file, a folder that cannot be written, or one that another recorder writes to.
        """
        try:
            make_folder(root)
            self._lock = _lock(root)
        except OSError as error:
            raise StationError(f"{root}: cannot be written ({error.strerror or error}); give a folder for pictures") from None
        self.root = root
        self.good = next((root / name for name in ("train/good", "train/ok") if (root / name).is_dir()), root)
        self.unreadable: list[str] = []
        self.kept: list[Kept] = []
        self.refused: Counter[str] = Counter()
        self._aside: list[Refused] = []
        self._about = about
        self._begun = _now()
        self._notes = root / f"recording-{datetime.datetime.now(datetime.timezone.utc):%Y%m%dT%H%M%S.%fZ}.json"
        self._looks: dict[str, Looks] = {}
        self._names: dict[str, str] = {}  # of files, by the digest of their pixels
        self._gallery, self._seen_aside = Gallery(), Gallery()
        try:
            self._read(progress)
            self._note(ended=None, reason=None)
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def there(self) -> int:
        """Pictures in the folder, of this recording and earlier ones."""
        return len(self._looks)

    def offer(self, image: Image, source: str) -> Kept | Refused:
        """Keep a uint8 RGB (H, W, 3) picture, or say why not.

        Raises:
            EngineError: it cannot be written, such as to a full disk; what was kept before is there.
        """
        digest, looks = pixel_digest(image), look(image)
        refused = self._copy_or_blank(image, digest, looks, source)
        if refused is not None:
            return self._refuse(refused)
        thumb = thumbnail(grey_of(image))
        near = self._gallery.near_copy(thumb)
        if near is not None:
            return self._refuse(Refused("near-duplicate", f"correlates {near[1]:.3f} with {near[0]}", source))
        found = oddities(looks, list(self._looks.values()))
        if not found:
            return self._keep(image, digest, looks, thumb, source)
        name = None
        if self._seen_aside.near_copy(thumb) is None:
            name = _aside_name(self._next, found[0].problem)
            write_file(self.root / name, encode_png(image))
            self._next += 1
            self._seen_aside.add(thumb, name)
        return self._refuse(Refused(found[0].problem, found[0].detail, source, name))

    def review(self) -> list[Refused]:
        """Hold each picture of the recording against the whole set and set aside what is odd in it. Raises StationError."""
        among = list(self._looks.values())
        judged = [(picture, oddities(self._looks[picture.file], among)) for picture in self.kept]
        odd = []
        for picture, found in judged:
            if found:
                name = _aside_name(_number(Path(picture.file)), found[0].problem)
                try:
                    make_folder(self.root / ASIDE)
                    os.rename(self.good / picture.file, self.root / name)
                except OSError as error:
                    raise StationError(f"{self.root / name}: cannot be written ({error.strerror or error})") from None
                odd.append(self._refuse(Refused(found[0].problem, found[0].detail, picture.source, name)))
                self.kept.remove(picture)
                del self._looks[picture.file]
        return odd

    def close(self, reason: str) -> None:
        """Write the recording's notes, `recording-TIME.json`, and let others in. Raises EngineError."""
        try:
            self._note(ended=_now(), reason=reason)
        finally:
            os.close(self._lock)

    def _copy_or_blank(self, image: Image, digest: str, looks: Looks, source: str) -> Refused | None:
        if digest in self._names:
            return Refused("duplicate", f"same pixels as {self._names[digest]}", source)
        if min(image.shape[:2]) < MIN_SIDE_PX:
            size = f"{image.shape[1]} x {image.shape[0]} pixels"
            return Refused("wrong size", f"{size}, expected at least {MIN_SIDE_PX} a side", source)
        for problem, share, what in (
            ("under-exposed", looks.black, "black: is the lens covered, the light on?"),
            ("over-exposed", looks.saturated, "saturated: lower exposure or gain"),
        ):
            if share >= _BLANK:
                return Refused(problem, f"{share:.1%} of pixels {what}", source)
        return None

    def _keep(self, image: Image, digest: str, looks: Looks, thumb: Floats, source: str) -> Kept:
        name = f"part-{self._next:06d}.png"
        write_file(self.good / name, encode_png(image))
        self._next += 1
        kept = Kept(name, digest, source, _now())
        self._know(name, digest, looks)
        self._gallery.add(thumb, name)
        self.kept.append(kept)
        if len(self.kept) % _NOTED_EVERY == 0:
            self._note(ended=None, reason=None)
        return kept

    def _refuse(self, refused: Refused) -> Refused:
        self.refused[refused.problem] += 1
        if refused.file is not None:
            self._aside.append(refused)
        return refused

    def _read(self, progress: Progress | None) -> None:
        taken = [path for folder in (self.good, self.root / ASIDE) if folder.is_dir() for path in folder.iterdir()]
        for path in taken:
            if path.name.startswith(".part-") and path.suffix == ".tmp":  # a kill came while it was written
                path.unlink(missing_ok=True)
        self._next = max((_number(path) for path in taken), default=0) + 1
        there = list_images(self.good)
        for number, path in enumerate(there, start=1):
            try:
                image = read_image(path)
                thumb = thumbnail(grey_of(image))
            except EngineError as error:
                self.unreadable.append(str(error))
                continue
            self._know(path.name, pixel_digest(image), look(image))
            self._gallery.add(thumb, path.name)
            if progress is not None:
                progress(number, len(there))

    def _know(self, name: str, digest: str, looks: Looks) -> None:
        self._looks[name] = looks
        self._names.setdefault(digest, name)

    def _note(self, ended: str | None, reason: str | None) -> None:
        notes = {
            **self._about,
            "begun": self._begun,
            "ended": ended,
            "reason": reason,
            "kept": [asdict(picture) for picture in self.kept],
            "set_aside": [asdict(picture) for picture in self._aside],
            "refused": dict(sorted(self.refused.items())),
        }
        write_file(self._notes, (json.dumps(notes, indent=1) + "\n").encode())


def _aside_name(number: int, problem: str) -> str:
    return f"{ASIDE}/part-{number:06d}-{problem.replace(' ', '-')}.png"


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return 0 if match is None else int(match[1])


def _lock(root: Path) -> int:
    lock = os.open(root / ".recording-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StationError(f"{root}: another recorder writes there; stop that one, or give another folder") from None
    return lock


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
