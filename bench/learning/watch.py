"""A watch on the other wrist: how much of what that costs a device wins back by itself, from a minute of its person's own data.

    cost       how much more often the shipped student is right on the person's right wrist than on the left, on later parts
    recovered  (right after learning - right before) / cost, each summed over people: a ratio of sums

`learning.wrists` says whose data it is, `learning.wearing` and `learning.deeper` what learns: the device's own code. Per person all are means
over three seeds, of which each trains another teacher and student; intervals are of 2,000 draws of ten people with replacement.

How the minute comes decides most. A head is asked about each window before it learns from it; so what an exercise taught it shows only when the exercise
comes again, and `rounds` says how often each comes. `labels` are told by an application; `asked` are the teacher's answers in their place, to all inputs; `shipped`
is the policy as it ships, which asks about a quarter of them, over all that there is. `worn` is a device that was worn on the right wrist before, and told labels
there, too. `all of it` are heads of every sample that nobody judged, of the two priors that are tried.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.core.bundle import Bundle
from edgestill.core.manifest import MODEL, REFERENCE
from edgestill.demo.watch import FOLDS
from edgestill.demo.watchdata import LABELS
from edgestill.device.learning import PRIOR_SHARES
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.engines import engine_of
from edgestill.lab.measure import run_model
from edgestill.learn.statistics import Statistics, solve, usual_ridge
from learning.deeper import judged, unjudged
from learning.wearing import Wearer
from learning.wrists import AWAY, HOME, TRAINED, Person, Student, Windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEEDS: Final = (0, 1, 2)
SECONDS: Final = (20, 40, 60, 90, 120)
ROUNDS: Final = (1, 2, 6)
MINUTE, TWICE, ONCE, OFTEN = 60, 2, 1, 6
_DRAWS: Final = 2_000
_WORN_ROUNDS: Final = 4
"""How often each exercise came on the right wrist, before: bouts of about ten seconds."""

AMOUNTS: Final = tuple(
    (seconds, rounds)
    for seconds in SECONDS
    for rounds in ROUNDS
    if rounds == TWICE or seconds in {MINUTE, SECONDS[-1]}
)

Told = dict[str, float]


def measured(_data: Path, kept: Path, *, quick: bool) -> dict[str, Any]:
    """`home` and `away`, and `WHAT/SECONDS/ROUNDS` -> what came of it."""
    seeds, folds = (SEEDS[:1], 1) if quick else (SEEDS, FOLDS)
    rows: dict[str, dict[int, list[Told]]] = defaultdict(lambda: defaultdict(list))
    for seed in seeds:
        for fold in range(folds):
            student = Student.of(kept, seed=seed, fold=fold, quick=quick)
            for number in student.people:
                for name, told in _one(student, Person.of(number), quick=quick).items():
                    rows[name][number].append(told)
    home, away = (_means(rows.pop(name), "right") for name in ("home", "away"))
    return {
        "people": len(home),
        "seeds": len(seeds),
        "home": home,
        "away": away,
        "rows": {name: _row(each, home, away) for name, each in sorted(rows.items())},
    }


def _one(student: Student, person: Person, *, quick: bool) -> dict[str, Told]:
    """Everything about one person with one student."""
    home, away = person.later(HOME), person.later(AWAY)
    shipped = _Bundle(student.shipped)
    found: dict[str, Told] = {
        "home": {"right": _share(shipped.names(home.inputs), home)},
        "away": {"right": _share(shipped.names(away.inputs), away)},
    }
    for seconds, rounds in ((MINUTE, TWICE),) if quick else AMOUNTS:
        key, seen = f"{seconds}/{rounds}", person.early(seconds=seconds, rounds=rounds)
        found[f"labels/{key}"] = _worn(student, seen, away)
        if seconds == MINUTE:
            found[f"asked/{key}"] = _worn(student, seen, away, asks=True)
    for seconds in (MINUTE,) if quick else SECONDS:
        found |= _all_of_it(student, person.early(seconds=seconds, rounds=OFTEN), away, seconds, shipped)
    before = person.early(seconds=None, rounds=_WORN_ROUNDS, side=HOME)
    for rounds in (TWICE,) if quick else ROUNDS:
        seen = person.early(seconds=MINUTE, rounds=rounds)
        found[f"worn/{MINUTE}/{rounds}"] = _worn(student, seen, away, before=before)
    found["shipped/all/4"] = _worn(
        student, person.early(seconds=None, rounds=_WORN_ROUNDS), away, audits=True
    )
    return found | _trained(student, person, away)


def _worn(
    student: Student,
    seen: Windows,
    later: Windows,
    *,
    before: Windows | None = None,
    asks: bool = False,
    audits: bool = False,
) -> Told:
    """A device that lives through this, is started anew, and answers.

    Args:
        student: whose bundle it has.
        seen: of the left wrist.
        later: what tells.
        before: of the right wrist, with labels.
        asks: whether the teacher's answers to all inputs take the labels' place.
        audits: whether the policy as it ships says what is asked, instead.
    """
    with tempfile.TemporaryDirectory() as folder:
        wearer = Wearer(
            Path(folder),
            student.asking if asks else student.shipped,
            teacher=student.teacher if asks or audits else None,
            seed=student.seed,
        )
        if before is not None:
            wearer.live(before.inputs, before.labels)
        wearer.live(seen.inputs, None if asks or audits else seen.labels)
        told = {"windows": len(seen), "heard": wearer.heard, "made_of": wearer.samples}
        wearer.restarted()
        return told | {"right": _share(wearer.names(later.inputs), later)}


def _all_of_it(
    student: Student, seen: Windows, later: Windows, seconds: int, shipped: _Bundle
) -> dict[str, Told]:
    """What there is to be had from so much by heads in closed form, if nobody asked whether they are better."""
    said = run_model(OnnxEngine(student.teacher), seen.inputs)[0].argmax(axis=1)
    return {
        f"all of it, {name}, prior {share:g}/{seconds}": {
            "right": _share(shipped.with_head(seen.inputs, labels, share, later.inputs), later)
        }
        for name, labels in (("labels", seen.labels), ("asked", said))
        for share in PRIOR_SHARES
    }


def _trained(student: Student, person: Person, later: Windows) -> dict[str, Told]:
    """What training comes to: the device's own, and one that nobody judges."""
    found: dict[str, Told] = {}
    for what in TRAINED:
        bundle = student.training(what)
        for seconds in (MINUTE, SECONDS[-1]):
            seen = person.early(seconds=seconds, rounds=OFTEN)
            with tempfile.TemporaryDirectory() as folder:
                one = judged(bundle, Path(folder), seen, later.inputs, seed=student.seed)
            found[f"judged, {what}/{seconds}"] = {
                "right": _share(one.named, later),
                "to_train": one.to_train,
                "held": one.held,
                "asked": one.asked,
                "made_of": one.to_train if one.adopted else 0,
            }
        seen = person.early(seconds=MINUTE, rounds=OFTEN)
        with tempfile.TemporaryDirectory() as folder:
            named = unjudged(bundle, Path(folder), seen, later.inputs, seed=student.seed)
        found[f"unjudged, {what}/{MINUTE}"] = {"right": _share(named, later)}
    return found


