"""Keys that a publisher names and does not hold as a file: in a security module, or with a key service, reached by a URI through securesystemslib.

    {"uri": "hsm:2?label=root", "public": {...}}        root-2.json, in the place of root-2.pem

- The schemes are securesystemslib's (`SIGNER_FOR_URI_SCHEME`): `hsm:` (PKCS #11), `awskms:`, `gcpkms:`, `azurekms:`, `hv:` (Vault) and others. Each needs a
  library of its own, which the publisher installs; nothing of it is on hub or device, which see a key and a signature like any other.
- The public half is told when the key is named, and every signature is verified with it before it counts: another key under the same URI, or
  a device that signs wrongly, is found out here and not by the fleet.
- A URI holds no secret: it is kept in the folder, and stands in the arguments of a process, which others can read. One with a parameter that is named
  as a secret is refused, and errors tell scheme, number and label only. Secrets are asked for (`NamedKey.ask`).
- Nothing is opened before it shall sign. So a root key may lie in a safe while lists are signed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final
from urllib.parse import parse_qsl, unquote

from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, Key, Signer  # type: ignore[attr-defined]  # re-exported there without saying so

from edgestill.core.errors import SettingError, TrustError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.trust.keys import role_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.trust.keys import AnyKey

MAX_NAMED_BYTES: Final = 16_384

_SECRETS: Final = ("pin", "pin-value", "token", "password", "passwd", "passphrase", "secret")
_LABEL: Final = re.compile(r"[A-Za-z0-9 _.-]{1,60}")
_NUMBER: Final = re.compile(r"[0-9]{1,6}")
_URI: Final = re.compile(r"[a-z][a-z0-9+.-]{0,30}:[\x21-\x7e]{0,1000}")


@final
@dataclass(frozen=True, slots=True)
class NamedKey:
    """A key elsewhere.

    Attributes:
        uri: by which securesystemslib reaches it; no secret may stand in it.
        public: its public half.
        ask: for a secret by its name, such as `pin`, and by the name of the key; None answers none.
    """

    uri: str
    public: AnyKey
    ask: Callable[[str, str], str] | None = None

    def __post_init__(self) -> None:
        _refuse_secrets(self.uri)
        if _URI.fullmatch(self.uri) is None or self.uri.partition(":")[0] not in SIGNER_FOR_URI_SCHEME:
            raise SettingError(
                "not the URI of a key that can sign",
                where="key URI",
                expected=", ".join(f"{one}:..." for one in sorted(SIGNER_FOR_URI_SCHEME)),
                got=self.name,
                fix="write it as securesystemslib names the key",
            )

    @property
    def name(self) -> str:
        """What it goes by where the whole URI need not be shown: its scheme, and number and label if it has them."""
        return _name_of(self.uri)

    @classmethod
    def from_bytes(cls, data: bytes, ask: Callable[[str, str], str] | None = None) -> Self:
        """Reads what `to_bytes` gave; MessageError where it is none."""
        fields = Fields(parse_object(data, where="named key", max_bytes=MAX_NAMED_BYTES), "named key")
        fields.only(("uri", "public"))
        public = role_key(fields.inner("public").unknown(()), where="named key: public")
        return cls(fields.text("uri", at_most=1100), public, ask)

    def to_bytes(self) -> bytes:
        """The file that stands for the key."""
        return canonical({"uri": self.uri, "public": self.public.as_json()})

    def sign(self, data: bytes) -> bytes:
        """The signature over `data`.

        Raises:
            TrustError: the key cannot be reached, or what it gave is not its signature.
        """
        told, ask = self.public.as_json(), self.ask
        answers = None if ask is None else lambda secret: ask(secret, self.name)
        try:
            known = Key.from_dict(self.public.keyid, dict(told))
            signed = Signer.from_priv_key_uri(self.uri, known, answers).sign(data)
            signature = bytes.fromhex(signed.signature)
        except Exception as error:  # each scheme has a library of its own, and raises what that has
            raise TrustError(
                "a key that was named cannot sign",
                where=self.name,
                expected="a key within reach, and the library that reaches it",
                got=f"{type(error).__name__}: {error}"[:300],
                fix="plug it in, log in, or install what securesystemslib asks for; then do it again",
            ) from error
        if not self.public.verifies(signature, data):
            raise TrustError(
                "a key that was named gave a signature that is not its own",
                where=self.name,
                expected=f"a signature by key {self.public.keyid}",
                got="another",
                fix="is it the right key under this URI? Name it again with its public half: edgestill release keys rotate",
            )
        return signature


def _refuse_secrets(uri: str) -> None:
    """By the name of a parameter, after `?`, `&`, `;` (PKCS #11: RFC 7512) or `#`; a user's password before a host, too."""
    rest = unquote(uri.partition(":")[2])
    names = {part.partition("=")[0].strip().lower() for part in re.split(r"[?&;#/:]", rest) if "=" in part}
    found = sorted(names & set(_SECRETS))
    if re.match(r"//[^/?#]*:[^/?#]*@", rest):
        found.append("a password before the host")
    if found:
        raise SettingError(
            "the URI of a key holds a secret",
            where="key URI",
            expected="a URI without one: it is kept, and others can read the arguments of a process",
            got=", ".join(found),
            fix="leave it out: it is asked for, or read off a file; change it, as it may have been seen",
        )


def _name_of(uri: str) -> str:
    """Scheme, number and label of a URI, whatever else stands in it."""
    scheme, _, rest = uri.partition(":")
    if scheme not in SIGNER_FOR_URI_SCHEME:
        return "another text"
    path, _, query = rest.partition("?")
    label = dict(parse_qsl(query)).get("label", "")
    number = path if _NUMBER.fullmatch(path) else "..."
    return f"{scheme}:{number}" + (f"?label={label}" if _LABEL.fullmatch(label) else "")
