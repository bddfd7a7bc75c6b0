"""The adaptation's training loop: numbers by hand, what trains when, and what survives a killed process or a second one."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickletools
import signal
import socket
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import train.adapt
import train.checkpoint
from engines import EngineError
from engines.images import Image
from tests.fakes import Asked, PaintingMaker, flip_byte
from train import TrainError
from train.adapt import Adapted, Run, adapt
from train.backbones import BACKBONES, build, build_tail
from train.batches import Task, labels_of, passes
from train.kindnet import KindNet, freeze, make_kindnet
from train.sample import draw_part
from train.schedule import Plan, Schedule

ROOT = Path(__file__).parents[1]
SPEC = BACKBONES["resnet18"]
CPU = Run(torch.device("cpu"), identity={"task": "tiny"})
TINY = Schedule("tiny", updates=2, images=6, passes=1, warmup=0, cosine=10)
RESUMED = dataclasses.replace(TINY, updates=8, warmup=5)  # its checkpoint at 4 lies in the warm-up
SHARED = dataclasses.replace(TINY, updates=2, images=24, passes=4, warmup=1)
EXAMINED = 6
BIAS = (0.5, -1.0, 2.0)


def red_or_blue(image: Image, asked: Asked) -> tuple[int, int, int, int]:
    """Paint a square that a few updates teach to tell apart from the other kind's."""
    x, y = np.random.default_rng([asked.seed, asked.draw, ("red", "blue").index(asked.kind)]).integers(0, 40, 2).tolist()
    image[y : y + 24, x : x + 24] = (255, 0, 0) if asked.kind == "red" else (0, 0, 255)
    return x, y, 24, 24


def tiny_images() -> list[Image]:
    return [draw_part(np.random.default_rng(number), 64)[0] for number in range(4)]


def tiny_task(seed: int = 0) -> Task:
    return Task(tiny_images(), PaintingMaker(("red", "blue"), red_or_blue), saliency=None, ignored=None, seed=seed)


def initial_weights(*, tail: bool = True) -> dict[str, Tensor]:
    """As a file would hold them, drawn from other seeds than the runs'."""
    state = build(SPEC, None, seed=11).state_dict()
    return {**state, **build_tail(SPEC, None, seed=12)[0].state_dict()} if tail else state


def adapt_tiny(schedule: Schedule, run: Run = CPU, initial: dict[str, Tensor] | None = None, seed: int = 0) -> Adapted:
    """Adapt to four drawn parts with two kinds of dots on them."""
    train.adapt._EXAMINED = EXAMINED
    clean = torch.from_numpy(np.stack(tiny_images()))
    return adapt(tiny_task(), tiny_task(seed=1), clean, SPEC, initial, schedule, seed, run)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Batches this small gain nothing from threads, which wait for each other on a busy machine."""
    usual, examined = torch.get_num_threads(), train.adapt._EXAMINED
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)
    train.adapt._EXAMINED = examined


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[KindNet]:
    """The networks that are trained, in order."""
    made: list[KindNet] = []

    def note(*arguments: Any) -> tuple[KindNet, bool]:
        network, loaded = make_kindnet(*arguments)
        made.append(network)
        return network, loaded

    monkeypatch.setattr(train.adapt, "make_kindnet", note)
    return made


@pytest.fixture
def known_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network answers BIAS to every picture, until it learns."""

    def with_bias(*arguments: Any) -> tuple[KindNet, bool]:
        network, loaded = make_kindnet(*arguments)
        last = network.head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.tensor(BIAS))
        return network, loaded

    monkeypatch.setattr(train.adapt, "make_kindnet", with_bias)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def program(text: str, folder: Path) -> str:
    """Write a script; gives its path."""
    path = folder / "program.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


def environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


# ---- learning


def test_it_learns_to_tell_good_from_defective() -> None:
    schedule = dataclasses.replace(TINY, updates=20, images=12, cosine=22)
    adapted = adapt_tiny(schedule)
    loss, accuracy = adapted.history.loss, adapted.history.accuracy
    assert len(loss) == len(accuracy) == 20
    assert loss[0] > 0.5
    assert np.mean(loss[-3:]) < 0.3 * loss[0]
    assert np.mean(accuracy[-3:]) > 0.8  # chance is a third
    assert adapted.confusion.shape == (3, 3)
    assert adapted.confusion.sum(dim=1).tolist() == [EXAMINED] * 3
    assert float(adapted.confusion.trace()) / float(adapted.confusion.sum()) > 0.5
    assert 0 < adapted.history.waiting < adapted.history.seconds
    assert not adapted.tail_loaded


