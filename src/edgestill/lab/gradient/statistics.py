"""Batch normalisation as it is in training: with the mean and variance of the batch, while running figures follow.

A node in the file normalises by figures that stand there. Here they are computed from what comes in, which `rules.norms` knows how to go
through, and the file's own become running figures: taken in and given out as parameters are, but moved by no gradient (Ioffe and
Szegedy 2015, algorithm 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from edgestill.lab.gradient.tape import Tape

_USUAL = 0.9
"""ONNX's momentum: the share that a running figure keeps."""


def follow_the_batch(tape: Tape, rate: ir.Value) -> list[tuple[ir.Value, ir.Value]]:
    """Rewires every batch normalisation of the graph; returns (running figure of the file, what it becomes).

    Args:
        tape: of the graph.
        rate: the learning rate; at 0 the figures stay, as parameters do.
    """
    moved = []
    for node in list(tape.graph):
        if node.op_type == "BatchNormalization":
            tape.of_the_batch.add(node)
            tape.before = node
            moved += _rewired(tape, node, tape.op("Sign", rate))
    tape.before = None
    return moved


def _rewired(tape: Tape, node: ir.Node, moves: ir.Value) -> list[tuple[ir.Value, ir.Value]]:
    x, _, _, mean, variance = node.inputs
    assert x is not None
    assert mean is not None
    assert variance is not None
    rank = len(tape.shape(x))
    others = tape.whole(0, *range(2, rank))
    now = tape.op("ReduceMean", x, others, keepdims=1)
    centred = tape.op("Sub", x, now)
    spread = tape.op("ReduceMean", tape.op("Mul", centred, centred), others, keepdims=0)
    flat = tape.op("Reshape", now, tape.whole(-1))
    node.replace_input_with(3, flat)
    node.replace_input_with(4, spread)
    momentum = node.attributes.get("momentum")
    kept = _USUAL if momentum is None else float(momentum.value)
    unbiased = tape.op("Mul", spread, _correction(tape, x, rank))
    share = tape.op("Mul", moves, tape.constant(1 - kept))
    return [(mean, _towards(tape, mean, flat, share)), (variance, _towards(tape, variance, unbiased, share))]


def _correction(tape: Tape, x: ir.Value, rank: int) -> ir.Value:
    """N / (n - 1), of n numbers for each channel; 1 where there is but one."""
    sizes = tape.op("Gather", tape.op("Shape", x), tape.whole(0, *range(2, rank)))
    count = tape.op("Cast", tape.op("ReduceProd", sizes, keepdims=0), to=int(ir.DataType.FLOAT))
    one = tape.constant(1.0)
    return tape.op("Div", count, tape.op("Max", tape.op("Sub", count, one), one))


def _towards(tape: Tape, old: ir.Value, new: ir.Value, share: ir.Value) -> ir.Value:
    return tape.op("Add", old, tape.op("Mul", tape.op("Sub", new, old), share))
