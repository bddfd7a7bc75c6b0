"""Aravis' own fake cameras: one inside the library, and one that speaks GigE Vision and shows pictures that tests choose."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge import StationError, aravis
from edge.camera_sections import CameraTrigger, GenicamSource, Region
from edge.clock import SystemClock
from edge.genicam import GenicamDevice
from engines.images import Image

IN_LIBRARY = "Fake_1"
ADDRESS = "127.0.0.1"
SOFTWARE = CameraTrigger(source="Software")  # a picture when the test says so, and no other
_KINDS = ("Fake", "USB3Vision", "GigEVision")
_WIDTH = 0x100  # ARV_FAKE_CAMERA_REGISTER_WIDTH
_found: set[str] = set()
_FILL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32)


def library() -> ctypes.CDLL:
    """The library with the functions of its fake cameras; the test is skipped where it is not installed."""
    try:
        arv = aravis.library()
    except StationError as error:
        pytest.skip(str(error))
    pointer = ctypes.c_void_p
    arv.arv_disable_interface.argtypes = [ctypes.c_char_p]
    arv.arv_gv_fake_camera_new.restype, arv.arv_gv_fake_camera_new.argtypes = pointer, [ctypes.c_char_p, ctypes.c_char_p]
    arv.arv_gv_fake_camera_is_running.argtypes = [pointer]
    arv.arv_gv_fake_camera_get_fake_camera.restype, arv.arv_gv_fake_camera_get_fake_camera.argtypes = pointer, [pointer]
    arv.arv_fake_camera_set_fill_pattern.restype, arv.arv_fake_camera_set_fill_pattern.argtypes = (
        None,
        [pointer, _FILL, pointer],
    )
    arv.arv_fake_camera_write_register.argtypes = [pointer, ctypes.c_uint32, ctypes.c_uint32]
    arv.arv_set_fake_camera_genicam_filename.argtypes = [ctypes.c_char_p]
    arv.arv_device_get_genicam_xml.restype = pointer
    arv.arv_device_get_genicam_xml.argtypes = [pointer, ctypes.POINTER(ctypes.c_size_t)]
    return arv


@contextlib.contextmanager
def interface(wanted: str) -> Iterator[None]:
    """Only this kind of camera is looked for."""
    arv = library()
    for name in _KINDS:
        (arv.arv_enable_interface if name == wanted else arv.arv_disable_interface)(name.encode())
    try:
        yield
    finally:
        for name in _KINDS:
            (arv.arv_disable_interface if name == "Fake" else arv.arv_enable_interface)(name.encode())


def description() -> str:
    """The XML in which the camera inside the library describes itself."""
    arv = library()
    camera = aravis.Camera(IN_LIBRARY)
    size = ctypes.c_size_t()
    address = arv.arv_device_get_genicam_xml(arv.arv_camera_get_device(camera.pointer), ctypes.byref(size))
    xml = ctypes.string_at(address, size.value).decode()
    camera.close()
    return xml


@contextlib.contextmanager
def described(path: Path) -> Iterator[None]:
    """Fake cameras that are opened in the block describe themselves by this file."""
    library().arv_set_fake_camera_genicam_filename(str(path).encode())
    try:
        yield
    finally:
        library().arv_set_fake_camera_genicam_filename(None)


@dataclass
class GigE:
    """A GigE Vision camera on the loopback interface.

    Attributes:
        id: to open it by.
        pictures: bytes in the camera's pixel format, one for each that it takes.
        fake_camera: the library's.
    """

    id: str
    pictures: Iterator[bytes]
    fake_camera: int

    def show(self, *pictures: Image) -> None:
        """Show these next, the last one on and on."""
        raw = [picture.tobytes() for picture in pictures]
        self.pictures = itertools.chain(raw, itertools.repeat(raw[-1]))

    def widen(self, width: int) -> None:
        """Let its pictures have another width, behind the station's back."""
        aravis.library().arv_fake_camera_write_register(self.fake_camera, _WIDTH, width)

    def source(self, pixel_format: str = "RGB8", side: int = 64) -> GenicamSource:
        """Pictures of a square, one for each software trigger."""
        return GenicamSource(
            kind="genicam",
            device=self.id,
            pixel_format=pixel_format,
            trigger=SOFTWARE,
            region=Region(width=side, height=side),
            timeout_ms=30_000,
            stale_ms=30_000,
        )

    def device(self) -> GenicamDevice:
        """What opens it."""
        return GenicamDevice(self.source(), SystemClock())


def trigger(device: GenicamDevice) -> None:
    """Release one picture."""
    assert device._camera is not None
    device._camera.call("software_trigger")


@contextlib.contextmanager
def gige(serial: str = "REB") -> Iterator[GigE]:
    """Start it; it ends with the block. One at a time on a machine, since all would share one port."""
    arv = library()
    with open(Path(tempfile.gettempdir()) / "reb-gige.lock", "w") as turn, interface("GigEVision"):
        fcntl.flock(turn, fcntl.LOCK_EX)
        camera = arv.arv_gv_fake_camera_new(ADDRESS.encode(), serial.encode())
        shown = GigE(f"Aravis-Fake-{serial}", iter(()), arv.arv_gv_fake_camera_get_fake_camera(camera))

        def fill(buffer: int, _data: int, _exposure: int, _gain: int, _format: int) -> None:
            picture = next(shown.pictures)
            ctypes.memmove(arv.arv_buffer_get_data(buffer, None), picture, len(picture))

        callback = _FILL(fill)  # held here, since the library holds no reference
        search = arv.arv_update_device_list
        if shown.id in _found:  # the library remembers; a search takes a second
            arv.arv_update_device_list = lambda: None
        try:
            if not arv.arv_gv_fake_camera_is_running(camera):
                pytest.skip("no GigE Vision camera could be started on 127.0.0.1: is UDP port 3956 in use?")
            arv.arv_fake_camera_set_fill_pattern(shown.fake_camera, callback, None)
            yield shown
            _found.add(shown.id)
        finally:
            arv.arv_update_device_list = search
            aravis.release(camera)
            del callback
