"""Engines by name, as a hardware class ends: `x86_64-vnni-openvino`. All of them run the same file."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

from edgestill.core.errors import SettingError
from edgestill.core.hardware import ENGINES, HardwareClass
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.litert.engine import LiteRtEngine
from edgestill.infer.openvino import OpenVinoEngine

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT: Final = ENGINES[0]
AnyEngine = OnnxEngine | OpenVinoEngine | LiteRtEngine
_ENGINES: Final[dict[str, Callable[..., AnyEngine]]] = {
    DEFAULT: OnnxEngine,
    "openvino": OpenVinoEngine,
    "litert": LiteRtEngine,
}
_MODULES: Final = {"litert": "ai_edge_litert"}
"""What an engine's package is called where it is not called as the engine."""


def engine_of(model: bytes, hardware_class: str = DEFAULT, *, threads: int = 1) -> AnyEngine:
    """The engine for a model.

    Args:
        model: the ONNX file.
        hardware_class: whose engine it is, or the engine's name; `any` is run by onnxruntime.
        threads: that share one operator, at least 1.

    Raises:
        SettingError: no such engine. Whatever the engine raises where it is made.
    """
    return _ENGINES[engine_name(hardware_class)](model, threads=threads)


def engine_name(hardware_class: str) -> str:
    """The engine of a hardware class.

    Raises:
        SettingError: one that nothing here runs.
    """
    name = DEFAULT if hardware_class == "any" else hardware_class.rpartition("-")[2]
    if name not in _ENGINES:
        raise SettingError(
            "no such engine",
            where=f"hardware class {hardware_class}" if hardware_class != name else "engine",
            expected=" or ".join(_ENGINES),
            got=name,
            fix="write the class as `edgestill-agent status` does",
        )
    return name


def runs_here(hardware_class: str) -> bool:
    """Whether a bundle of this class may be timed on this machine: its instructions are these, and its engine is installed."""
    name = engine_name(hardware_class)
    return name in installed() and HardwareClass.here(name).name == hardware_class


def installed() -> tuple[str, ...]:
    """The engines that can be made here."""
    return tuple(name for name in _ENGINES if importlib.util.find_spec(_MODULES.get(name, name)) is not None)
