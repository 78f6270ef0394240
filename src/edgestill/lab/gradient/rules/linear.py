"""Matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgestill.lab.gradient.rules.arithmetic import narrowed
from edgestill.lab.gradient.tape import unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx_ir as ir

    from edgestill.lab.gradient.sweep import Site

    Grads = Sequence[ir.Value | None]


def _gemm(site: Site) -> Grads:
    """Y = alpha A' B' + beta C, where A' and B' may be transposed."""
    tape = site.tape
    turned_a, turned_b = (bool(site.whole(name, 0)) for name in ("transA", "transB"))
    alpha, beta = site.number("alpha", 1.0), site.number("beta", 1.0)
    left = right = added = None
    if site.wanted[0]:
        left = _product(site, site.grad, site.x(1), (False, not turned_b), alpha, turned=turned_a)
    if site.wanted[1]:
        right = _product(site, site.x(0), site.grad, (not turned_a, False), alpha, turned=turned_b)
    if len(site.wanted) > 2 and site.wanted[2]:  # the third input
        grad = site.grad if beta == 1 else tape.op("Mul", site.grad, tape.constant(beta))
        added = narrowed(site, grad, 2)
    return [left, right, added]


def _product(
    site: Site, a: ir.Value, b: ir.Value, turn: tuple[bool, bool], alpha: float, *, turned: bool
) -> ir.Value:
    """Alpha A' B', or its transpose, which is alpha B'^T A'^T."""
    if turned:
        a, b, turn = b, a, (not turn[1], not turn[0])
    return site.tape.op("Gemm", a, b, alpha=alpha, transA=int(turn[0]), transB=int(turn[1]))


def _matmul(site: Site) -> Grads:
    """Batches of matrices, of which either may be repeated."""
    ranks = len(site.shape(0)), len(site.shape(1))
    if min(ranks) < 2:  # a matrix
        raise unsupported(
            site.node, f"a product with a vector, ranks {ranks}", ["two matrices, or batches of them"]
        )
    tape = site.tape
    left = right = None
    if site.wanted[0]:
        left = narrowed(site, tape.op("MatMul", site.grad, _turned(site, 1)), 0)
    if site.wanted[1]:
        right = _for_the_right(site, ranks)
    return [left, right]


def _for_the_right(site: Site, ranks: tuple[int, int]) -> ir.Value:
    """A^T dY; of one matrix for a whole batch by one product over all rows."""
    tape = site.tape
    if ranks[1] == 2 and ranks[0] > 2:  # a batch times one matrix
        rows, columns = site.shape(1)
        if rows is not None and columns is not None:
            flat = tape.op("Reshape", site.x(0), tape.whole(-1, rows))
            grad = tape.op("Reshape", site.grad, tape.whole(-1, columns))
            return tape.op("Gemm", flat, grad, transA=1)
    return narrowed(site, tape.op("MatMul", _turned(site, 0), site.grad), 1)


def _turned(site: Site, at: int) -> ir.Value:
    rank = len(site.shape(at))
    return site.tape.op("Transpose", site.x(at), perm=[*range(rank - 2), rank - 1, rank - 2])


RULES: Final[dict[str, Callable[[Site], Grads]]] = {"Gemm": _gemm, "MatMul": _matmul}
