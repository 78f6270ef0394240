"""Larger models that are asked before the hub's teacher: a neighbour's, a gateway's.

    neighbours.json   in a device's home, readable by its owner alone; or any file that `edgestill serve --neighbours` is given

```json
{
  "hedge_after": 0.05,
  "neighbours": [
    {"name": "gateway", "url": "http://10.0.0.2:8000", "model": "watch", "output": "logits",
     "timeout": 0.5, "plain_http": true, "token": "…"}
  ]
}
```

Instead of a token a neighbour may be known by the fleet: `"fleet": "gateway-1"` is the name of the device that serves there
(`edgestill-agent serve --tls-fleet`), `"*"` any device of the fleet. Each shows the other its certificate. It is the name in there that
counts, not the host: a device has no host name, and its address may change. A neighbour that was revoked is not known as such here;
its certificate ends within days.

They are asked in this order (`infer.tiers`), about escalations only: an audit wants to know what the teacher says. All of them see
what the teacher would see, so nothing is asked where the policy keeps inputs on the device. Their answers take the teacher's
place in the fused one, with the teacher's weight and temperature: a neighbour should run the teacher, or a student of it. What
a student said there is no label: only an answer that the neighbour calls its teacher's own is learned from.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self

from edgestill.core.bundle import replace as write_whole
from edgestill.core.errors import ConflictError, NotFoundError, SettingError
from edgestill.core.files import read_plain
from edgestill.core.jsonio import Fields, JsonObject, canonical, parse_object
from edgestill.device.home import NEIGHBOURS
from edgestill.infer.adapter import ADAPTER, FEATURES, model_name
from edgestill.infer.payload import Coder, allowed_by
from edgestill.infer.remembering import MEMORY
from edgestill.infer.tiers import Tier, Tiers
from edgestill.link.breaker import Breaker, Guard
from edgestill.link.control import bearer
from edgestill.link.http import HttpTransport, check_url
from edgestill.link.inference import LONGEST_PAUSE, PROBABILITIES, RemoteModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.core.protocols import Clock, Predict, Transport
    from edgestill.device.papers import Papers
    from edgestill.infer.policy import Policy

TEACHER: Final = "teacher"
"""The last of all who are asked, in answers and at the hub."""
INPUT: Final = "input"
"""Of the hub's teacher, and of what an agent serves."""
MOST: Final = 8
MAX_BYTES: Final = 65_536
_NAME: Final = r"[a-z0-9][a-z0-9._-]{0,31}"
_URL: Final = r"https?://[^\s]{1,500}"
_FIELDS: Final = ("name", "url", "model", "output", "input", "timeout", "token", "plain_http", "fleet")
_MEMBER: Final = r"\*|[A-Za-z0-9_-]{1,64}"
_OUTPUT: Final = f"logits|{PROBABILITIES}"
_LEAST: Final = 0.001
_LONGEST: Final = 60.0
TAKEN: Final = frozenset({"student", TEACHER, MEMORY, ADAPTER})
"""Names that mean something else in an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A larger model on another server.

    Attributes:
        url: of the server.
        name: in answers, such as `gateway`; the teacher has its own.
        model: its name there; empty for `teacher`, or where the policy asks with features for the adapter's.
        output: `logits` or `probabilities`.
        input: name of its input; empty for the student's, which is `input` in bundles of `edgestill distill`, or the adapter's.
        timeout: seconds for an answer.
        token: shown to it; None shows nothing.
        plain_http: whether it may be reached without TLS.
        fleet: name of the device of the fleet that serves there, `*` for any; empty for a server that is known by its host.
        transport: carries the questions; real sockets where None.
    """

    url: str
    name: str = TEACHER
    model: str = ""
    output: str = "logits"
    input: str = ""
    timeout: float = 5.0
    token: str | None = field(default=None, repr=False)
    plain_http: bool = False
    fleet: str = ""
    transport: Transport | None = None

    def connect(
        self,
        policy: Policy,
        taken: str,
        *,
        clock: Clock,
        random: Callable[[], float],
        is_teacher: bool = True,
        papers: Papers | None = None,
    ) -> RemoteModel:
        """The model, calibrated as the policy says.

        Args:
            policy: of the bundle before it.
            taken: name of the student's input.
            clock: for deadlines.
            random: for the breaker.
            is_teacher: whether it is the teacher, where it does not tell who decided.
            papers: of this device, to show to a member of the fleet.

        Raises:
            SettingError: it is a member of the fleet, and this is no device.
        """
        adapter = policy.adapter if policy.asks == "features" else None
        return RemoteModel(
            self.transport or self._sockets(papers, clock),
            self.url,
            model=self.model or (TEACHER if adapter is None else model_name(adapter)),
            clock=clock,
            timeout=self.timeout,
            credential=self.token,
            input=self.input or (taken if adapter is None else FEATURES),
            output=self.output,
            temperature=policy.teacher_temperature,
            classes=len(policy.labels),
            breaker=Guard(Breaker(longest=LONGEST_PAUSE), clock=clock, random=random),
            coder=Coder(allowed_by(policy), clock=clock),
            is_teacher=is_teacher and adapter is None,
        )

    def _sockets(self, papers: Papers | None, clock: Clock) -> Transport:
        if not self.fleet:
            return HttpTransport(clock=clock, plain_http=self.plain_http)
        if papers is None:
            raise SettingError(
                "only a device of the fleet can ask another",
                where=f"{self.name}: fleet",
                expected="a device's own neighbours",
                got="those of a gateway without a certificate",
                fix="give it a token instead",
            )
        return HttpTransport(clock=clock, tls=papers.to_member(self.fleet))


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Who is asked before the teacher.

    Attributes:
        each: in the order in which they are asked.
        hedge_after: seconds after which the next is asked as well; None asks it only where the one before failed.
    """

    each: tuple[Upstream, ...] = ()
    hedge_after: float | None = None

    @classmethod
    def from_bytes(cls, data: bytes, where: str = NEIGHBOURS) -> Self:
        """Reads the file.

        Raises:
            MessageError: not the format, or a value out of its range. ConflictError: a name twice.
            SettingError: a name that is taken, an address that cannot be asked, a token that no header can carry.
        """
        fields = Fields(parse_object(data, where=where, max_bytes=MAX_BYTES), where)
        fields.only(("neighbours", "hedge_after"))
        hedge = fields.number("hedge_after", least=0, most=_LONGEST) if fields.has("hedge_after") else None
        found = cls(hedge_after=hedge)
        for one in fields.objects("neighbours", at_most=MOST):
            found = found.with_one(_read(one))
        return found

    @classmethod
    def of(cls, path: Path) -> Self:
        """Reads a file that may be missing: nobody is asked then."""
        if not path.exists():
            return cls()
        return cls.from_bytes(read_plain(path, what="the neighbours", at_most=MAX_BYTES), str(path))

    def to_bytes(self) -> bytes:
        """The bytes of the file."""
        told: JsonObject = {"neighbours": [_told(one) for one in self.each]}
        return canonical(told if self.hedge_after is None else told | {"hedge_after": self.hedge_after})

    def write(self, path: Path) -> None:
        """Writes the file at once or not at all, for its owner alone: it may hold tokens.

        Raises:
            PathError: it cannot be written. MessageError: nobody could read it.
        """
        told = self.to_bytes()
        self.from_bytes(told)
        write_whole(path, told)

    def with_one(self, one: Upstream) -> Self:
        """With another, asked after the others.

        Raises:
            ConflictError: one of that name, or too many. SettingError: a name that means something else.
        """
        if one.name in TAKEN:
            raise SettingError(
                "this name means something else in an answer",
                where="name",
                expected=f"none of {', '.join(sorted(TAKEN))}",
                got=one.name,
                fix="choose another name",
            )
        if one.name in {other.name for other in self.each} or len(self.each) == MOST:
            raise ConflictError(
                "there is such a neighbour already, or there are too many",
                where=NEIGHBOURS,
                expected=f"at most {MOST}, each name once",
                got=one.name,
                fix="remove one first",
            )
        return replace(self, each=(*self.each, one))

    def without(self, name: str) -> Self:
        """Without the one of this name.

        Raises:
            NotFoundError: there is none.
        """
        left = tuple(one for one in self.each if one.name != name)
        if len(left) == len(self.each):
            raise NotFoundError(
                "there is no such neighbour",
                where=NEIGHBOURS,
                expected=", ".join(one.name for one in self.each) or "none",
                got=name,
                fix="name one of these",
            )
        return replace(self, each=left)

    def hedged(self, after: float | None) -> Self:
        """With another wait before the next is asked as well.

        Raises:
            SettingError: out of range.
        """
        if after is not None and not 0 <= after <= _LONGEST:
            raise SettingError(
                "a wait out of range",
                where="hedge_after",
                expected=f"0 to {_LONGEST:g} s",
                got=after,
                fix="wait some milliseconds",
            )
        return replace(self, hedge_after=after)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that are asked, the teacher last."""
        return (*(one.name for one in self.each), TEACHER)

    def before(
        self,
        teacher: Predict,
        policy: Policy,
        taken: str,
        *,
        clock: Clock,
        random: Callable[[], float],
        papers: Papers | None = None,
    ) -> tuple[Predict, tuple[RemoteModel, ...]]:
        """The neighbours and then the teacher as one model, and the neighbours by themselves.

        Args:
            teacher: is asked last.
            policy: of the bundle before them.
            taken: name of the student's input.
            clock: for deadlines.
            random: for breakers.
            papers: of this device.

        Raises:
            SettingError: as `Upstream.connect`.
        """
        models = tuple(
            one.connect(policy, taken, clock=clock, random=random, is_teacher=False, papers=papers)
            for one in self.each
        )
        tiers = map(Tier, self.names, (*models, teacher))
        return Tiers(tuple(tiers), clock=clock, hedge_after=self.hedge_after), models


