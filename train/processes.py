"""The processes that `torchrun` starts, and the memory that each may take."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import distributed

from train import TrainError
from train.product import choose_device

_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_CGROUP = Path("/sys/fs/cgroup")


def processes_asked() -> int:
    """How many processes `torchrun` says that there are; 1 without it.

    Raises:
        TrainError: an environment that `torchrun` did not make.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    missing = [name for name in _NEEDED if name not in os.environ]
    if not text.isdecimal() or int(text) < 1 or (int(text) > 1 and missing):
        raise TrainError(
            f"WORLD_SIZE is '{text}' and {', '.join(missing) or 'nothing'} is missing; start several processes with"
            " torchrun, or unset WORLD_SIZE"
        )
    return int(text)


@contextlib.contextmanager
def torchrun(device: str) -> Iterator[str]:
    """Join the processes that `torchrun` started, if it did; gives the device that this process is to use.

    Raises:
        TrainError: a device that is not there, or fewer GPUs than processes.
    """
    if processes_asked() == 1:
        yield device
        return
    chosen = choose_device(device)
    if chosen.type == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if chosen.index is not None or local >= gpus:
            raise TrainError(
                f"device '{device}' and process {local} of this machine, which has {gpus} GPUs; give --device cuda and at most"
                f" --nproc-per-node {gpus}"
            )
        torch.cuda.set_device(local)
        chosen = torch.device("cuda", local)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    yield str(chosen)
    # not after an error: the others may be waiting for this process, and would do so for ever if it waited for them
    distributed.destroy_process_group()


def processes_of_run() -> tuple[int, int]:
    """This process's rank, and how many there are: (0, 1) without `torchrun`."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def available_bytes(device: torch.device) -> int:
    """Memory that this process can have on a device: of a GPU what is free, of the machine its share of that."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # what torch keeps of work that is done is free as well
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    free = int(line.split()[1]) * 1024  # more than is free: caches can go
    with contextlib.suppress(OSError, ValueError):  # no limit, which it calls `max`, or no control group
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return free // processes_of_run()[1]
