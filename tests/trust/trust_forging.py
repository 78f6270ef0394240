"""What an attacker does to metadata: change what is signed, and sign it with keys they have, or not at all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from securesystemslib.formats import encode_canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgestill.trust.keys import SigningKey


def forge(
    metadata: bytes, change: Callable[[dict[str, Any]], object], keys: Sequence[SigningKey] | None = None
) -> bytes:
    """The metadata with its signed part changed; signed by `keys`, or with the old signatures where None."""
    value = json.loads(metadata)
    change(value["signed"])
    if keys is not None:
        value["signatures"] = [signature(value["signed"], key) for key in keys]
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def signature(signed: dict[str, Any], key: SigningKey, keyid: str | None = None) -> dict[str, str]:
    """A TUF signature, possibly under another key's name."""
    text = encode_canonical(signed)
    assert text is not None
    return {"keyid": keyid or key.public.keyid, "sig": key.sign(text.encode()).hex()}


def signed_part(metadata: bytes) -> dict[str, Any]:
    """What is signed."""
    value: dict[str, Any] = json.loads(metadata)["signed"]
    return value
