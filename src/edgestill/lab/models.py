"""Models by name: any callable of a local file or an installed module, timm's, and Hugging Face's.

    path/to/file.py:function     called with the arguments; gives an `nn.Module`
    package.module:function      the same, of what is installed
    timm:resnet18                where timm is installed; takes uint8 images [N, H, W, 3], normalised inside
    hf:path/to/folder            where transformers is installed; takes a dictionary of token tensors

Nothing is downloaded: weights are a local file, `.safetensors`, or `.pt` read with `weights_only`. A name may run the
code it names, so it is only ever read from a file the user gave by hand, never from a hub.
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003  # `from_table` reads the annotations
from typing import TYPE_CHECKING, Any, Final, final

import torch
from torch import Tensor, nn

from edgestill.core.errors import ModelError, PathError, SettingError
from edgestill.core.extras import require
from edgestill.lab.settings import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

TIMM: Final = "timm:"
HUGGING_FACE: Final = "hf:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelName:
    """Which model, and its weights.

    Attributes:
        model: the name; see this module's docstring.
        arguments: what the callable is given, by keyword.
        weights: file with its weights; None leaves it as the callable made it.
    """

    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None

    def load(self, folder: Path) -> nn.Module:
        """The model.

        Args:
            folder: what a file's path in the name is relative to.

        Raises:
            SettingError: a name that is none, or names nothing. ModelError: not a module, or weights of another one.
            MissingExtraError: timm or transformers is not installed. PathError: no such file.
        """
        if self.model.startswith(TIMM):
            model = _timm(self.model.removeprefix(TIMM), self.arguments)
        elif self.model.startswith(HUGGING_FACE):
            model = _hugging_face(folder / self.model.removeprefix(HUGGING_FACE), self.arguments)
        else:
            model = self._call(folder)
        if self.weights is not None:
            load_weights_(model, self.weights)
        return model

    def _call(self, folder: Path) -> nn.Module:
        made = callable_named(self.model, folder)(**self.arguments)
        if not isinstance(made, nn.Module):
            raise ModelError(
                "a name that makes no model",
                where=self.model,
                expected="a callable that returns an nn.Module",
                got=type(made).__name__,
            )
        return made


def callable_named(name: str, folder: Path) -> Any:
    """What `FILE.py:NAME` or `MODULE:NAME` names.

    Raises:
        SettingError: not such a name, or nothing is there.
    """
    place, colon, function = name.rpartition(":")
    if not colon or not place or not function:
        raise SettingError(
            "not the name of a callable", where=repr(name), expected="FILE.py:NAME or MODULE:NAME"
        )
    module = _file(folder / place) if place.endswith(".py") else _module(place)
    if not callable(getattr(module, function, None)):
        names = {one: None for one in vars(module) if not one.startswith("_")}
        raise SettingError("no such callable", where=name, got=function, fix=nearest(function, names))
    return getattr(module, function)


def load_weights_(model: nn.Module, path: Path) -> None:
    """Fills a model with the weights of a file.

    Raises:
        PathError: no such file. ModelError: not a file of weights, or of another model; the text names what differs.
    """
    if not path.is_file():
        raise PathError("no such file of weights", where=path)
    try:
        weights = _weights(path)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError("not a file of weights", where=path, got=error) from error
    own = model.state_dict()
    differing = sorted(own.keys() ^ weights.keys())
    differing += [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    if differing:
        raise ModelError(
            "weights of another model",
            where=path,
            expected=f"{len(own)} tensors of {type(model).__name__}",
            got=f"{len(differing)} differ, first {differing[0]}",
        )
    model.load_state_dict(dict(weights))


def _weights(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        loaded: dict[str, Tensor] = require(
            "safetensors.torch", extra="lab", purpose="to read weights"
        ).load_file(path)
        return loaded
    found = torch.load(path, weights_only=True, map_location="cpu")
    if not isinstance(found, dict) or not all(isinstance(one, Tensor) for one in found.values()):
        raise ValueError("a state_dict of tensors is expected")
    return found


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise PathError("no such file", where=path)
    spec = importlib.util.spec_from_file_location(f"edgestill_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SettingError(
            "this file cannot be run", where=path, got=f"{type(error).__name__}: {error}"
        ) from error
    return module


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise SettingError(
            "this module cannot be imported",
            where=name,
            got=f"{type(error).__name__}: {error}",
            fix="install it, or name a FILE.py:NAME",
        ) from error


def _timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    timm: Any = require("timm", extra="lab", purpose="for models named timm:...")
    try:
        model = timm.create_model(name, pretrained=False, **arguments)
    except (RuntimeError, ValueError, TypeError) as error:
        raise SettingError("timm cannot make this model", where=name, got=error) from error
    config = getattr(model, "pretrained_cfg", None) or {}
    if not config.get("mean") or not config.get("std"):
        raise SettingError(  # guessing a scale would be silent, and wrong
            "timm does not say how this model's input is normalised",
            where=name,
            fix="name a FILE.py:NAME that wraps it in edgestill.lab.models.ImageInput",
        )
    return ImageInput(model, mean=config["mean"], deviation=config["std"])


def _hugging_face(path: Path, arguments: dict[str, Any]) -> nn.Module:
    library: Any = require("transformers", extra="lab", purpose="for models named hf:...")
    try:
        model = library.AutoModelForSequenceClassification.from_pretrained(
            path, local_files_only=True, **arguments
        )
    except (OSError, ValueError) as error:
        raise SettingError("transformers cannot load this model", where=path, got=error) from error
    assert isinstance(model, nn.Module)
    return model


@final
class ImageInput(nn.Module):
    """A model for normalised images, made to take what a camera gives.

    Args:
        model: takes float32 `[N, C, H, W]`.
        mean: of each channel, for values in [0, 1].
        deviation: of each channel.
        size: height and width the model wants; None takes images as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: tuple[float, ...],
        deviation: tuple[float, ...],
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.size = model, size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1), persistent=False)
        self.mean: Tensor
        self.deviation: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """uint8 `[N, H, W, C]` -> the model's outputs."""
        x = x.permute(0, 3, 1, 2).float() / 255
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            x = nn.functional.interpolate(x, self.size, mode="bilinear", antialias=False, align_corners=False)
        outputs: Tensor = self.model((x - self.mean) / self.deviation)
        return outputs
