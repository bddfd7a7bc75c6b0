"""Self-supervised adaptation: the backbone learns to tell a product's good images from synthetic defects of six kinds.

Lyu, Mo and Wong, arXiv 2308.12577: one-vs-rest binary cross-entropy over the kinds of defect and the good image, SGD with
a cosine rate, the backbone frozen at first. Afterwards the head is thrown away: what is kept is the trunk, up to the taps
that embeddings are made of.

Batch norm in the trunk keeps the statistics that it came with, while its weights train. Statistics of one product, of a batch
or of the whole set, would blow up the channels that the product hardly uses, and nearest neighbours would compare noise. The
head and a tail that starts at random, which no embedding sees, normalise by the batch. A trunk that was never trained has no
statistics to keep: it normalises by the batch, and at the end takes the statistics of the good images as the station sees them.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from engines import EngineError
from train import TrainError
from train.backbones import BackboneSpec
from train.batches import Task, labels_of, passes
from train.checkpoint import load_checkpoint, save_checkpoint
from train.kindnet import KindNet, bytes_to_train, freeze, make_kindnet, take_statistics
from train.processes import available_bytes, processes_of_run
from train.schedule import Plan, Schedule

_CHECKPOINT_UPDATES, _CHECKPOINT_S = 20, 300.0  # whichever comes first
_COLLAPSED_UPDATES = 20  # in a row after the warm-up with one answer to everything
_ONE_ANSWER = 0.99
_EXAMINED = 64  # normals
_RESERVE = 0.7  # of the memory at hand that a pass may take
_STARVED = 0.1  # of the time that a GPU may wait for pictures before a person hears of it


class TrainingFailedError(TrainError):
    """A training that came to nothing, and that no checkpoint of it would save."""


@dataclass(frozen=True)
class Run:
    """Where and how an adaptation computes.

    Attributes:
        precision: torch.bfloat16 (mixed) or torch.float32.
        workers: processes that draw pictures ahead; 0 draws in this one.
        checkpoint: file to save to every few updates; None saves nothing.
        resume: go on from that file.
        identity: what must be equal for that: everything that the result depends on.
        say: one line for a person.
        advance: progress (updates done, in all, a note).
        log: called with (update, {name: value}) after every update; None logs nothing.
    """

    device: torch.device
    precision: torch.dtype = torch.float32
    workers: int = 0
    checkpoint: Path | None = None
    resume: bool = False
    identity: Mapping[str, object] = field(default_factory=dict)
    say: Callable[[str], None] = lambda line: None
    advance: Callable[[int, int, str], None] = lambda done, total, note: None
    log: Callable[[int, dict[str, float]], None] | None = None


@dataclass
class History:
    """What an adaptation has seen so far.

    Attributes:
        loss, accuracy: mean loss and share of right answers of every update.
        seconds, waiting: spent in all, and of that for pictures.
        one_answer: updates in a row in which one class had all the answers.
    """

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    seconds: float = 0.0
    waiting: float = 0.0
    one_answer: int = 0


@dataclass(frozen=True)
class _Kept:
    """What a checkpoint holds the state of."""

    network: KindNet
    optimiser: torch.optim.Optimizer


@dataclass(frozen=True)
class _Seen:
    """One update: mean loss, answers int64 (classes, classes) by true class, and the time that it took."""

    loss: float
    answers: Tensor
    seconds: float
    waited: float


@dataclass(frozen=True)
class Adapted:
    """An adapted trunk's state dict, float32 on the CPU, and how it came about.

    Attributes:
        tail_loaded: False where the stages after the taps had to start at random.
        confusion: int (classes, classes), rows true classes, columns answers, on the examination; of the network as it was
            trained, before its weights are averaged with the initial ones.
    """

    state: dict[str, Tensor]
    plan: Plan
    history: History
    tail_loaded: bool
    confusion: Tensor


def adapt(
    task: Task,
    examination: Task,
    clean: Tensor,
    spec: BackboneSpec,
    initial: dict[str, Tensor] | None,
    schedule: Schedule,
    seed: int,
    run: Run,
) -> Adapted:
    """Train a backbone on a task.

    Under `torchrun` every process calls this with the same arguments; the passes of an update are dealt out to them.

    Args:
        task: what to train on.
        examination: the same classes, on images that training does not see where there are such.
        clean: uint8 (n, h, w, 3) good images, that an untrained network's batch-norm statistics are taken on at the end.
        spec, initial: the backbone and the weights to begin from; None for an untrained network.
        schedule, seed, run: how long, with what random numbers, and where.

    Raises:
        TrainingFailedError: a loss that is not a finite number, or one answer to everything.
        TrainError: a checkpoint that cannot be read or is of another run.
    """
    network, tail_loaded = make_kindnet(spec, initial, len(task.classes), seed)
    network.to(run.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    optimiser = torch.optim.SGD(
        network.parameters(), schedule.learning_rate, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )
    kept = _Kept(network, optimiser)
    rank, processes = processes_of_run()
    if run.resume:
        first, plan, history = _restore(run, kept)
        run.say(f"going on after update {first} of {schedule.updates}")
    else:
        first, plan, history = 0, schedule.plan(len(task.classes), processes, _most_normals(network, task, run)), History()
    images = plan.normals * len(task.classes)
    run.say(f"adapting for {schedule.updates} updates of {plan.passes * images} images, {images} at a time")
    if plan.passes > schedule.passes:
        run.say(
            f"warning: the preset has {schedule.passes} passes an update, this run {plan.passes}, for memory or to share them"
            f" among processes: batch norm sees {images} images at a time, and the weights will differ from other machines'"
        )
    batches = passes(
        task,
        plan,
        range(first, schedule.updates),
        rank=rank,
        processes=processes,
        workers=run.workers,
        pinned=run.device.type == "cuda",
    )
    trained = initial is not None
    model: nn.Module | None = None
    saved = time.monotonic()
    with _as_precise_as_asked(run):
        for update in range(first, schedule.updates):
            if model is None or update == schedule.warmup:
                warming = update < schedule.warmup
                freeze(
                    network,
                    trunk=warming and trained,
                    tail=warming and tail_loaded,
                    statistics=trained,
                    early=schedule.keep_early and trained,
                )
                model = DistributedDataParallel(network, broadcast_buffers=False) if processes > 1 else network
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(update)
            seen = _update(model, optimiser, batches, plan.passes // processes, len(task.classes), run)
            _note(history, seen, update, schedule)
            _tell(run, history, seen, update, schedule, task.classes)
            due = (update + 1) % _CHECKPOINT_UPDATES == 0 or time.monotonic() - saved > _CHECKPOINT_S
            if rank == 0 and run.checkpoint is not None and due:
                _save(run, run.checkpoint, update + 1, plan, history, kept)
                saved = time.monotonic()
    confusion = _examine(network.eval(), examination, run)
    if not trained:
        take_statistics(network, clean)
    state = {name: tensor.detach().float().cpu() for name, tensor in network.trunk.state_dict().items()}
    if initial is not None:
        state = {name: torch.lerp(initial[name].float(), state[name], schedule.share) for name in state if name in initial}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        raise TrainingFailedError(_diverged(f"the weights after update {schedule.updates} are not finite numbers"))
    return Adapted(state, plan, history, tail_loaded, confusion)


def _update(
    model: nn.Module, optimiser: torch.optim.Optimizer, batches: Iterator[Tensor], count: int, classes: int, run: Run
) -> _Seen:
    """One step of the optimiser on `count` passes of this process."""
    begun = time.monotonic()
    waited = 0.0
    loss_sum = torch.zeros((), device=run.device)
    answers = torch.zeros(classes * classes, dtype=torch.int64, device=run.device)
    optimiser.zero_grad(set_to_none=True)
    for number in range(count):
        asked = time.monotonic()
        pictures = _next(batches)
        waited += time.monotonic() - asked
        labels = labels_of(pictures, classes).to(run.device)
        with _gradients_travel(model, number + 1 == count):
            with _mixed(run):
                logits = model(pictures.to(run.device, non_blocking=True))
            loss = functional.binary_cross_entropy_with_logits(logits.float(), functional.one_hot(labels, classes).float())
            (loss / count).backward()
        loss_sum += loss.detach() / count
        answers += torch.bincount(classes * labels + logits.argmax(dim=1), minlength=classes * classes)
    optimiser.step()
    _, processes = processes_of_run()
    if processes > 1:
        distributed.all_reduce(loss_sum)
        distributed.all_reduce(answers)
    loss_mean = float(loss_sum) / processes  # waits for the device, so the clock below is right
    return _Seen(loss_mean, answers.reshape(classes, classes).cpu(), time.monotonic() - begun, waited)


@contextlib.contextmanager
def _as_precise_as_asked(run: Run) -> Iterator[None]:
    """float32 is not TF32, which cuDNN would take for it; and memory that runs out is an answer, not a traceback."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=run.precision != torch.float32):
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise TrainError(
                f"{run.device}: out of memory ({str(error).splitlines()[0]}); end what else runs there and go on with --resume,"
                " or take a smaller --size"
            ) from None


