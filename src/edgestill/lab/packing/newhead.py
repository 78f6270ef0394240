"""The next version of a bundle whose last layer alone is another: the head that a fleet's sums give (`learn.together`).

Nothing else changes: the file keeps its length, its backbone and its quantisation grid, so that the patch is little more than the head, sums
of before and after add, and what a device has gathered stays of use.

- A head of sums has scores near its targets, which are no logits. It is written in the multiple whose softmax is calibrated, as far as the
  grid has weights of that size; a smaller one names the same classes, and the temperature makes up for it.
- Sums have several heads (`learn.together.heads_of`). One half of the data that nothing has learned from chooses among them, by the likelihood of
  their calibrated answers; the other half judges: a head that loses more there than is allowed is refused. Temperature and threshold, and
  with a teacher alpha, are fitted on that half, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, final

import numpy as np

from edgestill import __version__
from edgestill.core import manifest as names
from edgestill.core.bundle import build
from edgestill.core.errors import DataError, EvidenceError, ModelError
from edgestill.core.hardware import HardwareClass
from edgestill.core.jsonio import canonical, parse_object
from edgestill.infer.calibration import fit_temperature, negative_log_likelihood
from edgestill.infer.confidence import softmax
from edgestill.infer.engines import engine_of
from edgestill.infer.golden import read_golden
from edgestill.infer.policy import Policy
from edgestill.infer.student import FEATURES, LOGITS, TEMPERATURE
from edgestill.lab.gradient.places import Places
from edgestill.lab.measure import accuracy, run_model
from edgestill.lab.packing.assemble import REFERENCE, Origin, check_follows
from edgestill.lab.packing.calibrate import FEWEST, Heldout, asking_text, calibrate, promise_text
from edgestill.lab.packing.graph import constant, read
from edgestill.lab.packing.leverage import relative_leverage
from edgestill.learn.codes import range_of, read_from, written_into
from edgestill.learn.statistics import Head, Statistics
from edgestill.learn.stepfile import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    from edgestill.core.bundle import Bundle
    from edgestill.core.jsonio import JsonObject
    from edgestill.core.manifest import Manifest
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.measure import Figure

ALLOWED: Final = 0.01
"""Share of accuracy that a new head may cost on the data it is judged by."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reheaded:
    """The next version, and what was measured.

    Attributes:
        manifest: of the bundle.
        blobs: name -> bytes.
        policy: the fitted one.
        chosen: name of the head.
        before: accuracy of the parent on the half that judges.
        after: the same with the new head, as it is written.
        rounded: share of the answers that differ from those of the head in floats.
    """

    manifest: Manifest
    blobs: dict[str, bytes]
    policy: Policy
    chosen: str
    before: Figure
    after: Figure
    rounded: float


@final
class ShippedHead:
    """The last layer of a shipped file.

    Args:
        model: a bundle's `model.onnx`: `logits = features W + b`, in floats or in codes.
        hardware_class: where it runs.

    Raises:
        ModelError: its logits are no linear layer of its features, with a bias.
    """

    def __init__(self, model: bytes, hardware_class: HardwareClass) -> None:
        graph, places = read(model).graph, Places(model, hardware_class)
        weight, bias, self._turned = _layer(graph)
        self._model = model
        self._weight, self._bias, self._temperature = (
            _placed(places, name, value)
            for name, value in (("weight", weight), ("bias", bias), ("temperature", _temperature(graph)))
        )

    def read(self) -> Head:
        """Weight `[D, C]` and bias `[C]`."""
        found = read_from(self._model, (self._weight, self._bias))
        weight = found[self._weight.name]
        return Head(weight.T if self._turned else weight, found[self._bias.name].reshape(-1))

    def most(self, head: Head) -> float:
        """The largest multiple of a head of which the grid has every weight; infinite where the file has floats."""
        rooms = []
        for tensor, numbers in self._numbers(head):
            low, high = (np.broadcast_to(one, numbers.shape) for one in range_of(self._model, tensor))
            with np.errstate(divide="ignore", invalid="ignore"):
                rooms.append(np.where(numbers == 0, np.inf, np.where(numbers > 0, high, low) / numbers).min())
        return float(min(rooms))

    def write(self, head: Head) -> bytes:
        """The file with another head, of the same length.

        Raises:
            OverlayError: one of another shape, or not finite. ModelError: one beyond the grid.
        """
        numbers = {tensor.name: one.astype(np.float32) for tensor, one in self._numbers(head)}
        model, cut = written_into(self._model, (self._weight, self._bias), numbers)
        if cut:
            raise ModelError(
                "a head beyond the grid",
                where="model.onnx",
                expected="numbers that the last layer's codes can have",
                got=f"{cut:.1%} of them beyond",
                fix="build the bundle with its last layer in floats",
            )
        return model

    def with_temperature(self, model: bytes, temperature: float) -> bytes:
        """A file that `write` gave, with another temperature."""
        number = np.full(self._temperature.shape, temperature, np.float32)
        return written_into(model, (self._temperature,), {self._temperature.name: number})[0]

    def _numbers(self, head: Head) -> tuple[tuple[Tensor, NDArray[np.float64]], ...]:
        """Weight and bias as the file has them."""
        weight = head.weight.T if self._turned else head.weight
        return (
            (self._weight, np.ascontiguousarray(weight, np.float64)),
            (self._bias, np.asarray(head.bias, np.float64).reshape(self._bias.shape)),
        )


