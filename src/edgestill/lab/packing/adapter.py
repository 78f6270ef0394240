"""An adapter is trained: from a student's features to its teacher's logits, for where no input may leave a device.

It is a linear head, which begins as the student's own, and one with a hidden layer beside it, which begins with no say. Both follow the
teacher's softened answers to the student's training data (Hinton et al. 2015, eq. 4). It is never told what the student has dropped: features that do
not tell two classes apart tell no adapter. A tenth of the data, of people where they are known, is kept out, and says when to stop.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from edgestill.core.errors import DataError, ModelError
from edgestill.infer.adapter import FEATURES, LOGITS, as_sent
from edgestill.lab.packing.assemble import answers_from

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST: Final = 100
"""Samples that something can be learned from."""
_HIDDEN: Final = 512
_EPOCHS: Final = 40
_BATCH: Final = 256
_RATE: Final = 1e-3
_DECAY: Final = 0.02
_DROPPED: Final = 0.2
_TAU: Final = 2.0
_RIDGE: Final = 1e-6
_KEPT_OUT: Final = 0.1
_OPSET: Final = 17
_IR_VERSION: Final = 10
_TOLERANCE: Final = 1e-2


def trained_adapter(
    features: NDArray[np.floating],
    teacher: NDArray[np.floating],
    *,
    student: NDArray[np.floating],
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> bytes:
    """The adapter as an ONNX file: input `features` FP16 `[N, D]`, output `logits` FP32 `[N, C]`.

    Args:
        features: `[N, D]`, of the student as it is shipped, for its training data.
        teacher: logits `[N, C]` for these.
        student: its own logits `[N, C]`.
        groups: `[N]`, people or devices: some of them are kept out whole; None keeps out samples.
        seed: of its first weights, and of what is kept out.

    Raises:
        DataError: fewer than `FEWEST` samples.
    """
    check_enough(len(features))
    out = _kept_out(np.arange(len(features)) if groups is None else groups, seed)
    inputs = torch.from_numpy(as_sent(features).astype(np.float32))
    wanted = torch.from_numpy(np.asarray(teacher, np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Adapter(inputs, torch.from_numpy(np.asarray(student, np.float32)))
        _train(model, inputs, wanted, out)
    file = _written(model)
    _check(file, model, inputs[:_BATCH])
    return file


def check_enough(samples: int) -> None:
    """Looks whether an adapter can be trained on so many.

    Raises:
        DataError: fewer than `FEWEST`.
    """
    if samples < FEWEST:
        raise DataError(
            "too little data to train an adapter",
            where="train",
            expected=f"{FEWEST} samples at least, some thousands to be of use",
            got=samples,
            fix='bring more, or let leaves be "nothing" or "raw"',
        )


def _kept_out(groups: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """`[N]`: a tenth of the groups, of few one; of a single group a tenth of its samples."""
    names = np.unique(groups)
    if len(names) == 1:
        groups = names = np.arange(len(groups))
    chosen = np.random.default_rng(seed).permutation(names)[: max(1, round(_KEPT_OUT * len(names)))]
    return np.isin(groups, chosen)


class _Adapter(nn.Module):
    """A linear layer that gives what the student gave, and one with a hidden layer beside it that gives nothing, to begin with."""

    def __init__(self, like: Tensor, student: Tensor) -> None:
        super().__init__()
        width, classes = like.shape[1], student.shape[1]
        self.mean, self.deviation = like.mean(0), like.std(0).clamp_min(1e-3)
        self.direct, self.inner, self.outer = (
            nn.Linear(width, classes),
            nn.Linear(width, _HIDDEN),
            nn.Linear(_HIDDEN, classes),
        )
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.drop = nn.Dropout(_DROPPED)
        even = torch.cat([(like - self.mean) / self.deviation, torch.ones(len(like), 1)], 1).double()
        ridge = _RIDGE * len(like) * torch.eye(width + 1, dtype=torch.float64)
        solved = torch.linalg.solve(even.T @ even + ridge, even.T @ student.double()).float()
        with torch.no_grad():
            self.direct.weight.copy_(solved[:-1].T)
            self.direct.bias.copy_(solved[-1])

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[N, C]`."""
        even = (features - self.mean) / self.deviation
        found: Tensor = self.direct(even) + self.outer(self.drop(functional.relu(self.inner(even))))
        return found


def _train(model: _Adapter, inputs: Tensor, wanted: Tensor, out: NDArray[np.bool_]) -> None:
    """Leaves the model as it was after its best epoch, told by the samples that are kept out."""
    kept, rest = (torch.from_numpy(np.flatnonzero(one)) for one in (out, ~out))
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=_DECAY)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _EPOCHS * -(-len(rest) // _BATCH))
    best, found = _of(model, inputs[kept], wanted[kept]), deepcopy(model.state_dict())
    for _ in range(_EPOCHS):
        model.train()
        for part in torch.split(rest[torch.randperm(len(rest))], _BATCH):
            optimiser.zero_grad()
            _loss(model(inputs[part]), wanted[part]).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            plan.step()
        loss = _of(model, inputs[kept], wanted[kept])
        if loss < best:
            best, found = loss, deepcopy(model.state_dict())
    model.load_state_dict(found)


def _of(model: _Adapter, inputs: Tensor, wanted: Tensor) -> float:
    """The loss of what is kept out."""
    model.eval()
    with torch.inference_mode():
        return float(_loss(model(inputs), wanted))


def _loss(given: Tensor, wanted: Tensor) -> Tensor:
    return functional.kl_div(
        functional.log_softmax(given / _TAU, 1),
        functional.log_softmax(wanted / _TAU, 1),
        reduction="batchmean",
        log_target=True,
    )


def _written(model: _Adapter) -> bytes:
    """The file; the standardisation is in the weights."""
    scale = (1 / model.deviation.double()).numpy()
    shift = -model.mean.double().numpy() * scale
    weights: dict[str, NDArray[np.float32]] = {}
    for name, layer in (("direct", model.direct), ("inner", model.inner)):
        matrix = layer.weight.detach().double().numpy()
        weights[name] = (matrix * scale).T.astype(np.float32)
        weights[f"{name}_bias"] = (layer.bias.detach().double().numpy() + matrix @ shift).astype(np.float32)
    weights["outer"] = model.outer.weight.detach().numpy().T.copy()
    weights["outer_bias"] = model.outer.bias.detach().numpy()
    nodes = [
        helper.make_node("Cast", [FEATURES], ["single"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["single", "inner", "inner_bias"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["shown"]),
        helper.make_node("Gemm", ["shown", "outer", "outer_bias"], ["beside"]),
        helper.make_node("Gemm", ["single", "direct", "direct_bias"], ["straight"]),
        helper.make_node("Add", ["straight", "beside"], [LOGITS]),
    ]
    width, classes = weights["direct"].shape
    graph = helper.make_graph(
        nodes,
        "adapter",
        [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT16, ["N", width])],
        [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(one, name) for name, one in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def _check(file: bytes, model: _Adapter, inputs: Tensor) -> None:
    with torch.inference_mode():
        wanted = model(inputs).numpy()
    found = answers_from(file, inputs.numpy())
    if not np.allclose(found, wanted, atol=_TOLERANCE * max(1.0, float(np.abs(wanted).max()))):
        raise ModelError(
            "the adapter's file answers otherwise than the adapter",
            where="adapter",
            expected="the same logits",
            got=f"up to {float(np.abs(found - wanted).max()):.3g} apart",
            fix="please report this",
        )
