"""Who may infer here: bearers of a token, or everybody who can connect.

- A file of tokens has one a line, and behind it, if wanted, the time at which it ends: `TOKEN 2027-01-31T00:00:00Z`.
- Only digests are kept, and all of them are compared, each in constant time.
- No refusal and no log repeats a token; a caller is named by the number of its line.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, NoReturn, final

from edgestill.core.digest import Digest
from edgestill.core.errors import AccessError, ExpiredError, SettingError
from edgestill.core.files import read_plain
from edgestill.infer.serving.app import headers_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgestill.core.jsonio import JsonObject
    from edgestill.core.oip import InferRequest
    from edgestill.core.protocols import Clock
    from edgestill.infer.serving.app import Scope
    from edgestill.infer.serving.endpoint import Question
    from edgestill.infer.serving.served import Rows

MAX_FILE: Final = 100_000
LENGTHS: Final = (16, 300)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is kept of one.

    Attributes:
        caller: who bears it, for logs and rates.
        digest: SHA-256 as hex. Tokens are long and random, so that no slower digest is needed.
        expires: seconds since 1970; None never.
    """

    caller: str
    digest: str
    expires: float | None = None


def read_tokens(path: Path) -> tuple[Token, ...]:
    """The tokens of a file; empty lines and lines that begin with `#` are passed over.

    Raises:
        PathError: it cannot be read, or is too long.
        SettingError: a line that is no token, or no token at all.
    """
    data = read_plain(path, what="the tokens", at_most=MAX_FILE)
    found = tuple(_tokens(data.decode("ascii", "replace"), path))
    if not found:
        raise SettingError(
            "a file of tokens holds none",
            where=path,
            expected="one token a line",
            got="none",
            fix='write one, for example that of: python -c "import secrets; print(secrets.token_urlsafe())"',
        )
    return found


def digest_of(secret: str) -> str:
    """What is kept of a secret."""
    return Digest.of(secret.encode("utf-8", "surrogateescape")).hex


@final
@dataclass(frozen=True, slots=True)
class Bearers:
    """Lets in who shows one of the tokens.

    Attributes:
        tokens: that are good.
        clock: for when they end.
    """

    tokens: tuple[Token, ...]
    clock: Clock

    async def admit(self, scope: Scope) -> Guest:
        """The bearer.

        Raises:
            AccessError: no token, or another.
            ExpiredError: one whose time is over.
        """
        scheme, _, secret = headers_of(scope).get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not 0 < len(secret) <= LENGTHS[1]:
            raise AccessError(
                "a token is missing",
                expected="Authorization: Bearer TOKEN",
                where="authorization",
                got="none",
                fix="send the header",
            )
        shown = digest_of(secret)
        known = [one for one in self.tokens if hmac.compare_digest(one.digest, shown)]
        if not known:
            raise AccessError(
                "unknown token",
                expected="a token of this server",
                where="authorization",
                got="another",
                fix="ask whoever runs the server for one",
            )
        if known[0].expires is not None and known[0].expires <= self.clock.now():
            raise ExpiredError(
                "the token has ended",
                expected="a token that is good now",
                where="authorization",
                got="one whose time is over",
                fix="ask whoever runs the server for another",
            )
        return Guest(known[0].caller)


@final
class Anybody:
    """Lets everybody in: on the loopback, behind a client's certificate, or where it was asked for."""

    async def admit(self, scope: Scope) -> Guest:
        """Whoever connects, known by its address."""
        address, *_ = scope.get("client") or ("an unknown address",)
        return Guest(str(address))


@final
@dataclass(frozen=True, slots=True)
class Guest:
    """Somebody who may ask."""

    caller: str

    def check(self, request: InferRequest) -> None:
        """Every request will do."""

    async def answered(self, question: Question, rows: Rows) -> JsonObject:  # noqa: ARG002  # the protocol's
        """Adds nothing."""
        return {}


def _tokens(text: str, path: Path) -> Iterator[Token]:
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        where = f"{path}: line {number}"
        good = LENGTHS[0] <= len(parts[0]) <= LENGTHS[1] and parts[0].isascii() and parts[0].isprintable()
        if len(parts) > 2 or not good:
            _refuse(where, f"a token of {LENGTHS[0]} to {LENGTHS[1]} letters, and when it ends")
        expires = _time(parts[1], where) if len(parts) == 2 else None
        yield Token(caller=f"token {number}", digest=digest_of(parts[0]), expires=expires)


def _time(text: str, where: str) -> float:
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        _refuse(where, "a time such as 2027-01-31T00:00:00Z")
    if read.tzinfo is None:
        _refuse(where, "a time with its zone, such as 2027-01-31T00:00:00Z")
    return read.timestamp()


def _refuse(where: str, expected: str) -> NoReturn:
    raise SettingError(
        "a line that is no token",
        where=where,
        expected=expected,
        got="something else",
        fix="write one token a line, and behind it when it ends",
    )
