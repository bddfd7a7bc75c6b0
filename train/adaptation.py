"""Adapt a product's backbone: find where the part is, draw defects on it, train, and hand over weights with their record."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

import engines
from calibration.defects import MAKERS, make_maker
from calibration.maker import REB
from calibration.saliency import Saliency
from engines.bundle import Adaptation
from engines.images import Image
from train import TrainError
from train.adapt import Run, TrainingFailedError, adapt
from train.batches import Task, blank
from train.defect_sheet import defect_sheet
from train.pictures import find_part, read_pictures
from train.processes import processes_of_run
from train.product import Console, Product, Settings, open_product
from train.schedule import Schedule, preset
from train.weights import Weights, adapted_weights, check_weights_file, write_weights

_MOST_WORKERS = 12
_OWN_DRAWS = 2**32  # added to the seed: an examination on training images must not be of the defects that it trained on


@dataclass(frozen=True)
class Request:
    """What is asked of an adaptation.

    Attributes:
        preset, maker: names in `PRESETS` and `MAKERS`.
        saliency: folder of mask files that show the part; None estimates it from the images.
        precision: `auto` takes bfloat16 where the device computes it fast; or `float32`.
        workers: processes that draw pictures; None chooses for the device.
        checkpoint: file to save unfinished work to; None saves none.
        resume: go on from it.
        logs: folder for TensorBoard; None writes none.
    """

    preset: str
    maker: str = "defectmaker"
    saliency: Path | None = None
    precision: str = "auto"
    workers: int | None = None
    checkpoint: Path | None = None
    resume: bool = False
    logs: Path | None = None


def check_request(request: Request) -> None:
    """Refuse what no image can make right before any image is read.

    Raises:
        TrainError: unknown names, or an unfinished adaptation that would be overwritten.
    """
    preset(request.preset)
    if request.maker not in MAKERS:
        raise TrainError(f"maker '{request.maker}', expected one of: {', '.join(MAKERS)}")
    if request.checkpoint is not None and request.checkpoint.exists() and not request.resume:
        raise TrainError(
            f"{request.checkpoint}: an unfinished adaptation; give --resume to go on with it, or delete the file to start"
            " afresh"
        )


def adapt_product(product: Product, request: Request, seed: int, console: Console) -> Weights:
    """Adapt the backbone to the images of the bank; held-out images only examine the result.

    Raises:
        InspectionError: images, masks or settings that cannot be used, or a training that failed.
    """
    check_request(request)
    schedule = preset(request.preset)
    images, digests = read_pictures(product, console)
    held_out = len(images) > product.in_bank
    bank, spare = slice(0, product.in_bank), slice(product.in_bank, None) if held_out else slice(None)
    # apart from each other: nothing of a held-out image may reach the weights
    saliency = find_part(product, bank, request.saliency, images[bank], console)
    examined = find_part(product, spare, request.saliency, images[spare], replace(console, say=lambda line: None))
    task = _task(product, request, images[bank], saliency, seed, augment=True)
    examination = _task(product, request, images[spare], examined, seed + _OWN_DRAWS, augment=False)
    precision = _precision(request.precision, product.device)
    workers = _workers(product.device) if request.workers is None else request.workers
    initial = product.weights
    with console.progress("adapting") as advance, _writer(request.logs) as log:
        run = Run(
            product.device,
            precision=precision,
            workers=workers,
            checkpoint=request.checkpoint,
            resume=request.resume,
            identity=_identity(product, request, schedule, seed, digests, saliency, precision),
            say=console.say,
            advance=advance,
            log=log,
        )
        clean = torch.from_numpy(np.stack([blank(image, product.preprocessor.ignored) for image in images[bank]]))
        state = initial.state if initial is not None else None
        try:
            adapted = adapt(task, examination, clean, product.backbone, state, schedule, seed, run)
        except TrainingFailedError:
            forget(request)  # going on from it would fail the same way
            raise
        except KeyboardInterrupt:
            if request.checkpoint is not None and request.checkpoint.exists():
                console.say(f"interrupted; what was learnt up to the last checkpoint is in {request.checkpoint}")
            raise
    images_per_pass = adapted.plan.normals * len(task.classes)
    # weights that were adapted before have learnt from those images too
    earlier = initial.adaptation.images if initial is not None and initial.adaptation is not None else ()
    record = Adaptation(
        weights=initial.source if initial is not None else "none",
        weights_sha256=initial.sha256 if initial is not None else None,
        preset=schedule.name,
        updates=schedule.updates,
        images_per_update=adapted.plan.passes * images_per_pass,
        images_per_pass=images_per_pass,
        window_px=_window(product, request),
        learning_rate=schedule.learning_rate,
        turns=schedule.turns,
        early="kept" if schedule.keep_early and initial is not None else "trained",
        share=schedule.share if initial is not None else 1.0,
        seed=seed,
        maker=request.maker,
        classes=task.classes,
        saliency=saliency.reason,
        tail="loaded" if adapted.tail_loaded else "random",
        statistics="kept" if initial is not None else "batch",
        device=str(product.device),
        precision=str(precision).removeprefix("torch."),
        seconds=adapted.history.seconds,
        loss=tuple(adapted.history.loss),
        accuracy=tuple(adapted.history.accuracy),
        confusion=tuple(tuple(row) for row in adapted.confusion.tolist()),
        confusion_on="held-out" if held_out else "training",
        images=tuple(dict.fromkeys((*earlier, *digests[: product.in_bank]))),
    )
    _say_result(record, console)
    return adapted_weights(adapted.state, record)


def adapt_to_file(settings: Settings, request: Request, out: Path, console: Console) -> None:
    """Adapt a backbone alone and write its weights; under `torchrun` the first process writes and talks.

    Raises:
        InspectionError: as `adapt_product`, or a file that cannot be written; an older file at `out` still stands then.
    """
    check_request(request)
    check_weights_file(out)
    first = processes_of_run()[0] == 0
    if not first:
        console = Console(lambda line: None, lambda line: None, silent)
    weights = adapt_product(open_product(settings, console), request, settings.seed, console)
    if first:
        write_weights(out, weights)
        forget(request)
        console.say(f"wrote {out}")


def forget(request: Request) -> None:
    """Remove the checkpoint: the work that it would save is done."""
    if request.checkpoint is not None:
        request.checkpoint.unlink(missing_ok=True)


def draw_defects(settings: Settings, maker: str, saliency: Path | None, out: Path, rows: int, console: Console) -> None:
    """Draw a contact sheet of the synthetic defects that an adaptation would train on.

    Raises:
        InspectionError: images, masks or settings that cannot be used, or a sheet that cannot be written.
    """
    # no network looks at a sheet: none is looked for, and no warning that it is untrained
    quiet = Console(console.say, lambda line: None, console.progress)
    product = open_product(replace(settings, weights="none"), quiet)
    images, _ = read_pictures(product, console)
    found = find_part(product, slice(None), saliency, images, console)
    names = [sample.path.name for sample in product.samples]
    defect_sheet(make_maker(maker, images, found.masks), images, names, out, rows, settings.seed)


def _task(product: Product, request: Request, images: Sequence[Image], saliency: Saliency, seed: int, *, augment: bool) -> Task:
    return Task(
        images,
        make_maker(request.maker, images, saliency.masks),
        saliency=saliency.masks,
        ignored=product.preprocessor.ignored,
        seed=seed,
        window_px=_window(product, request),
        turns=preset(request.preset).turns,
        augment=augment,
    )


def _window(product: Product, request: Request) -> int | None:
    """Side of the window that is trained on; None where the preset has none, or one that is larger than the input."""
    window = preset(request.preset).window_px
    return window if window is not None and window <= min(product.preprocessor.size) else None


def _precision(asked: str, device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it: NVIDIA from Ampere on, and CPUs that say so."""
    if asked == "float32":
        return torch.float32
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        flags = Path("/proc/cpuinfo").read_text()
        fast = "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags  # the last is how aarch64 calls it
    return torch.bfloat16 if fast else torch.float32


