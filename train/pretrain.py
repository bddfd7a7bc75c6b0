"""A backbone from drawn images alone: no photograph, no network, no licence.

`textures` draws the scenes and `drawn_task` says what is learnt from them; here is the training, which can be interrupted.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader

import engines
from engines.atomic import write_file
from train import TrainError
from train.backbones import backbone_spec, build
from train.drawn_task import STRIDES, Scenes, Student, cell_losses
from train.product import Console, choose_device
from train.textures import TILE, Tiles, draw_tiles

_DRAWS = 2  # tiles of each texture
_MOMENTUM = 0.99  # of the averages that are reported
_NOT_PART_OF_THE_TASK = ("device", "workers", "save_every", "resume", "command")


@dataclass(frozen=True)
class PretrainSettings:
    """What `pretrain` is asked for.

    Attributes:
        steps, batch: updates, and scenes of each; a scene is two images.
        size: of an image, pixels a side.
        textures, palettes: classes to tell apart.
        rate: highest learning rate, of AdamW.
        warm_up: part of the steps over which the rate rises.
        weight_decay: of AdamW.
        workers: processes that draw; 0 draws between the updates.
        save_every: steps from checkpoint to checkpoint, and from line to line.
        resume: go on from the checkpoint beside the file to write.
        command: as typed, for the record.
    """

    steps: int = 700
    batch: int = 32
    size: int = 96
    textures: int = 256
    palettes: int = 64
    rate: float = 2e-3
    warm_up: float = 0.05
    weight_decay: float = 0.05
    backbone: str = "resnet18"
    seed: int = 0
    device: str = "auto"
    workers: int = 1
    save_every: int = 200
    resume: bool = False
    command: str = ""


@dataclass(frozen=True)
class PretrainResult:
    """What `pretrain` wrote, and on fresh images near its end the loss and, by head, what was right (0 to 1)."""

    path: Path
    loss: float
    accuracy: dict[str, float]


@dataclass
class _Progress:
    """Moving averages of what is reported."""

    loss: float = 0.0
    accuracy: dict[str, float] = dataclasses.field(default_factory=dict)

    def update(self, loss: float, accuracy: dict[str, float]) -> None:
        if not self.accuracy:
            self.loss, self.accuracy = loss, accuracy
            return
        self.loss += (1 - _MOMENTUM) * (loss - self.loss)
        self.accuracy = {name: old + (1 - _MOMENTUM) * (accuracy[name] - old) for name, old in self.accuracy.items()}


def pretrain(settings: PretrainSettings, out: Path, console: Console) -> PretrainResult:
    """Train a backbone on drawn images and write its weights as float16 safetensors, with how they were made.

    On a CPU the same settings give the same file, bit by bit, interrupted and resumed or not, on the same machine with
    the same number of threads. A checkpoint beside `out` keeps the state every `save_every` steps, until the file is written.

    Raises:
        TrainError: settings that cannot be, a checkpoint that does not fit, or a loss that is not finite; no weights are
            written then, and an older file at `out` stays.
        EngineError: the file or the checkpoint cannot be written.
    """
    _check(settings, out)
    device = choose_device(settings.device)
    spec = backbone_spec(settings.backbone)
    checkpoint = out.with_name(out.name + ".checkpoint")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        student = Student(build(spec, None, settings.seed), spec, settings.textures, settings.palettes)
    student.requires_grad_(True).train().to(device)
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(student, settings)
    averages = _Progress()
    start = _restore(checkpoint, settings, student, optimizer, averages) if settings.resume else _begin(checkpoint)
    with console.progress("textures") as advance:
        tiles = draw_tiles(settings.textures, settings.palettes, _DRAWS, settings.seed, advance)
    console.say(
        f"{settings.backbone} on {device}: {settings.steps} steps of {settings.batch} scenes of {settings.size} pixels,"
        f" {settings.textures} textures, {settings.palettes} palettes" + (f"; resumed at step {start}" if start > 0 else "")
    )
    begun = time.monotonic()
    with console.progress("training") as advance:
        for step, batch in enumerate(_batches(tiles, settings, start), start):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            averages.update(*_update(student, optimizer, batch, device, settings, step))
            done = step + 1
            advance(done, settings.steps, f"loss {averages.loss:.3f}, same/8 {100 * averages.accuracy['same/8']:.0f} %")
            if done % settings.save_every == 0 or done == settings.steps:
                _check_finite(student, done)
                console.say(_line(averages, done, settings, (time.monotonic() - begun) / (done - start)))
                write_file(checkpoint, _packed(settings, student, optimizer, averages, done))
    write_file(out, _weights(student.backbone, settings, averages, str(device)))
    checkpoint.unlink()
    return PretrainResult(out, averages.loss, averages.accuracy)


def learning_rate(step: int, settings: PretrainSettings) -> float:
    """Linear from near 0 to `rate` over the warm-up, then half a cosine down to 0 (Loshchilov and Hutter 2017)."""
    rising = max(1, round(settings.warm_up * settings.steps))
    if step < rising:
        return settings.rate * (step + 1) / rising
    return settings.rate * (1 + math.cos(math.pi * (step - rising) / max(1, settings.steps - rising))) / 2


def _check(settings: PretrainSettings, out: Path) -> None:
    for name in ("steps", "batch", "save_every"):
        if getattr(settings, name) < 1:
            raise TrainError(f"{name} is {getattr(settings, name)}, expected 1 or more")
    if settings.size % STRIDES[1] or not 32 <= settings.size <= TILE:
        raise TrainError(f"size {settings.size}, expected a multiple of {STRIDES[1]} from 32 to {TILE} pixels")
    if not (math.isfinite(settings.rate) and settings.rate > 0):
        raise TrainError(f"rate {settings.rate}, expected a number above 0")
    if not 0 <= settings.warm_up < 1:
        raise TrainError(f"warm-up {settings.warm_up}, expected a part of the steps, 0 or more and below 1")
    if not 0 <= settings.seed < 2**32:
        raise TrainError(f"seed {settings.seed}, expected 0 to {2**32 - 1}")
    if out.suffix != ".safetensors":
        raise TrainError(f"{out}: suffix '{out.suffix}', expected .safetensors")


def _optimizer(student: Student, settings: PretrainSettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); biases and batch norm's scales do not decay."""
    kernels = [parameter for parameter in student.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in student.parameters() if parameter.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.rate)


