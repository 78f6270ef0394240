"""From a torch module to `model.onnx`: outputs `logits` and `features`, preprocessing inside, any batch size."""

from __future__ import annotations

import ast
import io
import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, final

import onnx
import torch
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from torch import Tensor, nn

from edgestill.core.errors import ModelError
from edgestill.core.extras import require
from edgestill.lab.packing.passes import through
from edgestill.lab.packing.scaling import MergeScaling

if TYPE_CHECKING:
    from collections.abc import Iterator

OPSET: Final = 20
INPUT: Final = "input"
LOGITS: Final = "logits"
FEATURES: Final = "features"
_SCOPES: Final = "pkg.torch.onnx.name_scopes"


def head_of(model: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer, by order of definition: its input is what is called features.

    Raises:
        ModelError: there is no linear layer.
    """
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not found:
        raise ModelError(
            "no head found",
            where=type(model).__name__,
            expected="a last nn.Linear",
            got="none",
            fix="end the network with one linear layer",
        )
    return found[-1]


def export_onnx(model: nn.Module, example: Tensor, *, folded: bool = True) -> bytes:
    """The model as ONNX bytes.

    Args:
        model: takes a batch, gives logits `[N, C]`.
        example: a batch of at least two, so that no size of one is taken for fixed.
        folded: whether batch normalisation becomes part of the weights before it, and constants are computed; one that shall
            be trained with the statistics of its batches must stay.

    Returns:
        A file with input `input`, outputs `logits` float32 `[N, C]` and `features` float32 `[N, D]`.

    Raises:
        ModelError: an operator that cannot be exported; the text names it.
    """
    require("onnxscript", extra="lab", purpose="to export a model")
    wrapped = _WithFeatures(model).eval()
    batch = torch.export.Dim("batch", min=1, max=65_535)
    try:
        with _quiet(), _table_kept():
            program = torch.onnx.export(
                wrapped,
                (example,),
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[LOGITS, FEATURES],
                dynamic_shapes=({0: batch},),
                verbose=False,
                optimize=folded,
            )
    except Exception as error:
        raise ModelError(
            "the model cannot be exported",
            where=type(model).__name__,
            got=f"{type(error).__name__}: {error}",
            fix="rewrite the named operator, or bring the student as an ONNX file",
            expected="operators that have an ONNX form",
        ) from error
    assert program is not None
    if not folded:
        LiftConstantsToInitializersPass()(program.model)
    return through(_plain(program.model_proto), [MergeScaling()])


@final
class _WithFeatures(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.head = head_of(model)[1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        try:
            logits = self.model(x)
        finally:
            handle.remove()
        return logits, kept[-1]


_tables: dict[object, object] = {}


@contextmanager
def _table_kept() -> Iterator[None]:
    """The exporter makes its table of operators anew for each model, which takes it longer than a small model does; ours share one.

    Where a later torch keeps it elsewhere, nothing is kept.
    """
    try:
        from torch.onnx._internal.exporter import _registration

        kind: Any = _registration.ONNXRegistry
        made = kind.__dict__["from_torchlib"]
        make = made.__get__(None, kind)
    except (ImportError, AttributeError, KeyError):
        yield
        return

    def kept(*arguments: Any, **settings: Any) -> object:
        key = (arguments, tuple(sorted(settings.items())))
        if key not in _tables:
            _tables[key] = make(*arguments, **settings)
        return _tables[key]

    kind.from_torchlib = staticmethod(kept)
    try:
        yield
    finally:
        kind.from_torchlib = made


class _quiet:  # noqa: N801  # a context manager read as a verb
    """The exporter logs about packages it could use and warns of its own deprecations; neither is the user's."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        self._levels = [(logger, logger.level) for logger in self._loggers()]
        for logger, _ in self._levels:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *details: object) -> None:
        for logger, level in self._levels:
            logger.setLevel(level)
        self._warnings.__exit__(None, None, None)

    @staticmethod
    def _loggers() -> Iterator[logging.Logger]:
        yield from map(logging.getLogger, ("torch.onnx", "onnxscript", "torch.export"))


def _place(node: onnx.NodeProto) -> str:
    """The path of the module and the node's own name, such as `layer1.0.conv:node_conv2d_3`."""
    told = {one.key: one.value for one in node.metadata_props}.get(_SCOPES, "[]")
    scopes = [scope.removeprefix("model.") for scope in ast.literal_eval(told) if scope not in {"", "model"}]
    return f"{scopes[-2]}:{node.name}" if len(scopes) > 1 else ""


def _plain(proto: onnx.ModelProto) -> bytes:
    """Without the exporter's notes on source lines: they name the builder's folders, and are most of a small file.

    Where in the network a node comes from is kept as its name, so that what is told of it can be found.
    """
    for node in proto.graph.node:
        node.doc_string = ""
        node.name = _place(node) or node.name
        del node.metadata_props[:]
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    buffer = io.BytesIO()
    onnx.save(proto, buffer)
    return buffer.getvalue()
