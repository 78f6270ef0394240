"""The training step as a file: what it takes and gives, what may learn, and what is refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from training_worlds import named, step_of, stirred, trainer_of

from edgestill.core.errors import EdgestillError, ModelError, SettingError
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.modelfile import check_self_contained
from edgestill.lab.gradient.optimisers import Adam, Sgd
from edgestill.lab.gradient.parameters import chosen, parameters_of
from edgestill.lab.gradient.step import Step, Training, training_step
from edgestill.lab.networks import ImageNet24
from edgestill.lab.packing.export import export_onnx
from edgestill.lab.packing.graph import read

if TYPE_CHECKING:
    from numpy.typing import NDArray

INPUTS = torch.randint(0, 256, (6, 24, 24, 3), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """The reference network, small."""
    torch.manual_seed(0)
    return stirred(ImageNet24(4, 6, 16))


@pytest.fixture(scope="module")
def exported(network: nn.Module) -> bytes:
    """As a file in floats."""
    return export_onnx(network.eval(), INPUTS[:2])


def kinds(step: Step) -> list[str]:
    """The operators of a step."""
    return [node.op_type for node in onnx.load_from_string(step.model).graph.node]


def names(step: Step) -> list[str]:
    """What learns."""
    return [one.name for one in step.file.tensors]


def test_a_step_is_data_alone_and_of_standard_operators(exported: bytes) -> None:
    """No file beside it, no operator of anybody's own, the opset of the model."""
    step = training_step(exported, Training())
    check_self_contained(step.model)
    onnx.checker.check_model(onnx.load_from_string(step.model), full_check=True)
    assert {node.domain for node in onnx.load_from_string(step.model).graph.node} <= {"", "ai.onnx"}


def test_a_step_is_the_same_file_twice(exported: bytes) -> None:
    """Nothing in it depends on when it was made."""
    assert training_step(exported, Training()).model == training_step(exported, Training()).model


def test_parameters_begin_where_the_lab_ended(network: nn.Module, exported: bytes) -> None:
    """The file's own numbers are the network's, and a step of rate 0 gives them back bit by bit."""
    for optimiser in (Sgd(weight_decay=0.1), Adam(weight_decay=0.1, decoupled=True)):
        state = trainer_of(training_step(exported, Training(optimiser=optimiser))).start(INPUTS.numpy())
        weight = network.get_parameter("conv1.weight").detach().numpy()
        assert np.array_equal(state.values["model.conv1.weight"], weight)
        assert state.done == 0
        assert all(not value.any() for name, value in state.values.items() if "." not in name[:6])


def test_running_figures_are_given_back_too() -> None:
    """A batch that is only looked at moves no statistic."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    step = step_of(model, torch.randn(8, 4), Training(statistics="batch"), folded=False)
    trainer, inputs = trainer_of(step), np.full((8, 4), 5.0, np.float32)
    state = trainer.start(inputs)
    assert np.array_equal(state.values["model.1.running_mean"], np.zeros(6))
    moved, _ = trainer.step(state, inputs, np.eye(3, dtype=np.float32)[[0] * 8], rate=1e-6)
    assert moved.values["model.1.running_mean"].any()


@pytest.mark.parametrize(
    ("trainable", "learning"),
    [
        ("head", ["head.weight", "head.bias"]),
        ("last=2", ["model.fc1.weight", "model.fc1.bias", "head.weight", "head.bias"]),
        ("last=99", None),
        ("all", None),
        ("biases", ["model.conv1.bias", "model.conv2.bias", "model.fc1.bias", "head.weight", "head.bias"]),
        ("model.conv2.*, head.bias", ["model.conv2.weight", "model.conv2.bias", "head.bias"]),
    ],
)
def test_a_part_of_the_network_may_learn(exported: bytes, trainable: str, learning: list[str] | None) -> None:
    """By the words head, last, biases and all, or by name; the rest stays as it is."""
    step = training_step(exported, Training(trainable=trainable))
    every = [
        f"{'' if one == 'head' else 'model.'}{one}.{part}"
        for one in ("conv1", "conv2", "fc1", "head")
        for part in ("weight", "bias")
    ]
    assert names(step) == (learning or every)
    trainer = trainer_of(step)
    state = trainer.start(INPUTS.numpy())
    targets = np.eye(10, dtype=np.float32)[:6]
    _, first = trainer.step(state, INPUTS.numpy(), targets, rate=0.0)
    for _ in range(60):
        state, loss = trainer.step(state, INPUTS.numpy(), targets, rate=0.02)
    assert loss < first


def test_a_head_costs_no_gradient_of_what_lies_before_it(exported: bytes) -> None:
    """Nothing but the forward pass and two products."""
    assert "ConvTranspose" not in kinds(training_step(exported, Training(trainable="head")))
    assert kinds(training_step(exported, Training(trainable="head"))).count("Gemm") == 3
    assert "ConvTranspose" in kinds(training_step(exported, Training()))


def test_the_first_layer_asks_for_no_gradient_of_the_sensor(exported: bytes) -> None:
    """Two convolutions, of which only the second passes a gradient on."""
    assert kinds(training_step(exported, Training())).count("ConvTranspose") == 1


def test_the_means_of_the_sensor_do_not_learn(exported: bytes) -> None:
    """What scales the readings is no parameter, though it stands in the file as floats."""
    graph = read(exported).graph
    assert {one.role for one in parameters_of(graph)} == {"weight", "bias"}
    assert len(parameters_of(graph)) == 8 < len(graph.initializers)


def test_a_bound_on_the_norm_shortens_all_gradients_together(exported: bytes) -> None:
    """With a rate of 1 and no momentum, the parameters move by no more than the bound."""
    free = training_step(exported, Training(optimiser=Sgd(momentum=0)))
    bound = training_step(exported, Training(optimiser=Sgd(momentum=0), clip=0.01))
    targets = np.eye(10, dtype=np.float32)[:6]

    def moved(step: Step) -> dict[str, NDArray[np.float32]]:
        trainer = trainer_of(step)
        state = trainer.start(INPUTS.numpy())
        after, _ = trainer.step(state, INPUTS.numpy(), targets, rate=1.0)
        return {name: after.values[name] - state.values[name] for name in state.values}

    long, short = moved(free), moved(bound)
    norm = np.sqrt(sum(float((one**2).sum()) for one in short.values()))
    whole = np.sqrt(sum(float((one**2).sum()) for one in long.values()))
    assert norm == pytest.approx(0.01, rel=1e-3)
    for name, one in short.items():
        assert one == pytest.approx(long[name] * (0.01 / whole), abs=1e-7)


def test_an_operator_without_a_rule_is_named_with_its_place() -> None:
    """The error tells the operator, where it is in the network, and what is known; what comes after it can still learn."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.cumsum(self.first(x), 1))
            return logits

    model = nn.Sequential()
    model.add_module("odd", Odd())
    with pytest.raises(ModelError, match=r"training cannot go through an operator; at odd.*CumSum") as raised:
        step_of(model, torch.randn(4, 4), Training())
    assert "Conv" in str(raised.value.expected)
    assert names(step_of(model, torch.randn(4, 4), Training(trainable="head"))) == [
        "head.weight",
        "head.bias",
    ]


