"""GenICam cameras by the real Aravis library, over its fake cameras."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge import StationError, aravis
from edge.aravis import AravisError
from edge.camera_sections import CameraTrigger, GenicamSource, Region, WhiteBalance
from edge.clock import SystemClock
from edge.device import DeviceLostError, Grab, TornFrameError
from edge.genicam import GenicamDevice, to_rgb
from edge.live import LiveCamera
from edge.verdict import Arrival, Frame, Missing
from tests.fake_aravis import IN_LIBRARY, GigE, described, description, gige, interface, trigger
from tests.fakes import FakeClock, flat, textured


@pytest.fixture
def fake() -> Iterator[GigE]:
    """A GigE Vision camera on this machine."""
    with gige() as camera:
        yield camera


@pytest.fixture
def in_library() -> Iterator[None]:
    """The camera inside the library, which runs free."""
    with interface("Fake"):
        yield


def source(**settings: object) -> GenicamSource:
    return GenicamSource.model_validate({"kind": "genicam", "device": IN_LIBRARY, **settings})


def taken(device: GenicamDevice) -> Grab:
    """The next picture."""
    for _ in range(300):
        grab = device.read()
        if grab is not None:
            return grab
    raise AssertionError("no picture in 30 s")


def started(made: GenicamSource) -> GenicamDevice:
    device = GenicamDevice(made, SystemClock())
    device.open()
    try:
        device.apply(made)
    except BaseException:
        device.close()
        raise
    return device


# pixels, by hand


def bayer(pattern: str, colour: str, value: int = 200) -> bytes:
    """8 x 8 pixels of a sensor with this pattern (two letters of the first row, two of the second) that sees one colour."""
    cell = np.array(
        [
            [value if letter == colour else 0 for letter in pattern[:2]],
            [value if letter == colour else 0 for letter in pattern[2:]],
        ]
    )
    return np.tile(cell, (4, 4)).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("pixel_format", "pattern"), [("BayerRG8", "RGGB"), ("BayerGR8", "GRBG"), ("BayerGB8", "GBRG"), ("BayerBG8", "BGGR")]
)
@pytest.mark.parametrize(("colour", "channel"), [("R", 0), ("G", 1), ("B", 2)])
def test_a_bayer_sensor_that_sees_one_colour_gives_that_colour(
    pixel_format: str, pattern: str, colour: str, channel: int
) -> None:
    image = to_rgb(pixel_format, bayer(pattern, colour), (8, 8))
    inner = image[2:6, 2:6]
    assert inner[:, :, channel].min() == 200
    assert np.delete(inner, channel, axis=2).max() == 0


def test_grey_becomes_three_equal_channels_and_colour_keeps_its_order() -> None:
    grey = to_rgb("Mono8", bytes(range(6)), (2, 3))
    np.testing.assert_array_equal(grey, np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3, 1), 3, axis=2))
    np.testing.assert_array_equal(to_rgb("RGB8", bytes([1, 2, 3]), (1, 1)), [[[1, 2, 3]]])
    np.testing.assert_array_equal(to_rgb("BGR8", bytes([1, 2, 3]), (1, 1)), [[[3, 2, 1]]])


def test_bytes_after_each_row_are_left_out() -> None:
    image = to_rgb("Mono8", bytes([1, 2, 99, 3, 4, 99]), (2, 2), padding=(1, 0))
    np.testing.assert_array_equal(image[:, :, 0], [[1, 2], [3, 4]])


def test_the_picture_is_a_copy_that_may_be_kept() -> None:
    for pixel_format in ("RGB8", "Mono8"):
        image = to_rgb(pixel_format, bytes(12), (2, 2))
        assert image.base is None or image.base.flags.owndata
        image[0, 0] = 1


def test_too_few_bytes_are_no_picture() -> None:
    with pytest.raises(StationError, match="11 bytes of RGB8, expected 12 for 2 x 2 pixels"):
        to_rgb("RGB8", bytes(11), (2, 2))
    with pytest.raises(StationError, match="0 bytes of Mono8"):
        to_rgb("Mono8", b"", (0, 0))


# settings, on the camera inside the library


@pytest.mark.usefixtures("in_library")
def test_settings_are_read_back_from_the_camera() -> None:
    wanted = source(
        exposure_us=12_345.6,
        gain=3.4,
        frame_rate=100.0,
        pixel_format="Mono8",
        region={"x": 16, "y": 8, "width": 320, "height": 240},
    )
    device = GenicamDevice(wanted, SystemClock())
    device.open()
    settings = {setting.name: setting for setting in device.apply(wanted)}
    device.close()
    assert settings["exposure_us"].got == 12_345  # its register holds whole microseconds
    assert settings["gain"].got == 3  # and whole steps
    assert settings["gain"].step == 1
    assert settings["frame_rate"].got == pytest.approx(100)
    assert [settings[f"region.{name}"].got for name in ("x", "y", "width", "height")] == [16, 8, 320, 240]
    assert [setting.fault for setting in settings.values()] == [None] * 8


@pytest.mark.usefixtures("in_library")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exposure_us": 5.0}, r"exposure_us is 5, the camera offers 10 to 1e\+07; change it"),
        ({"gain": 11.0}, "gain is 11, the camera offers 0 to 10"),
        ({"frame_rate": 0.001}, "frame_rate is 0.001, the camera offers"),
        (
            {"region": {"x": 1800, "width": 512, "height": 512}},
            r"source.region is 512 x 512 at \(1800, 0\), expected inside the sensor's 2048 x 2048",
        ),
        ({"pixel_format": "Mono16"}, "pixel format Mono16 cannot be used; set source.pixel_format to one of: .*Mono8, RGB8"),
        ({"pixel_format": "Mono9"}, "pixel format Mono9 cannot be used"),
        ({"white_balance": {}}, "it has no white balance; leave white_balance out"),
        ({"white_balance": {"red": 2.0}}, "white_balance.red cannot be set, since it has no BalanceRatio"),
        ({"white_balance": {"kelvin": 5000.0}}, "white_balance.kelvin cannot be set; give red and blue"),
        ({"trigger": {"edge": "falling"}}, "TriggerActivation FallingEdge is not offered; it has: RisingEdge"),
        ({"trigger": {"source": "Line7"}}, "TriggerSource Line7 is not offered; it has: Line0, Software"),
    ],
)
def test_what_the_camera_cannot_do_is_refused_with_what_it_can(settings: dict[str, object], message: str) -> None:
    with pytest.raises(StationError, match=f"^camera Fake_1: {message}"):
        started(source(**settings))


@pytest.mark.usefixtures("in_library")
def test_a_camera_left_in_a_mode_of_more_bits_is_refused_with_what_to_set() -> None:
    device = GenicamDevice(source(), SystemClock())
    device.open()
    device._opened().set_text("PixelFormat", "Mono16")
    with pytest.raises(StationError, match=r"is Mono16, expected 8 bits a channel; set source\.pixel_format to one of"):
        device.apply(source())
    device.close()


@pytest.mark.usefixtures("in_library")
def test_a_hardware_trigger_is_set_and_read_back_and_without_one_the_camera_runs_free() -> None:
    wanted = source(trigger={"source": "Line0"})
    device = GenicamDevice(wanted, SystemClock())
    device.open()
    assert device.triggered
    got = [(setting.name, setting.got) for setting in device.apply(wanted)]
    assert got == [("TriggerMode", "On"), ("TriggerSource", "Line0"), ("TriggerActivation", "RisingEdge")]
    assert taken(device).image.shape == (512, 512, 3)  # the fake one has a signal of 25 Hz at its input
    device.close()
    device = GenicamDevice(source(), SystemClock())
    device.open()
    device._opened().set_text("TriggerMode", "On")  # as another program left it
    device.apply(source())
    assert not device.triggered
    assert device._opened().get_text("TriggerMode") == "Off"
    device.close()


# what a colour camera of today has beside the fake one's features, in GenICam's words
COLOUR = """
<Enumeration Name="BalanceWhiteAuto"><EnumEntry Name="Off"><Value>0</Value></EnumEntry>
  <EnumEntry Name="Continuous"><Value>1</Value></EnumEntry><pValue>BalanceWhiteAutoRegister</pValue></Enumeration>
