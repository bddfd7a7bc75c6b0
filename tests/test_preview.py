"""What a technician sees of a camera: figures by hand, and what came within a time."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edge.__main__ as door
from edge import StationError
from edge.camera import Camera
from edge.preview import WAIT_S, measure, video_devices, watch
from engines.images import read_image
from tests.fake_aravis import gige, interface
from tests.fakes import FakeCamera, FakeClock, flat, textured, write_pictures
from tests.test_camera import write_video

ROOT = Path(__file__).parent.parent


def test_focus_is_the_variance_of_the_laplacian() -> None:
    assert measure(flat(90), 8, 250).focus == 0
    # one pixel of 50 on 0, in 8 x 8: its Laplacian is -200, that of its four neighbours 50, and they add up to 0
    image = flat(0, (8, 8))
    image[4, 4] = 50
    assert measure(image, 8, 250).focus == pytest.approx((200**2 + 4 * 50**2) / 64)


def test_a_blurred_edge_has_less_focus_than_a_sharp_one() -> None:
    sharp, soft = flat(0), flat(0)
    sharp[:, 32:] = 200
    soft[:, 24:40] = np.linspace(0, 200, 16, dtype=np.uint8)[None, :, None]
    soft[:, 40:] = 200
    assert measure(sharp, 8, 250).focus > 10 * measure(soft, 8, 250).focus


def test_exposure_counts_a_pixel_as_saturated_by_one_channel_and_as_black_by_all() -> None:
    image = flat(100, (10, 10))
    image[0, :5] = (250, 0, 0)
    image[1, :3] = (8, 8, 8)
    image[2, :2] = (9, 8, 8)
    image[3, :4] = (249, 249, 249)
    figures = measure(image, 8, 250)
    assert (figures.size, figures.saturated, figures.black) == ((10, 10), 5, 3)
    assert figures.mean == pytest.approx((5 * 250 + 3 * 24 + 2 * 25 + 4 * 747 + 86 * 300) / 300)


class Prompt(FakeCamera):
    first_after_ms = 0.0


class Slow(Prompt):
    """Pictures 100 ms apart, and then silence in which it beats."""

    def __init__(self, clock: FakeClock, pictures: int, beat: Callable[[], None]) -> None:
        super().__init__(clock, [flat(grey + 20) for grey in range(pictures)])
        self._beat = beat

    def frames(self):  # type: ignore[no-untyped-def]
        for arrival in super().frames():
            self._clock.advance_ms(100)
            self._beat()
            yield arrival
        while True:
            self._clock.advance_ms(100)
            self._beat()


@pytest.mark.parametrize(("pictures", "seconds", "frames", "rate"), [(5, 30.0, 5, 10), (50, 1.0, 9, 10), (5, None, 1, None)])
def test_pictures_are_taken_for_a_time_or_the_first_one(
    pictures: int, seconds: float | None, frames: int, rate: float | None
) -> None:
    clock = FakeClock()
    opened: list[Slow] = []

    def open_camera(beat: Callable[[], None]) -> Camera:
        opened.append(Slow(clock, pictures, beat))
        return opened[0]

    watched = watch(open_camera, clock, seconds)
    assert watched.frames == frames
    assert watched.rate == (rate if rate is None else pytest.approx(rate))
    assert watched.last is not None
    assert watched.last.part == frames
    assert opened[0].closed == 1


def test_the_first_picture_is_not_waited_for_without_end() -> None:
    clock = FakeClock()
    begun = clock.now_ns()
    watched = watch(lambda beat: Slow(clock, 0, beat), clock, None)
    assert (watched.last, watched.frames, watched.rate) == (None, 0, None)
    assert (clock.now_ns() - begun) / 1e9 == WAIT_S


def test_what_was_no_picture_is_counted_by_its_reason() -> None:
    clock = FakeClock()
    watched = watch(lambda beat: Prompt(clock, [None, flat(20), None]), clock, 5.0)
    assert dict(watched.faults) == {"no picture": 2}
    assert watched.frames == 1


def test_a_cameras_first_node_is_listed_and_those_without_pictures_are_not(tmp_path: Path) -> None:
    for number, index, name in ((10, 0, "Other camera"), (0, 0, "USB camera: HD"), (1, 1, "USB camera: HD")):
        node = tmp_path / f"video{number}"
        node.mkdir()
        (node / "index").write_text(f"{index}\n")
        (node / "name").write_text(f"{name}\n")
    (tmp_path / "video2").mkdir()  # gone while it is looked at
    assert video_devices(tmp_path) == [("/dev/video0", "USB camera: HD"), ("/dev/video10", "Other camera")]
    assert video_devices(tmp_path / "none") == []


# the door


def configured(folder: Path, source: str) -> Path:
    path = folder / "station.yaml"
    path.write_text(f"station: line-1\nbundle: b\ncalibration: c\njournal: j.db\nsource: {{{source}}}\n")
    return path


def preview(folder: Path, source: str, *more: str) -> int:
    return door.main(["camera", "--config", str(configured(folder, source)), "--preview", str(folder / "out.png"), *more])


def test_preview_writes_the_first_frame_of_a_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "parts", [textured(1), textured(2)])
    assert preview(tmp_path, "kind: replay, path: parts") == 0
    np.testing.assert_array_equal(read_image(tmp_path / "out.png"), textured(1))
    out = capsys.readouterr().out
    assert "1.png: 64 x 64 pixels, written to" in out
    figures = measure(textured(1), 8, 250)
    assert f"focus {figures.focus:.1f} (variance of the Laplacian" in out
    assert f"mean {figures.mean:.1f} of 255, {figures.saturated:.2f} % saturated" in out


def test_preview_of_a_live_film_is_turned_as_the_station_would_turn_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "line.avi", [textured(seed, (32, 64)) for seed in range(40)])
    assert preview(tmp_path, f"kind: camera, device: {path}, rotation: 90", "--seconds", "0.2") == 0
    assert read_image(tmp_path / "out.png").shape == (64, 32, 3)


def test_preview_writes_a_black_frame_too_and_says_that_it_would_be_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_video(tmp_path / "dark.avi", [flat(0)])
    assert preview(tmp_path, f"kind: camera, device: {path}") == 1
    out = capsys.readouterr().out
    assert "FAULT  black: nearly all values are 8 or less" in out
    assert "100.00 % black (all at 8 or less)" in out
    assert (tmp_path / "out.png").exists()


def test_preview_of_a_genicam_camera_says_what_was_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with interface("Fake"):
        source = "kind: genicam, device: Fake_1, exposure_us: 12345.6, region: {width: 320, height: 240}"
        assert preview(tmp_path, source, "--seconds", "1") == 0
    out = capsys.readouterr().out
    assert "exposure_us 12345.6, read back 12345" in out
    assert "Fake_1: 320 x 240 pixels" in out
    assert "completed " in out
    assert re.search(r"^\d+ frames in [\d.]+ s, [\d.]+ a second$", out, re.MULTILINE)


def test_preview_without_a_picture_ends_with_one_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with gige() as fake:
        source = f"kind: genicam, device: {fake.id}, trigger: {{source: Software}}"
        assert preview(tmp_path, source, "--seconds", "0.1") == 1
    assert "no frame in 0.1 s: it may wait for a trigger" in capsys.readouterr().out
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("kind: camera, device: /dev/no-such", "error: camera /dev/no-such: OpenCV cannot open it"),
        ("kind: csi, width: 64, height: 64, frame_rate: 30", "has no GStreamer"),
        ("kind: camera, device: 0, rotation: 45", "'source.rotation' is 45"),
    ],
)
def test_preview_of_what_cannot_be_opened_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, message: str
) -> None:
    assert preview(tmp_path, source) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("device", ["/dev/no-such", "http://127.0.0.1:9/no-such"])
def test_a_process_whose_camera_does_not_open_ends_with_two_and_one_line(tmp_path: Path, device: str) -> None:
    path = configured(tmp_path, f'kind: camera, device: "{device}"')
    command = [sys.executable, "-m", "edge", "camera", "--config", str(path), "--preview", str(tmp_path / "out.png")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(f"error: camera {device}: OpenCV cannot open it")


def test_preview_needs_a_configuration_and_a_name_of_a_png(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["camera", "--preview", "out.png"]) == 2
    assert "add --config FILE" in capsys.readouterr().err
    for arguments in (["--preview", "out.jpg"], [], ["--list", "--preview", "out.png"]):
        with pytest.raises(SystemExit) as ended:
            door.main(["camera", *arguments])
        assert ended.value.code == 2


def test_cameras_are_listed_as_a_configuration_names_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(door, "video_devices", lambda: [("/dev/video0", "USB camera: HD")])
    with interface("Fake"):
        assert door.main(["camera", "--list"]) == 0
    out = capsys.readouterr().out
    assert "kind: camera, device: /dev/video0  (USB camera: HD)" in out
    assert "kind: genicam, device: Fake_1  (Aravis Fake, Fake, " in out


def test_no_camera_found_is_a_no_and_a_missing_library_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(door, "video_devices", list)

    def missing() -> list[tuple[str, str]]:
        raise StationError("Aravis is not installed; run: apt install libaravis-0.8-0")

    monkeypatch.setattr(door, "genicam_devices", missing)
    assert door.main(["camera", "--list"]) == 1
    printed = capsys.readouterr()
    assert "no camera found" in printed.out
    assert "apt install libaravis-0.8-0" in printed.err
