"""Chooses the recipes of `bench_quality.py` on validation data, for every way to train as hard; nothing of the test data is looked at.

    EDGESTILL_DATA=FOLDER python bench/tune_quality.py [--only PART ...] [--jobs N] [--keep FOLDER]

Writes every trial and the choices to `bench/results/quality_tuning.json`, from which `bench_quality.py` takes them. A trial that
is there already is not run again; delete the file to begin anew, which takes about two hours on two cores.
"""

from __future__ import annotations

import sys

from peers import enter

if __name__ == "__main__":
    enter(__file__)

import argparse
import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
from bench_quality import data_folder, limit_threads
from quality.tuned import RESULTS

PARTS: Final = ("digits", "intents")


def tune_digits(known: list[dict[str, Any]]) -> dict[str, Any]:
    """The best learning rate of each start, by course; what is known already is not tried again."""
    from quality import digits

    there = {(one["course"], one["start"], one["lr"]): one for one in known}
    for course, start, rate, each in digits.tried(range(2), list(there)):
        mean = round(float(np.mean(each)), 3)
        seeds = np.round(each, 3).tolist()
        there[course, start, rate] = {
            "course": course,
            "start": start,
            "lr": rate,
            "validation": mean,
            "seeds": seeds,
        }
        print(json.dumps(there[course, start, rate]), flush=True)
    trials = [there[one] for one in digits.asked()]
    best: dict[str, dict[str, Any]] = {course: {} for course in digits.COURSES}
    for trial in sorted(trials, key=lambda one: float(one["validation"])):
        best[trial["course"]][trial["start"]] = {key: trial[key] for key in ("lr", "validation")}
    return {"chosen": best, "tried": trials}


def tune_intents(kept: Path | None, known: list[dict[str, Any]], jobs: int) -> dict[str, Any]:
    """The best recipe of each way, by questions an intent; the ways side by side."""
    from quality import intent_views, tune_intents

    with (
        tempfile.TemporaryDirectory() as temporary,
        ProcessPoolExecutor(jobs, get_context("spawn"), limit_threads) as pool,
    ):
        path = intent_views.prepare(data_folder(), kept or Path(temporary), pool, quick=False, say=print)
        ways = [
            pool.submit(tune_intents.searched, path, known, name, each) for each, name in tune_intents.ASKED
        ]
        return tune_intents.told([trial for way in ways for trial in way.result()])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--keep", type=Path, help="folder for the sentence encoder's answers")
    asked = parser.parse_args()
    limit_threads()
    for part in asked.only:
        told = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        known = told.get(part, {}).get("tried", [])
        told[part] = tune_digits(known) if part == "digits" else tune_intents(asked.keep, known, asked.jobs)
        RESULTS.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
    sys.exit(0)