<Enumeration Name="BalanceRatioSelector"><EnumEntry Name="Red"><Value>0</Value></EnumEntry>
  <EnumEntry Name="Blue"><Value>1</Value></EnumEntry><pValue>BalanceRatioSelectorRegister</pValue></Enumeration>
<Float Name="BalanceRatio"><pValue>BalanceRatioConverter</pValue><Min>0.5</Min><Max>4</Max></Float>
<Converter Name="BalanceRatioConverter"><FormulaTo>FROM * 256</FormulaTo><FormulaFrom>TO / 256.0</FormulaFrom>
  <pValue>BalanceRatioRegister</pValue></Converter>
"""
REGISTER = """
<IntReg Name="{name}Register"><Address>{address}</Address>{index}<Length>4</Length><AccessMode>RW</AccessMode>
  <pPort>Device</pPort><Sign>Unsigned</Sign><Endianess>BigEndian</Endianess></IntReg>
"""


@pytest.fixture
def colour_camera(tmp_path: Path) -> Iterator[None]:
    """The camera inside the library with a white balance, and a trigger that takes both edges."""
    with interface("Fake"):
        both = '<EnumEntry Name="RisingEdge" NameSpace="Standard">\n\t\t\t<Value>0</Value>\n\t\t</EnumEntry>'
        xml = description()
        assert both in xml
        xml = xml.replace(both, both + '<EnumEntry Name="FallingEdge"><Value>1</Value></EnumEntry>')
        by_selector = '<pIndex Offset="4">BalanceRatioSelectorRegister</pIndex>'
        registers = [
            REGISTER.format(name="BalanceWhiteAuto", address="0x400", index=""),
            REGISTER.format(name="BalanceRatioSelector", address="0x404", index=""),
            REGISTER.format(name="BalanceRatio", address="0x410", index=by_selector),
        ]
        path = tmp_path / "colour.xml"
        path.write_text(xml.replace("</RegisterDescription>", COLOUR + "".join(registers) + "</RegisterDescription>"))
        with described(path):
            yield


@pytest.mark.usefixtures("colour_camera")
def test_white_balance_is_fixed_and_each_colour_has_its_own_gain() -> None:
    wanted = source(white_balance={"red": 1.5, "blue": 2.25})
    device = GenicamDevice(wanted, SystemClock())
    device.open()
    device._opened().set_text("BalanceWhiteAuto", "Continuous")
    settings = device.apply(wanted)
    got = {setting.name: setting.got for setting in settings}
    assert got == {"automatic white balance": "Off", "white_balance.red": 1.5, "white_balance.blue": 2.25}
    assert [setting.fault for setting in settings] == [None] * 3
    device._opened().set_text("BalanceRatioSelector", "Red")
    assert device._opened().call("get_float", b"BalanceRatio") == 1.5  # and the second did not overwrite the first
    device.close()


@pytest.mark.usefixtures("colour_camera")
def test_a_white_balance_without_gains_is_fixed_as_it_is() -> None:
    device = GenicamDevice(source(white_balance={}), SystemClock())
    device.open()
    assert [(setting.name, setting.got) for setting in device.apply(device._source)] == [("automatic white balance", "Off")]
    device.close()


@pytest.mark.usefixtures("colour_camera")
def test_a_falling_edge_is_set_where_the_camera_has_it() -> None:
    wanted = source(trigger={"edge": "falling"})
    device = GenicamDevice(wanted, SystemClock())
    device.open()
    assert ("TriggerActivation", "FallingEdge") in [(setting.name, setting.got) for setting in device.apply(wanted)]
    device.close()


@pytest.mark.usefixtures("in_library")
def test_a_free_running_camera_gives_pictures_with_its_own_times() -> None:
    device = started(source(frame_rate=100.0, region={"width": 64, "height": 64}))
    grabs = [taken(device) for _ in range(5)]
    times = [grab.captured_ns for grab in grabs]
    assert times == sorted(times)
    assert SystemClock().now_ns() - 10**10 < times[0] <= times[-1] <= SystemClock().now_ns()
    assert len({grab.image.tobytes() for grab in grabs}) == 5  # it draws a moving ramp
    assert device.counts()["completed"] >= 5
    device.close()
    device.close()


@pytest.mark.usefixtures("in_library")
def test_without_a_name_the_only_camera_is_taken_and_one_that_is_not_there_is_told_with_those_that_are() -> None:
    device = started(source(device=None))
    device.close()
    with pytest.raises(DeviceLostError, match="camera nope: Device 'nope' not found; cameras that answer: Fake_1; check cable"):
        started(source(device="nope"))


def test_without_a_name_none_and_several_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(count: int) -> list[aravis.Found]:
        return [aravis.Found(f"camera-{number}", "", "", "", "") for number in range(count)]

    for count, there in ((0, "none"), (2, "camera-0, camera-1")):
        monkeypatch.setattr(aravis, "find_cameras", lambda count=count: found(count))
        with pytest.raises(AravisError, match=f"expected one camera, there are {count}: {there}"):
            aravis.Camera(None)


def test_where_aravis_is_not_installed_the_start_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aravis, "_LIBRARY", "libaravis-9.9.so.0")
    aravis.library.cache_clear()
    try:
        with pytest.raises(StationError, match=r"Aravis is not installed .*; run: apt install libaravis-0\.8-0"):
            LiveCamera(GenicamDevice(source(), SystemClock()), source(), SystemClock())
    finally:
        aravis.library.cache_clear()


def test_a_library_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(aravis._PLAIN, "arv_of_tomorrow", (None, []))
    aravis.library.cache_clear()
    try:
        with pytest.raises(StationError, match=r"(too old, since it has no arv_of_tomorrow; install|not installed)"):
            aravis.find_cameras()
    finally:
        aravis.library.cache_clear()


# pictures, over GigE Vision on this machine


def test_pictures_arrive_bit_for_bit(fake: GigE) -> None:
    device = started(fake.source())
    pictures = [textured(seed) for seed in range(4)]
    fake.show(*pictures)
    for picture in pictures:
        trigger(device)
        np.testing.assert_array_equal(taken(device).image, picture)
    assert device.counts()["packets missing"] == 0
    device.close()


def test_jetpacks_older_library_gives_the_same_pictures(fake: GigE, monkeypatch: pytest.MonkeyPatch) -> None:
    real = aravis.library()

    class Older:
        def __getattr__(self, name: str) -> object:
            if name in aravis._NEWER:
                raise AttributeError(name)
            return getattr(real, name)

    monkeypatch.setattr(aravis, "library", Older)
    device = started(fake.source())
    fake.show(textured(5))
    trigger(device)
    np.testing.assert_array_equal(taken(device).image, textured(5))
    device.close()


def test_a_triggered_camera_gives_one_picture_a_trigger_and_none_otherwise(fake: GigE) -> None:
    device = started(fake.source())
    fake.show(textured(1))
    assert device.read() is None
    trigger(device)
    taken(device)
    assert device.read() is None
    device.close()


def test_a_colour_sensor_is_demosaiced_on_the_way(fake: GigE) -> None:
    device = started(fake.source("BayerGB8", side=8))
    fake.pictures = itertools.repeat(bayer("GBRG", "R"))
    trigger(device)
    np.testing.assert_array_equal(taken(device).image[2:6, 2:6], np.full((4, 4, 3), (200, 0, 0)))
    device.close()


def test_an_incomplete_buffer_is_a_torn_frame_and_the_next_one_is_whole(fake: GigE, monkeypatch: pytest.MonkeyPatch) -> None:
    device = started(fake.source())
    fake.show(textured(1))
    with monkeypatch.context() as patch:
        patch.setattr(aravis.Buffer, "status", 3)
        trigger(device)
        with pytest.raises(TornFrameError, match=r"came incomplete \(missing packets\)") as caught:
            taken(device)
    assert 0 <= SystemClock().now_ns() - caught.value.captured_ns < 10**10
    for dropped in (aravis.CLEARED, aravis.ABORTED):  # the library's own, when it stops
        with monkeypatch.context() as patch:
            patch.setattr(aravis.Buffer, "status", dropped)
            trigger(device)
            assert [device.read() for _ in range(3)] == [None] * 3
    trigger(device)
    np.testing.assert_array_equal(taken(device).image, textured(1))
    device.close()


def test_a_picture_of_which_only_a_part_fits_its_buffer_is_torn(fake: GigE, monkeypatch: pytest.MonkeyPatch) -> None:
    call = aravis.Camera.call

    def half(camera: aravis.Camera, name: str, *arguments: object) -> object:
        got = call(camera, name, *arguments)
        return got // 2 if name == "get_payload" else got

    monkeypatch.setattr(aravis.Camera, "call", half)
    device = started(fake.source())
    fake.show(textured(1))
    trigger(device)
    with pytest.raises(TornFrameError, match="6144 bytes of RGB8, expected 12288 for 64 x 64 pixels"):
        taken(device)  # which the library calls a success
    device.close()


def test_a_camera_that_changes_its_width_is_at_fault(fake: GigE) -> None:
    device = fake.device()
    camera = LiveCamera(device, fake.source(), SystemClock())
    frames = camera.frames()
    fake.show(*(textured(seed) for seed in range(3)))
    trigger(device)
    assert isinstance(next(frames), Frame)
    fake.widen(32)  # its buffers hold more than that, and are whole
    trigger(device)
    arrival = next(frames)
    assert isinstance(arrival, Missing)
    assert "frame of 32 x 64 pixels, expected 64 x 64" in arrival.reason
    camera.close()


def test_buffers_are_given_back_however_many_pictures_come(fake: GigE) -> None:
    device = started(fake.source())
    fake.show(textured(1))
    for _ in range(20):  # of 8 buffers
        trigger(device)
        taken(device)
    assert device.counts()["underruns"] == 0
    device.close()


def test_a_silent_camera_is_asked_whether_it_is_there(fake: GigE, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    device = GenicamDevice(fake.source(), clock)
    device.open()
    device.apply(fake.source())
    asked: list[int] = []
    answer = aravis.Camera.answer
    monkeypatch.setattr(aravis.Camera, "answer", lambda camera: (asked.append(clock.now_ns()), answer(camera)))
    for _ in range(4):
        clock.advance_ms(600)
        assert device.read() is None
    assert [(at - 10**12) // 10**6 for at in asked] == [1200, 2400]

    def gone(camera: aravis.Camera) -> None:
        raise AravisError("timeout")

    monkeypatch.setattr(aravis.Camera, "answer", gone)
    clock.advance_ms(1000)
    with pytest.raises(DeviceLostError, match=r"does not answer \(timeout\)"):
        device.read()
    device.close()


def grey_of(arrival: Arrival) -> int:
    assert isinstance(arrival, Frame)
    return int(arrival.image[0, 0, 0])


def test_a_camera_that_went_away_and_came_back_delivers_again() -> None:
    made = GenicamSource(
        kind="genicam",
        device="Aravis-Fake-REB",
        pixel_format="RGB8",
        region=Region(width=64, height=64),
        timeout_ms=1500,
        stale_ms=30_000,
    )
    with gige() as first:
        first.pictures = itertools.cycle([flat(20).tobytes(), flat(21).tobytes()])
        camera = LiveCamera(GenicamDevice(made, SystemClock()), made, SystemClock())
        frames = camera.frames()
        assert grey_of(next(frames)) in (20, 21)
        assert camera.healthy
    with gige() as second:  # another one at the same address, which knows nothing of the station
        second.pictures = itertools.cycle([flat(120).tobytes(), flat(121).tobytes()])
        greys = [grey_of(next(frames)) for _ in range(3)]  # of which one or two were held from the first camera
        assert greys[-1] in (120, 121)
        assert (camera.healthy, camera.status) == (True, "")
        assert {setting.fault for setting in camera.settings} == {None}
        camera.close()


def test_the_trigger_that_is_configured_is_a_camera_trigger() -> None:
    assert source(trigger={}).trigger == CameraTrigger(source="Line0", edge="rising")
    assert source(white_balance={}).white_balance == WhiteBalance()
