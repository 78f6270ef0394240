"""Models by name: what runs, what is refused, and that weights are tensors and nothing else."""

from __future__ import annotations

import os
import pickle
import sys
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from edgestill.core.errors import MissingExtraError, ModelError, PathError, SettingError
from edgestill.lab.models import ImageInput, ModelName, callable_named, load_weights_, save_weights

if TYPE_CHECKING:
    from pathlib import Path

torch.set_num_threads(1)

NETS = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn

RUNS = []
RUNS.append(1)

@dataclass
class Sizes:
    features: int = 4

def small(width: int = 2, *, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(Sizes().features, width, bias=bias)

def broken() -> nn.Module:
    raise RuntimeError("no such luck")

def ends() -> nn.Module:
    raise SystemExit(3)

def text() -> str:
    return "a model, honestly"

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a file of callables in it."""
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def named(model: str, folder: Path, weights: Path | None = None, **arguments: object) -> nn.Module:
    """The model of this name."""
    return ModelName(model=model, arguments=arguments, weights=weights).load(folder)


def test_a_callable_of_a_file_makes_the_model(folder: Path) -> None:
    """Its path is relative to the folder, its arguments are those of the table."""
    model = named("nets.py:small", folder, width=3, bias=False)
    assert isinstance(model, nn.Linear)
    assert model.out_features == 3
    assert "bias" not in dict(model.named_parameters())


def test_a_class_of_an_installed_module_makes_the_model(tmp_path: Path) -> None:
    """`MODULE:NAME` needs no folder."""
    assert isinstance(named("torch.nn:Linear", tmp_path, in_features=2, out_features=1), nn.Linear)


def test_a_file_is_run_once_and_again_when_it_has_changed(folder: Path) -> None:
    """Teacher, student and data of one file share its classes."""
    first = callable_named("nets.py:small", folder)
    assert callable_named("nets.py:small", folder) is first
    (folder / "nets.py").write_text(NETS + "\n# changed\n")
    assert callable_named("nets.py:small", folder) is not first


@pytest.mark.parametrize("name", ["", "nets", ":small", "nets.py:", "nets.py"])
def test_a_name_of_no_callable_is_refused(folder: Path, name: str) -> None:
    """The text says how such names look."""
    with pytest.raises(SettingError, match=r"expected FILE.py:NAME or MODULE:NAME"):
        named(name, folder)


def test_a_misspelt_callable_names_the_nearest(folder: Path) -> None:
    """Whether of a file or a module."""
    with pytest.raises(SettingError, match="did you mean 'small'"):
        named("nets.py:smal", folder)
    with pytest.raises(SettingError, match="did you mean 'Linear'"):
        named("torch.nn:Linaer", folder)


def test_what_is_there_but_cannot_be_called_is_refused(folder: Path) -> None:
    """A number is no model."""
    with pytest.raises(SettingError, match="no such callable"):
        named("nets.py:number", folder)


def test_a_file_or_module_that_is_not_there_is_named(folder: Path) -> None:
    """A path for the one, an import for the other."""
    with pytest.raises(PathError, match=r"no such file; at .*none.py"):
        named("none.py:small", folder)
    with pytest.raises(
        SettingError, match=r"cannot be imported; at nobodys_module; .*; got ModuleNotFoundError"
    ):
        named("nobodys_module:small", folder)


@pytest.mark.parametrize("line", ["import nobodys_module", "def small(:", "raise SystemExit(0)", "1 / 0"])
def test_a_file_that_cannot_be_run_is_an_error(folder: Path, line: str) -> None:
    """Whatever it does, an exit included, which would otherwise end the program as if all were well."""
    (folder / "bad.py").write_text(line)
    with pytest.raises(SettingError, match="this file cannot be run"):
        named("bad.py:small", folder)


@pytest.mark.parametrize("arguments", [{"widht": 3}, {"width": 3, "height": 2}])
def test_arguments_that_do_not_fit_are_refused_with_the_signature(
    folder: Path, arguments: dict[str, object]
) -> None:
    """The text shows what the callable takes."""
    with pytest.raises(
        SettingError, match=r"arguments that do not fit .*nets.py:small; expected \(width: .*unexpected"
    ):
        named("nets.py:small", folder, None, **arguments)


def test_an_argument_that_is_missing_is_named(tmp_path: Path) -> None:
    """A callable whose arguments have no default wants them."""
    with pytest.raises(SettingError, match="missing a required argument: 'out_features'"):
        named("torch.nn:Linear", tmp_path, in_features=2)


def test_a_callable_that_fails_is_told_with_its_own_words(folder: Path) -> None:
    """Its exception is in the text."""
    with pytest.raises(
        ModelError,
        match=r"a callable that fails; at nets.py:broken; expected a callable .*; got RuntimeError: no such luck",
    ):
        named("nets.py:broken", folder)


def test_a_callable_that_would_end_the_program_does_not(folder: Path) -> None:
    """It is an error like any other, and not an exit status without a word."""
    with pytest.raises(ModelError, match=r"a callable that fails; at nets.py:ends; .*got SystemExit: 3"):
        named("nets.py:ends", folder)


def test_a_callable_that_makes_no_module_is_refused(folder: Path) -> None:
    """The text says what came instead."""
    with pytest.raises(ModelError, match=r"expected a callable that returns an nn.Module; got str"):
        named("nets.py:text", folder)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_come_back_bit_for_bit(folder: Path, suffix: str) -> None:
    """Of either format."""
    weights, path = {"weight": torch.randn(2, 4), "bias": torch.randn(2)}, folder / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(weights, path)
    else:
        safetensors.torch.save_file(weights, path)
    state = named("nets.py:small", folder, path).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80\x04K\x01.", b"PK\x03\x04", b"\xff" * 64])
def test_a_damaged_file_of_weights_is_refused(folder: Path, suffix: str, content: bytes) -> None:
    """Empty, text, a pickle of a number, the begin of an archive, or bytes of nothing."""
    path = folder / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a file of weights"):
        load_weights_(nn.Linear(4, 2), path)


def test_weights_are_written_as_they_are_read(tmp_path: Path) -> None:
    """Buffers too, laid out in any order, and a tensor that two layers share."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub wants more
    network[3].register_parameter("weight", network.get_parameter("2.weight"))
    save_weights(network, tmp_path / "kept.safetensors")
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    load_weights_(other, tmp_path / "kept.safetensors")
    theirs = other.state_dict()
    assert all(torch.equal(theirs[name], one) for name, one in network.state_dict().items())


def test_a_missing_file_of_weights_is_named(tmp_path: Path) -> None:
    """As a path."""
    with pytest.raises(PathError, match="no such file of weights"):
        load_weights_(nn.Linear(4, 2), tmp_path / "none.pt")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("way", ["torch", "pickle"])
def test_attack_a_pickle_among_the_weights_is_refused_and_not_run(folder: Path, way: str) -> None:
    """No call in it is made."""
    path, trace = folder / "weights.pt", folder / "it-ran"
    if way == "torch":
        torch.save({"weight": Trap(str(trace))}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Trap(str(trace))}))
    with pytest.raises(ModelError, match="not a file of weights"):
        named("nets.py:small", folder, path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (
            {"weight": (3, 4), "bias": (2,)},
            r"1 that differ, first weight \(\[3, 4\] in the file, \[2, 4\] in the model\)",
        ),
        ({"weight": (2, 4)}, r"1 that differ, first bias \(not in the file\)"),
        ({"weight": (2, 4), "bias": (2,), "extra": (1,)}, r"1 that differ, first extra \(not in the model\)"),
        ({}, r"2 that differ, first weight \(not in the file\)"),
    ],
)
def test_weights_of_another_model_name_the_tensor(
    folder: Path, weights: dict[str, tuple[int, ...]], told: str
) -> None:
    """A shape, one too few, one too many, or none."""
    torch.save({name: torch.zeros(shape) for name, shape in weights.items()}, folder / "weights.pt")
    with pytest.raises(ModelError, match=told):
        named("nets.py:small", folder, folder / "weights.pt")


