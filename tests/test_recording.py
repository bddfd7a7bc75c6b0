"""`edge record` as its user sees it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edge.record as door_of_record
from edge.__main__ import main
from edge.presence import learn_empty
from engines.images import Image, read_image
from tests.fakes import write_pictures
from tests.test_audit import part


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A station that replays twelve good parts, the fourth twice, and a file that is no picture."""
    pictures = [part(seed) for seed in range(12)]
    write_pictures(tmp_path / "parts", [*pictures[:4], pictures[3], pictures[3], *pictures[4:]])
    (tmp_path / "parts/5a.png").write_bytes(b"no picture")
    config = tmp_path / "station.yaml"
    config.write_text(
        "station: line-1\nbundle: none\ncalibration: none.json\njournal: journal.db\nsource:\n  kind: replay\n  path: parts\n"
    )
    return config


def record(config: Path, *more: str) -> int:
    return main(["record", "--config", str(config), "--out", str(config.parent / "good"), *more])


def test_it_collects_says_what_it_leaves_out_and_judges_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record(config) == 0
    said = capsys.readouterr().out.splitlines()
    assert "    1  part-000001.png  1.png" in said
    assert "duplicate: 5.png: same pixels as part-000004.png" in said
    assert any(line.startswith("no picture: 5a.png") for line in said)
    assert said[-1] == (
        f"kept 12 pictures in {config.parent / 'good'}, 12 with those before (0); not kept: 2 duplicate, 1 no picture"
    )
    assert not (config.parent / "journal.db").exists()
    (notes,) = (config.parent / "good").glob("recording-*.json")
    written = json.loads(notes.read_text())
    assert (written["station"], written["camera"], written["reason"]) == ("line-1", "camera-1", "end of the source")
    assert written["source"]["kind"] == "replay"
    assert written["refused"] == {"duplicate": 2, "no picture": 1}


def test_the_same_again_and_again_is_two_lines(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record(config) == 0
    capsys.readouterr()
    (tmp_path / "parts/5a.png").unlink()
    assert record(config) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("duplicate: 1.png")
    assert said[1] == "duplicate: 13 more"
    assert len(said) == 3


def test_a_count_ends_it_and_one_that_is_not_reached_is_1(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record(config, "--count", "3") == 0
    assert "    3 of 3  part-000003.png" in capsys.readouterr().out
    assert record(config, "--count", "99") == 1
    assert "kept 9 pictures" in capsys.readouterr().out


def test_time_ends_a_wait_for_a_frame(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record(config, "--seconds", "0.3", "--every", "60000") == 0  # the second frame would come after a minute
    assert "kept 1 pictures" in capsys.readouterr().out


def test_a_failing_disk_is_one_error_after_the_summary(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = door_of_record.TrainingFolder.offer

    def offer(self, image, source):  # type: ignore[no-untyped-def]
        if len(self.kept) == 2:
            raise door_of_record.EngineError("part-000003.png: could not be written (No space left on device)")
        return usual(self, image, source)

    monkeypatch.setattr(door_of_record.TrainingFolder, "offer", offer)
    assert record(config) == 2
    captured = capsys.readouterr()
    assert "kept 2 pictures" in captured.out
    assert captured.err.count("error:") == 1
    assert "No space left" in captured.err
    assert len(list((config.parent / "good").glob("part-*.png"))) == 2


def test_a_camera_that_is_not_there_is_one_error(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text().replace("path: parts", "path: nowhere"))
    assert record(config) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "code"), [((), 0), (("--count", "99"), 130)])
def test_ctrl_c_ends_in_order_with_what_was_collected(config: Path, more: tuple[str, ...], code: int) -> None:
    out = config.parent / "good"
    command = [sys.executable, "-m", "edge", "record", "--config", str(config), "--out", str(out), "--every", "30", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "part-000001.png" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
    assert process.returncode == code
    assert "kept " in said.splitlines()[-1]
    (notes,) = out.glob("recording-*.json")
    written = json.loads(notes.read_text())
    assert written["reason"] == "interrupted"
    assert [kept["file"] for kept in written["kept"]] == sorted(path.name for path in out.glob("part-*.png"))


def test_with_a_presence_trigger_whole_parts_alone_are_kept(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = np.full((256, 256, 3), 90, np.uint8)
    learn_empty([empty] * 10, None, 0.02).save(tmp_path / "empty.npz")

    def at(seed: int, place: int) -> Image:
        image = empty.copy()
        image[40:200, max(0, place) : place + 160] = part(seed)[:, max(0, -place) :]
        return image

    belt = [frame for seed in range(3) for frame in (empty, at(seed, -60), at(seed, 40), at(seed, 60))]
    for path in (tmp_path / "parts").iterdir():
        path.unlink()
    write_pictures(tmp_path / "parts", [*belt, empty])
    config.write_text(config.read_text() + "trigger:\n  kind: presence\n  empty: empty.npz\n")
    assert record(config) == 0
    assert "kept 3 pictures" in capsys.readouterr().out
    kept = sorted((tmp_path / "good").glob("part-*.png"))
    assert [np.array_equal(read_image(path), at(seed, 40)) for seed, path in enumerate(kept)] == [True] * 3
