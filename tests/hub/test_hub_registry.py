"""Registry, evidence and rollouts on a database of their own, without a network: what each function keeps and forgets."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select

from edgestill.core.digest import Digest
from edgestill.core.errors import ConflictError, NotFoundError
from edgestill.core.release import Gates, Rollout, Stage
from edgestill.core.wire import Health, Report
from edgestill.hub import evidence, registry, reports, rollouts, tables
from edgestill.hub.database import Database
from edgestill.hub.evidence import Asked
from edgestill.hub.registry import Parts
from edgestill.trust.metadata import TargetInfo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection

CLASS = "x86_64-vnni-onnxruntime"
R1 = "watch/1.0.0"
PATH = f"{R1}/{CLASS}.esb"
labels = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"), max_size=3)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine to its end."""
    return asyncio.run(work)


@asynccontextmanager
async def written(folder: Path, *names: str) -> AsyncIterator[AsyncConnection]:
    """A write on a database with these devices, and two releases once there are some."""
    database = Database.open(folder / "hub.db")
    try:
        async with database.write() as connection:
            for name in names:
                await connection.execute(
                    insert(tables.devices).values(
                        id=name,
                        hardware_class=CLASS,
                        labels={},
                        credential=name,
                        join_token="t",
                        enrolled_at=1.0,
                    )
                )
            if names:
                once = {f"watch/1.{minor}.0/any.esb": info("any") for minor in (0, 1)}
                await registry.mirror_targets(connection, once, 0.0)
                await registry.mirror_targets(connection, {}, 0.0)
            yield connection
    finally:
        await database.close()


def info(text: str) -> TargetInfo:
    """An archive of this content."""
    return TargetInfo(len(text), Digest.of(text.encode()))


def rollout(release: str = R1) -> Rollout:
    """To all at once."""
    return Rollout(release=release, stages=(Stage(share=1.0),), gates=Gates())


def test_the_mirror_says_what_the_list_says(tmp_path: Path) -> None:
    """New names come, gone ones stay as history, changed ones are changed, and saying it twice changes nothing."""

    async def play() -> None:
        async with written(tmp_path) as connection:
            lists: list[dict[str, TargetInfo]] = [
                {PATH: info("one")},
                {PATH: info("one"), f"watch/1.1.0/{CLASS}.esb": info("two")},
                {f"watch/1.1.0/{CLASS}.esb": info("two")},
                {},
                {PATH: info("other")},
            ]
            for at, listed in enumerate(lists):
                for _ in range(2):
                    await registry.mirror_targets(connection, listed, float(at))
                    assert await registry.listed_paths(connection) == set(listed)
            rows = {row.path: row for row in await connection.execute(select(tables.targets))}
            assert set(rows) == {PATH, f"watch/1.1.0/{CLASS}.esb"}
            assert rows[PATH].digest == info("other").digest.hex
            assert rows[PATH].published_at == 0.0
            assert await registry.release_targets(connection, "watch/1.1.0") == {}

    run(play())


def test_releases_are_told_with_what_is_still_listed(tmp_path: Path) -> None:
    """A release stands as long as one of its bundles does."""

    async def play() -> None:
        async with written(tmp_path) as connection:
            both = {PATH: info("one"), f"{R1}/any.esb": info("two")}
            await registry.mirror_targets(connection, both, 1.0)
            await registry.mirror_targets(connection, {PATH: info("one")}, 2.0)
            (one,) = await registry.releases(connection)
            bundles: Any = one["bundles"]
            assert one["listed"] is True
            assert {name: each["listed"] for name, each in bundles.items()} == {CLASS: True, "any": False}
            await registry.mirror_targets(connection, {}, 3.0)
            (one,) = await registry.releases(connection)
            assert one["listed"] is False

    run(play())


def test_an_assignment_counts_whether_it_tells_or_withdraws(tmp_path: Path) -> None:
    """Each of many in one statement, and nobody else."""

    async def play() -> None:
        async with written(tmp_path, "a", "b", "c") as connection:
            await registry.assign(connection, {"a": PATH, "b": PATH}, 1.0)
            await registry.assign(connection, {"a": None}, 2.0)
            found = {name: await registry.require_device(connection, name) for name in "abc"}
            assert {name: (one.counter, one.target) for name, one in found.items()} == {
                "a": (2, None),
                "b": (1, PATH),
                "c": (0, None),
            }

    run(play())


def test_an_unknown_device_is_not_found(tmp_path: Path) -> None:
    """By name with an error, by credential with nothing."""

    async def play() -> None:
        async with written(tmp_path, "a") as connection:
            assert await registry.device_by_credential(connection, "nobody") is None
            with pytest.raises(NotFoundError, match="no such device"):
                await registry.require_device(connection, "nobody")

    run(play())


