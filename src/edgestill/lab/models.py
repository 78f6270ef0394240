"""Models by name: any callable of a local file or an installed module, timm's, and Hugging Face's.

    path/to/file.py:function     called with the arguments; gives an `nn.Module`
    package.module:function      the same, of what is installed
    timm:resnet18                where timm is installed; takes uint8 images [N, H, W, 3], normalised inside
    hf:path/to/folder            where transformers is installed; takes a dictionary of token tensors

Nothing is downloaded: weights are a local file, `.safetensors`, or any other read by torch with `weights_only`, which
builds tensors and runs nothing. A name may run the code it names, so it is only ever read from a file the user gave by
hand, never from a hub.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import torch
from torch import Tensor, nn

from edgestill.core.bundle import PUBLIC
from edgestill.core.bundle import replace as write_whole
from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError, ModelError, PathError, SettingError
from edgestill.core.extras import require
from edgestill.lab.data.seeds import seeded
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
        model: `FILE.py:NAME` or `MODULE:NAME` of a callable that gives an `nn.Module`; `timm:NAME`; `hf:FOLDER`.
        arguments: what the callable is given, by keyword.
        weights: file with its weights, `.safetensors` or a `state_dict` of torch; None leaves it as the callable made it.
    """

    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None

    def load(self, folder: Path, seed: int = 0) -> nn.Module:
        """The model.

        Args:
            folder: what a file's path in the name is relative to.
            seed: of the first weights, drawn by Python, numpy or torch.

        Raises:
            SettingError: a name that is none, or names nothing, or arguments it does not take.
            ModelError: it fails, or makes no module, or the weights are another one's.
            MissingExtraError: timm or transformers is not installed. PathError: no such file.
        """
        with seeded(seed):
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
        made = called(self.model, self.arguments, folder)
        if not isinstance(made, nn.Module):
            raise ModelError(
                "a name that makes no model",
                where=self.model,
                expected="a callable that returns an nn.Module",
                got=type(made).__name__,
                fix="return the model from it",
            )
        return made


def called(name: str, arguments: Mapping[str, Any], folder: Path) -> object:
    """What the callable of this name gives.

    Raises:
        SettingError: no such callable, or arguments it does not take. ModelError: it fails.
    """
    function = callable_named(name, folder)
    _check_arguments(function, arguments, name)
    try:
        made: object = function(**arguments)
    except EdgestillError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(
            "a callable that fails",
            where=name,
            got=f"{_told(error)} ({_line(error)})",
            fix="call it by hand with the same arguments",
            expected="a callable that returns what it is for",
        ) from error
    return made


def callable_named(name: str, folder: Path) -> Any:
    """What `FILE.py:NAME` or `MODULE:NAME` names.

    Raises:
        SettingError: not such a name, or nothing is there.
    """
    place, colon, function = name.rpartition(":")
    if not colon or not place or not function:
        raise SettingError(
            "not the name of a callable",
            where=repr(name),
            expected="FILE.py:NAME or MODULE:NAME",
            got=repr(name),
            fix='write for instance model = "net.py:make"',
        )
    module = _file(folder / place) if place.endswith(".py") else _module(place)
    if not callable(getattr(module, function, None)):
        names = {one: None for one in vars(module) if not one.startswith("_")}
        raise SettingError(
            "no such callable",
            where=name,
            got=function,
            fix=nearest(function, names),
            expected=f"one of its functions and classes: {', '.join(names)}",
        )
    return getattr(module, function)


