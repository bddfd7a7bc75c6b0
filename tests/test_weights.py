"""Weights come from files and addresses that nobody vouches for: they are read without running code, or refused."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engines.bundle import pack_npz
from train import TrainError
from train.backbones import BACKBONES, build
from train.weights import Weights, find_weights

SPEC = BACKBONES["resnet18"]
STATE = {"conv1.weight": torch.arange(12.0).reshape(3, 4), "bn1.bias": torch.tensor([0.5, -1.0])}


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, no folder of weights, no proxy."""
    monkeypatch.delenv("REB_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def write(path: Path, state: dict[str, Tensor] | None = None) -> Path:
    state = STATE if state is None else state
    if path.suffix == ".npz":
        path.write_bytes(pack_npz({name: tensor.numpy() for name, tensor in state.items()}))
    elif path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def found(source: str | None) -> Weights:
    weights = find_weights(source, SPEC)
    assert weights is not None
    return weights


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".pt"])
def test_every_format_gives_the_same_state_and_the_files_hash(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"mine{suffix}")
    weights = found(str(path))
    assert weights.state.keys() == STATE.keys()
    assert all(torch.equal(weights.state[name], STATE[name]) for name in STATE)
    assert weights.source == path.name
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights.absent_parts(SPEC) == ("layer1", "layer2", "layer3", "layer4", "fc")


def test_none_is_an_untrained_network_whatever_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "resnet18.npz")
    monkeypatch.setenv("REB_WEIGHTS", str(tmp_path))
    assert find_weights("none", SPEC) is None


class Exploit:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    proof, path = tmp_path / "executed", tmp_path / "evil.pth"
    torch.save({"conv1.weight": Exploit(proof)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(TrainError, match="holds more than tensors, which could run code; give --weights FILE") as caught:
        found(str(path))
    assert "weights_only" not in str(caught.value)  # no hint how to run it after all
    assert not proof.exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    proof, path = tmp_path / "executed", tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"conv1.weight": Exploit(proof)}, protocol=2))
    with pytest.raises(TrainError, match=r"evil\.pt"):
        found(str(path))
    assert not proof.exists()


def test_an_array_of_objects_is_refused_and_not_run(tmp_path: Path) -> None:
    proof, path = tmp_path / "executed", tmp_path / "evil.npz"
    np.savez(path, weight=np.array([Exploit(proof)], dtype=object))
    with pytest.raises(TrainError, match="cannot be read as weights"):
        found(str(path))
    assert not proof.exists()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"this is a text file, not weights\n" * 9])
def test_files_of_another_content_are_refused_by_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"odd{suffix}"
    path.write_bytes(content)
    with pytest.raises(TrainError, match=f"odd{suffix}: (cannot be read as weights|damaged)") as caught:
        found(str(path))
    assert "\n" not in str(caught.value)
    assert "--weights none" in str(caught.value)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_half_a_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"half{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(TrainError, match=f"half{suffix}: (cannot be read as weights|damaged)"):
        found(str(path))


def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    torch.save({}, tmp_path / "empty.pth")
    torch.save({"model": {"conv1.weight": torch.zeros(2)}, "epoch": 3}, tmp_path / "checkpoint.pth")
    for name in ("list.pth", "empty.pth", "checkpoint.pth"):
        with pytest.raises(TrainError, match=f"{name}: not a state dict of tensors"):
            found(str(tmp_path / name))


def test_unknown_suffix_and_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.onnx").write_bytes(b"x")
    with pytest.raises(TrainError, match=r"suffix '.onnx', expected one of .npz, .safetensors, .pth, .pt"):
        found(str(tmp_path / "weights.onnx"))
    with pytest.raises(TrainError, match="no such weights file; give --weights FILE"):
        found(str(tmp_path / "gone.pth"))


def test_the_folder_in_the_environment_is_looked_into_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    write(folder / "wide_resnet50_2.npz")
    (folder / "resnet18-notes.txt").write_text("no weights")
    write(folder / "resnet18-mine.npz")
    monkeypatch.setenv("REB_WEIGHTS", str(folder))
    assert found(None).source == "resnet18-mine.npz"


# ---- download, from a server on this machine


def as_bytes(state: dict[str, Tensor] | None = None) -> bytes:
    buffer = io.BytesIO()
    torch.save(STATE if state is None else state, buffer)
    return buffer.getvalue()