@given(name=st.sampled_from(["watch", "a_b-c"]), version=st.tuples(*[st.integers(0, 10**9 - 1)] * 3))
def test_a_path_falls_into_its_parts(name: str, version: tuple[int, int, int]) -> None:
    """And versions sort as numbers, not as text."""
    text = ".".join(map(str, version))
    parts = Parts.of(f"{name}/{text}/{CLASS}.esb")
    assert (parts.name, parts.version, parts.hardware_class) == (name, text, CLASS)
    assert parts.release == f"{name}/{text}"
    assert parts.order == version


@given(mine=labels, wanted=labels)
def test_a_cohort_is_whoever_has_all_its_labels(mine: dict[str, str], wanted: dict[str, str]) -> None:
    """Nothing wanted is everybody."""
    assert registry.has_labels(mine, wanted.items()) == (wanted.items() <= mine.items())


@given(one=labels, other=labels, device=labels)
def test_cohorts_that_share_a_device_may_overlap(
    one: dict[str, str], other: dict[str, str], device: dict[str, str]
) -> None:
    """Whatever its labels: a device in both is never missed; and it does not matter who asks first."""
    in_both = registry.has_labels(device, one.items()) and registry.has_labels(device, other.items())
    may = registry.may_overlap(one, other)
    assert may or not in_both
    assert may == registry.may_overlap(other, one)
    if may:
        assert registry.has_labels(one | other, one.items())
        assert registry.has_labels(one | other, other.items()), "there could be such a device"


def test_a_class_gets_its_own_bundle_first() -> None:
    """Then the one for any, then none."""
    assert registry.bundle_for({CLASS: "own", "any": "any"}, CLASS) == "own"
    assert registry.bundle_for({"any": "any"}, CLASS) == "any"
    assert registry.bundle_for({"other": "other"}, CLASS) is None


def test_rollouts_for_other_devices_do_not_stop_each_other(tmp_path: Path) -> None:
    """One value of a label or another: both run. Without labels it is everybody: refused."""

    async def play() -> None:
        async with written(tmp_path) as connection:
            await registry.mirror_targets(connection, {PATH: info("one")}, 1.0)
            await rollouts.start(connection, rollout(), labels={"site": "north"}, now=1.0)
            await rollouts.start(connection, rollout(), labels={"site": "south"}, now=1.0)
            for wanted in ({}, {"site": "north", "line": "1"}, {"line": "1"}):
                with pytest.raises(ConflictError, match="another rollout is open"):
                    await rollouts.start(connection, rollout(), labels=wanted, now=1.0)

    run(play())


operations = st.lists(st.sampled_from(["pause", "resume", "roll_back"]), max_size=8)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deeds=operations)
def test_an_operators_word_twice_is_once(tmp_path_factory: pytest.TempPathFactory, deeds: list[str]) -> None:
    """Each verb leads to its state or says why not; repeated at once it changes nothing."""
    wanted = {"pause": "paused", "resume": "running", "roll_back": "rolled-back"}

    async def play() -> None:
        async with written(tmp_path_factory.mktemp("hub")) as connection:
            await registry.mirror_targets(connection, {PATH: info("one")}, 1.0)
            number = await rollouts.start(connection, rollout(), labels={}, now=1.0)
            for deed in deeds:
                before = await rollouts.find(connection, number)
                try:
                    await getattr(rollouts, deed)(connection, number, 2.0)
                except ConflictError:
                    assert before.state == "rolled-back"
                    assert await rollouts.find(connection, number) == before
                    continue
                after = await rollouts.find(connection, number)
                assert after.state == wanted[deed]
                await getattr(rollouts, deed)(connection, number, 3.0)
                assert await rollouts.find(connection, number) == after

    run(play())


