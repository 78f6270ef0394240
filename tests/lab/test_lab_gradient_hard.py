"""Networks that look easy and are not: what would be trained wrongly is right, or refused by name."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from training_worlds import beside_torch, named, stirred, trainer_of

from edgestill.core.errors import ModelError
from edgestill.lab.gradient.step import Training, training_step
from edgestill.lab.packing.export import export_onnx
from edgestill.lab.packing.trainable import fixed_of_module

SGD = partial(torch.optim.SGD, lr=0.02, momentum=0.9)
IMAGES = torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def step_of_module(model: nn.Module, inputs: Tensor, training: Training | None = None) -> list[str]:
    """What learns of a module, as a run packs it."""
    made = training_step(
        export_onnx(model.eval(), inputs[:2]),
        training or Training(),
        named=named(model),
        fixed=fixed_of_module(model),
    )
    return [one.name for one in made.file.tensors]


@pytest.mark.parametrize("bend", [nn.ReLU6(), nn.Hardtanh(-0.5, 0.7)], ids=["ReLU6", "Hardtanh"])
def test_bounds_that_stand_in_nodes_are_bounds(bend: nn.Module) -> None:
    """An export that is not folded leaves them there; the pool over named axes likewise."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)
            self.bend, self.head = bend, nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.bend(self.norm(self.first(x))).mean((2, 3)))
            return logits

    torch.manual_seed(0)
    found = beside_torch(
        Net(),
        IMAGES,
        3,
        training=Training(statistics="batch", rate=0.02),
        optimiser=SGD,
        in_training_mode=True,
        fewest=6,
    )
    assert max(found.loss, found.parameters) < 1e-4


def test_pixel_shuffle_dropout_and_extremes_are_those_of_torch() -> None:
    """Channels that become pixels, nothing dropped in a file that answers, and the larger of two."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(2, 8, 3), nn.Conv2d(2, 8, 3), nn.Linear(288, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.maximum(self.first(x), self.second(x)) - torch.minimum(
                self.first(x) * 0.3, self.second(x)
            )
            y = nn.functional.pixel_shuffle(y, 2)
            logits: Tensor = self.head(nn.functional.dropout(y.flatten(1), 0.5, training=False))
            return logits

    torch.manual_seed(0)
    found = beside_torch(Net(), IMAGES, 3, training=Training(rate=0.02), optimiser=SGD)
    assert max(found.loss, found.parameters) < 1e-4


def test_masks_and_filterbanks_do_not_learn() -> None:
    """A network's buffers stay what they are, wherever an operator reads them."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 3)
            self.register_buffer("bank", torch.randn(6, 6))
            self.register_buffer("mask", torch.full((5, 5), -1e4).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.mix(x @ self.get_buffer("bank"))
            y = torch.softmax(x @ x.transpose(1, 2) + self.get_buffer("mask"), -1) @ x
            logits: Tensor = self.head(y.mean(1))
            return logits

    torch.manual_seed(0)
    learning = step_of_module(stirred(Net()), torch.randn(4, 5, 6))
    assert len(learning) == 3
    assert not [name for name in learning if "bank" in name or "mask" in name]


def test_a_mask_of_a_foreign_file_is_no_bias() -> None:
    """An addition of a table behind a product is none; one of a row is."""
    table, row = np.ones((4, 3), np.float32), np.ones(3, np.float32)

    def learning(added: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[str]:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Add", ["product", "added"], ["logits"]),
        ]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 5])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [4, 3])],
            [
                numpy_helper.from_array(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), "w"),
                numpy_helper.from_array(added, "added"),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return [one.name for one in training_step(model.SerializeToString(), Training()).file.tensors]

    assert learning(row) == ["w", "added"]
    assert learning(table) == ["w"]


