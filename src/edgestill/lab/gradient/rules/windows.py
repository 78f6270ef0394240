"""Sliding windows: where they lie, what they see, and numbers put back where they were seen."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, final

from edgestill.lab.gradient.tape import unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir as ir

    from edgestill.lab.gradient.sweep import Site
    from edgestill.lab.gradient.tape import Tape


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """The geometry of a convolution or a pool; each list has a number for each spatial axis.

    Attributes:
        sizes: of the input.
        outputs: places of the window.
        kernel: numbers that a window sees.
        strides: from one window to the next.
        dilations: from one number of a window to the next.
        before: padding in front of the input.
    """

    sizes: tuple[int, ...]
    outputs: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]

    @classmethod
    def of(cls, site: Site, kernel: Sequence[int]) -> Self:
        """Those of a node whose first input is `[N, C, *sizes]`.

        Raises:
            ModelError: sizes that may change, or padding that the operator itself chooses.
        """
        sizes, outputs = site.shape()[2:], site.tape.shape(site.y)[2:]
        if None in sizes or None in outputs:
            raise unsupported(
                site.node, "sizes that may change", ["an input of a fixed size, but for the batch"]
            )
        rank = len(sizes)
        if site.text("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
            raise unsupported(site.node, "padding that it chooses itself", ["padding as numbers"])
        return cls(
            sizes=tuple(int(size or 0) for size in sizes),
            outputs=tuple(int(size or 0) for size in outputs),
            kernel=tuple(kernel),
            strides=tuple(site.numbers("strides", [1] * rank)),
            dilations=tuple(site.numbers("dilations", [1] * rank)),
            before=tuple(site.numbers("pads", [0] * 2 * rank)[:rank]),
        )

    @property
    def rank(self) -> int:
        """Spatial axes."""
        return len(self.sizes)

    @property
    def reach(self) -> tuple[int, ...]:
        """The padded input's numbers that any window sees: from the first one's first to the last one's last."""
        return tuple(
            (places - 1) * stride + dilation * (size - 1) + 1
            for places, stride, dilation, size in zip(
                self.outputs, self.strides, self.dilations, self.kernel, strict=True
            )
        )

    @property
    def after(self) -> tuple[int, ...]:
        """Padding behind the input that is seen; negative where the last numbers of the input are seen by no window."""
        return tuple(
            reach - size - before
            for reach, size, before in zip(self.reach, self.sizes, self.before, strict=True)
        )

    @property
    def tile(self) -> bool:
        """Whether windows lie side by side, so that no number is seen twice, without padding."""
        return (
            self.strides == self.kernel
            and set(self.dilations) == {1}
            and not any(self.before)
            and max(self.after) <= 0
        )

    @property
    def are_points(self) -> bool:
        """Whether each window sees the one number at its own place."""
        return set(self.kernel) == set(self.strides) == {1} and not any(self.before) and not any(self.after)

    def offsets(self) -> Iterator[tuple[int, ...]]:
        """The places within a window, the last axis fastest."""
        return itertools.product(*map(range, self.kernel))

    def seen(self, tape: Tape, value: ir.Value) -> list[ir.Value]:
        """For each place within a window, what all windows see there: `[A, B, *outputs]` each, of `[A, B, *sizes]`."""
        padded = self._padded(tape, value)
        if self.are_points:
            return [padded]
        return [self._slice(tape, padded, offset) for offset in self.offsets()]

    def _padded(self, tape: Tape, value: ir.Value) -> ir.Value:
        after = [max(size, 0) for size in self.after]
        if not any(self.before) and not any(after):
            return value
        pads = tape.whole(0, 0, *self.before, 0, 0, *after)
        return tape.op("Pad", value, pads, tape.constant(0.0))

    def _slice(self, tape: Tape, padded: ir.Value, offset: tuple[int, ...]) -> ir.Value:
        starts = [at * dilation for at, dilation in zip(offset, self.dilations, strict=True)]
        ends = [
            start + (places - 1) * stride + 1
            for start, places, stride in zip(starts, self.outputs, self.strides, strict=True)
        ]
        axes = tape.whole(*range(2, 2 + self.rank))
        if set(self.strides) == {1}:
            return tape.op("Slice", padded, tape.whole(*starts), tape.whole(*ends), axes)
        return tape.op(
            "Slice", padded, tape.whole(*starts), tape.whole(*ends), axes, tape.whole(*self.strides)
        )

    def woven(self, tape: Tape, parts: Sequence[ir.Value]) -> ir.Value:
        """Of windows that tile: one value for each place within a window, put back to the whole.

        Args:
            tape: to write on.
            parts: `[N, C, *outputs]` each, in the order of `offsets`.

        Returns:
            `[N, C, *sizes]`; zeros where no window lies.
        """
        lines = list(parts)
        for axis in reversed(range(self.rank)):
            lines = [
                self._woven_along(tape, lines[at : at + self.kernel[axis]], axis)
                for at in range(0, len(lines), self.kernel[axis])
            ]
        (whole,) = lines
        rest = [-size for size in self.after]
        if not any(rest):
            return whole
        return tape.op("Pad", whole, tape.whole(*[0] * (2 + self.rank), 0, 0, *rest), tape.constant(0.0))

    def _woven_along(self, tape: Tape, parts: Sequence[ir.Value], axis: int) -> ir.Value:
        """Numbers by turns along one axis; the axes behind it are whole already."""
        if len(parts) == 1:
            return parts[0]
        behind = tape.whole(3 + axis)
        side_by_side = tape.op(
            "Concat", *(tape.op("Unsqueeze", part, behind) for part in parts), axis=3 + axis
        )
        done = [places * size for places, size in zip(self.outputs[axis:], self.kernel[axis:], strict=True)]
        return tape.op("Reshape", side_by_side, tape.whole(0, 0, *self.outputs[:axis], *done))
