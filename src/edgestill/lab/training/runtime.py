"""Where and how a run is computed: devices, precision, nodes, checkpoints, logs. What comes of it is the recipe's part.

Lightning Fabric does the work: one process on a CPU, many GPUs, or many nodes are the same training loop with other
flags. Under `torchrun` or SLURM the processes are already there, and Fabric joins them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  # `from_table` reads the annotations
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from edgestill.core.errors import SettingError
from edgestill.core.extras import require

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Precision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true"]
"""How numbers are kept and multiplied, in Fabric's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One place to train.

    Attributes:
        accelerator: `cpu`, `cuda`, `mps`, or `auto` for the best there is.
        devices: processes, one a device; with more than one, each gets an equal part of every batch.
        nodes: machines.
        strategy: Fabric's: `auto`, `ddp`, `fsdp`, ...
        precision: of the arithmetic; bf16 did not pay on the CPUs we measured.
        channels_last: whether networks with 2-D convolutions are kept channels-last.
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
                "training cannot be set up so", where="runtime", expected="what this machine has", got=error
            ) from error
        opened.launch()
        return opened
