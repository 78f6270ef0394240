"""Where and how a run is computed: devices, precision, nodes, checkpoints, logs. What comes of it is the recipe's part.

Lightning Fabric does the work: one process on a CPU, many GPUs, or many nodes are the same training loop with other
flags. Under `torchrun` or SLURM the processes are already there, and Fabric joins them.
"""

from __future__ import annotations

import gc
import re
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  # `from_table` reads the annotations
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch

from edgestill.core.errors import SettingError, TrainingError
from edgestill.core.extras import require
from edgestill.lab.settings import check_types

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning_fabric import Fabric

Precision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true"]
"""How numbers are kept and multiplied, in Fabric's words."""

_SOURCE_LINE: Final = re.compile(r"^\[[^\]]*\] ")
_MEETING: Final[dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]]] = {}
"""What a number of each process is written into to meet the others', one for the life of this process; and a view of it.

A thread of gloo lets go of such a tensor some time after the result is there. Where nothing but Python holds it besides, it needs Python's lock
for that; and whoever takes the group down holds that lock while it waits for the thread: both for ever. So the view holds it too.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One place to train.

    Attributes:
        accelerator: `cpu`, `cuda`, `mps`, or `auto` for the best there is.
        devices: processes, one a device; with more than one, each gets an equal part of every batch.
        nodes: machines.
        strategy: Fabric's: `auto`, `ddp`, `fsdp`, ...
        precision: of the arithmetic; bf16 did not pay on the CPUs we measured.
        channels_last: whether networks are kept channels-last where `lab.layout` says so.
        checkpoint: folder for what allows going on after an interruption; None keeps none.
        checkpoint_every: steps between two checkpoints; 0 for one after every epoch.
        log: CSV file that gets a row an epoch, or None.
    """

    accelerator: str = "cpu"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: Precision = "32-true"
    channels_last: bool = True
    checkpoint: Path | None = None
    checkpoint_every: int = 0
    log: Path | None = None

    def __post_init__(self) -> None:
        check_types(self, what="a runtime")
        for name, holds, expected in (
            ("devices", self.devices >= 1, "at least 1"),
            ("nodes", self.nodes >= 1, "at least 1"),
            ("checkpoint_every", self.checkpoint_every >= 0, "at least 0"),
            ("precision", self.precision in get_args(Precision), ", ".join(get_args(Precision))),
        ):
            if not holds:
                raise SettingError(
                    "a runtime's value is out of range",
                    where=name,
                    expected=expected,
                    got=getattr(self, name),
                    fix="leave it out where you are unsure",
                )

    @staticmethod
    def leads() -> bool:
        """Whether this process is the one that writes what all have made: the only one, or the first."""
        distributed = torch.distributed
        return not (distributed.is_available() and distributed.is_initialized()) or (
            distributed.get_rank() == 0
        )

    def open(self) -> Fabric:
        """Fabric, its processes started or joined.

        Raises:
            MissingExtraError: Fabric is not installed. SettingError: this machine has no such accelerator or strategy.
        """
        fabric: Any = require("lightning_fabric", extra="lab", purpose="to train models")
        try:
            opened: Fabric = fabric.Fabric(
                accelerator=self.accelerator,
                devices=self.devices,
                num_nodes=self.nodes,
                strategy=self.strategy,
                precision=self.precision,
            )
        except (ValueError, RuntimeError, fabric.utilities.exceptions.MisconfigurationException) as error:
            raise SettingError(
                "training cannot be set up so",
                where="runtime",
                expected="what this machine has",
                got=error,
                fix="leave accelerator and strategy out, or choose what this machine has",
            ) from error
        opened.launch()
        return opened


def over_all(fabric: Fabric, number: torch.Tensor, *, how: Literal["sum", "mean"]) -> torch.Tensor:
    """A number `[]` of each process, as a sum or mean over all of them. Each must call it."""
    key = (fabric.device, number.dtype)
    if key not in _MEETING:
        fresh = torch.zeros((), dtype=number.dtype, device=fabric.device)
        _MEETING[key] = fresh, fresh.view(1)
    meeting, _ = _MEETING[key]
    meeting.copy_(number.detach())
    fabric.all_reduce(meeting, reduce_op=how)  # which writes into what it is given
    return meeting.clone()


@contextmanager
def together() -> Iterator[None]:
    """Within, no process of a run waits for one that has failed, and each says why it ends.

    Whoever fails leaves the group, so that its connections close, whether the process ends or lives on (in a notebook,
    say, which keeps the error and all that its frames hold: what they hold is let go of here). The others notice where they next
    meet it, and raise a coded error instead of the transport's.

    Raises:
        TrainingError: another process failed, or cannot be reached any more.
    """
    try:
        yield
    except Exception as error:
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            raise
        me, of = distributed.get_rank(), distributed.get_world_size()
        with suppress(RuntimeError):
            distributed.destroy_process_group()
        traceback.clear_frames(
            error.__traceback__
        )  # a network in there keeps the group, and with it the connections
        gc.collect()
        if not _is_lost(error):
            raise
        raise TrainingError(
            "another process of this run has failed",
            where=f"process {me + 1} of {of}",
            expected="all of them to the end",
            got=_SOURCE_LINE.sub("", str(error).partition(". ")[0]),
            fix="mend what the other one says: its error is the reason",
        ) from error


def _is_lost(error: Exception) -> bool:
    """Whether it is the transport's: gloo raises it as a plain RuntimeError, with the line of its source."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo/" in str(error)
    )
