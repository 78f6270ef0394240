"""The whole route, walked once by real processes.

teacher -> student -> bundle -> hub -> devices -> escalation -> the world changes -> evidence -> next student -> update.
Nothing here decides anything: the lab makes models, the hub rolls out, the devices answer, ask, learn and report.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

import numpy as np
import torch

from edgestill.core.bundle import archive_bytes, write_archive
from edgestill.core.clock import SystemClock
from edgestill.core.errors import EvidenceError, NotFoundError, PathError
from edgestill.demo.fleet import Fleet
from edgestill.demo.processes import Processes
from edgestill.demo.rehearse import Outcome, compare, right, sharing
from edgestill.demo.story import Absorption, Live, Row, Story
from edgestill.demo.workshop import engine_of, learn, next_student, teach
from edgestill.lab.absorb import absorb
from edgestill.lab.forward import answers
from edgestill.lab.measure import Figure, run_model, share_figure
from edgestill.lab.packing.assemble import REFERENCE
from edgestill.lab.packing.calibrate import promise_text
from edgestill.lab.packing.pack import backbone_id
from edgestill.learn.statistics import Statistics, solve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Engine
    from edgestill.demo.fleet import Said
    from edgestill.demo.scenario import Scenario, Stream
    from edgestill.demo.scratch import Scratch
    from edgestill.demo.workshop import Workshop
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.packing.assemble import Packed
    from edgestill.lab.progress import Progress

_RIDGE: Final = 1e-2


class View(Protocol):
    """Shows how far it is."""

    def begin(self, step: str) -> None:
        """A step begins."""
        ...

    def advance(self, done: int, of: int, note: str) -> None:
        """So far within the step."""
        ...

    def end(self, note: str) -> None:
        """The step is done; what came of it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Walked:
    """What the devices said at each stage, by device."""

    before: dict[str, Said]
    shifted: dict[str, Said]
    later: dict[str, Said]
    updated: dict[str, Said]


