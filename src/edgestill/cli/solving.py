"""What the verbs that solve a head from a fleet's sums share: how it is to be solved, and the solving."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from edgestill.core.errors import MessageError, NotFoundError, SettingError
from edgestill.core.manifest import POLICY, REFERENCE

if TYPE_CHECKING:
    from edgestill.core.bundle import Bundle
    from edgestill.core.jsonio import JsonObject
    from edgestill.learn.statistics import Head, Statistics
    from edgestill.link.operator import OperatorClient

Within = Annotated[
    float | None,
    typer.Option(
        help="Where no single device decides: how far the scores may move from the bundle's own, root mean square."
    ),
]
Ridge = Annotated[float, typer.Option(help="As a share of the mean square of a feature.")]
Prior = Annotated[
    float | None,
    typer.Option(
        help="What the bundle's own statistics count for: 0 for nothing; where no single device decides 1 by default."
    ),
]


class Solved(NamedTuple):
    """A head, the sums that it is of, the bundle's own among them, and what was said of these."""

    head: Head
    total: Statistics
    said: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Solving:
    """How a head is solved.

    Attributes:
        robust: no single device decides.
        within: bound of the scores' move, root mean square; None for none.
        ridge: as a share of the mean square of a feature.
        prior: what the bundle's own statistics count for; None for what is usual.
    """

    robust: bool
    within: float | None = None
    ridge: float = 1e-3
    prior: float | None = None

    def __post_init__(self) -> None:
        if self.within is not None and not self.robust:
            raise SettingError(
                "a radius for a sum that believes everybody",
                where="--within",
                expected="a weighed sum: learn solve with --robust, learn round without --plain",
                got=self.within,
                fix="leave --within out, or let no single device decide",
            )

    def head(self, client: OperatorClient, bundle: Bundle) -> Solved:
        """The head of all devices' sums, and what was said of them.

        Raises:
            NotFoundError: a bundle that nothing is learned beside, or no sums yet. Whatever the hub's client raises.
        """
        reference, kept = _reference(bundle)
        return (self._robust if self.robust else self._plain)(client, reference, kept)

    def as_json(self) -> JsonObject:
        """For a lineage."""
        return {"robust": self.robust, "within": self.within, "ridge": self.ridge, "prior": self.prior}

    def _plain(self, client: OperatorClient, reference: Statistics, kept: int) -> Solved:
        from edgestill.learn.robust import with_prior
        from edgestill.learn.together import gathered, head_of

        total = gathered(reference, kept, client.statistics)
        both = with_prior(total, reference, self.prior) if self.prior else total
        said: JsonObject = {"samples": total.n, "window": total.window}
        return Solved(head_of(both, ridge=self.ridge), both, said)

    def _robust(self, client: OperatorClient, reference: Statistics, kept: int) -> Solved:
        """The weighed sum is made by the hub, which has every device's; what is believed goes there."""
        from edgestill.learn import robust
        from edgestill.learn.statistics import Statistics
        from edgestill.learn.together import head_of, in_coordinates, lifted

        ridge = self.ridge
        # with no weight it has no part in the head; the weighing still needs one
        rule = robust.Rule(ridge=ridge, prior=self.prior) if self.prior else robust.Rule(ridge=ridge)
        believed = in_coordinates(reference, kept)
        said = client.agreed_statistics(believed.to_bytes("float64"), ridge=rule.ridge, prior=rule.prior)
        sums = Statistics.from_bytes(_decoded(said.pop("statistics", None)), backbone=believed.backbone)
        total = lifted(sums, reference, kept)
        both = total if self.prior == 0 else robust.with_prior(total, reference, rule.prior)
        head = (
            head_of(both, ridge=ridge)
            if self.within is None
            else robust.within(both, reference, self.within, ridge=ridge)
        )
        moved = robust.distance(head, reference, ridge=ridge)
        return Solved(head, both, said | {"samples": total.n, "window": total.window, "moved": moved})


def _reference(bundle: Bundle) -> tuple[Statistics, int]:
    """The bundle's own statistics, and in how many of their coordinates its devices send."""
    from edgestill.infer.policy import Policy
    from edgestill.learn.statistics import Statistics

    if REFERENCE not in bundle.manifest.blobs:
        raise NotFoundError(
            "a bundle that nothing is learned beside",
            where=bundle.path,
            expected=f"a blob {REFERENCE}",
            got="none",
            fix="build the bundle from a model with features",
        )
    policy = Policy.from_bytes(bundle.read(POLICY))
    return Statistics.from_bytes(bundle.read(REFERENCE)), policy.statistics.kept


def _decoded(text: object) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except ValueError as error:
        raise MessageError(
            "an answer without a sum", where="statistics", expected="base64", got=str(text)[:40]
        ) from error
