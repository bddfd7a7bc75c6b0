"""libaravis by its C interface: GigE Vision and USB3 Vision cameras, without GObject introspection.

Aravis (https://github.com/AravisProject/aravis, LGPL-2.1) is a system library, and its usual Python binding belongs to the
system's Python as well. A binding of the few functions that a station needs works in any virtual environment. The library is
loaded when the first camera is looked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edge import StationError

_LIBRARY = "libaravis-0.8.so.0"
_Pointer = ctypes.c_void_p
_Text = ctypes.c_char_p
_Int = ctypes.c_int
_Count = ctypes.c_uint
_Long = ctypes.c_uint64
_Double = ctypes.c_double

SUCCESS, CLEARED, ABORTED = 0, 1, 7
STATUSES = {
    -1: "unknown",
    SUCCESS: "success",
    CLEARED: "cleared",
    2: "timeout",
    3: "missing packets",
    4: "wrong packet",
    5: "size mismatch",
    6: "still filling",
    ABORTED: "aborted",
}


class AravisError(StationError):
    """What the library or the camera said; the caller adds which camera, and what to do."""


class _GError(ctypes.Structure):
    _fields_ = (("domain", ctypes.c_uint32), ("code", _Int), ("message", _Text))


_Errors = ctypes.POINTER(ctypes.POINTER(_GError))
_Ints = ctypes.POINTER(_Int)
_Doubles = ctypes.POINTER(_Double)
_Longs = ctypes.POINTER(_Long)

# name: (what it returns, what it takes); those of the second table take a GError** besides
_PLAIN: dict[str, tuple[Any, list[Any]]] = {
    "arv_enable_interface": (None, [_Text]),
    "arv_update_device_list": (None, []),
    "arv_get_n_devices": (_Count, []),
    "arv_get_device_id": (_Text, [_Count]),
    "arv_get_device_vendor": (_Text, [_Count]),
    "arv_get_device_model": (_Text, [_Count]),
    "arv_get_device_protocol": (_Text, [_Count]),
    "arv_get_device_address": (_Text, [_Count]),
    "arv_camera_get_device": (_Pointer, [_Pointer]),
    "arv_camera_is_gv_device": (_Int, [_Pointer]),
    "arv_buffer_new_allocate": (_Pointer, [ctypes.c_size_t]),
    "arv_buffer_get_status": (_Int, [_Pointer]),
    "arv_buffer_get_timestamp": (_Long, [_Pointer]),
    "arv_buffer_get_data": (_Pointer, [_Pointer, ctypes.POINTER(ctypes.c_size_t)]),
    "arv_buffer_get_image_width": (_Int, [_Pointer]),
    "arv_buffer_get_image_height": (_Int, [_Pointer]),
    "arv_stream_push_buffer": (None, [_Pointer, _Pointer]),
    "arv_stream_timeout_pop_buffer": (_Pointer, [_Pointer, _Long]),
    "arv_stream_get_statistics": (None, [_Pointer, _Longs, _Longs, _Longs]),
    "arv_gv_stream_get_statistics": (None, [_Pointer, _Longs, _Longs]),
}
# of 0.8.23 and 0.8.25; JetPack 6 has 0.8.20
_NEWER: dict[str, tuple[Any, list[Any]]] = {
    "arv_buffer_get_image_padding": (None, [_Pointer, _Ints, _Ints]),
    "arv_buffer_get_image_data": (_Pointer, [_Pointer, ctypes.POINTER(ctypes.c_size_t)]),
}
_CHECKED: dict[str, tuple[Any, list[Any]]] = {
    "arv_camera_new": (_Pointer, [_Text]),
    "arv_camera_create_stream": (_Pointer, [_Pointer, _Pointer, _Pointer]),
    "arv_camera_get_payload": (_Count, [_Pointer]),
    "arv_camera_start_acquisition": (None, [_Pointer]),
    "arv_camera_stop_acquisition": (None, [_Pointer]),
    "arv_camera_set_acquisition_mode": (None, [_Pointer, _Int]),
    "arv_camera_set_region": (None, [_Pointer, _Int, _Int, _Int, _Int]),
    "arv_camera_get_region": (None, [_Pointer, _Ints, _Ints, _Ints, _Ints]),
    "arv_camera_get_sensor_size": (None, [_Pointer, _Ints, _Ints]),
    "arv_camera_is_exposure_auto_available": (_Int, [_Pointer]),
    "arv_camera_set_exposure_time_auto": (None, [_Pointer, _Int]),
    "arv_camera_set_exposure_time": (None, [_Pointer, _Double]),
    "arv_camera_get_exposure_time": (_Double, [_Pointer]),
    "arv_camera_get_exposure_time_bounds": (None, [_Pointer, _Doubles, _Doubles]),
    "arv_camera_is_gain_auto_available": (_Int, [_Pointer]),
    "arv_camera_set_gain_auto": (None, [_Pointer, _Int]),
    "arv_camera_set_gain": (None, [_Pointer, _Double]),
    "arv_camera_get_gain": (_Double, [_Pointer]),
    "arv_camera_get_gain_bounds": (None, [_Pointer, _Doubles, _Doubles]),
    "arv_camera_is_frame_rate_available": (_Int, [_Pointer]),
    "arv_camera_set_frame_rate": (None, [_Pointer, _Double]),
    "arv_camera_get_frame_rate": (_Double, [_Pointer]),
    "arv_camera_get_frame_rate_bounds": (None, [_Pointer, _Doubles, _Doubles]),
    "arv_camera_set_trigger": (None, [_Pointer, _Text]),
    "arv_camera_clear_triggers": (None, [_Pointer]),
    "arv_camera_software_trigger": (None, [_Pointer]),
    "arv_camera_is_feature_available": (_Int, [_Pointer, _Text]),
    "arv_camera_set_string": (None, [_Pointer, _Text, _Text]),
    "arv_camera_get_string": (_Text, [_Pointer, _Text]),
    "arv_camera_set_float": (None, [_Pointer, _Text, _Double]),
    "arv_camera_get_float": (_Double, [_Pointer, _Text]),
    "arv_camera_get_float_increment": (_Double, [_Pointer, _Text]),
    "arv_camera_get_integer_increment": (ctypes.c_int64, [_Pointer, _Text]),
    "arv_camera_dup_available_enumerations_as_strings": (ctypes.POINTER(_Text), [_Pointer, _Text, ctypes.POINTER(_Count)]),
    "arv_device_read_register": (_Int, [_Pointer, _Long, ctypes.POINTER(ctypes.c_uint32)]),
}


@functools.cache
def library() -> ctypes.CDLL:
    """The library, with its functions' types. Raises StationError where it is not installed, or too old."""
    try:
        loaded = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise StationError(f"Aravis is not installed ({_LIBRARY}); run: apt install libaravis-0.8-0") from None
    checked = {name: (result, [*arguments, _Errors]) for name, (result, arguments) in _CHECKED.items()}
    for name, (result, arguments) in (_PLAIN | checked | _NEWER).items():
        function = getattr(loaded, name, None)
        if function is not None:
            function.restype, function.argtypes = result, arguments
        elif name not in _NEWER:
            raise StationError(f"Aravis is too old, since it has no {name}; install 0.8.16 or newer")
    return loaded


