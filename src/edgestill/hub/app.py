"""The hub as an ASGI application: every path in one table, errors in one layer around it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from edgestill.hub import admin, control, downloads, inference, pages
from edgestill.hub.problems import Problems, Refusals, on_refusal
from edgestill.infer.serving.places import paths

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from edgestill.hub.service import Hub


def create_app(hub: Hub) -> Starlette:
    """The application of an open hub; its lifespan starts the hub and closes it."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await hub.start()
        try:
            yield
        finally:
            await hub.close()

    app = Starlette(
        routes=[*_pages(), *_control(), *_downloads(), *_inference(hub), *_admin()],
        middleware=[Middleware(Problems)],
        exception_handlers={HTTPException: on_refusal},
        lifespan=lifespan,
    )
    app.state.hub = hub
    app.state.refusals = Refusals(hub.clock)
    app.router.redirect_slashes = (
        False  # clients of ours follow no redirects, so that none can lead them away
    )
    return app


def _pages() -> list[Route]:
    return [
        Route("/", pages.status),
        Route("/health/live", pages.live),
        Route("/health/ready", pages.ready),
    ]


def _control() -> list[Route]:
    return [
        Route("/v1/enrol", control.enrol, methods=["POST"]),
        Route("/v1/poll", control.poll),
        Route("/v1/reports", control.report, methods=["POST"]),
        Route("/v1/evidence/statistics", control.statistics, methods=["POST"]),
    ]


def _downloads() -> list[Route]:
    return [
        Route("/metadata/{name}", downloads.metadata),
        Route("/targets/{path:path}", downloads.archive),
        Route("/patches/{base}/{new}", downloads.patch),
    ]


def _inference(hub: Hub) -> list[Route]:
    app = inference.create(hub)
    return [Route(path, app, methods=list(place.methods)) for path, place in paths().items()]


def _admin() -> list[Route]:
    one = "/v1/admin/rollouts/{id:int}"
    return [
        Route("/v1/admin/online-key", admin.online_key),
        Route("/v1/admin/root", admin.set_root, methods=["POST"]),
        Route("/v1/admin/join-tokens", admin.make_join_token, methods=["POST"]),
        Route("/v1/admin/blobs", admin.add_archive, methods=["PUT"]),
        Route("/v1/admin/metadata/targets", admin.targets),
        Route("/v1/admin/targets", admin.publish, methods=["POST"]),
        Route("/v1/admin/releases", admin.releases),
        Route("/v1/admin/rollouts", admin.list_rollouts, methods=["GET"]),
        Route("/v1/admin/rollouts", admin.start_rollout, methods=["POST"]),
        Route(one, admin.show_rollout),
        Route(f"{one}/pause", admin.pause, methods=["POST"]),
        Route(f"{one}/resume", admin.resume, methods=["POST"]),
        Route(f"{one}/rollback", admin.roll_back, methods=["POST"]),
        Route("/v1/admin/fleet", admin.fleet),
        Route("/v1/admin/devices/{device}/revoke", admin.revoke, methods=["POST"]),
        Route("/v1/admin/evidence", admin.evidence_counts),
        Route("/v1/admin/evidence/samples", admin.samples),
        Route("/v1/admin/evidence/statistics", admin.statistics),
    ]