class _Bundle:
    """A bundle's own model, and heads on its features."""

    def __init__(self, archive: Path) -> None:
        bundle = Bundle.open(archive)
        self._engine = engine_of(bundle.read(MODEL), bundle.manifest.hardware_class)
        self._reference = Statistics.from_bytes(bundle.read(REFERENCE))

    def names(self, windows: NDArray[np.float32]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = run_model(self._engine, windows)[0].argmax(axis=1)
        return found

    def with_head(
        self,
        inputs: NDArray[np.float32],
        labels: NDArray[np.integer],
        share: float,
        later: NDArray[np.float32],
    ) -> NDArray[np.int64]:
        """What a head of all these would name, for which the prior counts `share` of them."""
        like, features = self._reference, run_model(self._engine, inputs)[1]
        own = Statistics.empty(backbone=like.backbone, window=0, classes=like.classes, features=like.features)
        own = own.add(features, np.eye(len(LABELS))[labels])
        both = own + like.scaled(min(1.0, share * own.weight / like.weight))
        head = solve(both, ridge=usual_ridge(both))
        named: NDArray[np.int64] = (run_model(self._engine, later)[1] @ head.weight + head.bias).argmax(
            axis=1
        )
        return named


def _share(named: NDArray[np.integer], truth: Windows) -> float:
    return float((named == truth.labels).mean())


def _means(by_person: dict[int, list[Told]], name: str) -> list[float]:
    """A mean over seeds for each person, in their order."""
    return [round(float(np.mean([one[name] for one in by_person[key]])), 5) for key in sorted(by_person)]


def _row(by_person: dict[int, list[Told]], home: list[float], away: list[float]) -> dict[str, Any]:
    """What came of one way to learn."""
    each = [one for told in by_person.values() for one in told]
    right = _means(by_person, "right")
    found: dict[str, Any] = {"right": right, "recovered": recovered(home, away, right)}
    found |= {
        name: round(float(np.mean([one[name] for one in each])), 1) for name in each[0] if name != "right"
    }
    if "made_of" in each[0]:
        found["adopted"] = round(float(np.mean([one["made_of"] > 0 for one in each])), 3)
    return found


def recovered(home: list[float], away: list[float], after: list[float]) -> dict[str, float]:
    """The share of the cost that was won back, and its interval over people.

    Args:
        home: right on the wrist that is known, `[P]` people.
        away: right on the other one before learning.
        after: the same after it.
    """
    cost, won = np.subtract(home, away), np.subtract(after, away)
    drawn = np.random.default_rng(0).integers(len(cost), size=(_DRAWS, len(cost)))
    low, high = np.quantile(won[drawn].sum(axis=1) / cost[drawn].sum(axis=1), (0.025, 0.975))
    return {
        "share": round(float(won.sum() / cost.sum()), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
    }


def figures(part: dict[str, Any]) -> dict[str, float]:
    """A minute in which each exercise comes twice: told labels, answers of the teacher, of a device worn at home; and a minute of each once, or by turns."""
    rows, found = part["rows"], {}
    for name, key in (
        ("watch_recovered_share", f"labels/{MINUTE}/{TWICE}"),
        ("watch_recovered_share_asked", f"asked/{MINUTE}/{TWICE}"),
        ("watch_recovered_share_worn", f"worn/{MINUTE}/{TWICE}"),
        ("watch_recovered_share_once", f"labels/{MINUTE}/{ONCE}"),
        ("watch_recovered_share_mixed", f"labels/{MINUTE}/{OFTEN}"),
    ):
        if key in rows:
            found[name] = rows[key]["recovered"]["share"]
    least = rows[f"labels/{MINUTE}/{TWICE}"]["recovered"]["low"]
    cost = 100 * float(np.mean(part["home"]) - np.mean(part["away"]))
    return found | {"watch_recovered_share_low": least, "watch_drift_cost_points": round(cost, 1)}