@pytest.mark.parametrize("layer", ["GRU", "LSTM"])
def test_recurrent_layers_are_refused_by_name_and_may_stay_frozen(layer: str) -> None:
    """All that learns is what was asked for: nothing is frozen in silence."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.over = getattr(nn, layer)(4, 6, batch_first=True)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.over(x)[0][:, -1])
            return logits

    model = stirred(Net())
    with pytest.raises(ModelError, match=layer):
        step_of_module(model, torch.randn(4, 7, 4))
    assert step_of_module(model, torch.randn(4, 7, 4), Training(trainable="head")) == [
        "head.weight",
        "head.bias",
    ]


def test_weights_that_were_tied_by_a_transposition_are_refused() -> None:
    """The export makes two of them, which would learn apart."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.bend = nn.Embedding(20, 6), nn.Linear(6, 6)
            self.head = nn.Linear(20, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bend(self.words(x).mean(1)).unsqueeze(1)
            logits: Tensor = self.head((y @ self.words.weight.t()).squeeze(1))
            return logits

    with pytest.raises(ModelError, match="tied have come apart"):
        step_of_module(stirred(Net()), torch.randint(0, 20, (4, 5)))


def test_equal_figures_of_norms_learn_apart() -> None:
    """In an untrained network scale and variance are one tensor in the file; the variance must not learn with the scale."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)
    ).eval()
    for statistics in ("frozen", "batch"):
        made = training_step(
            export_onnx(model, IMAGES[:2], folded=False),
            Training(statistics=statistics),
            named=named(model),
        )
        assert len({one.name for one in made.file.tensors}) == len(made.file.tensors)
        trainer = trainer_of(made)
        state = trainer.start(IMAGES.numpy())
        for _ in range(5):
            targets = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 0, 1]]
            state, loss = trainer.step(state, IMAGES.numpy(), targets, rate=0.5)
        assert np.isfinite(loss)


def test_tokens_of_32_bits_and_names_of_the_steps_own_are_no_hindrance() -> None:
    """A table is looked up by whole numbers of any width, and a value inside may be called `weights` or `loss`."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["weights"]),
        helper.make_node("ReduceMean", ["weights", "one"], ["loss"], keepdims=0),
        helper.make_node("Gemm", ["loss", "w", "b"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("tokens", TensorProto.INT32, ["n", 5])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [
            numpy_helper.from_array(random.normal(size=(9, 4)).astype(np.float32), "table"),
            numpy_helper.from_array(random.normal(size=(4, 3)).astype(np.float32), "w"),
            numpy_helper.from_array(np.zeros(3, np.float32), "b"),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    trainer = trainer_of(training_step(model.SerializeToString(), Training()))
    tokens = random.integers(0, 9, (6, 5)).astype(np.int32)
    state, targets, losses = trainer.start(tokens), np.eye(3, dtype=np.float32)[[0, 1, 2] * 2], []
    for _ in range(40):
        state, loss = trainer.step(state, tokens, targets, rate=0.1)
        losses.append(loss)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("noop", "expected"), [(0, "mean"), (1, "itself")])
def test_a_mean_over_no_axes_is_what_the_operator_says(noop: int, expected: str) -> None:
    """Over all of them, or over none where the node says so: the gradient follows the forward pass."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["y"]),
        helper.make_node("ReduceMean", ["y", "none"], ["mean"], keepdims=1, noop_with_empty_axes=noop),
        helper.make_node("Add", ["y", "mean"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 5])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [4, 3])],
        [
            numpy_helper.from_array(random.normal(size=(5, 3)).astype(np.float32), "w"),
            numpy_helper.from_array(np.zeros(0, np.int64), "none"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    trainer = trainer_of(training_step(model.SerializeToString(), Training()))
    x = torch.from_numpy(random.normal(size=(4, 5)).astype(np.float32))
    targets = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    state = trainer.start(x.numpy())
    w = torch.from_numpy(state.values["w"].copy()).requires_grad_()
    y = x @ w
    loss = nn.functional.cross_entropy(
        y + (y if expected == "itself" else y.mean()), torch.from_numpy(targets)
    )
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types there
    moved, _ = trainer.step(state, x.numpy(), targets, rate=1.0)
    assert w.grad is not None
    assert state.values["w"] - moved.values["w"] == pytest.approx(w.grad.numpy(), abs=1e-5)


def test_another_precision_on_the_way_is_refused_by_name() -> None:
    """What is computed in double between the weights and the loss is not trained wrongly, but named."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["y"]),
        helper.make_node("Cast", ["y"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Relu", ["wide"], ["bent"]),
        helper.make_node("Cast", ["bent"], ["logits"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 5])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [4, 3])],
        [numpy_helper.from_array(random.normal(size=(5, 3)).astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    with pytest.raises(ModelError, match="another precision"):
        training_step(model.SerializeToString(), Training())
