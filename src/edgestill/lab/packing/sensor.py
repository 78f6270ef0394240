"""What a sensor gives, made into what a network was trained on, inside the file: nobody has to write it again on the device."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, final, get_args

import numpy as np
import onnx_ir as ir

from edgestill.core.errors import ModelError, SettingError
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.packing.graph import free_name, inputs_for, read, written

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Kind = Literal["", "uint8", "uint16", "int16", "int32", "float32"]
Layout = Literal["", "channels-last", "both-last"]
_TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor:
    """What the sensor gives, and how it becomes the network's input: `(x * scale - mean) / deviation`.

    Attributes:
        kind: of its numbers; empty for the network's own.
        layout: `channels-last` where the sensor gives `[N, ..., C]` and the network takes `[N, C, ...]`; `both-last` where the
            network takes `[N, ..., C]` as well; empty where both have them first, or rows have no other axes.
        scale: such as 1/255 for bytes.
        mean: one number, or one a channel; in units of the scaled numbers.
        deviation: likewise; not 0.

    Raises:
        SettingError: a value out of range, or as many means as nothing has.
    """

    kind: Kind = ""
    layout: Layout = ""
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name, kinds in (("kind", Kind), ("layout", Layout)):
            value = getattr(self, name)
            if value not in get_args(kinds):
                wanted = ", ".join(one for one in get_args(kinds) if one)
                raise _wrong(name, f"one of {wanted}, or nothing", repr(value))
        for name, numbers in (("scale", (self.scale,)), ("mean", self.mean), ("deviation", self.deviation)):
            with np.errstate(over="ignore"):
                narrow = np.array(numbers, dtype=np.float32)
            if not numbers or not np.isfinite(narrow).all() or (name != "mean" and 0 in narrow):
                raise _wrong(name, "finite numbers" + ("" if name == "mean" else ", not 0"), list(numbers))
        if 1 not in (len(self.mean), len(self.deviation)) and len(self.mean) != len(self.deviation):
            raise _wrong("deviation", f"1 or {len(self.mean)} numbers (the means)", len(self.deviation))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `"kind=uint8,layout=channels-last,scale=1/255,mean=0.5 0.4 0.3,deviation=0.2"`.

        Raises:
            SettingError: an unknown or repeated name, a part without `=`, or no number where one belongs.
        """
        values: dict[str, Any] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in _READERS or name in values:
                raise _wrong(name, f"NAME=VALUE, each once, of {', '.join(_READERS)}", repr(part))
            try:
                values[name] = _READERS[name](value)
            except (ValueError, ZeroDivisionError, OverflowError) as error:
                raise _wrong(
                    name, "numbers such as 0.5 or 1/255, with blanks between them", repr(value)
                ) from error
        return cls(**values)

    @property
    def is_plain(self) -> bool:
        """Whether it gives what the network takes."""
        return self == Sensor()

    def prepared(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        """What the network is given for these readings; by numpy, for checks.

        Args:
            x: `[N, ...]`, as the sensor gives it.
        """
        floats: NDArray[np.float32] = x.astype(np.float32)
        if self.layout == "channels-last":
            floats = np.moveaxis(floats, -1, 1)
        mean, deviation = (
            _along(one, floats.ndim, last=self.layout == "both-last") for one in (self.mean, self.deviation)
        )
        found: NDArray[np.float32] = (floats * np.float32(self.scale) - mean) / deviation
        return found


@final
@dataclass(frozen=True, slots=True)
class TakeSensor:
    """A `Pass`: the model takes what a sensor gives.

    Attributes:
        sensor: that one.
    """

    sensor: Sensor
    name: ClassVar[str] = "take what the sensor gives"

    def requires(self, model: bytes) -> None:
        """Looks whether the model takes floats, with as many channels as there are means.

        Raises:
            ModelError: it does not.
        """
        if self.sensor.is_plain:
            return
        (taken,) = read(model).graph.inputs
        if taken.dtype not in {ir.DataType.FLOAT, ir.DataType.FLOAT16} or taken.shape is None:
            raise _unfit("a model that takes no floats has its preprocessing already", "floats", taken.dtype)
        if len(taken.shape) < (3 if self.sensor.layout else 2):
            raise _unfit("the input has too few axes", "[N, C, ...]", list(taken.shape))
        count = max(len(self.sensor.mean), len(self.sensor.deviation))
        channels = taken.shape[-1 if self.sensor.layout == "both-last" else 1]
        if count > 1 and channels != count:
            raise _unfit("a mean for each channel", f"{channels} (the model's channels; see layout)", count)

    def apply(self, model: bytes) -> bytes:
        """The model behind its preprocessing."""
        if self.sensor.is_plain:
            return model
        known = read(model)
        graph, sensor = known.graph, self.sensor
        (old,) = graph.inputs
        assert old.shape is not None
        dims = list(old.shape)
        if sensor.layout == "channels-last":
            dims = [dims[0], *dims[2:], dims[1]]
        kind = ir.DataType.from_numpy(np.dtype(sensor.kind)) if sensor.kind else ir.DataType.FLOAT
        name, wanted = str(old.name), old.dtype or ir.DataType.FLOAT
        old.name = free_name(graph, f"{name}_prepared")
        new = ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(kind))
        nodes = self._nodes(graph, new, len(dims), kind, wanted)
        graph.inputs[0] = new
        old.replace_all_uses_with(nodes[-1].outputs[0])
        graph.insert_before(graph[0], nodes)
        return written(known)

    def ensures(self, before: bytes, after: bytes) -> None:
        """The answers are those to the readings prepared by hand.

        Raises:
            ModelError: they are not.
        """
        if before == after:
            return
        ((name, readings),) = inputs_for(after).items()
        found = OnnxEngine(after).run({name: readings})
        kind = np.float16 if read(before).graph.inputs[0].dtype == ir.DataType.FLOAT16 else np.float32
        wanted = OnnxEngine(before).run({name: self.sensor.prepared(readings).astype(kind)})
        for output, one in wanted.items():
            room = _TOLERANCE * max(1.0, float(np.abs(one.astype(np.float64)).max()))
            if not np.allclose(found[output].astype(np.float64), one.astype(np.float64), rtol=0, atol=room):
                raise _unfit("preprocessing changed the answers", f"{output} within {room:.2g}", "others")

    def _nodes(
        self, graph: ir.Graph, given: ir.Value, rank: int, kind: ir.DataType, wanted: ir.DataType
    ) -> list[ir.Node]:
        """Cast, scale, shift, divide, and the channels to their place."""
        sensor = self.sensor
        nodes: list[ir.Node] = []

        def add(
            operator: str, number: NDArray[np.float32] | None = None, **attributes: int | list[int]
        ) -> None:
            inputs = [nodes[-1].outputs[0] if nodes else given]
            if number is not None:
                value = ir.Value(
                    name=f"sensor_{operator.lower()}_{len(nodes)}", const_value=ir.tensor(number)
                )
                graph.register_initializer(value)
                inputs.append(value)
            node = ir.node(operator, inputs, attributes)
            node.outputs[0].name = free_name(graph, f"sensor_{len(nodes)}")
            nodes.append(node)

        last, moved = bool(sensor.layout), sensor.layout == "channels-last"
        if kind != ir.DataType.FLOAT:
            add("Cast", to=ir.DataType.FLOAT)
        add("Mul", np.array(sensor.scale, dtype=np.float32))
        add("Sub", _along(sensor.mean, rank, last=last))
        add("Div", _along(sensor.deviation, rank, last=last))
        if moved:
            add("Transpose", perm=[0, rank - 1, *range(1, rank - 1)])
        if wanted != ir.DataType.FLOAT:
            add("Cast", to=wanted)
        return nodes


def _number(text: str) -> float:
    return float(Fraction(text))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(_number, text.split()))


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "kind": str,
    "layout": str,
    "scale": _number,
    "mean": _numbers,
    "deviation": _numbers,
}


def _along(numbers: tuple[float, ...], rank: int, *, last: bool) -> NDArray[np.float32]:
    """As many axes as the readings have, the numbers along the channels."""
    shape = [1] * rank
    shape[-1 if last else 1] = len(numbers)
    return np.array(numbers, dtype=np.float32).reshape(shape)


def _wrong(name: str, expected: str, got: object) -> SettingError:
    return SettingError(
        "a sensor's value is out of range",
        where=f"sensor: {name}",
        expected=expected,
        got=got,
        fix="say what turns a reading into the network's input: (x * scale - mean) / deviation",
    )


def _unfit(what: str, expected: object, got: object) -> ModelError:
    return ModelError(
        what,
        where="model.onnx: input",
        expected=expected,
        got=got,
        fix="leave the sensor's settings out where the model has its preprocessing inside",
    )