def test_a_checkpoint_that_only_contains_weights_is_told_by_its_keys(folder: Path) -> None:
    """So that the user sees what to unpack."""
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "epoch": 3}, folder / "weights.pt")
    with pytest.raises(ModelError, match="expected a state_dict of tensors; got state_dict, epoch"):
        load_weights_(nn.Linear(4, 2), folder / "weights.pt")


@pytest.mark.parametrize("name", ["timm:resnet18", "hf:."])
def test_a_missing_library_tells_its_pip_line(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not in the extra of the laboratory, but in one of its own."""
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r'pip install "edgestill\[zoo\]"'):
        named(name, tmp_path)


class Seen(nn.Module):
    """Gives back what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x


def test_an_image_is_normalised_as_worked_out_by_hand() -> None:
    """255 is (1 - mean) / deviation, 0 is -mean / deviation; the channels come first."""
    model = ImageInput(Seen(), mean=(0.5, 0.25, 0.0), deviation=(0.5, 0.25, 2.0))
    given = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 1, 1, 3)
    assert model(given).shape == (1, 3, 1, 1)
    torch.testing.assert_close(model(given).flatten(), torch.tensor([1.0, -1.0, 0.1]))


def test_an_image_is_resized_as_worked_out_by_hand() -> None:
    """Two columns become four at 0, 1/4, 3/4 and 1 of the way, as pixels with areas are placed."""
    model = ImageInput(Seen(), mean=(0.0,), deviation=(1.0,), size=(1, 4))
    given = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1)
    torch.testing.assert_close(model(given).flatten(), torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_an_image_of_the_right_size_is_left_alone() -> None:
    """No interpolation of anything to itself."""
    given = torch.randint(0, 256, (2, 3, 4, 1), dtype=torch.uint8)
    same = ImageInput(Seen(), mean=(0.0,), deviation=(1.0,), size=(3, 4))(given)
    assert torch.equal(same, given.permute(0, 3, 1, 2).float() / 255)


@pytest.mark.parametrize(("mean", "deviation"), [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((0.5,), (-1.0,))])
def test_a_normalisation_that_cannot_be_is_refused(
    mean: tuple[float, ...], deviation: tuple[float, ...]
) -> None:
    """Of other channels, or a division by nothing."""
    with pytest.raises(SettingError, match="normalisation is out of range"):
        ImageInput(Seen(), mean=mean, deviation=deviation)


def test_weights_of_the_model_inside_serve_for_the_image_input(tmp_path: Path) -> None:
    """Published weights know nothing of the normalisation around them; ours do, and serve as well."""
    inner, wrapped = nn.Conv2d(1, 2, 1), ImageInput(nn.Conv2d(1, 2, 1), mean=(0.0,), deviation=(1.0,))
    for state in (inner.state_dict(), {f"model.{name}": one for name, one in inner.state_dict().items()}):
        torch.save(state, tmp_path / "weights.pt")
        nn.init.zeros_(wrapped.get_parameter("model.weight"))
        load_weights_(wrapped, tmp_path / "weights.pt")
        assert torch.equal(wrapped.get_parameter("model.weight"), inner.weight)