class Server:
    """Serves what `files` holds; notes the paths asked for. `declared` is a Content-Length that may be a lie."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.declared: dict[str, int] = {}
        self.chunked: set[str] = set()
        self.asked: list[str] = []
        handler = functools.partial(_Handler, self)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, owner: Server, *arguments: object) -> None:
        self._owner = owner
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path = self.path
        self._owner.asked.append(path)
        data = self._owner.files.get(path.split("?")[0])
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        if path in self._owner.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % (len(data) + 50) + data)
            return
        self.send_header("Content-Length", str(self._owner.declared.get(path, len(data))))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "home" / "hub" / "checkpoints"


def cached(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.is_dir() else []


def test_a_download_is_checked_kept_and_not_repeated(server: Server, cache: Path) -> None:
    data = as_bytes()
    name = f"tiny-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    server.files[f"/{name}"] = data
    steps: list[tuple[int, int]] = []
    weights = find_weights(f"{server.url}/{name}", SPEC, lambda done, total: steps.append((done, total)))
    assert weights is not None
    assert torch.equal(weights.state["conv1.weight"], STATE["conv1.weight"])
    assert weights.source == f"{server.url}/{name}"
    assert steps[-1] == (len(data), len(data))
    assert cached(cache) == [name]
    assert found(f"{server.url}/{name}").sha256 == hashlib.sha256(data).hexdigest()
    assert server.asked == [f"/{name}"]


def test_a_wrong_hash_is_refused_and_nothing_is_kept(server: Server, cache: Path) -> None:
    server.files["/tiny-00000000.pth"] = as_bytes()
    begins = hashlib.sha256(as_bytes()).hexdigest()[:8]
    with pytest.raises(TrainError, match=f"SHA-256 begins {begins}, expected 00000000"):
        found(f"{server.url}/tiny-00000000.pth")
    assert cached(cache) == []


def test_a_cached_file_that_was_damaged_is_refused(server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "tiny-0123abcd.pth").write_bytes(as_bytes())
    with pytest.raises(TrainError, match=r"tiny-0123abcd.pth: SHA-256 begins .*, expected 0123abcd; delete the file"):
        found(f"{server.url}/tiny-0123abcd.pth")
    assert server.asked == []


def test_files_of_one_name_from_two_addresses_are_two_files(server: Server, cache: Path) -> None:
    server.files["/a/model.pth"] = as_bytes()
    server.files["/b/model.pth"] = as_bytes({"conv1.weight": torch.ones(1)})
    assert found(f"{server.url}/a/model.pth").state.keys() == STATE.keys()
    assert found(f"{server.url}/b/model.pth").state.keys() == {"conv1.weight"}
    assert len(cached(cache)) == 2
    found(f"{server.url}/a/model.pth")
    assert server.asked == ["/a/model.pth", "/b/model.pth"]


def test_a_query_is_no_part_of_the_name(server: Server) -> None:
    server.files["/model.pth"] = as_bytes()
    assert found(f"{server.url}/model.pth?download=1").state.keys() == STATE.keys()


def test_a_transfer_that_breaks_off_is_refused_and_nothing_is_kept(server: Server, cache: Path) -> None:
    data = as_bytes()
    server.files["/model.pth"] = data
    server.declared["/model.pth"] = len(data) + 1000
    with pytest.raises(TrainError, match=f"got {len(data)} of {len(data) + 1000} bytes; try again"):
        found(f"{server.url}/model.pth")
    server.files["/chunked.pth"] = data
    server.chunked.add("/chunked.pth")
    with pytest.raises(TrainError, match=r"chunked.pth: cannot be downloaded \("):
        found(f"{server.url}/chunked.pth")
    assert cached(cache) == []


def test_an_interrupted_download_leaves_nothing(server: Server, cache: Path) -> None:
    server.files["/model.pth"] = as_bytes()

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_weights(f"{server.url}/model.pth", SPEC, interrupt)
    assert cached(cache) == []


def test_what_cannot_be_reached_names_the_remedy(server: Server) -> None:
    with pytest.raises(
        TrainError, match=r"gone.pth: cannot be downloaded \(Not Found\); give --weights FILE .* --weights none"
    ):
        found(f"{server.url}/gone.pth")
    server.close()
    with pytest.raises(TrainError, match=r"cannot be downloaded \(.*refused.*\); give --weights FILE .* --weights none"):
        found(f"{server.url}/model.pth")


def test_an_address_without_a_weights_file_is_refused_before_it_is_asked(server: Server) -> None:
    for path in ("/", "/models", "/model.zip", "/.."):
        with pytest.raises(TrainError, match=r"suffix '.*', expected one of .npz"):
            found(server.url + path)
    assert server.asked == []


def test_without_a_source_torchvisions_published_file_is_asked_for(server: Server) -> None:
    data = as_bytes()
    name = f"resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    server.files[f"/{name}"] = data
    spec = replace(SPEC, url=f"{server.url}/{name}")
    weights = find_weights(None, spec)
    assert weights is not None
    assert weights.source == spec.url


# ---- weights that come with the package


def test_the_shipped_weights_fit_and_are_small() -> None:
    spec = BACKBONES["resnet18"]
    weights = find_weights("drawn", spec)
    assert weights is not None
    assert (weights.source, weights.instead_of, weights.adaptation) == ("drawn", None, None)
    assert {tensor.dtype for tensor in weights.state.values()} == {torch.float16}
    assert 2 * sum(tensor.numel() for tensor in weights.state.values()) < 6e6
    network = build(spec, weights.state, 0)
    fine, coarse = network(torch.zeros(1, 3, 64, 64))
    assert (fine.dtype, fine.shape, coarse.shape) == (torch.float32, (1, 128, 8, 8), (1, 256, 4, 4))


def test_they_stand_in_where_the_published_ones_cannot_be_reached_and_say_why(server: Server) -> None:
    spec = replace(SPEC, name="resnet18", url=f"{server.url}/resnet18-01234567.pth")
    weights = find_weights(None, spec)
    assert weights is not None
    assert weights.source == "drawn"
    assert weights.instead_of is not None
    assert weights.instead_of.startswith(f"{spec.url}: cannot be downloaded (Not Found)")


def test_they_do_not_stand_in_for_a_file_with_a_wrong_hash_nor_for_an_address_that_was_asked_for(server: Server) -> None:
    server.files["/resnet18-01234567.pth"] = as_bytes()
    spec = replace(SPEC, name="resnet18", url=f"{server.url}/resnet18-01234567.pth")
    with pytest.raises(TrainError, match="SHA-256 begins"):
        find_weights(None, spec)
    with pytest.raises(TrainError, match="cannot be downloaded"):
        find_weights(f"{server.url}/gone.pth", spec)


def test_a_backbone_without_shipped_weights_says_which_has_some() -> None:
    with pytest.raises(TrainError, match="no drawn weights for vgg11_bn, there are some for: resnet18; give --weights FILE"):
        find_weights("drawn", BACKBONES["vgg11_bn"])
