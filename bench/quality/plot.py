"""The plot of few labels and many, as SVG written by hand: no library, and the same bytes for the same results."""

from __future__ import annotations

import math
from typing import Any, Final

WIDTH: Final = 560
HEIGHT: Final = 320
LEFT, RIGHT, TOP, BOTTOM = 52, 130, 16, 44
# Told apart without colour too: by dash and mark.
LOOKS: Final = {
    "plain": ("#555555", "2 3"),
    "inherited": ("#b35900", "7 3"),
    "distilled": ("#1f6fb2", "5 2 1 2"),
    "both": ("#2a7d3f", ""),
}


def drawing(part: dict[str, Any]) -> str:
    """Accuracy over the share of labels, a line a way, bars of one standard deviation over seeds."""
    shares = sorted(int(one) for one in part["shares"])
    values = [way["mean"] for one in part["shares"].values() for way in one["ways"].values()]
    rows = [part["shares"][str(share)] for share in shares]
    teacher = part["teacher"]["mean"]
    low, high = 5 * math.floor(min(values) / 5), 5 * math.ceil(max(*values, teacher) / 5)

    def x(share: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(share / shares[0]) / math.log(shares[-1] / shares[0])

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for value in range(low, high + 1, 5):
        lines += [
            f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>',
            f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value}</text>',
        ]
    for share in shares:
        lines.append(
            f'<text x="{x(share):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{share} %</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines += [
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">labelled share of 4,000 CIFAR-10 images</text>',
        f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2})">accuracy, %</text>',
        f'<path d="M{LEFT} {y(teacher):.1f}H{WIDTH - RIGHT}" stroke="#000000"/>',
        f'<text x="{WIDTH - RIGHT + 8}" y="{y(teacher) + 4:.1f}">teacher</text>',
    ]
    for at, (way, (colour, dash)) in enumerate(LOOKS.items()):
        points = [(x(share), one["ways"][way]) for share, one in zip(shares, rows, strict=True)]
        path = "L".join(f"{place:.1f} {y(found['mean']):.1f}" for place, found in points)
        lines.append(
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        for place, found in points:
            top, bottom = y(found["mean"] + found["spread"]), y(found["mean"] - found["spread"])
            moved = place + 3 * (at - 1.5)
            lines.append(f'<path d="M{moved:.1f} {top:.1f}V{bottom:.1f}" stroke="{colour}"/>')
        row = HEIGHT - BOTTOM - 84 + 20 * at
        lines += [
            f'<path d="M{WIDTH - RIGHT + 8} {row}h26" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>',
            f'<text x="{WIDTH - RIGHT + 40}" y="{row + 4}">{part["shares"][str(shares[0])]["ways"][way]["title"]}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"