def with_head(
    parent: Bundle,
    heads: Mapping[str, Head],
    heldout: Samples,
    *,
    version: str,
    evidence: JsonObject,
    teacher: NDArray[np.float32] | None = None,
    allowed: float = ALLOWED,
    seed: int = 0,
) -> Reheaded:
    """Makes the next version of a bundle.

    Args:
        parent: the bundle whose devices sent the sums.
        heads: name -> weight `[D, C]` and bias `[C]`, of scores; one at least.
        heldout: data that nothing has learned from, as the sensor gives it.
        version: of what is made, above the parent's.
        evidence: what the head was made of, for the lineage.
        teacher: its logits `[N, C]` for these data; None leaves alpha as it is.
        allowed: share of accuracy that the head may cost there.
        seed: of the split of the data.

    Raises:
        EvidenceError: a head of another kind, or one that loses more than that.
        ModelError: the file's last layer cannot be replaced. DataError: too little data.
        SettingError: the version is not above the parent's.
    """
    where, known = HardwareClass(parent.manifest.hardware_class), Policy.from_bytes(parent.read(names.POLICY))
    check_follows(
        parent.manifest, Origin(name=parent.manifest.name, version=version, recipe={}, seed=seed), where
    )
    shipped = ShippedHead(parent.read(names.MODEL), where)
    for head in heads.values():
        _check_kind(head, shipped.read())
    chooses = _first_half(heldout.groups, seed)
    _check_enough(chooses)
    logits, features = run_model(engine_of(parent.read(names.MODEL), where.name), heldout.inputs)
    chosen, times = _best(heads, features[chooses], heldout.where(chooses))
    head, times = heads[chosen], min(times, shipped.most(heads[chosen]))
    model = shipped.write(Head(head.weight * times, head.bias * times))
    judged, features = heldout.where(~chooses), features[~chooses]
    said, again = run_model(engine_of(model, where.name), judged.inputs)
    _check_backbone(features, again)
    before, after = (accuracy(one, judged.labels, judged.groups) for one in (logits[~chooses], said))
    _check_loss(before, after, allowed)
    answers = Heldout(
        student=said,
        teacher=None if teacher is None else teacher[~chooses],
        labels=judged.labels,
        groups=judged.groups,
        leverage=_leverage(parent, known, features),
    )
    # weights by confidence were by another head's; with a teacher there are new ones
    made = Reheaded(
        manifest=parent.manifest,
        blobs={name: parent.read(name) for name in parent.manifest.blobs},
        policy=calibrate(answers, replace(known, bands=()), seed=seed),
        chosen=chosen,
        before=before,
        after=after,
        rounded=float((said.argmax(1) != _scores(head, features).argmax(1)).mean()),
    )
    model = shipped.with_temperature(model, made.policy.temperature)
    return _built(parent, made, version, model, evidence | {"head": chosen, "seed": seed})


