"""Hardware classes: which binary may run where.

A class is architecture + instruction set + engine, such as `x86_64-vnni-onnxruntime`. It matters because the same
int8 file gives other numbers elsewhere: on x86 without VNNI, u8s8 products can saturate. Golden tolerances and
latencies are therefore kept per class.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from edgestill.core.errors import MessageError

PATTERN: Final = r"[a-z0-9_]{1,16}-[a-z0-9]{1,16}-[a-z0-9]{1,16}"

ENGINES: Final = ("onnxruntime", "openvino", "litert")
"""Runtimes of the same ONNX file, the usual one first."""

_INSTRUCTION_SETS: Final = (
    ("x86_64", "avx512_vnni", "vnni"),
    ("x86_64", "avx_vnni", "vnni"),
    ("x86_64", "avx2", "avx2"),
    ("aarch64", "i8mm", "i8mm"),
    ("aarch64", "asimddp", "dotprod"),
)


@dataclass(frozen=True, slots=True, order=True)
class HardwareClass:
    """Architecture, instruction set and engine, written `ARCH-ISA-ENGINE`."""

    name: str

    def __post_init__(self) -> None:
        if re.fullmatch(PATTERN, self.name) is None:
            raise MessageError(
                "not a hardware class",
                expected="ARCH-ISA-ENGINE",
                got=repr(self.name[:60]),
                where="hardware class",
                fix="write it as edgestill-agent status does",
            )

    def __str__(self) -> str:
        return self.name

    @property
    def engine(self) -> str:
        """Its last part."""
        return self.name.rpartition("-")[2]

    @classmethod
    def describe(cls, machine: str, cpuinfo: str, engine: str = ENGINES[0]) -> Self:
        """The class of a machine with this `platform.machine()` and this text of `/proc/cpuinfo`."""
        arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())
        flags = set(re.findall(r"[a-z0-9_]+", cpuinfo))
        for of_arch, flag, name in _INSTRUCTION_SETS:
            if arch == of_arch and flag in flags:
                return cls(f"{arch}-{name}-{engine}")
        return cls(f"{arch}-base-{engine}")

    @classmethod
    def here(cls, engine: str = ENGINES[0]) -> Self:
        """The class of this machine."""
        import platform  # asked once in a device's life, when it joins; an agent that runs need not hold it

        cpuinfo = Path("/proc/cpuinfo")
        return cls.describe(platform.machine(), cpuinfo.read_text() if cpuinfo.exists() else "", engine)