steps = st.sampled_from(["downloaded", "verified", "staged", "serving", "confirmed", "fell-back"])
told = st.lists(
    st.tuples(st.integers(0, 5), st.one_of(steps, st.integers(0, 9)), st.sampled_from([R1, "watch/1.1.0"])),
    max_size=10,
)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=told, shuffled=st.randoms(use_true_random=False))
def test_reports_in_any_order_and_number_make_one_fleet(
    tmp_path_factory: pytest.TempPathFactory, told: list[tuple[int, Any, str]], shuffled: Any
) -> None:
    """Sums, and the furthest step of a rollout, are the same; what a device shows is what its own clock says was last."""
    batch = [
        Report(
            id=f"r{number}",
            at=float(at * 100 + number),
            bundle=str(Digest.of(release.encode())),
            release=release,
            state=what if isinstance(what, str) else None,  # type: ignore[arg-type]  # one of the steps
            health=None if isinstance(what, str) else Health(answers=what + 1, escalated=what, audits=what),
        )
        for number, (at, what, release) in enumerate(told)
    ]
    mixed = [*batch, *batch]
    shuffled.shuffle(mixed)

    async def play(some: list[Report]) -> tuple[Any, Any]:
        async with written(tmp_path_factory.mktemp("hub"), "a") as connection:
            accepted = await reports.accept(connection, "a", some, 1000.0)
            assert len(accepted) == len(batch)
            assert await reports.accept(connection, "a", some, 2000.0) == []
            rows = await connection.execute(select(tables.health).order_by(tables.health.c.release))
            return await registry.fleet(connection), [dict(row) for row in rows.mappings()]

    fleet, sums = run(play(batch))
    assert run(play(mixed))[1] == sums
    (one,) = run(play(sorted(mixed, key=lambda report: report.at)))[0]
    (other,) = fleet
    states = [report for report in batch if report.state is not None]
    if states:
        last = max(states, key=lambda report: report.at)
        assert (one["state"], one["state_release"]) == (last.state, last.release)
        assert (other["state"], other["state_release"]) == (last.state, last.release)
    for release in {report.release for report in batch if report.health is not None}:
        (row,) = [row for row in sums if row["release"] == release]
        figures = [each.health for each in batch if each.health is not None and each.release == release]
        assert row["answers"] == sum(each.answers for each in figures)
        assert row["audits"] == sum(each.audits for each in figures)


def test_sums_stop_at_the_largest_number_a_message_can_carry(tmp_path: Path) -> None:
    """A device that counts to the end of the numbers leaves a fleet that can still be read."""
    most = reports.MAX_SUM
    batch = [
        Report(
            id=f"r{number}",
            at=1.0,
            bundle=str(Digest.of(b"x")),
            release=R1,
            health=Health(answers=most, escalated=most, audits=most, agreed=most, bytes_up=most),
        )
        for number in range(3)
    ]

    async def play() -> Any:
        async with written(tmp_path, "a") as connection:
            await reports.accept(connection, "a", batch, 1.0)
            return await registry.fleet(connection)

    ((one),) = run(play())
    assert {one["health"][name] for name in ("answers", "audits", "agreed", "bytes_up")} == {most}


shapes = st.lists(st.sampled_from([(2,), (3,), (2, 2)]), max_size=14)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes=shapes, limit=st.integers(1, 5))
def test_pages_end_to_end_are_all_samples_in_order(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, ...]], limit: int
) -> None:
    """Whatever the limit, and wherever shapes change: each page is one batch, none is skipped, none comes twice."""

    async def play() -> None:
        async with written(tmp_path_factory.mktemp("hub"), "a") as connection:
            for number, shape in enumerate(shapes):
                await evidence.keep_samples(connection, asked(number, shape), now=1.0, most=100)
            after, found = 0, []
            while True:
                page = await evidence.samples_after(connection, after, limit)
                named = {one.name: one for one in page.outputs}
                count = named["id"].shape[0]
                if not count:
                    assert page.parameters["last"] == after
                    break
                assert count <= limit
                values = np.frombuffer(named["input"].data, "<f4").reshape(named["input"].shape)
                found += [(int(row.flat[0]), row.shape) for row in values]
                after = int(str(page.parameters["last"]))
            assert found == list(enumerate(shapes))

    run(play())


def asked(number: int, shape: tuple[int, ...], count: int = 1) -> Asked:
    """A question whose inputs are all this number."""
    one = np.full(shape, number, "<f4").tobytes()
    return Asked(
        device="a",
        purpose="audit",
        request=f"q{number}",
        datatype="FP32",
        shape=shape,
        inputs=[one] * count,
        logits=[np.zeros(3, "<f4").tobytes()] * count,
    )


def test_a_page_stops_before_it_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But has one sample at least, however large that is, or nobody could ever read on."""
    monkeypatch.setattr(evidence, "MAX_SAMPLE_BYTES", 100)

    async def play() -> list[int]:
        async with written(tmp_path, "a") as connection:
            await evidence.keep_samples(connection, asked(1, (4,), count=5), now=1.0, most=100)
            await evidence.keep_samples(connection, asked(2, (400,), count=2), now=1.0, most=100)
            after, sizes = 0, []
            while size := (page := await evidence.samples_after(connection, after, 100)).outputs[3].shape[0]:
                sizes.append(size)
                after = int(str(page.parameters["last"]))
            return sizes

    assert run(play()) == [3, 2, 1, 1]
