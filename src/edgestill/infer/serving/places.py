"""The paths of the protocol, as values.

Sources: the Open Inference Protocol v2 (REST); `config` and `repository/index` are what Triton's clients ask for besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["server", "live", "ready", "openapi", "index", "model", "model-ready", "config", "infer"]

PREFIX: Final = "/v2"
_FIXED: Final[dict[tuple[str, ...], Kind]] = {
    (): "server",
    ("health", "live"): "live",
    ("health", "ready"): "ready",
    ("openapi.json",): "openapi",
    ("repository", "index"): "index",
}
_OF_MODEL: Final[dict[tuple[str, ...], Kind]] = {
    (): "model",
    ("ready",): "model-ready",
    ("config",): "config",
    ("infer",): "infer",
}
_POSTED: Final = frozenset({"index", "infer"})


@dataclass(frozen=True, slots=True)
class Place:
    """What a path names.

    Attributes:
        kind: which of the protocol's things.
        model: its name; empty where it is about the server.
        version: empty where any will do.
    """

    kind: Kind
    model: str = ""
    version: str = ""

    @property
    def methods(self) -> tuple[str, ...]:
        """How it may be asked for."""
        return ("POST",) if self.kind in _POSTED else ("GET", "HEAD")


def parse(path: str) -> Place | None:
    """The place of a path, percent signs resolved; None where nothing is."""
    if path != PREFIX and not path.startswith(f"{PREFIX}/"):
        return None
    parts = tuple(path.removeprefix(PREFIX).split("/")[1:])
    if parts in _FIXED:
        return Place(_FIXED[parts])
    if len(parts) < 2 or parts[0] != "models" or not parts[1]:
        return None
    model, rest, version = parts[1], parts[2:], ""
    if rest[:1] == ("versions",) and len(rest) > 1 and rest[1]:
        version, rest = rest[1], rest[2:]
    return Place(_OF_MODEL[rest], model, version) if rest in _OF_MODEL else None


def paths(model: str = "{model}", version: str = "{version}") -> dict[str, Place]:
    """Every path there is, with its place; names as given."""
    found = {"/".join((PREFIX, *parts)): Place(kind) for parts, kind in _FIXED.items()}
    for place in (Place("model", model), Place("model", model, version)):
        start = f"{PREFIX}/models/{model}" + (f"/versions/{version}" if place.version else "")
        found |= {
            "/".join((start, *parts)): Place(kind, model, place.version) for parts, kind in _OF_MODEL.items()
        }
    return found