def test_what_comes_out_is_a_trunk_that_loads() -> None:
    state = adapt_tiny(TINY).state
    usual = build(SPEC, None, 0).state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {name: tensor.shape for name, tensor in usual.items()}
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    network = build(SPEC, state, 0)
    with torch.inference_mode():
        assert all(torch.isfinite(tap).all() for tap in network(torch.zeros(1, 3, 64, 64)))


def test_the_same_seed_gives_the_same_weights_and_another_others() -> None:
    torch.manual_seed(99)  # whatever the process did before
    first = adapt_tiny(TINY)
    torch.manual_seed(7)
    again, other = adapt_tiny(TINY), adapt_tiny(TINY, seed=5)
    assert same(first.state, again.state)
    assert first.history.loss == again.history.loss
    assert first.history.loss != other.history.loss


@pytest.mark.usefixtures("known_logits")
def test_the_loss_is_binary_cross_entropy_of_every_class_by_hand() -> None:
    history = adapt_tiny(dataclasses.replace(TINY, updates=1, passes=2, images=12)).history
    # a third of the pictures is of each class: -log sigmoid(b) for those, -log(1 - sigmoid(b)) for the others
    by_class = [(math.log1p(math.exp(-bias)) + 2 * math.log1p(math.exp(bias))) / 3 for bias in BIAS]
    assert history.loss == [pytest.approx(sum(by_class) / 3, rel=1e-6)]
    assert history.accuracy == [pytest.approx(1 / 3)]


def test_passes_of_an_update_share_it_by_the_mean_of_their_gradients() -> None:
    schedule = dataclasses.replace(TINY, updates=1, passes=2, images=12, weight_decay=0.01)
    network, _ = make_kindnet(SPEC, None, 3, 0)
    freeze(network, trunk=False, tail=False, statistics=False)
    weight = network.trunk.get_parameter("conv1.weight")
    before, gradients = weight.detach().clone(), []
    for pictures in passes(tiny_task(), Plan(2, 2), range(1), rank=0, processes=1, workers=0):
        network.zero_grad()
        targets = functional.one_hot(labels_of(pictures, 3), 3).float()
        functional.binary_cross_entropy_with_logits(network(pictures), targets).backward()
        assert weight.grad is not None
        gradients.append(weight.grad.clone())
    assert len(gradients) == 2
    expected = (gradients[0] + gradients[1]) / 2 + 0.01 * before
    got = (before - adapt_tiny(schedule).state["conv1.weight"]) / schedule.rate(0)
    assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert not torch.allclose(gradients[0], gradients[1], rtol=0.1)


def test_bfloat16_gives_nearly_the_same_and_float32_weights() -> None:
    schedule = dataclasses.replace(TINY, updates=1)
    exact, mixed = adapt_tiny(schedule), adapt_tiny(schedule, dataclasses.replace(CPU, precision=torch.bfloat16))
    assert mixed.history.loss[0] == pytest.approx(exact.history.loss[0], abs=0.02)
    assert mixed.history.loss != exact.history.loss
    assert {tensor.dtype for tensor in mixed.state.values()} == {torch.float32}


# ---- warm-up


def snapshots(networks: list[KindNet], schedule: Schedule, initial: dict[str, Tensor] | None) -> list[dict[str, Tensor]]:
    """The network's parameters and statistics after each update."""
    states: list[dict[str, Tensor]] = []

    def advance(done: int, total: int, note: str) -> None:
        states.append({name: tensor.clone() for name, tensor in networks[-1].state_dict().items()})

    adapt_tiny(schedule, dataclasses.replace(CPU, advance=advance), initial)
    return states


def part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key.startswith(name)}


@pytest.mark.parametrize("tail", [True, False])
def test_the_backbone_waits_for_the_head(networks: list[KindNet], tail: bool) -> None:
    weights = initial_weights(tail=tail)
    one, two, three = snapshots(networks, dataclasses.replace(TINY, updates=3, warmup=2), weights)
    for state in (one, two):
        assert all(torch.equal(state[f"trunk.{name}"], weights[name]) for name in build(SPEC, None, 0).state_dict())
    assert not torch.equal(three["trunk.conv1.weight"], two["trunk.conv1.weight"])
    assert not torch.equal(three["trunk.bn1.weight"], two["trunk.bn1.weight"])
    assert torch.equal(three["trunk.bn1.running_mean"], weights["bn1.running_mean"])
    assert same(part(one, "tail"), part(two, "tail")) is tail  # one that had to start at random trains at once
    assert not same(part(two, "tail"), part(three, "tail"))
    assert not same(part(one, "head"), part(two, "head"))


