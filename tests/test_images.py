"""Decoding: what is whole comes out right, what is not is refused."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from engines import EngineError
from engines.images import (
    MAX_PIXELS,
    Image,
    decode_image,
    encode_png,
    list_images,
    pixel_digest,
    read_image,
    read_mask,
)
from tests.fakes import textured


def encode(suffix: str, array: np.ndarray, *settings: int) -> bytes:
    """Encode an array in OpenCV's BGR order."""
    done, data = cv2.imencode(suffix, array, list(settings))
    assert done
    return data.tobytes()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, raw: bytes, *extra: bytes, packed: bool = False) -> bytes:
    """A PNG made by hand: `raw` is the filtered pixel stream (compressed already if `packed`), `extra` chunks come before."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = png_chunk(b"IDAT", raw if packed else zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + png_chunk(b"IEND", b"")


def cuts(length: int) -> list[int]:
    """Where files are cut: every byte of the head and the tail, and forty places between."""
    return sorted({*range(min(64, length)), *range(0, length, max(1, length // 40)), *range(max(0, length - 16), length)})


PICTURE = textured(1, (24, 37))
BGR = PICTURE[:, :, ::-1]
FORMATS = {
    "png": encode(".png", BGR),
    "jpeg": encode(".jpg", BGR),
    "progressive jpeg": encode(".jpg", BGR, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "bmp": encode(".bmp", BGR),
    "tiff": encode(".tif", BGR),
    "webp": encode(".webp", BGR, cv2.IMWRITE_WEBP_QUALITY, 101),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_whole_file_is_decoded_in_rgb_order(kind: str) -> None:
    decoded = decode_image(FORMATS[kind])
    assert decoded.dtype == np.uint8
    assert decoded.shape == PICTURE.shape
    if "jpeg" in kind:
        red = decode_image(encode(".jpg", np.full((16, 16, 3), (0, 0, 255), np.uint8)))[8, 8]
        assert red[0] > 240 and red[1] < 16 and red[2] < 16
    else:
        np.testing.assert_array_equal(decoded, PICTURE)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file_is_refused_wherever_it_is_cut(kind: str) -> None:
    data = FORMATS[kind]
    for cut in cuts(len(data)):
        with pytest.raises(EngineError):
            decode_image(data[:cut])


def test_a_jpeg_cut_behind_its_thumbnail_is_refused() -> None:
    # the thumbnail's own end marker lies within the last bytes of what is left
    thumbnail, whole = encode(".jpg", BGR), encode(".jpg", textured(2, (200, 300)))
    exif = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    with_thumbnail = whole[:2] + exif + whole[2:]
    assert decode_image(with_thumbnail).shape == (200, 300, 3)
    for cut in range(len(exif), len(exif) + 3000, 100):
        with pytest.raises(EngineError, match="truncated"):
            decode_image(with_thumbnail[:cut])


def test_a_jpeg_with_bytes_behind_its_end_is_whole() -> None:
    assert decode_image(FORMATS["jpeg"] + b"\0" * 100).shape == PICTURE.shape


def test_a_jpeg_whose_segments_are_broken_is_refused() -> None:
    data = bytearray(FORMATS["jpeg"])
    data[4:6] = b"\x00\x03"  # the first segment claims another length, so the next does not start with a marker
    with pytest.raises(EngineError, match="corrupt"):
        decode_image(bytes(data))


def test_every_flipped_byte_of_a_png_is_noticed() -> None:
    # the text chunk as well: the decoder would pass over damage there, but a file that is damaged is not to be trusted
    data = png(8, 8, 8, 0, (b"\0" + bytes(range(8))) * 8, png_chunk(b"tEXt", b"Comment\0station 4"))
    assert decode_image(data).shape == (8, 8, 3)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        with pytest.raises(EngineError):
            decode_image(bytes(damaged))


def test_a_png_with_too_few_pixels_is_refused() -> None:
    # every chunk is whole, as a program that crashed and recovered might leave it
    with pytest.raises(EngineError):
        decode_image(png(8, 8, 8, 0, (b"\0" + bytes(8)) * 4))


def test_a_png_with_an_empty_header_is_refused() -> None:
    with pytest.raises(EngineError, match="header of 0 bytes"):
        decode_image(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", b""))


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0), (65535, 255), (257, 1), (257 * 128, 128), (257 * 254, 254), (128, 0), (129, 1)]
)
def test_sixteen_bits_are_scaled_to_eight(value: int, expected: int) -> None:
    for shape in ((16, 16), (16, 16, 3), (16, 16, 4)):
        for suffix in (".png", ".tif"):
            decoded = decode_image(encode(suffix, np.full(shape, value, np.uint16)))
            np.testing.assert_array_equal(decoded, np.full((16, 16, 3), expected, np.uint8))


def test_sixteen_bit_channels_keep_their_order() -> None:
    pixels = np.zeros((16, 16, 3), np.uint16)
    pixels[:] = (257 * 30, 257 * 20, 257 * 10)  # blue, green, red
    assert decode_image(encode(".png", pixels))[0, 0].tolist() == [10, 20, 30]


def test_float_pixels_are_refused() -> None:
    with pytest.raises(EngineError, match="pixels are float32"):
        decode_image(encode(".tif", np.zeros((16, 16, 3), np.float32)))


def test_grey_becomes_three_equal_channels() -> None:
    grey = PICTURE[:, :, 0]
    np.testing.assert_array_equal(decode_image(encode(".png", grey)), np.repeat(grey[:, :, None], 3, axis=2))


def test_alpha_is_dropped_and_the_colour_below_kept() -> None:
    transparent = np.dstack([BGR, np.arange(24 * 37, dtype=np.uint8).reshape(24, 37)])
    np.testing.assert_array_equal(decode_image(encode(".png", transparent)), PICTURE)


def test_a_palette_is_resolved() -> None:
    palette = png_chunk(b"PLTE", bytes([1, 2, 3, 200, 100, 50]))
    decoded = decode_image(png(2, 1, 8, 3, b"\0\1\0", palette))
    assert decoded.tolist() == [[[200, 100, 50], [1, 2, 3]]]


def test_a_palette_with_transparency_keeps_its_colours() -> None:
    palette = png_chunk(b"PLTE", bytes([1, 2, 3, 200, 100, 50])), png_chunk(b"tRNS", b"\0\x80")
    assert decode_image(png(2, 1, 8, 3, b"\0\1\0", *palette)).tolist() == [[[200, 100, 50], [1, 2, 3]]]


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (8, 1), (3, 2), (6, 3)])
def test_exif_orientation_is_applied(orientation: int, turned: int) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16] = 255
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + struct.pack("<I", 0)
    segment = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
    data = encode(".jpg", upright)
    decoded = decode_image(data[:2] + segment + data[2:])
    np.testing.assert_array_equal(decoded > 127, np.rot90(upright, turned) > 127)


def test_a_text_file_named_png_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "note.png"
    path.write_text("this is not a picture\n")
    with pytest.raises(EngineError, match=r"note\.png: not an image"):
        read_image(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    with pytest.raises(EngineError, match="the file is empty"):
        read_image(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(EngineError, match="cannot be read"):
            read_image(path)


def test_a_very_wide_image_works(tmp_path: Path) -> None:
    wide = textured(3, (40, 12_000))
    (tmp_path / "wide.png").write_bytes(encode_png(wide))
    np.testing.assert_array_equal(read_image(tmp_path / "wide.png"), wide)


def test_a_very_large_image_works_within_three_copies() -> None:
    side = 12_000
    row = b"\0" + b"\x7f" * side
    pack = zlib.compressobj(1)
    pixels = b"".join(pack.compress(row) for _ in range(side)) + pack.flush()
    data = png(side, side, 8, 0, pixels, packed=True)
    assert len(data) < 2_000_000
    tracemalloc.start()
    decoded = decode_image(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert decoded.shape == (side, side, 3)
    assert decoded[0, 0].tolist() == decoded[-1, -1].tolist() == [127] * 3
    assert peak < 3 * decoded.nbytes


def huge_headers() -> dict[str, bytes]:
    jpeg = bytearray(FORMATS["jpeg"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 30_000, 30_000)
    bmp = bytearray(FORMATS["bmp"])
    bmp[18:26] = struct.pack("<ii", 30_000, -30_000)
    return {"png": png(20_000, 20_000, 8, 0, b""), "jpeg": bytes(jpeg), "bmp": bytes(bmp)}


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp"])
def test_a_huge_header_is_refused_before_anything_is_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", decode)
    with pytest.raises(EngineError, match=f"expected at most {MAX_PIXELS}"):
        decode_image(huge_headers()[kind])


def test_too_many_pixels_are_refused_in_every_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.images.MAX_PIXELS", 24 * 37 - 1)
    for data in FORMATS.values():
        with pytest.raises(EngineError, match="37 x 24 pixels"):
            decode_image(data)
    monkeypatch.setattr("engines.images.MAX_PIXELS", 24 * 37)
    for data in FORMATS.values():
        decode_image(data)


def test_png_round_trip_is_lossless() -> None:
    np.testing.assert_array_equal(decode_image(encode_png(PICTURE)), PICTURE)


def test_a_mask_is_true_where_any_channel_is_not_zero(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[2, 3, 2] = 1
    (tmp_path / "mask.png").write_bytes(encode_png(pixels))
    mask = read_mask(tmp_path / "mask.png")
    assert mask.dtype == bool
    assert np.argwhere(mask).tolist() == [[2, 3]]


def names(folder: Path, *, recursive: bool = False) -> list[str]:
    return [str(path.relative_to(folder)) for path in list_images(folder, recursive=recursive)]


def test_images_are_listed_in_natural_order(tmp_path: Path) -> None:
    for name in ("part-10.png", "part-2.PNG", "part-1.jpeg", "a.tiff", "note.txt", "part"):
        (tmp_path / name).touch()
    assert names(tmp_path) == ["a.tiff", "part-1.jpeg", "part-2.PNG", "part-10.png"]


def test_names_with_leading_zeros_have_one_order(tmp_path: Path) -> None:
    for name in ("1.png", "001.png", "01.png"):
        (tmp_path / name).touch()
    assert names(tmp_path) == ["001.png", "01.png", "1.png"]


def test_digits_that_are_no_decimal_numbers_are_text(tmp_path: Path) -> None:
    for name in ("2²3.png", "10²3.png", "٣.png"):
        (tmp_path / name).touch()
    assert names(tmp_path) == ["2²3.png", "٣.png", "10²3.png"]


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "folder.png").mkdir()
    for name in (".hidden.png", ".cache/a.png", "sub/b.png", "c.png", "sub/._b.png"):
        (tmp_path / name).touch()
    assert names(tmp_path) == ["c.png"]
    assert names(tmp_path, recursive=True) == ["c.png", "sub/b.png"]


def test_a_folder_below_a_hidden_one_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / ".project" / "images"
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    assert names(folder) == ["a.png"]


def test_listing_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    for path in (tmp_path / "missing", tmp_path / "a.png"):
        with pytest.raises(EngineError, match="no such folder"):
            list_images(path)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(EngineError, match="Permission denied"):
        list_images(tmp_path)


def test_the_digest_depends_on_pixels_alone() -> None:
    lossless: list[Image] = [decode_image(FORMATS[kind]) for kind in ("png", "bmp", "tiff", "webp")]
    assert {pixel_digest(image) for image in lossless} == {pixel_digest(PICTURE)}
    assert pixel_digest(np.asfortranarray(PICTURE)) == pixel_digest(PICTURE)


def test_the_digest_sees_shape_and_every_pixel() -> None:
    tall, wide = np.zeros((20, 30, 3), np.uint8), np.zeros((30, 20, 3), np.uint8)
    changed = tall.copy()
    changed[-1, -1, -1] = 1
    assert len({pixel_digest(image) for image in (tall, wide, changed)}) == 3