@functools.cache
def _glib() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    glib, gobject = ctypes.CDLL("libglib-2.0.so.0"), ctypes.CDLL("libgobject-2.0.so.0")
    glib.g_error_free.argtypes = glib.g_free.argtypes = gobject.g_object_unref.argtypes = [_Pointer]
    return glib, gobject


def call(name: str, *arguments: object) -> Any:
    """Call a function that reports errors. Raises AravisError with what it reported."""
    error = ctypes.POINTER(_GError)()
    result = getattr(library(), name)(*arguments, ctypes.byref(error))
    if error:
        message = (error.contents.message or b"unknown error").decode(errors="replace")
        _glib()[0].g_error_free(ctypes.cast(error, _Pointer))
        raise AravisError(message)
    return result


def release(pointer: int | None) -> None:
    """Give an object back; None is no object."""
    if pointer is not None:
        _glib()[1].g_object_unref(pointer)


@dataclass(frozen=True)
class Found:
    """A camera that answered."""

    id: str
    vendor: str
    model: str
    protocol: str
    address: str


def find_cameras() -> list[Found]:
    """All cameras on the network's interfaces and on USB, which takes about a second. Raises StationError without Aravis."""
    arv = library()
    arv.arv_update_device_list()

    def text(name: str, index: int) -> str:
        return (getattr(arv, f"arv_get_device_{name}")(index) or b"").decode(errors="replace")

    fields = ("id", "vendor", "model", "protocol", "address")
    return [Found(*(text(name, index) for name in fields)) for index in range(arv.arv_get_n_devices())]