def test_kept_early_layers_stay_while_those_behind_them_learn() -> None:
    weights = initial_weights()
    state = adapt_tiny(dataclasses.replace(TINY, keep_early=True), initial=weights).state
    early = {name for name in state if name.startswith(("conv1", "bn1", "layer1"))}
    assert early
    for name, tensor in state.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(tensor, weights[name].float()) == (name in early), name


def test_an_untrained_network_has_no_early_layers_to_keep() -> None:
    assert same(adapt_tiny(dataclasses.replace(TINY, keep_early=True)).state, adapt_tiny(TINY).state)


def test_the_share_of_the_trained_weights_is_kept_and_the_rest_is_what_training_began_from() -> None:
    weights = initial_weights()
    trained = adapt_tiny(TINY, initial=weights).state
    averaged = adapt_tiny(dataclasses.replace(TINY, share=0.25), initial=weights).state
    for name, tensor in averaged.items():
        assert torch.allclose(tensor, 0.75 * weights[name].float() + 0.25 * trained[name], atol=1e-6), name
    assert not torch.equal(trained["conv1.weight"], weights["conv1.weight"])
    untrained = adapt_tiny(dataclasses.replace(TINY, share=0.25)).state  # began from nothing worth keeping
    assert same(untrained, adapt_tiny(TINY).state)


def test_an_untrained_network_trains_from_the_first_update(networks: list[KindNet]) -> None:
    (state,) = snapshots(networks, dataclasses.replace(TINY, updates=1, warmup=1), None)
    assert not torch.equal(state["trunk.conv1.weight"], build(SPEC, None, 0).state_dict()["conv1.weight"])


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "wide_resnet50_2"])  # the largest is the last with more blocks
def test_every_backbone_trains(name: str) -> None:
    clean = torch.from_numpy(np.stack(tiny_images()))
    spec = BACKBONES[name]
    initial = build(spec, None, 5).state_dict()
    schedule = dataclasses.replace(TINY, updates=1, learning_rate=0.001)
    adapted = adapt(tiny_task(), tiny_task(seed=1), clean, spec, initial, schedule, 0, CPU)
    assert all(math.isfinite(loss) for loss in adapted.history.loss)
    network = build(spec, adapted.state, 0)  # what comes back loads where it came from
    first = next(iter(network.state_dict()))
    assert not torch.equal(network.state_dict()[first], initial[first])


# ---- what is said


def test_progress_and_logs_tell_every_update() -> None:
    advanced: list[tuple[int, int, str]] = []
    logged: list[tuple[int, dict[str, float]]] = []
    said: list[str] = []
    run = dataclasses.replace(
        CPU,
        say=said.append,
        advance=lambda done, total, note: advanced.append((done, total, note)),
        log=lambda update, values: logged.append((update, dict(values))),
    )
    schedule = dataclasses.replace(TINY, updates=3)
    history = adapt_tiny(schedule, run).history
    assert [(done, total) for done, total, _ in advanced] == [(1, 3), (2, 3), (3, 3)]
    assert advanced[0][2] == f"loss {history.loss[0]:.3f}, {100 * history.accuracy[0]:.0f} % right"
    assert [update for update, _ in logged] == [0, 1, 2]
    for update, values in logged:
        assert values.keys() == {"loss", "right/all", "learning_rate", "right/good", "right/red", "right/blue"}
        assert values["loss"] == history.loss[update]
        assert values["right/all"] == history.accuracy[update]
        kinds = [values[f"right/{name}"] for name in ("good", "red", "blue")]
        assert sum(kinds) / 3 == pytest.approx(values["right/all"])
        assert values["learning_rate"] == schedule.rate(update)
    assert said[0] == "adapting for 3 updates of 6 images, 6 at a time"
    assert said[-1].startswith(f"update 3 of 3: loss {history.loss[-1]:.3f}, ")


def test_little_memory_takes_more_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.adapt, "bytes_to_train", lambda network, pictures: 1000)
    monkeypatch.setattr(train.adapt, "available_bytes", lambda device: 5000)  # of which a part stays free: room for 3
    schedule, said = dataclasses.replace(TINY, updates=1, images=18), list[str]()
    assert adapt_tiny(schedule, dataclasses.replace(CPU, say=said.append)).plan == Plan(passes=2, normals=3)
    assert said[1].startswith("warning: the preset has 1 passes an update, this run 2, for memory or to share them")
    monkeypatch.setattr(train.adapt, "available_bytes", lambda device: 1500)
    with pytest.raises(TrainError, match="memory for fewer than 2 normals"):
        adapt_tiny(schedule)