def _workers(device: torch.device) -> int:
    """A GPU needs pictures drawn ahead; a CPU that trains has no core to spare for it."""
    if device.type == "cpu":
        return 0
    _, processes = processes_of_run()
    return min(_MOST_WORKERS, max(1, len(os.sched_getaffinity(0)) // processes - 1))


def _identity(
    product: Product,
    request: Request,
    schedule: Schedule,
    seed: int,
    digests: Sequence[str],
    saliency: Saliency,
    precision: torch.dtype,
) -> dict[str, object]:
    """What a checkpoint must agree on: everything that the weights depend on."""
    return {
        "version": engines.__version__,
        **asdict(schedule),
        "defects": REB,
        "backbone": product.backbone.name,
        "weights": product.weights.sha256 if product.weights is not None else "none",
        "maker": request.maker,
        "saliency": "everywhere" if saliency.masks is None else _short(np.packbits(np.stack(saliency.masks)).tobytes()),
        "seed": seed,
        "precision": str(precision),
        "device": product.device.type,
        "input": product.spec.model_dump(mode="json"),
        "mask": _short(product.mask.tobytes()) if product.mask is not None else "none",
        "images": _short(" ".join(digests).encode()),
    }


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _say_result(record: Adaptation, console: Console) -> None:
    answers = np.array(record.confusion)
    right = 100 * np.diag(answers) / answers.sum(axis=1)
    listed = ", ".join(f"{name} {value:.0f} %" for name, value in zip(record.classes, right, strict=True))
    console.say(
        f"adapted in {record.seconds / 60:.1f} min; right on {record.confusion_on} images: {record.right:.0%} ({listed})"
    )


@contextlib.contextmanager
def silent(_title: str) -> Iterator[Callable[..., None]]:
    """A progress bar that shows nothing."""
    yield lambda done, total, note="": None


@contextlib.contextmanager
def _writer(folder: Path | None) -> Iterator[Callable[[int, dict[str, float]], None] | None]:
    """TensorBoard's writer as a function of (update, values); None without a folder."""
    if folder is None or processes_of_run()[0] != 0:
        yield None
        return
    with SummaryWriter(str(folder)) as writer:

        def log(update: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, update)

        yield log