def test_a_loop_is_refused_by_name() -> None:
    """An EmbeddingBag is exported as a loop over lists, which no gradient goes through."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.EmbeddingBag(40, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.words(x))
            return logits

    with pytest.raises(ModelError, match="Sequence"):
        step_of(Bag(), torch.randint(0, 40, (4, 6)), Training())


def test_a_size_that_may_change_is_refused_by_name() -> None:
    """A convolution over a length that is open has no fixed windows."""
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 3))
    proto = onnx.load_from_string(export_onnx(model.eval(), torch.randn(2, 2, 20)))
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "length"
    del proto.graph.value_info[:]
    with pytest.raises(ModelError, match="sizes that may change"):
        training_step(proto.SerializeToString(), Training())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Training(clip=0.0), "clip"),
        (lambda: Training(clip=float("nan")), "clip"),
        (lambda: Sgd(momentum=1.0), "momentum"),
        (lambda: Sgd(weight_decay=-1.0), "weight_decay"),
        (lambda: Adam(second=1.5), "second"),
        (lambda: Adam(epsilon=0.0), "epsilon"),
        (lambda: Training(rate=-1.0), "rate"),
        (lambda: Training(batch=0), "batch"),
        (lambda: Training(statistics="none"), "statistics"),  # type: ignore[arg-type]  # as somebody might write it
    ],
)
def test_settings_out_of_range_are_refused(make: object, told: str) -> None:
    """By name, before anything is traced."""
    with pytest.raises(SettingError, match=told):
        make()  # type: ignore[operator]  # a callable


@pytest.mark.parametrize("trainable", ["", "nothing.here", "last=0", "last=-1", "last=x", "head=3"])
def test_a_choice_that_names_nothing_is_refused(exported: bytes, trainable: str) -> None:
    """With the names that there are."""
    with pytest.raises(SettingError, match=r"model\.conv1\.weight"):
        chosen(parameters_of(read(exported).graph), trainable)


def test_a_model_without_logits_or_weights_is_refused(exported: bytes) -> None:
    """What cannot be trained is told as such."""
    proto = onnx.load_from_string(exported)
    for output in proto.graph.output:
        output.name = f"{output.name}_x"
    for node in proto.graph.node:
        node.output[:] = [f"{name}_x" if name in {"logits", "features"} else name for name in node.output]
        node.input[:] = [f"{name}_x" if name in {"logits", "features"} else name for name in node.input]
    with pytest.raises(ModelError, match="without logits"):
        training_step(proto.SerializeToString(), Training())
    with pytest.raises(EdgestillError, match="without parameters"):
        chosen([], "all")


def test_a_parameter_with_a_name_of_the_step_itself_is_refused() -> None:
    """`targets` cannot be two things."""
    proto = onnx.load_from_string(export_onnx(nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(2, 4)))
    old = proto.graph.initializer[0].name
    proto.graph.initializer[0].name = "targets"
    for node in proto.graph.node:
        node.input[:] = ["targets" if name == old else name for name in node.input]
    with pytest.raises(ModelError, match="a name that the training step needs itself"):
        training_step(proto.SerializeToString(), Training())


def test_the_forward_pass_is_that_of_the_model(network: nn.Module, exported: bytes) -> None:
    """The loss of a step is the cross entropy of the exported model's own logits."""
    state_step = training_step(exported, Training())
    trainer = trainer_of(state_step)
    targets = np.eye(10, dtype=np.float32)[:6]
    _, loss = trainer.step(trainer.start(INPUTS.numpy()), INPUTS.numpy(), targets, rate=0.0)
    logits = OnnxEngine(exported).run({"input": INPUTS.numpy()})["logits"].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert loss == pytest.approx(-(targets * logs).sum(1).mean(), rel=1e-5)
    assert named(network) >= {"model.conv1.weight"}
