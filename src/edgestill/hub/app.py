"""The hub as an ASGI application: every path in one table, errors in one layer around it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from edgestill.hub import (
    admin,
    agreeing,
    authority,
    certificates,
    control,
    ddi_routes,
    downloads,
    inference,
    pages,
    timing_routes,
    voting_routes,
)
from edgestill.hub.handover import STEPS
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
        await certificates.tell_who_has_none(hub)
        authority.tell_of_end(hub)
        try:
            yield
        finally:
            await hub.close()

    app = Starlette(
        routes=[*_pages(), *_control(), *_downloads(), *_ddi(), *_inference(hub), *_admin()],
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
        Route("/v1/certificate", control.certify, methods=["POST"]),
        Route("/v1/authorities", control.authorities),
        Route("/v1/authorities/vouched", control.vouched),
        Route("/v1/poll", control.poll),
        Route("/v1/reports", control.report, methods=["POST"]),
        Route("/v1/evidence/statistics", control.statistics, methods=["POST"]),
        Route("/v1/evidence/votes/{id:int}", voting_routes.vote, methods=["POST"]),
        Route("/v1/timing", control.timing, methods=["POST"]),
    ]


def _downloads() -> list[Route]:
    return [
        Route("/metadata/{name:path}", downloads.metadata),
        Route("/targets/{path:path}", downloads.archive),
        Route("/patches/{base}/{new}", downloads.patch),
    ]


def _ddi() -> list[Route]:
    base = "/{tenant}/controller/v1/{controller}"
    return [
        Route(base, ddi_routes.root),
        Route(f"{base}/configData", ddi_routes.config_data, methods=["PUT"]),
        Route(f"{base}/deploymentBase/{{action}}", ddi_routes.deployment),
        Route(f"{base}/deploymentBase/{{action}}/feedback", ddi_routes.feedback, methods=["POST"]),
        Route(f"{base}/cancelAction/{{action}}", ddi_routes.cancellation),
        Route(f"{base}/cancelAction/{{action}}/feedback", ddi_routes.cancel_feedback, methods=["POST"]),
        Route(f"{base}/softwaremodules/{{module}}/artifacts/{{file}}", ddi_routes.artefact),
    ]


def _inference(hub: Hub) -> list[Route]:
    app = inference.create(hub)
    return [Route(path, app, methods=list(place.methods)) for path, place in paths().items()]


def _admin() -> list[Route]:
    """Who may look at what; below it who may order what, and the name of that in the audit log."""
    looks = [
        ("online-key", admin.online_key, "view"),
        ("metadata/targets", admin.targets, "view"),
        ("roles", admin.roles, "view"),
        ("roles/{role:path}", admin.role_list, "view"),
        ("releases", admin.releases, "view"),
        ("rollouts", admin.list_rollouts, "view"),
        ("rollouts/{id:int}", admin.show_rollout, "view"),
        ("timings", timing_routes.list_timings, "view"),
        ("timings/{id:int}", timing_routes.show_timing, "view"),
        ("timings/{id:int}/profile", timing_routes.profile, "operate"),
        ("votings", voting_routes.list_votings, "view"),
        ("votings/{id:int}", voting_routes.show_voting, "view"),
        ("fleet", admin.fleet, "view"),
        ("evidence", admin.evidence_counts, "view"),
        ("evidence/statistics", admin.statistics, "operate"),
        ("join-tokens", admin.list_join_tokens, "operate"),
        ("authority", authority.status, "operate"),
        ("operators", admin.list_operators, "administer"),
        ("audit-log", admin.audit_log, "administer"),
    ]
    orders = [
        ("POST", "root", admin.set_root, "publish", "root.set"),
        ("POST", "roots", admin.set_roots, "publish", "root.set"),
        ("PUT", "blobs", admin.add_archive, "publish", "bundle.upload"),
        ("PUT", "images", admin.add_image, "publish", "image.upload"),
        ("POST", "targets", admin.publish, "publish", "release.publish"),
        ("POST", "roles/{role:path}", admin.publish_role, "publish", "role.publish"),
        ("POST", "join-tokens", admin.make_join_token, "operate", "token.make"),
        ("POST", "join-tokens/revoke", admin.revoke_join_token, "operate", "token.revoke"),
        ("POST", "rollouts", admin.start_rollout, "operate", "rollout.start"),
        ("POST", "rollouts/{id:int}/pause", admin.pause, "operate", "rollout.pause"),
        ("POST", "rollouts/{id:int}/resume", admin.resume, "operate", "rollout.resume"),
        ("POST", "rollouts/{id:int}/advance", admin.advance, "operate", "rollout.advance"),
        ("POST", "rollouts/{id:int}/rollback", admin.roll_back, "operate", "rollout.rollback"),
        ("POST", "timings", timing_routes.start_timing, "operate", "timing.start"),
        ("POST", "timings/{id:int}/cancel", timing_routes.cancel_timing, "operate", "timing.cancel"),
        ("POST", "votings", voting_routes.start_voting, "operate", "voting.start"),
        ("POST", "votings/{id:int}/close", voting_routes.close_voting, "operate", "voting.close"),
        ("POST", "votings/{id:int}/outcome", voting_routes.outcome, "operate", "voting.outcome"),
        ("POST", "devices/{device}/assignment", admin.assignment, "operate", "device.assignment"),
        ("POST", "devices/{device}/revoke", admin.revoke, "operate", "device.revoke"),
        ("GET", "evidence/samples", admin.samples, "operate", "evidence.read"),
        ("POST", "authority/begin", authority.begin, "administer", "authority.begin"),
        *(
            ("POST", f"authority/{one}", authority.step(one), "administer", f"authority.{one}")
            for one in STEPS
        ),
        ("POST", "evidence/statistics/agreed", agreeing.agreed, "operate", "evidence.agree"),
        ("POST", "operators", admin.add_operator, "administer", "operator.add"),
        ("POST", "operators/{operator}/revoke", admin.revoke_operator, "administer", "operator.revoke"),
    ]
    return [
        *(
            Route(f"/v1/admin/{path}", admin.viewed(handler, right), methods=["GET"])
            for path, handler, right in looks
        ),
        *(
            Route(f"/v1/admin/{path}", admin.ordered(handler, right, what), methods=[method])
            for method, path, handler, right, what in orders
        ),
    ]
