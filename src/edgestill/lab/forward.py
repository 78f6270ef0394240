"""Asking a model without changing it: evaluation mode, no gradients, and its mode put back afterwards."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from edgestill.core.digest import Digest
from edgestill.core.errors import ModelError
from edgestill.lab.data.chunks import byte_chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from edgestill.lab.data.source import Inputs

_BATCH: Final = 256
_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients within; each module's own mode is restored."""
    with keeping_mode(model):
        model.eval()
        with torch.inference_mode():
            yield


@contextmanager
def one_by_one() -> Iterator[None]:
    """Within, fused layers (attention, recurrent ones) do their operations one by one, so that each can be seen."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()  # noqa: SLF001  # the public switch warns about another vendor's hardware
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        torch._C._set_mkldnn_enabled(False)  # noqa: SLF001
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(onednn)  # noqa: SLF001


@contextmanager
def keeping_mode(model: nn.Module) -> Iterator[None]:
    """Whatever is done to the modes of its modules within is undone."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def forward(model: nn.Module, inputs: Inputs) -> Tensor:
    """The model's outputs `[N, C]`, whatever `inputs` are and however they come wrapped.

    Raises:
        ModelError: the model gives neither a tensor, nor a tuple that begins with one, nor an object with `logits`.
    """
    if isinstance(inputs, Tensor):
        given = model(inputs)
    elif isinstance(inputs, tuple):
        given = model(*inputs)
    else:
        given = model(**inputs)
    if isinstance(given, Tensor):
        return given
    found = given[0] if isinstance(given, tuple | list) and given else getattr(given, "logits", None)
    if isinstance(found, Tensor):
        return found
    raise ModelError(
        "a model whose outputs cannot be told",
        where=type(model).__name__,
        expected="a tensor [N, C], a tuple that begins with one, or an object with `logits`",
        got=type(given).__name__,
        fix="wrap the model so that it returns one tensor of logits",
    )


def answers(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's logits `[N, C]`, in evaluation mode and without gradients; its mode is restored."""
    with evaluating(model):
        parts = [forward(model, inputs[i : i + _BATCH]) for i in range(0, len(inputs), _BATCH)]
    # joined outside of inference mode, since a loss cannot keep an inference tensor for its gradient
    return torch.cat(parts)


def weights_digest(model: nn.Module) -> Digest:
    """Of all parameters and buffers, with their names, types and shapes."""
    return Digest.of_chunks(_named_chunks(model.state_dict()))


def model_digest(model: nn.Module) -> Digest:
    """Of its weights, and of its layers with their settings. What a `forward` does beside its layers cannot be seen in it."""
    kind = type(model)
    text = _ADDRESS.sub("", repr(model))  # a function among the settings is told by its name
    head = f"{kind.__module__}.{kind.__qualname__}|{text}|"
    return Digest.of_chunks([head.encode(), str(weights_digest(model)).encode()])


def _named_chunks(state: Mapping[str, Tensor]) -> Iterator[bytes]:
    for name in sorted(state):
        yield f"|{name}|{state[name].dtype}|{tuple(state[name].shape)}|".encode()
        yield from byte_chunks(state[name])