# ---- training that fails


def test_a_loss_that_is_no_number_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.adapt, "_CHECKPOINT_UPDATES", 2)
    run = dataclasses.replace(CPU, checkpoint=tmp_path / "checkpoint")
    with pytest.raises(
        TrainError, match=r"the loss is nan at update 2, expected a finite number: .* diverged; .*train defects"
    ):
        adapt_tiny(dataclasses.replace(TINY, updates=5, learning_rate=1e30), run)
    assert not (tmp_path / "checkpoint").exists()


def test_weights_that_the_last_update_ruined_are_refused() -> None:
    with pytest.raises(TrainError, match=r"the weights after update 1 are not finite numbers: the training diverged"):
        adapt_tiny(dataclasses.replace(TINY, updates=1, learning_rate=1e38))


@pytest.mark.usefixtures("known_logits")
def test_one_answer_to_everything_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.adapt, "_COLLAPSED_UPDATES", 3)
    stuck = dataclasses.replace(TINY, updates=4, warmup=2, learning_rate=0.0, final_learning_rate=0.0)
    assert adapt_tiny(stuck).history.one_answer == 2  # the warm-up does not count
    with pytest.raises(TrainError, match=r"one answer to everything for 3 updates, up to update 5, .* begin from trained"):
        adapt_tiny(dataclasses.replace(stuck, updates=9))


# ---- going on after an interruption

_VICTIM = """
    import dataclasses, sys
    from pathlib import Path
    import torch
    import train.adapt
    from tests.test_adapt import CPU, RESUMED, adapt_tiny, initial_weights

    def advance(done, total, note):
        if done == 5:
            print("at 5", flush=True)
            sys.stdin.read()

    torch.set_num_threads(1)
    train.adapt._CHECKPOINT_UPDATES = 2
    run = dataclasses.replace(CPU, checkpoint=Path(sys.argv[1]), advance=advance)
    adapt_tiny(RESUMED, run, initial_weights())
"""