def _first_half(groups: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """`[N]`: whether a sample is of the half that chooses. The halves share no group; of a single group no sample."""
    found, random = np.unique(groups), np.random.default_rng(seed)
    units = groups if len(found) > 1 else np.arange(len(groups))
    chosen = random.permutation(np.unique(units))
    return np.isin(units, chosen[: len(chosen) // 2])


def _best(heads: Mapping[str, Head], features: NDArray[np.float32], known: Samples) -> tuple[str, float]:
    """The head whose calibrated answers are likeliest, and the multiple of it that is calibrated."""
    units, found = len(np.unique(known.groups)), {}
    for name, head in heads.items():
        scores = _scores(head, features)
        temperature = fit_temperature(scores, known.labels, units=units)
        likely = negative_log_likelihood(softmax(scores, temperature), known.labels)
        found[name] = (likely, 1 / temperature)
    best = min(found, key=lambda name: found[name][0])
    return best, found[best][1]


def _scores(head: Head, features: NDArray[np.float32]) -> NDArray[np.float32]:
    return (features @ head.weight + head.bias).astype(np.float32)


def _layer(graph: ir.Graph) -> tuple[ir.Value, ir.Value, bool]:
    """Weight and bias of the layer that gives the logits from the features, and whether the weight stands as `[C, D]`."""
    outputs = {one.name: one for one in graph.outputs}
    last = outputs[LOGITS].producer() if LOGITS in outputs else None
    if last is None or FEATURES not in outputs:
        raise _no_layer("outputs `logits` and `features`", ", ".join(str(name) for name in outputs))
    turned = False
    if last.op_type == "Gemm":
        told = {name: one.value for name, one in last.attributes.items()}
        if told.get("transA", 0) or (told.get("alpha", 1.0), told.get("beta", 1.0)) != (1.0, 1.0):
            raise _no_layer("a Gemm that scales nothing", f"{told}")
        given, turned = list(last.inputs), bool(told.get("transB", 0))
    else:
        product = last.inputs[0].producer() if last.op_type == "Add" and last.inputs[0] is not None else None
        if product is None or product.op_type != "MatMul":
            raise _no_layer("Gemm, or MatMul and Add", last.op_type)
        given = [*product.inputs, last.inputs[1]]
    if given[0] is not outputs[FEATURES]:
        raise _no_layer("a layer of the features", "a layer of something else")
    weight, bias = (_stored(one) for one in (*given[1:], None, None)[:2])
    if weight is None or bias is None:
        raise _no_layer("a weight and a bias that are constants", "none, or computed")
    for given_as, one in zip(given[1:], (weight, bias), strict=False):
        if len(one.uses()) > 1 or (given_as is not None and len(given_as.uses()) > 1):
            raise _no_layer(
                "a last layer that shares no numbers with others", f"{one.name} in several places"
            )
    return weight, bias, turned


def _temperature(graph: ir.Graph) -> ir.Value:
    told = next((one.producer() for one in graph.outputs if one.name == TEMPERATURE), None)
    value = None if told is None else told.inputs[0]
    if value is None or constant(value) is None:
        raise _no_layer("an output `temperature` that is a constant", "none")
    if {user.op_type for user, _ in value.uses()} - {"Identity", "Div"}:
        raise _no_layer("a temperature that nothing else rests on", f"{value.name} in several places")
    return value


def _stored(value: ir.Value | None) -> ir.Value | None:
    """The constant behind a value, or behind its codes; None where it is computed."""
    if value is None or constant(value) is not None:
        return value
    node = value.producer()
    codes = node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else None
    return codes if constant(codes) is not None else None


def _placed(places: Places, role: str, value: ir.Value) -> Tensor:
    numbers = constant(value)
    assert numbers is not None
    tensor = Tensor(name=str(value.name), shape=tuple(numbers.shape), role=role)
    return replace(tensor, place=places.of(tensor))


def _check_kind(head: Head, known: Head) -> None:
    if head.weight.shape != known.weight.shape or head.bias.shape != known.bias.shape:
        raise EvidenceError(
            "a head of another kind",
            where="head",
            expected=f"weight {list(known.weight.shape)}, bias {list(known.bias.shape)} (the bundle's)",
            got=f"{list(head.weight.shape)}, {list(head.bias.shape)}",
            fix="solve it from the sums of this bundle's devices",
        )


def _check_enough(chooses: NDArray[np.bool_]) -> None:
    if min(chooses.sum(), (~chooses).sum()) < FEWEST:
        raise DataError(
            "too little held-out data for another head",
            where="held-out data",
            expected=f"{FEWEST} samples at least in either half: one chooses, the other judges",
            got=f"{chooses.sum()} and {(~chooses).sum()}",
            fix="label some hundred, of several groups",
        )


def _check_backbone(before: NDArray[np.float32], after: NDArray[np.float32]) -> None:
    """Sums, windows and adapters are of these features, and know them by one name."""
    if not np.array_equal(before, after):
        raise ModelError(
            "another head changed the features",
            where="model.onnx",
            expected="features as before, bit by bit",
            got=f"a difference of {np.abs(before - after).max():.3g}",
            fix="build the bundle from a model whose last layer shares nothing with the others",
        )


def _check_loss(before: Figure, after: Figure, allowed: float) -> None:
    if before.value - after.value > allowed:
        raise EvidenceError(
            "the new head is worse than the one that it would replace",
            where="held-out data",
            expected=f"an accuracy of at least {before.value - allowed:.4f}: at most {allowed:.2%} less than the bundle's",
            got=f"{after.value:.4f}, {after.rests_on()}",
            fix="wait for more devices, weigh the bundle's own statistics more (--prior), or let scores move less (--within)",
        )


def _leverage(parent: Bundle, policy: Policy, features: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """`[N]`, where the policy's confidence rests on it."""
    if policy.measure != "leverage":
        return None
    return relative_leverage(Statistics.from_bytes(parent.read(REFERENCE))).of(features)


def _built(parent: Bundle, made: Reheaded, version: str, model: bytes, evidence: JsonObject) -> Reheaded:
    head, where = parent.manifest, HardwareClass(parent.manifest.hardware_class)
    golden = read_golden(parent.read(names.GOLDEN))
    logits, _ = run_model(engine_of(model, where.name), golden.input)
    changed = {
        names.MODEL: model,
        names.POLICY: made.policy.to_bytes(),
        names.GOLDEN: replace(golden, logits=logits).to_bytes(),
        names.LINEAGE: canonical(_lineage(parent, made, evidence)),
        names.CARD: _card(parent, made, version).encode(),
    }
    manifest, blobs = build(
        name=head.name, version=version, hardware_class=where.name, blobs=made.blobs | changed
    )
    return replace(made, manifest=manifest, blobs=blobs)


def _lineage(parent: Bundle, made: Reheaded, evidence: JsonObject) -> JsonObject:
    known = parse_object(parent.read(names.LINEAGE), where=names.LINEAGE)
    return known | {
        "made_by": f"edgestill {__version__}",
        "parent": str(parent.manifest.digest),
        "evidence": evidence,
        "metrics": {
            name: {"accuracy": one.value, "n": one.n, "groups": one.groups}
            for name, one in (("parent", made.before), ("int8", made.after))
        },
    }


def _card(parent: Bundle, made: Reheaded, version: str) -> str:
    head, policy = parent.manifest, made.policy
    return (
        f"# {head.name} {version}\n\n"
        f"{head.name} {head.version} with another last layer, made of what its devices have learned together ({made.chosen}).\n\n"
        f"{len(policy.labels)} classes: {', '.join(policy.labels)}.\n\n"
        f"Accuracy on held-out data that the policy was fitted on: {made.after}; of {head.version}: {made.before}; "
        f"on {made.after.rests_on()}.\n\n"
        f"{asking_text(policy)} Promise on the risk: {promise_text(policy)}.\n\nMay leave the device: {policy.leaves}.\n"
    )


def _no_layer(expected: str, got: str) -> ModelError:
    return ModelError(
        "the last layer cannot be replaced",
        where="model.onnx",
        expected=expected,
        got=got,
        fix="build the bundle from a model whose last layer is linear, with a bias, and whose features are named",
    )