class Camera:
    """One camera, opened. Its methods raise AravisError."""

    def __init__(self, name: str | None) -> None:
        """Open by id or address; None takes the only one that there is.

        All cameras are looked for first: the library connects to one that it has found, and not to every address. One in
        another network answers no such search, but may answer at its address.
        """
        found = find_cameras()
        there = ", ".join(camera.id for camera in found) or "none"
        if name is None and len(found) != 1:
            raise AravisError(f"expected one camera, there are {len(found)}: {there}")
        ids = [camera.id for camera in found if name in (None, camera.id, camera.address)]
        try:
            pointer = call("arv_camera_new", (ids[0] if ids else name or "").encode())
        except AravisError as error:
            raise AravisError(f"{error}; cameras that answer: {there}") from None
        if pointer is None:
            raise AravisError(f"not found; cameras that answer: {there}")
        self.pointer: int = pointer

    def call(self, name: str, *arguments: object) -> Any:
        """Call `arv_camera_<name>` on it."""
        return call(f"arv_camera_{name}", self.pointer, *arguments)

    def has(self, feature: str) -> bool:
        """Does it have this GenICam feature, now?"""
        return bool(self.call("is_feature_available", feature.encode()))

    def get_text(self, feature: str) -> str:
        """An enumeration's value."""
        return (self.call("get_string", feature.encode()) or b"").decode(errors="replace")

    def set_text(self, feature: str, value: str) -> None:
        """Set an enumeration."""
        self.call("set_string", feature.encode(), value.encode())

    def choices(self, feature: str) -> list[str]:
        """The values that an enumeration offers, now."""
        count = _Count()
        names = self.call("dup_available_enumerations_as_strings", feature.encode(), ctypes.byref(count))
        try:
            return [names[index].decode(errors="replace") for index in range(count.value)]
        finally:
            _glib()[0].g_free(ctypes.cast(names, _Pointer))

    def numbers(self, name: str, kind: type[_Double] | type[_Int], count: int) -> list[float]:
        """What `arv_camera_<name>` hands back through pointers."""
        values = [kind() for _ in range(count)]
        self.call(name, *(ctypes.byref(value) for value in values))
        return [value.value for value in values]

    def bounds(self, name: str) -> tuple[float, float]:
        """Least and largest `exposure_time` (us), `gain` or `frame_rate`."""
        least, largest = self.numbers(f"get_{name}_bounds", _Double, 2)
        return least, largest

    def region(self) -> tuple[int, int, int, int]:
        """Its (x, y, width, height)."""
        x, y, width, height = self.numbers("get_region", _Int, 4)
        return int(x), int(y), int(width), int(height)

    def sensor_size(self) -> tuple[int, int]:
        """Its (width, height)."""
        width, height = self.numbers("get_sensor_size", _Int, 2)
        return int(width), int(height)

    def step(self, *features: str) -> float | None:
        """Increment of the first of these features that it has; None where it has none or does not say."""
        for feature in features:
            if self.has(feature):
                for kind in ("integer", "float"):
                    with contextlib.suppress(AravisError):
                        increment = float(self.call(f"get_{kind}_increment", feature.encode()))
                        return increment if 1e-9 < increment < 1e9 else None
        return None

    def answer(self) -> None:
        """Read the first register, which GigE Vision and USB3 Vision both have. Raises AravisError where it is gone."""
        value = ctypes.c_uint32()
        call("arv_device_read_register", library().arv_camera_get_device(self.pointer), 0, ctypes.byref(value))

    def close(self) -> None:
        """Give it back."""
        release(self.pointer)


