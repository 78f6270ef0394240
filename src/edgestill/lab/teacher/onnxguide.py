"""A teacher that answers through onnxruntime: for views without end, where a cache makes no sense.

The exported teacher is made int8 by `lab.packing.quantise`, by the rules of this machine's hardware class, and is two to three
times as fast as the module on the CPUs we measured. int8 changes what a teacher says, so it is compared with the module
on samples that did not calibrate it; the figures are kept, and too little agreement is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

import torch
from torch import Tensor

from edgestill.core.digest import Digest
from edgestill.core.errors import DataError, ModelError, SettingError
from edgestill.core.hardware import HardwareClass
from edgestill.infer.engine import OnnxEngine
from edgestill.lab.forward import answers, evaluating, forward, keeping_mode
from edgestill.lab.loss.hint import watching
from edgestill.lab.packing.export import FEATURES, INPUT, LOGITS, export_onnx, head_of
from edgestill.lab.packing.quantise import quantise
from edgestill.lab.teacher.guide import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from edgestill.core.protocols import Engine
    from edgestill.lab.data.source import Ask, Inputs, Task

_LEAST_SAMPLES: Final = 4


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far the exported teacher says what the module says.

    Attributes:
        same: share of the samples whose largest output is the same.
        error: mean absolute difference of the outputs.
        spread: mean absolute distance of the module's outputs from their mean, to judge `error` by.
        n: samples compared.
    """

    same: float
    error: float
    spread: float
    n: int

    @classmethod
    def of(cls, said: Tensor, wanted: Tensor) -> Self:
        """Of the exported teacher's outputs `[N, C]` and the module's."""
        return cls(
            same=float((said.argmax(1) == wanted.argmax(1)).float().mean()),
            error=float((said - wanted).abs().mean()),
            spread=float((wanted - wanted.mean(0)).abs().mean()),
            n=len(said),
        )

    def figure(self, task: Task) -> float:
        """What is compared with the bound, 1 at best: `same` for classes, else 1 - `error` / `spread`."""
        if task == "classes":
            return self.same
        return 1.0 if self.error == 0 else 1 - self.error / max(self.spread, 1e-30)


@final
class OnnxGuide:
    """A `lab.teacher.guide.Guide` over an exported teacher. See `OnnxGuide.export`.

    Attributes:
        agreement: with the module.
        model: the ONNX file.
    """

    views: Final = None

    def __init__(self, engine: Engine, model: bytes, agreement: Agreement, *, with_features: bool) -> None:
        self.agreement, self.model = agreement, model
        self._engine, self._with_features = engine, with_features

    @classmethod
    def export(
        cls,
        teacher: nn.Module,
        sample: Tensor,
        *,
        task: Task = "classes",
        hint: str | None = None,
        int8: bool = True,
        least: float = 0.95,
        threads: int | None = None,
    ) -> Self:
        """Exports the teacher and compares.

        Args:
            teacher: takes one tensor; it is left as it was.
            sample: `[M, ...]`, some hundred inputs; every second one calibrates the quantiser, the others compare.
            task: what the outputs are.
            hint: a layer whose output is what the head takes; others are not exported.
            int8: whether it is quantised.
            least: agreement that is demanded, by `Agreement.figure`.
            threads: of the engine; by default as many as torch has.

        Raises:
            ModelError: it cannot be exported or quantised, or agrees too little.
            SettingError: the hint is another layer. DataError: fewer than four samples.
        """
        if len(sample) < _LEAST_SAMPLES:
            raise DataError(
                "too few samples to compare",
                expected=f"at least {_LEAST_SAMPLES}",
                got=len(sample),
                where="shown",
                fix="give more samples, or ask the teacher live",
            )
        if hint is not None:
            _check_hint(teacher, sample[:2], hint)
        with keeping_mode(teacher):
            model = export_onnx(teacher, sample[:2])
        if int8:
            model = quantise(model, sample[::2].numpy(), HardwareClass.here())
        engine = OnnxEngine(model, threads=threads or torch.get_num_threads())
        said, wanted = (
            _plain(engine.run({INPUT: sample[1::2].numpy()}), LOGITS),
            answers(teacher, sample[1::2]),
        )
        agreement = Agreement.of(said, wanted.float())
        if agreement.figure(task) < least:
            raise ModelError(
                f"the {'int8' if int8 else 'exported'} teacher does not say what the module says",
                where=type(teacher).__name__,
                expected=f"an agreement of at least {least:.0%}",
                got=f"{agreement.figure(task):.1%} on {agreement.n} samples",
                fix="use int8=False, or calibrate on more samples"
                if int8
                else "use the module itself: LiveGuide",
            )
        return cls(engine, model, agreement, with_features=hint is not None)

    @property
    def digest(self) -> Digest:
        """Of the exported file."""
        return Digest.of_chunks([b"onnx", str(self._with_features).encode(), self.model])

    def answer(self, ask: Ask, inputs: Inputs) -> Answer:
        """The exported teacher's answers to `inputs`.

        Raises:
            ModelError: several inputs. EngineError: the runtime refused.
        """
        del ask
        if not isinstance(inputs, Tensor):
            raise ModelError(
                "an exported teacher takes one tensor",
                got=type(inputs).__name__,
                fix="use LiveGuide",
                where="inputs",
                expected="one tensor",
            )
        found = self._engine.run({INPUT: inputs.cpu().numpy()})
        features = _plain(found, FEATURES).to(inputs.device) if self._with_features else None
        return Answer(_plain(found, LOGITS).to(inputs.device), features)


def _plain(found: Mapping[str, NDArray[np.generic]], name: str) -> Tensor:
    return torch.from_numpy(found[name]).float()


def _check_hint(teacher: nn.Module, inputs: Tensor, hint: str) -> None:
    taken: list[Tensor] = []
    handle = head_of(teacher)[1].register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    try:
        with watching(teacher, hint) as watched, evaluating(teacher):
            forward(teacher, inputs)
            same = torch.equal(watched.tensor, taken[-1])
    finally:
        handle.remove()
    if not same:
        raise SettingError(
            "an exported teacher gives no such features",
            where=f"hint: {hint}",
            expected="the layer whose output its head takes",
            fix="use LiveGuide, or keep its answers in a cache",
            got="an ONNX file with one kind of features",
        )
