"""A job's search: the best students of its teacher within some budgets, and what came of it as one folder.

The folder holds `report.json` and `report.html`, the family's latencies, `trials.log` (Optuna's journal), the students' weights and the
teacher's answers; where the job has a budget, `student.safetensors` and `student.esb` of the best student within it as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgestill.core.bundle import PUBLIC
from edgestill.core.bundle import replace as write_whole
from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import SettingError
from edgestill.core.family import SUFFIX
from edgestill.core.footprint import slacks
from edgestill.core.hardware import HardwareClass
from edgestill.infer.engines import runs_here
from edgestill.infer.profiling import pack_shapes, write_shapes
from edgestill.lab.fits import as_source
from edgestill.lab.job import BundleWish, make_folder, write_report
from edgestill.lab.jobreport import bundle_of
from edgestill.lab.models import ModelName, save_weights
from edgestill.lab.progress import shown
from edgestill.lab.searching.closer import closer
from edgestill.lab.searching.factory import FactorySpace
from edgestill.lab.searching.profile import subjects_of
from edgestill.lab.searching.report import drawn
from edgestill.lab.searching.search import search
from edgestill.lab.searching.workshop import workshop

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import nn

    from edgestill.core.budget import Budget
    from edgestill.core.jsonio import JsonObject
    from edgestill.infer.policy import Policy
    from edgestill.lab.job import Job
    from edgestill.lab.progress import Show
    from edgestill.lab.searching.found import Found
    from edgestill.lab.searching.profile import Profile


def run_search(
    job: Job,
    out: Path,
    *,
    profile: Profile | None = None,
    storage: str = "",
    helpers: AbstractContextManager[object] | None = None,
    measure: bool = True,
    progress: Show | None = None,
) -> JsonObject:
    """Searches as a job says, and returns the report.

    Args:
        job: whose teacher, data, recipe, budget and `[search]` are taken; its student, if it names one, is what the arguments
            of `[search]` are for.
        out: the folder for everything that comes of it.
        profile: latencies of the hardware that the bundle is for, where that is not this machine.
        storage: as `search`'s.
        helpers: as `search`'s.
        measure: as `search`'s; False writes no report.
        progress: as `search`'s.

    Raises:
        PathError: the folder cannot be written. Whatever `search` and `Run.pack` raise.
    """
    make_folder(out)
    clock, start = SystemClock(), SystemClock().monotonic()
    teacher = job.teacher.load(job.folder, job.recipe.seed)
    data = job.data.load(job.folder, job.recipe.seed)
    policy = job.policy_for(data, as_source(data.train, "train").outputs)
    found = search(
        teacher,
        data.train,
        validation=data.heldout,
        folder=out,
        budgets=() if job.budget is None else (job.budget,),
        recipe=job.recipe,
        settings=job.search,
        space=_space(job),
        ask=job.data.ask,
        profile=profile,
        hardware_class=job.bundle.where,
        policy=policy,
        storage=storage,
        helpers=helpers,
        measure=measure,
        progress=progress,
    )
    if not measure:
        return {}
    report: dict[str, Any] = dict(found.as_json())
    write_report(out, report)  # what was found stays, whatever becomes of the bundle
    if job.budget is not None:
        report |= _chosen(job.budget, found, out, policy, job.bundle)
    report["seconds"] = round(clock.monotonic() - start, 1)
    write_report(out, report)
    write_whole(out / "report.html", drawn(report).encode(), mode=PUBLIC)
    return report


def write_family(job: Job, to: Path, *, progress: Show | None = None) -> int:
    """Writes models of a job's family, to be timed on a device; how many.

    Args:
        job: whose students are searched for.
        to: a folder to carry there; or `NAME.est`, the same as one archive, which a hub hands to devices under the job's name and version.
        progress: is told how far it is.

    Raises:
        PathError: it cannot be written. BundleError: too many bytes for an archive. Whatever `workshop` raises.
    """
    is_archive = to.suffix == SUFFIX
    if not is_archive:
        make_folder(to)
    teacher = job.teacher.load(job.folder, job.recipe.seed)
    data = job.data.load(job.folder, job.recipe.seed)
    shop = workshop(
        teacher,
        data.train,
        data.heldout,
        budgets=(),
        recipe=job.recipe,
        timed=False,
        space=_space(job),
        hardware_class=job.bundle.where,
    )
    subjects = subjects_of(shop.drafts, seed=job.recipe.seed, progress=shown(progress, "profiling"))
    if is_archive:
        wish = job.bundle
        packed = pack_shapes(
            subjects,
            shop.drafts.shown,
            name=wish.name,
            version=wish.version,
            hardware_class=str(wish.where or HardwareClass.here()),
        )
        write_whole(to, packed, mode=PUBLIC)
    else:
        write_shapes(to, subjects, shop.drafts.shown)
    return len(subjects)


def _space(job: Job) -> FactorySpace | None:
    """Of a student that is named; None where students are carved out of the teacher."""
    name, ranges = job.student, job.search.arguments
    if name is None or not name.model:
        if ranges:
            raise SettingError(
                "arguments of no student",
                where="search: arguments",
                expected="a [student] with model = NAME",
                got=", ".join(ranges),
                fix="name the student that they are for, or leave them out: widths are carved then",
            )
        return None
    if not ranges:
        raise SettingError(
            "a student that is named, and nothing of it to choose",
            where="search: arguments",
            expected="arguments of the student's callable, with their ranges",
            got="none",
            fix="write under [search] for instance arguments = { width = [8, 64] }, or leave [student] out",
        )

    def made(*, seed: int, **chosen: int) -> nn.Module:
        named = ModelName(model=name.model, arguments=name.arguments | chosen, weights=name.weights)
        return named.load(job.folder, seed)

    weights = "" if name.weights is None else str(Digest.of(name.weights.read_bytes()))
    return FactorySpace(made, ranges, name=f"{name.model} {sorted(name.arguments.items())} {weights}")


def _chosen(budget: Budget, found: Found, out: Path, policy: Policy, wish: BundleWish) -> dict[str, Any]:
    """The best within the budget, packed and written; where its bundle takes more than promised, the next best."""
    found.pick(budget)  # which says what is wrong where none fits
    passed: dict[str, str] = {}
    for point in found.fitting(budget):
        run = found.run(point, budget)
        try:
            packed = wish.packed(run, policy)
        except SettingError as error:
            passed[point.name] = str(error)
            continue
        break
    else:
        raise SettingError(
            "no bundle keeps the budget, though students were promised to",
            where="budget",
            expected="a bundle within it",
            got="; ".join(passed.values())[:400],
            fix="allow a little more, or let int8 cost more",
        )
    save_weights(run.student, out / "student.safetensors")
    bundle = packed.save(out / wish.file)
    here = runs_here(found.hardware_class.name)
    return {
        "picked": point.name,
        "passed_over": passed,
        "bundle": bundle_of(bundle),
        "budget": {one.name: one.as_json() for one in slacks(budget, packed.footprint or point.footprint)},
        "closer": closer(run, packed, found.unseen, found.hardware_class, here=here),
    }
