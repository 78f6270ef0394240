"""The tables of docs/job.md: every key of a job, from the classes that read it; `tools/tables.py` puts them there."""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, fields
from typing import Any

from edgestill.core.budget import Budget
from edgestill.core.sharing import Noise, Sharing
from edgestill.infer.reaction import Reaction
from edgestill.lab.compare import Slice
from edgestill.lab.job import BundleWish, StudentName
from edgestill.lab.jobdata import DataName
from edgestill.lab.models import ModelName
from edgestill.lab.recipe import Recipe
from edgestill.lab.searching.settings import Search
from edgestill.lab.training.runtime import Runtime

KINDS: dict[str, type] = {
    "job_teacher": ModelName,
    "job_student": StudentName,
    "job_data": DataName,
    "job_recipe": Recipe,
    "job_runtime": Runtime,
    "job_compare": Slice,
    "job_budget": Budget,
    "job_search": Search,
    "job_bundle": BundleWish,
    "job_on_drift": Reaction,
    "job_statistics": Sharing,
    "job_noise": Noise,
}
ENTRY = re.compile(r"^ {8}([a-z_, ]+): (.*?)(?=^ {8}[a-z_, ]+: |\Z)", re.DOTALL | re.MULTILINE)


def keys_table(name: str) -> str:
    """The keys of one table: what each is, as its class says, and what it is where nobody says."""
    kind = KINDS[name]
    told = described(kind)
    lines = ["| key | default | what it is |", "|---|---|---|"]
    lines += [
        f"| `{one.name}` | {default_of(one)} | {told[one.name]} |"
        for one in fields(kind)
        if one.name != "unknown"
    ]
    return "\n".join(lines) + "\n"


def described(kind: type) -> dict[str, str]:
    """Field -> its text under `Attributes:`."""
    attributes = str(kind.__doc__).partition("Attributes:\n")[2].partition("\n\n")[0]
    found = {}
    for names, text in ENTRY.findall(attributes):
        for name in names.split(", "):
            found[name] = " ".join(text.split()).replace("|", "\\|")
    return found


def default_of(one: Field[Any]) -> str:
    """As TOML has it."""
    if one.default_factory is not MISSING or one.default is None or one.default == "":
        return "none"
    if one.default is MISSING:
        return "none" if one.name in {"size", "latency", "memory", "update", "escalation"} else "to be given"
    if one.default == ():
        return "none"
    plain = list(one.default) if isinstance(one.default, tuple) else one.default
    text = str(plain).lower() if isinstance(plain, bool) else repr(plain).replace("'", '"')
    return f"`{text}`"
