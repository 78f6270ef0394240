"""How gradients go through each operator of standard ONNX that networks are made of.

A rule is called for a node whose output has a gradient, and gives the gradients of its inputs, in their order; None for one that
nobody asked for. Where a function has a kink, such as a ReLU at 0, rules take the side that torch takes.
"""

from __future__ import annotations

from typing import Final

from edgestill.lab.gradient.rules import (
    activations,
    arithmetic,
    convolution,
    linear,
    norms,
    pooling,
    shaping,
)

RULES: Final = {
    name: rule
    for module in (activations, arithmetic, convolution, linear, norms, pooling, shaping)
    for name, rule in module.RULES.items()
}
"""Operator -> rule."""
