"""The train door: what a person types, what they read, and the exit code that a script sees."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import pytest

import train.__main__ as door
from engines.bundle import load_bundle
from engines.images import encode_png, read_image
from engines.preprocess import Roi
from train.__main__ import main, parse_roi, parse_size
from train.backbones import BACKBONES
from train.data import open_dataset
from train.sample import draw_part

QUICK = ["--weights", "none", "--size", "64", "--coreset", "0.1", "--device", "cpu"]


def draw(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, _ = draw_part(np.random.default_rng(number), 96)
        (folder / f"{number:02d}.png").write_bytes(encode_png(image))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return draw(tmp_path / "flange", 3)


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


@pytest.mark.parametrize(("text", "size"), [("256", (256, 256)), ("512x320", (320, 512)), ("64X128", (128, 64)), ("0", (0, 0))])
def test_a_size_is_a_side_or_width_by_height(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size  # (height, width)


@pytest.mark.parametrize("text", ["", "x", "256x", "x256", "-256", "2.5", "256 256", "1x2x3", "256px"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a side such as 256, or WIDTHxHEIGHT such as 512x320"):
        parse_size(text)


def test_a_region_is_left_top_width_height() -> None:
    assert parse_roi("1,2,30,40") == Roi(x=1, y=2, width=30, height=40)
    assert parse_roi(" 0, 0,64 ,64") == Roi(0, 0, 64, 64)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "-1,2,3,4", "a,b,c,d", "1.5,2,3,4", "1,2,,4", "1,2,3,²"])
def test_other_regions_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected X,Y,WIDTH,HEIGHT in pixels"):
        parse_roi(text)


def test_the_door_knows_the_backbones_that_there_are() -> None:
    assert tuple(BACKBONES) == door.BACKBONES


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["paint"],
        ["fit", "--data", "x"],
        ["fit", "--data", "x", "--out", "y", "--size", "big"],
        ["fit", "--data", "x", "--out", "y", "--roi", "1,2"],
        ["fit", "--data", "x", "--out", "y", "--backbone", "alexnet"],
        ["fit", "--data", "x", "--out", "y", "--mm-per-pixel", "0"],
        ["fit", "--data", "x", "--out", "y", "--budget-ms", "0"],
        ["fit", "--data", "x", "--out", "y", "--budget-ms", "5", "--coreset", "0.1"],
        ["audit"],
    ],
)
def test_bad_usage_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_bad_input_is_one_line_and_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--data", str(tmp_path / "gone"), "--out", str(tmp_path / "b"), *QUICK]) == 2
    read = capsys.readouterr()
    assert read.err.startswith(f"error: {tmp_path / 'gone'}: no such folder; expected one of")
    assert "Traceback" not in read.err
    assert main(["fit", "--data", str(tmp_path / "gone"), "--out", str(tmp_path / "b"), *QUICK, "--seed", str(2**32)]) == 2
    assert one_line(capsys.readouterr().err) == "error: seed 4294967296, expected 0 to 4294967295"


def test_fit_prints_what_it_chose_from(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--data", str(data), "--out", str(tmp_path / "bundle"), *QUICK]
    assert main(words) == 0
    said = capsys.readouterr().out
    manifest = load_bundle(tmp_path / "bundle").manifest
    choice = manifest.provenance.choice
    assert choice is not None
    assert f"chosen: alpha {manifest.method.alpha:g}, on 240 synthetic defects over {choice.images} good images" in said
    for one in choice.tried:
        assert re.search(
            rf"│ {one.alpha:g} +│ +{100 * one.auroc:.2f} │ +{100 * one.behind:.2f} │ +{100 * one.error:.2f} │", said
        )
    for size in choice.sizes:
        assert re.search(rf"│ {size.rows:,} +│ +{size.alpha:g} │ +{100 * size.auroc:.2f} │", said)


def test_fit_makes_a_bundle_and_says_where(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bundle"
    words = ["fit", "--data", str(data), "--out", str(out), "--mask", str(tmp_path / "a mask.png"), "--mm-per-pixel", "0.1"]
    (tmp_path / "a mask.png").write_bytes(encode_png(np.zeros((96, 96, 3), np.uint8)))
    words += ["--alpha", "0", "--k", "4", "--metric", "euclidean", "--roi", "0,0,96,48", "--recipe", "left flange"]
    words += ["--weights", "none", "--size", "96x48", "--coreset", "1", "--device", "cpu", "--seed", "3"]
    assert main(words) == 0
    read = capsys.readouterr()
    bundle = load_bundle(out)
    assert f"wrote {out} ({len(bundle.bank.rows)} rows, digest {bundle.digest[:12]})" in read.out
    assert "export: 9 golden images, 0 decision flips" in read.out
    assert "untrained resnet18" in read.err
    manifest = bundle.manifest
    assert (manifest.method.alpha, manifest.method.k, manifest.method.metric) == (0.0, 4, "euclidean")
    assert (manifest.input.size, manifest.input.roi, manifest.input.mm_per_pixel) == ((48, 96), (0, 0, 96, 48), 0.1)
    assert len(bundle.bank.rows) == 3 * 6 * 12
    made = manifest.provenance
    assert (made.recipe, made.seed, made.coreset) == ("left flange", 3, 1.0)
    assert made.command.startswith(f"train fit --data {data} --out {out} --mask '{tmp_path}/a mask.png'")


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REB_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nothing answers there
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)


@pytest.mark.usefixtures("no_network")
def test_fit_without_weights_and_network_names_the_way_out(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--data", str(data), "--out", str(tmp_path / "bundle"), "--device", "cpu", "--backbone", "vgg11_bn"]
    assert main(words) == 2
    line = one_line(capsys.readouterr().err)
    assert re.match(r"error: https://download.pytorch.org/models/vgg11_bn-.*: cannot be downloaded", line)
    assert line.endswith("give --weights FILE (.pth, .safetensors or .npz), or --weights none for an untrained network")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.usefixtures("no_network")
def test_audit_without_network_goes_on_with_the_shipped_weights_and_says_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "--data", str(data), "--out", str(tmp_path / "audit.png"), "--device", "cpu"]) in (0, 1)
    said = capsys.readouterr()
    assert re.search(
        r"warning: https://.*resnet18-.*: cannot be downloaded .* learnt from drawn images, which come with", said.err
    )
    assert "weights: drawn (SHA-256 " in said.out


@pytest.mark.parametrize("command", ["fit", "audit"])
def test_a_missing_extra_is_named(
    command: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = door.find_spec
    monkeypatch.setattr(door, "find_spec", lambda name: None if name in ("torch", "jinja2") else usual(name))
    assert main([command, "--data", str(data), "--out", str(tmp_path / "out.png")]) == 2
    expected = "error: torch, jinja2 cannot be imported; install the training part: pip install '.[train]'"
    assert one_line(capsys.readouterr().err) == expected


def test_audit_of_a_clean_folder_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw(tmp_path / "clean", 10)
    sheet = tmp_path / "sheet.png"
    assert main(["audit", "--data", str(data), "--out", str(sheet), *QUICK]) == 0
    assert "nothing suspicious in 10 images" in capsys.readouterr().out
    assert sheet.exists()  # one that says so, in place of an older one that listed findings


def test_audit_of_a_dirtied_folder_exits_with_1_and_draws_the_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw(tmp_path / "dirty", 10)
    (data / "copy.png").write_bytes((data / "03.png").read_bytes())
    (data / "broken.png").write_bytes((data / "04.png").read_bytes()[:500])
    dark = (read_image(data / "05.png") // 4).astype(np.uint8)
    (data / "05.png").write_bytes(encode_png(dark))
    sheet = tmp_path / "new" / "sheet.png"
    assert main(["audit", "--data", str(data), "--out", str(sheet), *QUICK]) == 1
    said = capsys.readouterr().out
    assert "in 12 images" in said
    for problem, name in (("duplicate", "03.png"), ("unreadable", "broken.png"), ("under-exposed", "05.png")):
        assert any(problem in line and name in line for line in said.splitlines()), problem
    assert f"wrote {sheet}" in said
    assert min(read_image(sheet).shape[:2]) > 100


def test_sample_draws_a_product_that_fit_understands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(out: Path, *, seed: int, progress: object) -> None:
        assert seed == 7
        draw(out / "train" / "good", 1)

    monkeypatch.setattr("train.sample.write_sample", small)
    out = tmp_path / "sample"
    assert main(["sample", "--out", str(out), "--seed", "7"]) == 0
    assert f"wrote {open_dataset(out).summary()}" in capsys.readouterr().out


def test_audit_lists_images_that_cannot_be_embedded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw(tmp_path / "mixed", 10)
    (data / "00-tiny.png").write_bytes(encode_png(np.zeros((1, 1, 3), np.uint8)))
    (data / "99-other.png").write_bytes(encode_png(draw_part(np.random.default_rng(50), 128)[0]))
    (data / "broken.png").write_bytes((data / "05.png").read_bytes()[:500])
    sheet = tmp_path / "sheet.png"
    assert main(["audit", "--data", str(data), "--out", str(sheet), *QUICK, "--roi", "10,10,64,64"]) == 1
    said = capsys.readouterr().out
    assert all(name in said for name in ("00-tiny.png", "99-other.png", "broken.png", "wrong size"))
    assert sheet.exists()
    assert main(["fit", "--data", str(data), "--out", str(tmp_path / "b"), *QUICK, "--roi", "10,10,64,64"]) == 2
    complained = capsys.readouterr().err
    assert all(name in complained for name in ("00-tiny.png", "99-other.png", "broken.png"))
    assert "05.png" not in complained
    assert not (tmp_path / "b").exists()


def test_fit_adds_precisions_where_asked_and_says_how_where_not(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--data", str(data), "--out", str(tmp_path / "bundle"), *QUICK, "--k", "3"]
    assert main(words) == 0
    assert "`train export` adds fp16 and int8" in capsys.readouterr().out
    assert main([*words, "--precisions", "int8,fp16"]) == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert [variant.precision for variant in bundle.manifest.variants] == ["fp16", "int8"]
    assert set(bundle.graphs) == {"fp32", *(one.precision for one in bundle.manifest.variants if one.offered)}
    said = capsys.readouterr().out
    assert "precisions, held against fp32" in said
    assert f"digest {bundle.digest[:12]}" in said