def read_token(path: Path) -> str:
    """The token in a file that holds one.

    Raises:
        PathError: the file cannot be read, or is too long.
    """
    return read_plain(path, what="the token", at_most=1000).decode("ascii", "replace").strip()


def _read(fields: Fields) -> Upstream:
    """One neighbour."""
    fields.only(_FIELDS)
    usual = Upstream(url="")
    found = Upstream(
        name=fields.text("name", pattern=_NAME),
        url=fields.text("url", pattern=_URL, plain=True),
        model=fields.text("model", at_most=200, pattern=".+", plain=True)
        if fields.has("model")
        else usual.model,
        input=fields.text("input", at_most=200, plain=True) if fields.has("input") else usual.input,
        output=fields.text("output", pattern=_OUTPUT) if fields.has("output") else usual.output,
        timeout=fields.number("timeout", least=_LEAST, most=_LONGEST)
        if fields.has("timeout")
        else usual.timeout,
        token=fields.secret("token", at_most=1000) if fields.has("token") else usual.token,
        plain_http=fields.boolean("plain_http") if fields.has("plain_http") else usual.plain_http,
        fleet=fields.text("fleet", pattern=_MEMBER) if fields.has("fleet") else usual.fleet,
    )
    check_url(found.url, plain_http=found.plain_http)
    if found.fleet and not found.url.startswith("https:"):
        raise SettingError(
            "a member of the fleet is known by TLS only",
            where=f"{fields.where}: url",
            expected="https://HOST",
            got=found.url[:200],
            fix="use https, and `serve --tls-fleet` there",
        )
    if found.token is not None:
        bearer(found.token)
    return found


def _told(one: Upstream) -> JsonObject:
    """One neighbour; what is usual is left out."""
    told: JsonObject = {"name": one.name, "url": one.url, "model": one.model or TEACHER}
    usual = Upstream(url="")
    for name in ("output", "input", "timeout", "token", "plain_http", "fleet"):
        if getattr(one, name) != getattr(usual, name):
            told[name] = getattr(one, name)
    return told
