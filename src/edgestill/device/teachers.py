"""Whom a device asks, and with what: the hub's teacher and its neighbours with inputs, the hub's adapter with features, or nobody.

Questions to the hub count towards the device's data budget (`device.spending`); those to neighbours do not.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgestill.core.errors import EdgestillError
from edgestill.device.neighbours import INPUT, TEACHER, Neighbours
from edgestill.device.papers import Papers, hub_transport
from edgestill.device.spending import ledger_of
from edgestill.infer import adapter
from edgestill.infer.payload import Coder, allowed_by
from edgestill.infer.remembering import Remembering
from edgestill.infer.tiers import Bounded, Tier, Tiers
from edgestill.link.breaker import Breaker, Guard
from edgestill.link.inference import LONGEST_PAUSE, RemoteModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.core.protocols import Clock, Predict
    from edgestill.device.home import Home
    from edgestill.device.privacy import Permissions
    from edgestill.infer.cascade import Metered
    from edgestill.infer.policy import Policy
    from edgestill.link.ledger import Ledger

log = logging.getLogger(__name__)

TEACHER_SECONDS: Final = 5.0
QUESTIONS: Final = 8
"""Under way at once."""


@dataclass(frozen=True, slots=True)
class Teachers:
    """Who is asked.

    Attributes:
        escalation: about inputs that the student is unsure of.
        audit: about a fair sample.
        meters: of what is sent to any of them.
        names: of those who are asked about escalations, in their order.
        failure: what is wrong with the file of neighbours; empty where nothing is.
        ledger: the device's data budget, as this process counts towards it; None where nobody is asked of it.
    """

    escalation: Predict
    audit: Predict
    meters: tuple[Metered, ...] = ()
    names: tuple[str, ...] = (TEACHER,)
    failure: str = ""
    ledger: Ledger | None = None


def teachers_of(
    home: Home,
    policy: Policy,
    permissions: Permissions,
    *,
    clock: Clock,
    random: Callable[[], float],
) -> Teachers | None:
    """Who may be asked: the hub's teacher with the inputs, its adapter with features, or nobody."""
    if permissions.asks == "nothing":
        return None
    if permissions.asks == "features":
        return _adapter(home, policy, clock=clock, random=random)
    return _teachers(home, policy, permissions, clock=clock, random=random)


def _adapter(home: Home, policy: Policy, *, clock: Clock, random: Callable[[], float]) -> Teachers:
    """The hub's adapter for this policy. Neighbours are passed over: theirs are inputs."""
    assert policy.adapter is not None
    ledger = ledger_of(home, clock)
    model = RemoteModel(
        hub_transport(home, clock),
        home.identity.hub,
        model=adapter.model_name(policy.adapter),
        clock=clock,
        timeout=TEACHER_SECONDS,
        credential=home.identity.credential,
        input=adapter.FEATURES,
        breaker=Guard(Breaker(longest=LONGEST_PAUSE), clock=clock, random=random),
        parameters={"purpose": "escalation"},
        temperature=policy.teacher_temperature,
        classes=len(policy.labels),
        coder=Coder(allowed_by(policy), clock=clock),
        is_teacher=False,
        allowance=ledger,
    )
    told = Tiers((Tier(adapter.ADAPTER, model),), clock=clock)  # why it fails is logged there
    asked_once = Remembering(Bounded(told, at_once=QUESTIONS), clock=clock, deputies=True)
    return Teachers(asked_once, asked_once, (model,), (adapter.ADAPTER,), ledger=ledger)


def _teachers(
    home: Home,
    policy: Policy,
    permissions: Permissions,
    *,
    clock: Clock,
    random: Callable[[], float],
) -> Teachers:
    """The hub's teacher, asked for an escalation and for an audit; both share a connection and a breaker.

    Neighbours are asked before it, about escalations. Where their file cannot be read, none are: a bundle must not fail for it.
    """
    try:
        neighbours, failure = Neighbours.of(home.neighbours), ""
    except EdgestillError as error:
        log.warning("%s", error)
        neighbours, failure = Neighbours(), error.code
    papers, ledger = Papers.of(home, clock), ledger_of(home, clock)
    transport = hub_transport(home, clock)
    breaker = Guard(Breaker(longest=LONGEST_PAUSE), clock=clock, random=random)
    escalation, audit = (
        RemoteModel(
            transport,
            home.identity.hub,
            model=TEACHER,
            clock=clock,
            timeout=TEACHER_SECONDS,
            credential=home.identity.credential,
            breaker=breaker,
            parameters={"purpose": purpose, "retain": permissions.retain},
            temperature=policy.teacher_temperature,
            classes=len(policy.labels),
            coder=Coder(allowed_by(policy), clock=clock),
            allowance=ledger,
        )
        for purpose in ("escalation", "audit")
    )
    asked, meters = neighbours.before(escalation, policy, INPUT, clock=clock, random=random, papers=papers)
    asked_once = Remembering(Bounded(asked, at_once=QUESTIONS), clock=clock)
    return Teachers(
        asked_once,
        Bounded(audit, at_once=QUESTIONS),
        (*meters, escalation, audit),
        neighbours.names,
        failure,
        ledger,
    )