class Stream:
    """A camera's buffers: filled by a thread of the library, taken and given back here."""

    def __init__(self, camera: Camera, buffers: int) -> None:
        """Make the stream and give it so many buffers. Raises AravisError."""
        pointer = camera.call("create_stream", None, None)
        if pointer is None:
            raise AravisError("no stream")
        self._pointer: int = pointer
        self._packets = bool(library().arv_camera_is_gv_device(camera.pointer))
        payload = camera.call("get_payload")
        for _ in range(buffers):
            library().arv_stream_push_buffer(pointer, library().arv_buffer_new_allocate(payload))

    @contextlib.contextmanager
    def next(self, timeout_s: float) -> Iterator[Buffer | None]:
        """The next buffer for as long as the block runs, or None when none came in time."""
        arv = library()
        buffer = arv.arv_stream_timeout_pop_buffer(self._pointer, round(timeout_s * 1e6))
        try:
            yield None if buffer is None else Buffer(buffer)
        finally:
            if buffer is not None:
                arv.arv_stream_push_buffer(self._pointer, buffer)

    def counts(self) -> dict[str, int]:
        """Buffers completed, failed and underrun; for GigE Vision packets resent and missing as well."""
        values = [_Long() for _ in range(5)]
        pointers = [ctypes.byref(value) for value in values]
        library().arv_stream_get_statistics(self._pointer, *pointers[:3])
        names = ["completed", "failed", "underruns"]
        if self._packets:
            library().arv_gv_stream_get_statistics(self._pointer, *pointers[3:])
            names += ["packets resent", "packets missing"]
        return {name: value.value for name, value in zip(names, values, strict=False)}

    def close(self) -> None:
        """End its thread and give it back with its buffers."""
        release(self._pointer)


class Buffer:
    """One buffer, valid until it is given back."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    @property
    def status(self) -> int:
        """SUCCESS, or why it is not whole; STATUSES has the words."""
        return int(library().arv_buffer_get_status(self._pointer))

    @property
    def device_ns(self) -> int:
        """The camera's own time of the picture; 0 where it has none."""
        return int(library().arv_buffer_get_timestamp(self._pointer))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        arv = library()
        return arv.arv_buffer_get_image_height(self._pointer), arv.arv_buffer_get_image_width(self._pointer)

    @property
    def padding(self) -> tuple[int, int]:
        """Bytes after each row, and after the last one; none where the library is too old to tell."""
        x, y = _Int(), _Int()
        ask = getattr(library(), "arv_buffer_get_image_padding", None)
        if ask is not None:
            ask(self._pointer, ctypes.byref(x), ctypes.byref(y))
        return x.value, y.value

    def data(self) -> bytes:
        """A copy of the picture's bytes. An older library gives all of the buffer, which begins with them."""
        size = ctypes.c_size_t()
        get = getattr(library(), "arv_buffer_get_image_data", library().arv_buffer_get_data)
        address = get(self._pointer, ctypes.byref(size))
        return b"" if address is None else ctypes.string_at(address, size.value)