class Route:
    """One walk.

    Args:
        scenario: the data and networks.
        out: folder for bundles and logs; made here.
        view: shows the steps.
        about: version, time, seed and machine, for the report.

    Raises:
        PathError: the folder cannot be made, or nothing can be written there.
    """

    def __init__(self, scenario: Scenario, out: Path, view: View, *, about: JsonObject) -> None:
        self.scenario, self.out, self.view, self.about = scenario, out, view, about
        self.steps: dict[str, float] = {}
        self.clock = SystemClock()
        try:
            (out / "logs").mkdir(parents=True, exist_ok=True)
            for folder in (out, out / "logs"):
                with tempfile.TemporaryFile(dir=folder):  # found now, and not after the training
                    pass
        except OSError as error:
            raise PathError(
                "cannot write the report's folder",
                where=out,
                expected="a folder that can be made and written",
                got=f"a refusal of the system: {error.strerror or error}",
                fix="give another one with --out",
            ) from error

    def walk(self, rehearsed: Callable[[], list[Outcome]], scratch: Scratch) -> Story:
        """All steps.

        Args:
            rehearsed: gives the outcomes of the other folds; called when the live fleet is done.
            scratch: where hub and devices live meanwhile.

        Raises:
            DemoError: a step did not come to its end. Any other coded error of the rooms.
        """
        start = self.clock.monotonic()
        workshop = self._make()
        with tempfile.TemporaryDirectory(prefix="fleet-", dir=scratch.folder) as name:
            processes = Processes(self.out / "logs", clock=self.clock, pause=time.sleep, scratch=scratch)
            with processes:
                with self._step("found a hub, enrol the devices") as done:
                    fleet = Fleet.found(Path(name), workshop.teacher_onnx, processes, clock=self.clock)
                    for index, stream in enumerate(self.scenario.streams):
                        fleet.join(stream.device, shares=stream.shares)
                        self.view.advance(index + 1, len(self.scenario.streams), stream.device)
                    done(f"{len(self.scenario.streams)} devices, each a process of its own, at {fleet.url}")
                try:
                    outcome, live = self._live(fleet, workshop)
                finally:
                    fleet.close()
        with self._step("measure the other folds, fuse parameters") as done:
            outcomes = [outcome, *rehearsed()]
            absorption = self._absorb(workshop)
            measured = sum(len(np.unique(one.before)) for one in outcomes)
            done(f"{measured} {self.scenario.unit[1]} from which nothing was learned")
        return Story(
            scenario=self.scenario.name,
            about=self.about,
            unit=self.scenario.unit,
            told=(self.scenario.story, self.scenario.change),
            outcomes=outcomes,
            live=live,
            absorption=absorption,
            alpha=workshop.packed.policy.alpha,
            promise=promise_text(workshop.packed.policy),
            size_ratio=workshop.size_ratio,
            wall_s=self.clock.monotonic() - start,
            steps=self.steps,
        )

    def _make(self) -> Workshop:
        with self._step("train the teacher on all data") as done:
            teacher = teach(self.scenario, progress=self._epochs)
            done(f"{_count(teacher):,} parameters, {len(self.scenario.teach)} samples of both worlds")
        with self._step("inherit and distil the student") as done:
            workshop = learn(self.scenario, teacher, progress=self._distilling)
            self._keep(workshop.packed)
            done(
                f"{_count(workshop.run.student):,} parameters, {len(self.scenario.limited)} samples of one world; "
                f"int8 file {workshop.size_ratio:.0f} times smaller"
            )
        return workshop

    def _live(self, fleet: Fleet, workshop: Workshop) -> tuple[Outcome, Live]:
        with self._step("roll out version 1.0.0") as done:
            first = fleet.publish(workshop.packed)
            fleet.roll_out(first, heard=self._rollout)
            done("signed, staged, probed and confirmed on every device")
        before = self._feed(fleet, "answer, ask and fuse", lambda stream: stream.before)
        early = [_drift(fleet.status(one.device)) for one in self.scenario.streams]
        shifted = self._feed(fleet, self.scenario.change, lambda stream: stream.after)
        noticed = self._notice(fleet, (before, shifted), false_alarms=early.count("confirmed"))
        with self._step("gather the evidence") as done:
            evidence = fleet.evidence()
            head, message = self._shared_head(fleet, workshop)
            done(f"{len(evidence)} answers the teacher was asked for, and sums of {message} bytes a device")
        with self._step("what each device learned by itself") as done:
            later = {one.device: fleet.feed(one.device, one.later) for one in self._sharing if one.later}
            states = {one.device: fleet.status(one.device) for one in self.scenario.streams}
            done(_learned(states, later, self._sharing, engine_of(workshop.packed)))
        with self._step("make version 1.1.0 from the evidence, and a control without") as done:
            parent = workshop.packed.manifest.digest
            following = next_student(workshop, evidence, version="1.1.0", parent=parent)
            control = next_student(workshop, None, version="1.1.0", parent=parent)
            self._keep(following)
            done(f"{len(evidence)} new samples beside {len(self.scenario.limited)} old ones")
        health = fleet.health()
        with self._step("roll out version 1.1.0") as done:
            second = fleet.publish(following)
            fleet.roll_out(second, heard=self._rollout)
            patch = fleet.patch_size(first, second)
            done("on every device" if patch is None else f"on every device, as a patch of {patch} bytes")
        updated = self._feed(fleet, "answer again", lambda stream: stream.later or stream.after)
        walked = Walked(before=before, shifted=shifted, later=later, updated=updated)
        rows = [
            self._row(
                stream,
                walked,
                shipped=engine_of(workshop.packed),
                bytes_up=health[stream.device].integer("bytes_up"),
                states=states,
                drift=noticed,
            )
            for stream in self.scenario.streams
        ]
        live = self._told(walked, rows, workshop, following)
        alone = {name: said.alone for name, said in later.items()}
        outcome = compare(workshop, engine_of(following), engine_of(control), alone)
        outcome = self._measured(walked, outcome)
        live = replace(
            live, evidence=len(evidence), statistics_bytes=message, head_accuracy=head, patch_bytes=patch
        )
        return outcome, live

    @property
    def _sharing(self) -> list[Stream]:
        return sharing(self.scenario)

    @property
    def _quiet(self) -> list[Stream]:
        return [stream for stream in self.scenario.streams if not stream.shares]

    def _feed(self, fleet: Fleet, step: str, part: Callable[[Stream], Samples]) -> dict[str, Said]:
        said = {}
        with self._step(step) as done:
            for index, stream in enumerate(self.scenario.streams):
                said[stream.device] = fleet.feed(stream.device, part(stream))
                self.view.advance(index + 1, len(self.scenario.streams), stream.device)
            quiet = [(said[one.device].answers == part(one).labels) for one in self._quiet]
            asked = np.concatenate([said[one.device].asked for one in self._sharing])
            done(
                f"accuracy {np.concatenate(quiet).mean():.1%} on the {len(quiet)} devices that share nothing; "
                f"the others asked about {asked.mean():.0%}"
            )
        return said

    def _notice(
        self, fleet: Fleet, said: tuple[dict[str, Said], ...], *, false_alarms: int
    ) -> dict[str, str]:
        """What the devices report of the change, once their figures cover all they have answered.

        Args:
            fleet: whose devices.
            said: what they have answered so far.
            false_alarms: how many were sure of a change before there was any.
        """
        with self._step("notice") as done:
            found: dict[str, str] = {}

            def reported() -> bool:
                health = fleet.health()
                found.update({name: one.text("drift") for name, one in health.items()})
                return all(
                    name in health
                    and health[name].integer("answers") >= sum(len(part[name].answers) for part in said)
                    for name in said[0]
                )

            fleet.wait_for("health reports", reported)
            sure = sorted(name for name, verdict in found.items() if verdict == "confirmed")
            done(
                f"{len(sure)} of {len(found)} devices are sure that the world has changed "
                f"({false_alarms} of them were so before it had)"
            )
        return found

    def _shared_head(self, fleet: Fleet, workshop: Workshop) -> tuple[Figure | None, int]:
        """Accuracy of a head solved from the devices' sums, where nothing was shared; bytes of one message."""
        try:
            total = fleet.statistics(backbone_id(workshop.run.student))
        except (NotFoundError, EvidenceError):
            return None, 0
        reference = Statistics.from_bytes(workshop.packed.blobs[REFERENCE])
        both = total + reference.scaled(min(1.0, total.weight / reference.weight))
        head = solve(both, ridge=_RIDGE * float(both.matrix.diagonal().mean()))
        engine, hits = engine_of(workshop.packed), []
        for stream in self._quiet:
            scores = run_model(engine, stream.after.inputs)[1] @ head.weight + head.bias
            hits.append(scores.argmax(1) == stream.after.labels)
        groups = np.concatenate([stream.after.groups for stream in self._quiet])
        return share_figure(np.concatenate(hits), groups), len(total.to_bytes())

    def _measured(self, walked: Walked, outcome: Outcome) -> Outcome:
        """The outcome with the int8 figures as the devices gave them, not as the lab would."""
        names = [stream.device for stream in self._quiet]
        parts = (
            (walked.before, [one.before for one in self._quiet]),
            (walked.shifted, [one.after for one in self._quiet]),
            (walked.updated, [one.after for one in self._quiet]),
        )
        student, shifted, recovered = (
            np.concatenate([said[name].answers == one.labels for name, one in zip(names, data, strict=True)])
            for said, data in parts
        )
        return replace(
            outcome,
            student=student.astype(np.float64),
            shifted=shifted.astype(np.float64),
            recovered=recovered.astype(np.float64),
        )

    def _row(
        self,
        stream: Stream,
        walked: Walked,
        *,
        shipped: Engine,
        bytes_up: int,
        states: dict[str, JsonObject],
        drift: dict[str, str],
    ) -> Row:
        name, later = stream.device, stream.later or stream.after
        said = [walked.before[name], walked.shifted[name], walked.updated[name]]
        alone = np.concatenate([one.seconds[~one.asked] for one in said])
        own = walked.later.get(name)
        return Row(
            device=name,
            shares=stream.shares,
            answers=sum(len(one.answers) for one in said),
            before=_share(walked.before[name].alone == stream.before.labels),
            shipped=_share(right(shipped, later)),
            own=_share(own.alone == later.labels) if own is not None and _has_overlay(states[name]) else None,
            updated=_share(walked.updated[name].alone == later.labels),
            escalated=_share(np.concatenate([one.asked for one in said])),
            bytes_up=bytes_up,
            drift=drift.get(name, "none"),
            latency_ms=round(float(np.median(alone)) * 1000, 3),
        )

    def _told(self, walked: Walked, rows: list[Row], workshop: Workshop, following: Packed) -> Live:
        groups = {
            "before": np.concatenate([one.before.groups for one in self._sharing]),
            "after": np.concatenate([one.after.groups for one in self._sharing]),
        }

        def share(said: dict[str, Said], part: Literal["before", "after"], *, alone: bool) -> Figure:
            hits = [
                (said[one.device].alone if alone else said[one.device].answers) == getattr(one, part).labels
                for one in self._sharing
            ]
            return share_figure(np.concatenate(hits), groups[part])

        asked = np.concatenate([walked.shifted[one.device].asked for one in self._sharing])
        return Live(
            rows=tuple(rows),
            escalated=share_figure(asked, groups["after"]),
            fused_before=share(walked.before, "before", alone=False),
            alone_before=share(walked.before, "before", alone=True),
            fused_shifted=share(walked.shifted, "after", alone=False),
            alone_shifted=share(walked.shifted, "after", alone=True),
            evidence=0,
            statistics_bytes=0,
            head_accuracy=None,
            shipped_accuracy=share_figure(
                np.concatenate([walked.shifted[one.device].alone == one.after.labels for one in self._quiet]),
                np.concatenate([one.after.groups for one in self._quiet]),
            ),
            bundle_bytes=len(archive_bytes(following.manifest, following.blobs)),
            patch_bytes=None,
            model_bytes=len(following.blobs["model.onnx"]),
            teacher_bytes=len(workshop.teacher_onnx),
        )

    def _absorb(self, workshop: Workshop) -> Absorption:
        absorbed = absorb(workshop.run, self.scenario.heldout)
        hits: dict[str, list[NDArray[np.bool_]]] = {"before": [], "after": []}
        for stream in self._quiet:
            inputs = torch.from_numpy(stream.before.inputs)
            for key, model in (("before", workshop.teacher), ("after", absorbed.teacher)):
                hits[key].append(answers(model, inputs).argmax(1).numpy() == stream.before.labels)
        shares = {key: _share(np.concatenate(parts)) for key, parts in hits.items()}
        return Absorption(weight=absorbed.alpha, before=shares["before"], after=shares["after"])

    def _keep(self, packed: Packed) -> None:
        head = packed.manifest
        write_archive(self.out / f"{head.name}-{head.version}.esb", head, packed.blobs)

    def _epochs(self, done: int, of: int, loss: float) -> None:
        self.view.advance(done, of, f"loss {loss:.3f}")

    def _distilling(self, now: Progress) -> None:
        if now.loss is not None:
            self._epochs(now.done, now.of, now.loss)

    def _rollout(self, state: JsonObject) -> None:
        devices = state.get("devices")
        if isinstance(devices, dict):
            confirmed = sum(
                isinstance(one, dict) and one.get("state") == "confirmed" for one in devices.values()
            )
            self.view.advance(confirmed, len(self.scenario.streams), f"stage {state.get('stage')}")

    @contextmanager
    def _step(self, name: str) -> Iterator[Callable[[str], None]]:
        start = self.clock.monotonic()
        notes: list[str] = []
        self.view.begin(name)
        yield notes.append
        self.steps[name] = self.clock.monotonic() - start
        self.view.end(" ".join(notes))


def _share(hits: NDArray[np.bool_] | NDArray[np.float64]) -> float:
    return round(float(hits.mean()), 4)


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _has_overlay(state: JsonObject) -> bool:
    engine = state.get("engine")
    return isinstance(engine, dict) and engine.get("learned") is not None


def _drift(state: JsonObject) -> str:
    engine = state.get("engine")
    return str(engine.get("drift")) if isinstance(engine, dict) else "none"


def _learned(
    states: dict[str, JsonObject], later: dict[str, Said], streams: list[Stream], shipped: Engine
) -> str:
    learned = [name for name, state in states.items() if _has_overlay(state)]
    text = f"{len(learned)} of {len(streams)} sharing devices adopted a head of their own"
    parts = [(later[one.device].alone, one.later) for one in streams if one.later]
    if not parts:
        return text
    own = np.concatenate([named == part.labels for named, part in parts])
    without = np.concatenate([right(shipped, part) for _, part in parts])
    return f"{text}: {without.mean():.1%} as shipped, {own.mean():.1%} with what they learned"