def test_a_killed_process_goes_on_to_the_same_weights_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "work" / "checkpoint"
    words = [sys.executable, program(_VICTIM, tmp_path), str(checkpoint)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "at 5\n"
        victim.kill()
    assert victim.returncode == -signal.SIGKILL
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint"]

    said: list[str] = []
    monkeypatch.setattr(train.adapt, "_CHECKPOINT_UPDATES", 2)
    resumed = dataclasses.replace(CPU, checkpoint=checkpoint, resume=True, say=said.append)
    gone_on = adapt_tiny(RESUMED, resumed, initial_weights())
    assert said[0] == "going on after update 4 of 8"
    whole = adapt_tiny(RESUMED, CPU, initial_weights())
    assert same(gone_on.state, whole.state)
    assert gone_on.history.loss == whole.history.loss
    assert gone_on.history.accuracy == whole.history.accuracy
    assert torch.equal(gone_on.confusion, whole.confusion)
    assert gone_on.plan == whole.plan
    # a process that dies between the last update and its result has a checkpoint too
    assert same(adapt_tiny(RESUMED, resumed, initial_weights()).state, whole.state)
    assert said[-2] == "going on after update 8 of 8"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after update 2 of 2; not to be written to."""
    path = tmp_path_factory.mktemp("saved") / "checkpoint"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.adapt, "_CHECKPOINT_UPDATES", 2)
        adapt_tiny(TINY, dataclasses.replace(CPU, checkpoint=path))
    return path


def resume(checkpoint: Path | None, **changed: Any) -> Adapted:
    return adapt_tiny(TINY, dataclasses.replace(CPU, checkpoint=checkpoint, resume=True, **changed))


def test_a_checkpoint_of_other_settings_is_refused(saved: Path) -> None:
    with pytest.raises(TrainError, match=r"is of another run \(task tiny, now other; size nothing, now 3\); give the same"):
        resume(saved, identity={"task": "other", "size": 3})
    assert saved.is_file()


def test_a_checkpoint_that_the_processes_cannot_share_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.adapt, "processes_of_run", lambda: (0, 2))
    with pytest.raises(TrainError, match="has 1 passes an update, which 2 processes cannot share equally"):
        resume(saved)


def test_no_checkpoint_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    for checkpoint in (tmp_path / "none", None):
        with pytest.raises(TrainError, match=r"no (such )?checkpoint to go on from; leave --resume out to start afresh"):
            resume(checkpoint)


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise EngineError(f"{path}: could not be written (No space left on device)")

    monkeypatch.setattr(train.checkpoint, "write_file", full)
    monkeypatch.setattr(train.adapt, "_CHECKPOINT_UPDATES", 1)
    said: list[str] = []
    run = dataclasses.replace(CPU, checkpoint=tmp_path / "checkpoint", say=said.append)
    assert same(adapt_tiny(TINY, run).state, adapt_tiny(TINY).state)
    assert len([line for line in said if "No space left on device); going on without a checkpoint of update" in line]) == 2


def test_slow_updates_are_saved_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.adapt, "_CHECKPOINT_S", -1.0)
    adapt_tiny(TINY, dataclasses.replace(CPU, checkpoint=tmp_path / "checkpoint"))
    assert (tmp_path / "checkpoint").is_file()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, empty, flip_byte])
def test_a_damaged_checkpoint_is_refused(saved: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_bytes(saved.read_bytes())
    damage(checkpoint)
    with pytest.raises(TrainError, match=r"checkpoint: not a checkpoint that can be read \(.+\); remove it and start afresh"):
        resume(checkpoint)
    assert checkpoint.is_file()


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    checkpoint, sprung = tmp_path / "checkpoint", tmp_path / "sprung"
    torch.save({"identity": Trap(sprung)}, checkpoint)
    with zipfile.ZipFile(checkpoint) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        steps = list(pickletools.genops(archive.read(name)))
    assert "REDUCE" in {step.name for step, _, _ in steps}  # the file would call
    assert str(sprung) in [argument for _, argument, _ in steps]  # mkdir, with this name
    with pytest.raises(TrainError, match=r"not a checkpoint that can be read \(Weights only load failed"):
        resume(checkpoint)
    assert not sprung.exists()


# ---- several processes

_ALONE = """
    from train.processes import processes_of_run, torchrun
    import torch
    from torch import distributed

    with torchrun("cpu"):
        if processes_of_run()[0] == 0:
            raise OSError("disk full")
        distributed.all_reduce(torch.ones(1))
"""


def test_a_process_that_fails_alone_does_not_leave_the_others_waiting(tmp_path: Path) -> None:
    done = launch(_ALONE, tmp_path)
    assert done.returncode != 0
    assert "disk full" in done.stderr


_PROCESSES = """
    import dataclasses, json, sys
    from pathlib import Path
    import torch
    import train.adapt
    from tests.test_adapt import CPU, SHARED, adapt_tiny, initial_weights
    from train.processes import torchrun

    torch.set_num_threads(1)
    with torchrun("auto") as device:
        rank, processes = train.adapt.processes_of_run()
        # the second process has room for two normals a pass alone, the first for all
        train.adapt.bytes_to_train = lambda network, pictures: 1000
        train.adapt.available_bytes = lambda device: 10**9 if rank == 0 else 3000
        schedule = dataclasses.replace(SHARED, passes=2)
        adapted = adapt_tiny(schedule, dataclasses.replace(CPU, device=torch.device(device)), initial_weights(tail=False))
        told = {"loss": adapted.history.loss, "accuracy": adapted.history.accuracy, "passes": adapted.plan.passes}
        Path(sys.argv[1], f"{rank}-of-{processes}.json").write_text(json.dumps(told))
        torch.save(adapted.state, Path(sys.argv[1], f"{rank}.pt"))
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def launch(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    words = [*launcher, program(text, folder), str(folder)]
    surroundings = {**environment(), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(words, env=surroundings, capture_output=True, text=True, timeout=300, check=False)


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    done = launch(_PROCESSES, tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}-of-2.json").read_text()) for rank in (0, 1))
    alone = adapt_tiny(SHARED, CPU, initial_weights(tail=False))
    assert first == second  # of all passes, not of a process's own
    assert first["passes"] == alone.plan.passes == 4  # as the process with the least memory needs
    assert first["loss"] == pytest.approx(alone.history.loss, abs=1e-4)
    assert first["accuracy"] == pytest.approx(alone.history.accuracy)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert same(states[0], states[1])
    began = initial_weights()["conv1.weight"]
    moved = alone.state["conv1.weight"] - began
    assert torch.allclose(states[0]["conv1.weight"] - began, moved, atol=0.01 * float(moved.abs().max()))
