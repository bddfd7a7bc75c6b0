"""Image files in, RGB arrays out: the one decoder that training and station share."""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines import EngineError

try:
    import cv2
except ImportError as error:
    raise ImportError(
        f"OpenCV cannot be imported ({error}). On a Jetson it is JetPack's: apt install python3-opencv, and a virtual"
        " environment made with --system-site-packages; elsewhere: pip install opencv-python-headless"
    ) from None

Image = npt.NDArray[np.uint8]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 2**28  # 268 megapixels: 0.8 GB decoded. A larger file is a mistake or an attack.
_JPEG_SCAN = 0xDA
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, less DHT, JPG and DAC


def read_image(path: Path | str) -> Image:
    """Read one image file as uint8 RGB (H, W, 3).

    Grey becomes three equal channels, alpha is dropped (the colour below it is what the camera saw), 16-bit values
    are scaled from 0..65535 to 0..255, and EXIF orientation is applied. Incomplete files are refused rather than
    padded: OpenCV fills the missing part of a truncated JPEG with grey, which would be judged as if it were the part.

    Raises:
        EngineError: missing, empty, truncated, corrupt, oversized or non-image file, or an unsupported depth.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions") from None
    try:
        return decode_image(data)
    except EngineError as error:
        raise EngineError(f"{path}: {error}") from None


def decode_image(data: bytes) -> Image:
    """Decode the bytes of an image file as uint8 RGB (H, W, 3); see `read_image` for the rules and errors."""
    _check_complete(data)
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise EngineError(f"cannot be decoded ({_first_line(error)}); replace the file") from None
    if decoded is None:
        raise EngineError("not an image that can be decoded; expected PNG, JPEG, BMP, TIFF or WebP, replace the file")
    _check_size(decoded.shape[1], decoded.shape[0])  # TIFF and WebP, whose headers are not read here
    if decoded.dtype == np.uint16:
        decoded = cv2.convertScaleAbs(decoded, alpha=1 / 257)
    if decoded.dtype != np.uint8:
        raise EngineError(f"pixels are {decoded.dtype}, expected 8 or 16 bits a channel; convert the image")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def encode_png(image: Image) -> bytes:
    """Encode uint8 RGB (H, W, 3) losslessly as the bytes of a PNG file."""
    done, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if not done:
        raise EngineError(f"an image of shape {image.shape} could not be encoded as PNG")
    return encoded.tobytes()


def read_mask(path: Path | str) -> npt.NDArray[np.bool_]:
    """Read a mask file as bool (H, W): True where any channel is not 0.

    Raises:
        EngineError: as `read_image`.
    """
    return np.asarray(read_image(path).any(axis=2))


def list_images(folder: Path | str, *, recursive: bool = False) -> list[Path]:
    """List the image files of a folder in natural order (2 before 10), hidden ones left out.

    Names that differ only in leading zeros are ordered as text, so that the order is the same on every machine.

    Raises:
        EngineError: the folder is missing, is not a folder, or cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EngineError(f"{folder}: no such folder; expected a folder of images")
    try:
        return sorted(_image_files(folder, recursive), key=lambda path: (natural_key(path), str(path)))
    except OSError as error:
        raise EngineError(f"{folder}: cannot be listed ({error.strerror or error}); check its permissions") from None


def natural_key(path: Path) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts digits in numeric order: part-2 before part-10."""
    return tuple((0, int(piece)) if piece.isdecimal() else (1, piece) for piece in re.split(r"(\d+)", str(path)) if piece)


def pixel_digest(image: Image) -> str:
    """SHA-256 (hex) of an image's shape and pixels: equal for equal pictures, whatever their file's name or format."""
    digest = hashlib.sha256(struct.pack("<II", image.shape[0], image.shape[1]))
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _image_files(folder: Path, recursive: bool) -> Iterator[Path]:
    for path in folder.rglob("*") if recursive else folder.iterdir():
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            yield path


def _check_complete(data: bytes) -> None:
    if not data:
        raise EngineError("the file is empty; replace it")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data)
    elif data.startswith(b"\xff\xd8\xff"):
        _check_jpeg(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        _check_length(data, struct.unpack_from("<I", data, 4)[0] + 8, "WebP")
    elif data.startswith(b"BM") and len(data) >= 26:
        _check_length(data, struct.unpack_from("<I", data, 2)[0], "BMP")
        width, height = struct.unpack_from("<ii", data, 18)
        _check_size(width, abs(height))  # a negative height means rows from the top


def _check_length(data: bytes, expected: int, kind: str) -> None:
    if len(data) < expected:
        raise EngineError(f"{kind} of {len(data)} bytes, its header says {expected}: truncated; replace the file")


def _check_png(data: bytes) -> None:
    """Walk a PNG's chunks: each must be whole, with the right checksum, up to IEND."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            break
        if kind == b"IHDR":
            if length != 13:
                raise EngineError(f"PNG header of {length} bytes, expected 13: corrupt; replace the file")
            _check_size(*struct.unpack_from(">II", data, at + 8))
        if zlib.crc32(data[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise EngineError(f"PNG chunk {kind!r} has a wrong checksum: corrupt; replace the file")
        if kind == b"IEND":
            return
        at = end
    raise EngineError("PNG ends before its IEND chunk: truncated; replace the file")


def _check_jpeg(data: bytes) -> None:
    """Walk a JPEG's segments to its first scan, and look for the end marker only behind it.

    An embedded thumbnail has an end marker of its own, which says nothing about the picture.
    """
    at = 2
    while at + 4 <= len(data):
        marker, (length,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
        if data[at] != 0xFF:
            raise EngineError("JPEG segments are broken: corrupt; replace the file")
        if marker == 0xFF:  # padding before a marker
            at += 1
            continue
        if marker in _JPEG_FRAMES and at + 9 <= len(data):
            height, width = struct.unpack_from(">HH", data, at + 5)
            _check_size(width, height)
        at += 2 + length
        if marker == _JPEG_SCAN:
            if data.find(b"\xff\xd9", at) >= 0:
                return
            break
    raise EngineError("JPEG ends before its end marker: truncated; replace the file")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise EngineError(f"{width} x {height} pixels, expected at most {MAX_PIXELS} in all; crop or shrink it")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