def _batches(tiles: Tiles, settings: PretrainSettings, start: int) -> Iterator[dict[str, Tensor]]:
    """Each step's batch. Scene numbers run on from step to step, so a resumed run sees what the first would have seen."""
    loader = DataLoader(
        Scenes(tiles, settings.size, settings.seed),
        batch_size=settings.batch,
        sampler=range(start * settings.batch, settings.steps * settings.batch),
        num_workers=settings.workers,
        generator=torch.Generator(),  # its own: it would draw the workers' seeds from the caller's
        worker_init_fn=_alone if settings.workers > 0 else None,
        # a forked process would wait for OpenCV's threads, which do not come with it
        multiprocessing_context="spawn" if settings.workers > 0 else None,
    )
    return iter(loader)


def _alone(_worker: int) -> None:
    cv2.setNumThreads(1)  # the processors are the training's


def _update(
    student: Student,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    device: torch.device,
    settings: PretrainSettings,
    step: int,
) -> tuple[float, dict[str, float]]:
    """One step; the loss before it, and by head what was right."""
    # both photographs of scene 0, then both of scene 1: a scene's labels are repeated twice
    images = batch.pop("images").to(device, non_blocking=True).flatten(0, 1)
    labels = {name: tensor.to(device, non_blocking=True).repeat_interleave(2, 0) for name, tensor in batch.items()}
    chance = torch.Generator().manual_seed(settings.seed * 2**31 + step)
    loss, right = cell_losses(student, images, labels, chance)
    value = loss.item()
    if not math.isfinite(value):
        raise TrainError(f"the loss is {value} at step {step}; try again with a lower rate or another seed")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return value, right


def _line(averages: _Progress, done: int, settings: PretrainSettings, seconds_per_step: float) -> str:
    accuracy = ", ".join(f"{name} {100 * value:.1f} %" for name, value in averages.accuracy.items())
    left = seconds_per_step * (settings.steps - done)
    return (
        f"step {done} of {settings.steps}: loss {averages.loss:.3f}; {accuracy};"
        f" {2 * settings.batch / seconds_per_step:.0f} images/s; {left / 60:.0f} min left"
    )


def _check_finite(student: Student, done: int) -> None:
    for name, tensor in student.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise TrainError(f"{name} holds numbers that are not finite after step {done}; try a lower rate or another seed")


def _task(settings: PretrainSettings) -> dict[str, int | float | str]:
    """The settings that decide what is learnt."""
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in _NOT_PART_OF_THE_TASK}


def _packed(
    settings: PretrainSettings, student: Student, optimizer: torch.optim.Optimizer, averages: _Progress, done: int
) -> bytes:
    buffer = io.BytesIO()
    torch.save(
        {
            "task": _task(settings),
            "done": done,
            "student": student.state_dict(),
            "optimizer": optimizer.state_dict(),
            "averages": dataclasses.asdict(averages),
        },
        buffer,
    )
    return buffer.getvalue()


def _begin(checkpoint: Path) -> int:
    if checkpoint.exists():
        raise TrainError(f"{checkpoint}: there is a checkpoint of an earlier run; go on with --resume, or delete it")
    return 0


def _restore(
    checkpoint: Path, settings: PretrainSettings, student: Student, optimizer: torch.optim.Optimizer, averages: _Progress
) -> int:
    """Put the checkpoint's state back; the number of steps that were done."""
    if not checkpoint.is_file():
        raise TrainError(f"{checkpoint}: no checkpoint to resume from; start without --resume")
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        task, done = state["task"], int(state["done"])
    except Exception as error:  # torch has many exceptions for a damaged file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TrainError(f"{checkpoint}: cannot be read ({reason}); delete it and start again") from None
    changed = [f"{name} {task.get(name)}, now {value}" for name, value in _task(settings).items() if task.get(name) != value]
    if changed:
        raise TrainError(f"{checkpoint}: made with other settings ({'; '.join(changed)}); give those, or delete it")
    student.load_state_dict(state["student"])
    optimizer.load_state_dict(state["optimizer"])
    averages.loss, averages.accuracy = state["averages"]["loss"], state["averages"]["accuracy"]
    return done


def _weights(backbone: nn.Module, settings: PretrainSettings, averages: _Progress, device: str) -> bytes:
    """The backbone as float16 safetensors, with the record of how it was made."""
    state = {
        name: tensor.detach().cpu().half().contiguous()
        for name, tensor in backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    beyond = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if beyond:
        raise TrainError(f"{beyond[0]} does not fit float16; try a lower rate or another seed")
    record = {
        "command": settings.command,
        "settings": _task(settings),
        "device": device,
        "loss": round(averages.loss, 4),
        "accuracy": {name: round(value, 4) for name, value in averages.accuracy.items()},
        "versions": {
            "reb": engines.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "torch": torch.__version__,
        },
    }
    return save(state, {"pretrain": json.dumps(record)})  # one entry: safetensors writes several in any order