def _next(batches: Iterator[Tensor]) -> Tensor:
    try:
        return next(batches)
    except RuntimeError as error:  # how a DataLoader says that a worker died, or raised
        reason = str(error).strip().splitlines()[-1]
        raise TrainError(
            f"pictures cannot be drawn ({reason}); where workers run out of shared memory, give fewer (--workers 0 for none) or"
            " more of it (a container's --shm-size)"
        ) from None


def _gradients_travel(model: nn.Module, now: bool) -> contextlib.AbstractContextManager[object]:
    """Gradients go between processes once an update, with its last pass."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not now else contextlib.nullcontext()


def _mixed(run: Run) -> torch.autocast:
    return torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == torch.bfloat16)


def _note(history: History, seen: _Seen, update: int, schedule: Schedule) -> None:
    """Add an update to the history; stop when nothing good can come of going on."""
    if not math.isfinite(seen.loss):
        raise TrainingFailedError(_diverged(f"the loss is {seen.loss} at update {update + 1}, expected a finite number"))
    history.loss.append(seen.loss)
    history.accuracy.append(float(seen.answers.trace() / seen.answers.sum()))
    history.seconds += seen.seconds
    history.waiting += seen.waited
    share = float(seen.answers.sum(dim=0).max() / seen.answers.sum())
    history.one_answer = history.one_answer + 1 if update >= schedule.warmup and share >= _ONE_ANSWER else 0
    if history.one_answer >= _COLLAPSED_UPDATES:
        raise TrainingFailedError(
            f"the network gave one answer to everything for {history.one_answer} updates, up to update {update + 1}, loss"
            f" {seen.loss:.3f}: it learns nothing from these images; nothing was written. Look at the defects that it is"
            " shown (train defects); if they can be seen there, begin from trained weights"
        )


def _diverged(what: str) -> str:
    return (
        f"{what}: the training diverged; nothing was written. Look at the images (train defects), and use weights that suit"
        " them or --precision float32"
    )


def _tell(run: Run, history: History, seen: _Seen, update: int, schedule: Schedule, classes: tuple[str, ...]) -> None:
    loss, right = history.loss[-1], history.accuracy[-1]
    each = (100 * seen.answers.diagonal() / seen.answers.sum(dim=1)).tolist()
    run.advance(update + 1, schedule.updates, f"loss {loss:.3f}, {100 * right:.0f} % right")
    if run.log is not None:
        kinds = {f"right/{name}": value / 100 for name, value in zip(classes, each, strict=True)}
        run.log(update, {"loss": loss, "right/all": right, "learning_rate": schedule.rate(update), **kinds})
    done, last = update + 1, update + 1 == schedule.updates
    if done % max(1, schedule.updates // 10) == 0 or last:
        kinds_line = ", ".join(f"{name} {value:.0f}" for name, value in zip(classes, each, strict=True))
        left = (schedule.updates - done) * history.seconds / done
        run.say(
            f"update {done} of {schedule.updates}: loss {loss:.3f}, {100 * right:.0f} % right ({kinds_line});"
            f" {left / 60:.1f} min left"
        )
    if last and run.device.type == "cuda" and history.waiting > _STARVED * history.seconds:
        run.say(
            f"the GPU waited for pictures {100 * history.waiting / history.seconds:.0f} % of the time:"
            f" give more than {run.workers} workers (--workers) if there are cores for them"
        )


def _most_normals(network: KindNet, task: Task, run: Run) -> int:
    """How many normals, each with its defects, a pass can take in the memory at hand."""
    pictures = torch.from_numpy(task[0]).to(run.device)
    with _mixed(run):
        needed = bytes_to_train(network, pictures)
    most = torch.tensor(int(_RESERVE * available_bytes(run.device) / needed), device=run.device)
    if processes_of_run()[1] > 1:  # all must plan alike
        distributed.all_reduce(most, distributed.ReduceOp.MIN)
    return int(most)


@torch.no_grad()
def _examine(network: KindNet, examination: Task, run: Run) -> Tensor:
    """Answers int64 (classes, classes) on whole draws, batch norm in eval mode."""
    classes = len(examination.classes)
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    for draw in range(_EXAMINED):
        pictures = torch.from_numpy(examination[draw])
        with _mixed(run):
            answers = network(pictures.to(run.device)).argmax(dim=1).cpu()
        counts += torch.bincount(classes * labels_of(pictures, classes) + answers, minlength=classes * classes)
    return counts.reshape(classes, classes)


def _save(run: Run, path: Path, done: int, plan: Plan, history: History, kept: _Kept) -> None:
    content = {
        "done": done,
        "plan": asdict(plan),
        "history": asdict(history),
        "network": kept.network.state_dict(),
        "optimiser": kept.optimiser.state_dict(),
    }
    try:
        save_checkpoint(path, run.identity, content)
    except EngineError as error:  # the training itself is sound
        run.say(f"warning: {error}; going on without a checkpoint of update {done}")


def _restore(run: Run, kept: _Kept) -> tuple[int, Plan, History]:
    if run.checkpoint is None:
        raise TrainError("no checkpoint to go on from; leave --resume out to start afresh")
    content = load_checkpoint(run.checkpoint, run.identity, run.device)
    plan, (_, processes) = Plan(**content["plan"]), processes_of_run()
    if plan.passes % processes != 0:
        raise TrainError(
            f"{run.checkpoint}: has {plan.passes} passes an update, which {processes} processes cannot share equally;"
            " go on with as many processes as it was begun with, or remove it and start afresh"
        )
    kept.network.load_state_dict(content["network"])
    kept.optimiser.load_state_dict(content["optimiser"])
    return content["done"], plan, History(**content["history"])
