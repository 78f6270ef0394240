"""Learning together: what one message of sums, or a ballot, is worth against rounds of weights, in accuracy and in bytes both ways.

Beside it: what coarser messages, noise and liars cost (`encodings`, `noisy`, `hostile`), how many bytes bring a head back to devices (`rounds`), how
long ten thousand messages take to be summed (`summing`), what is left of them, and when it goes on, where the hub is killed in the midst
(`killed`), how soon betting sees a better head (`betting`), and what one device wins back by itself when a watch moves to the other wrist (`watch`).

    EDGESTILL_DATA=FOLDER python bench/bench_learn.py [--json] [--quick] [--keep FOLDER] [--only PART ...]

Prints what was found and, as the last line, `{"bench": "learn", "figures": {...}}`; `--json` leaves the rest out. The whole goes into
`bench/results/learn.json`; `python tools/tables.py` writes the tables of docs/learn.md and of docs/hub.md. `--only` runs some of the parts and takes the
others from the last results. `digits` and `cifar` tune FedAvg and FedProx, which takes a quarter of an hour each on one core; `--keep` keeps the
backbone that `cifar` trains, and the students of `watch`, which are half of its work. `--quick` only shows that it runs: its figures mean nothing, and are not kept.
"""

from __future__ import annotations

import sys

from peers import enter

if __name__ == "__main__":
    enter(__file__)

from typing import TYPE_CHECKING, Any, Final

from learning.plots import DRAWN, draw
from parted import Parted

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

PARTS: Final = (
    "digits",
    "cifar",
    "encodings",
    "noisy",
    "hostile",
    "rounds",
    "summing",
    "killed",
    "betting",
    "watch",
)
LIBRARIES: Final = ("edgestill", "numpy", "torch", "scikit-learn")


def measure(part: str, data: Path, folder: Path, quick: bool) -> Any:  # noqa: FBT001  # as `Parted` calls it
    """One part."""
    return modules()[part].measured(data, folder, quick=quick)


def figures(parts: dict[str, Any]) -> dict[str, float]:
    """The figures the project is held to, of the parts that there are."""
    known = modules()
    return {
        name: value for part, found in parts.items() for name, value in known[part].figures(found).items()
    }


def modules() -> dict[str, ModuleType]:
    """Part -> what measures it: `measured(data, kept, *, quick)`, and `figures` of what that found. A further part is a row here and in `PARTS`."""
    from learning import betting, cifar, digits, encodings, hostile, killed, noisy, rounds, summing, watch

    return {
        "digits": digits,
        "cifar": cifar,
        "encodings": encodings,
        "noisy": noisy,
        "hostile": hostile,
        "rounds": rounds,
        "summing": summing,
        "killed": killed,
        "betting": betting,
        "watch": watch,
    }


if __name__ == "__main__":
    Parted(
        name="learn",
        says=__doc__,
        parts=PARTS,
        libraries=LIBRARIES,
        measure=measure,
        figures=figures,
        plotted=DRAWN,
        draw=draw,
    ).main()
    sys.exit(0)
