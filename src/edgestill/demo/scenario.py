"""What a scenario brings to the route: data for everyone, two networks, three recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from edgestill.infer.policy import Policy
    from edgestill.lab.data.augment import Augment
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """What one device sees.

    Attributes:
        device: its name.
        shares: whether its answers may be asked of the teacher and its evidence may leave; a device that shares
            nothing measures what the others' evidence did for somebody nothing was learned from.
        before: as the student knows the world.
        after: the world after the change; what a sharing device learns from.
        later: the changed world again, later and with a gap, so that nothing of it was seen; None where `after` of a
            device that shares nothing serves for that.
    """

    device: str
    shares: bool
    before: Samples
    after: Samples
    later: Samples | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scenario:
    """A route to walk.

    Attributes:
        name: `watch` or `images`.
        model: name of the model in bundles and releases.
        story: one sentence on who sees what.
        change: one sentence on what changes halfway.
        unit: what a group of its samples is called, one and many.
        teach: all data of the teacher's people, both worlds.
        limited: the student's: few samples of the world before.
        heldout: of people or images neither is trained on; fits the policy.
        streams: the fleet.
        make_teacher: a fresh large network.
        make_student: a fresh small one of the same family.
        teacher_recipe: how the large one is trained.
        student_recipe: how the small one is distilled.
        next_recipe: how the next one is made from evidence.
        augment: makes views, or None.
        policy: the wanted one.
    """

    name: str
    model: str
    story: str
    change: str
    unit: tuple[str, str]
    teach: Samples
    limited: Samples
    heldout: Samples
    streams: tuple[Stream, ...]
    make_teacher: Callable[[], nn.Module]
    make_student: Callable[[], nn.Module]
    teacher_recipe: Recipe
    student_recipe: Recipe
    next_recipe: Recipe
    augment: Augment | None
    policy: Policy