def _check_arguments(function: Any, arguments: Mapping[str, Any], name: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some callables of C nobody knows it; the call will tell
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise SettingError(
            "arguments that do not fit a callable",
            where=name,
            expected=str(signature),
            got=str(error).removeprefix("got "),
            fix="mend the `arguments` table",
        ) from error


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes a model's weights and buffers as safetensors, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    save = require("safetensors.torch", extra="lab", purpose="to write weights").save
    # cloned, since a file of safetensors holds no tensor twice, and weights may be shared
    weights = {
        name: one.clone(memory_format=torch.contiguous_format) for name, one in model.state_dict().items()
    }
    write_whole(path, save(weights), mode=PUBLIC)


def load_weights_(model: nn.Module, path: Path) -> None:
    """Fills a model with the weights of a file; the model inside of an `ImageInput` may be meant.

    Raises:
        PathError: no such file. ModelError: not a file of weights, or of another model; the text names what differs.
    """
    if not path.is_file():
        raise PathError(
            "no such file of weights",
            where=path,
            expected="a file",
            got="nothing, or no plain file",
            fix="check the path; it is relative to the job's file",
        )
    try:
        weights = _weights(path)
    except EdgestillError:
        raise
    except Exception as error:  # damaged files make the readers fail in many ways
        raise ModelError(
            "not a file of weights",
            where=path,
            got=_told(error),
            expected="a state_dict of tensors",
            fix="save it with torch.save(model.state_dict(), FILE) or safetensors",
        ) from error
    if isinstance(model, ImageInput) and not any(name.startswith("model.") for name in weights):
        model = model.model
    own = model.state_dict()
    differing = _differing(own, weights)
    if differing:
        raise ModelError(
            "weights of another model",
            where=path,
            expected=f"the {len(own)} tensors of {type(model).__name__}",
            got=f"{len(differing)} that differ, first {differing[0]}",
            fix="give the weights that were saved of this model, made with the same arguments",
        )
    model.load_state_dict(dict(weights))


def _differing(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are not alike, with what is wrong."""
    found = [f"{name} (not in the file)" for name in own if name not in weights]
    found += [f"{name} (not in the model)" for name in weights if name not in own]
    return found + [
        f"{name} ({list(weights[name].shape)} in the file, {list(tensor.shape)} in the model)"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]


def _weights(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        loaded: dict[str, Tensor] = require(
            "safetensors.torch", extra="lab", purpose="to read weights"
        ).load_file(path)
        return loaded
    found = torch.load(path, weights_only=True, map_location="cpu")
    if not isinstance(found, dict) or not all(isinstance(one, Tensor) for one in found.values()):
        keys = ", ".join(map(str, list(found)[:4])) if isinstance(found, dict) else type(found).__name__
        raise ModelError(
            "not a file of weights",
            where=path,
            expected="a state_dict of tensors",
            got=keys,
            fix="save it with torch.save(model.state_dict(), FILE) or safetensors",
        )
    return found


def _file(path: Path) -> ModuleType:
    """A file as a module; run once, however often it is named, and again once it has changed."""
    if not path.is_file():
        raise PathError(
            "no such file",
            where=path,
            expected="a file",
            got="nothing there",
            fix="check the path; it is relative to the job's file",
        )
    name = f"edgestill_user_{Digest.of(str(path.resolve()).encode() + path.read_bytes()).hex[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickles of its classes look for it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise SettingError(
            "this file cannot be run",
            where=path,
            got=_told(error),
            expected="Python that can be imported",
            fix="run it by hand: python FILE",
        ) from error
    return module


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise SettingError(
            "this module cannot be imported",
            where=name,
            got=_told(error),
            fix="install it, or name a FILE.py:NAME",
            expected="a module that can be imported",
        ) from error


def _timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    timm: Any = require("timm", extra="zoo", purpose="for models named timm:...")
    if ":" in name:  # hf-hub:... would ask the network
        raise SettingError(
            "not the name of a timm model",
            where=TIMM + name,
            expected="such as timm:resnet18",
            got=repr(name),
            fix="look the name up with timm.list_models()",
        )
    try:
        model = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:
        raise SettingError(
            "timm cannot make this model",
            where=TIMM + name,
            got=_told(error),
            expected="a model",
            fix="look at its name and arguments with timm.create_model",
        ) from error
    config = getattr(model, "pretrained_cfg", None) or {}
    mean, deviation = config.get("mean") or (), config.get("std") or ()
    if not mean or not deviation or len(mean) != arguments.get("in_chans", len(mean)):
        raise SettingError(  # guessing a scale would be silent, and wrong
            "timm does not say how this model's input is normalised",
            where=TIMM + name,
            fix="name a FILE.py:NAME that wraps it in edgestill.lab.models.ImageInput",
            expected="mean and standard deviation of its channels",
            got="none",
        )
    return ImageInput(model, mean=tuple(mean), deviation=tuple(deviation))


def _hugging_face(path: Path, arguments: dict[str, Any]) -> nn.Module:
    library: Any = require("transformers", extra="zoo", purpose="for models named hf:...")
    if not path.is_dir():  # any other text is a name on the hub to transformers
        raise PathError(
            "no such folder of a model",
            where=path,
            expected="config.json and the weights in it",
            got="nothing there",
            fix="check the path, or download the model first",
        )
    try:
        model = library.AutoModelForSequenceClassification.from_pretrained(
            path, local_files_only=True, **arguments
        )
    except Exception as error:
        raise SettingError(
            "transformers cannot load this model",
            where=path,
            got=_told(error),
            expected="a model",
            fix="load it by hand with AutoModelForImageClassification.from_pretrained(FOLDER)",
        ) from error
    assert isinstance(model, nn.Module)
    return model


def _line(error: BaseException) -> str:
    """The innermost line of the user's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if "site-packages" not in one.filename and "/edgestill/" not in one.filename]
    last = (own or frames)[-1]
    return f"line {last.lineno} of {Path(last.filename).name}"


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@final
class ImageInput(nn.Module):
    """A model for normalised images, made to take what a camera gives.

    Args:
        model: takes float32 `[N, C, H, W]`.
        mean: of each channel, for values in [0, 1].
        deviation: of each channel.
        size: height and width the model wants; images of another size are resized, bilinearly. None takes them as they are.

    Raises:
        SettingError: mean and deviation are not of the same channels, or a deviation is not above 0.
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
        if len(mean) != len(deviation) or not all(one > 0 for one in deviation):
            raise SettingError(
                "an image's normalisation is out of range",
                expected="a mean and a deviation above 0 for each channel",
                got=f"mean {mean}, deviation {deviation}",
                where="normalisation",
                fix="give the mean and the deviation of each channel that the model was trained with",
            )
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
