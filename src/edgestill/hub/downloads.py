"""The artefact plane over HTTP: static files with ranges, for anybody. What they hold is signed, or only a hint.

| path | content |
|---|---|
| `GET /metadata/FILE` | TUF metadata with consistent snapshots: `1.root.json`, `3.targets.json`, `timestamp.json`; of a role that
  the publisher delegates to `3.CLASS.json`, or `3.auto%2FCLASS.json` (`/` as it stands is taken, too: servers differ) |
| `GET /targets/NAME/VERSION/SHA256.CLASS.esb` | an archive that the publisher lists |
| `GET /targets/timing/NAME/VERSION/SHA256.CLASS.est` | a family of models that it lists, to be timed |
| `GET /targets/proxy/NAME/VERSION/SHA256.samples.esp` | a set of samples that it lists, to be voted on |
| `GET /patches/BASE/NEW` | a patch between two archives, named by their digests; 404 is usual |

Files named by version or digest never change and may be kept for ever; `timestamp.json` must be asked for each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.responses import FileResponse, Response

from edgestill.hub.access import hub_of

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request

_FOR_EVER: Final = "public, max-age=31536000, immutable"
_NOT_AT_ALL: Final = "no-cache"


async def metadata(request: Request) -> Response:
    """`GET /metadata/FILE`."""
    name: str = request.path_params["name"]
    path = hub_of(request).artefacts.metadata_path(name)
    keep = _NOT_AT_ALL if name == "timestamp.json" else _FOR_EVER
    return Response(path.read_bytes(), media_type="application/json", headers={"cache-control": keep})


async def archive(request: Request) -> Response:
    """`GET /targets/...`."""
    path, digest = hub_of(request).artefacts.archive_path(request.path_params["path"])
    return _file(path, digest.hex)


async def patch(request: Request) -> Response:
    """`GET /patches/BASE/NEW`."""
    base, new = request.path_params["base"], request.path_params["new"]
    return _file(hub_of(request).artefacts.patch_path(base, new), f"{base}-{new}")


def _file(path: Path, tag: str) -> Response:
    return FileResponse(
        path,
        media_type="application/octet-stream",
        headers={"cache-control": _FOR_EVER, "etag": f'"{tag}"'},
    )
