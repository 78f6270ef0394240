"""The process that answers a proxy set, as a program: a ballot, or why there is none, and its end.

- It makes itself small first (`device.timing_child.humble`), before anything starts a thread.
- It answers with what the device serves: the bundle's student, with the head that was learned beside it where there is one; both are read where the
  engine has written them down. What it does not know by its *own* sums it abstains from.
- A device with fewer samples of its own than its policy lets out as sums votes later: by the bundle's own statistics every device of the bundle would
  say the same, and one network would have as many voices as there are devices.
- A device that serves weights of its own training has no sums of their features, and does not vote.
- It ends when the control socket closes, however that came: that is looked at between batches.
"""

from __future__ import annotations

import argparse
import select
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgestill.core import logs
from edgestill.core.bundle import Bundle
from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError, EvidenceError, PathError, SettingError
from edgestill.core.extras import require
from edgestill.core.manifest import MODEL, POLICY, REFERENCE
from edgestill.core.oip import Tensor
from edgestill.core.proxyset import ProxySet
from edgestill.device.frames import Frame, send
from edgestill.device.home import Home
from edgestill.device.timing_child import humble

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.protocols import Clock
    from edgestill.infer.policy import Policy
    from edgestill.infer.student import Student
    from edgestill.learn.statistics import Statistics
    from edgestill.learn.votes import Ballot

BATCH: Final = 32
_MOST_TEXT: Final = 1900


class _NotYetError(Exception):
    """It may vote later."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the child; the exit status is 0 where there is an answer, be it a ballot or not."""
    options = _parser().parse_args(arguments)
    logs.begin("WARNING")
    control = socket.socket(fileno=options.control)
    with control:
        humble(options.memory, options.seconds)
        try:
            said = _told(options, lambda: not select.select([control], [], [], 0)[0])
        except _NotYetError as error:
            said = Frame({"op": "not-yet", "reason": str(error)[:_MOST_TEXT]})
        except (PathError, MemoryError) as error:  # of a moment, or of this file: whoever asked decides
            reason = str(error) or "it takes too much memory"
            said = Frame({"op": "broken", "reason": reason[:_MOST_TEXT]})
        except EdgestillError as error:
            said = Frame({"op": "refused", "reason": str(error)[:_MOST_TEXT]})
        with suppress(EdgestillError):  # whoever would hear it is gone
            send(control, said)
    return 0


def _told(options: argparse.Namespace, goes_on: Callable[[], bool]) -> Frame:
    for module in ("numpy", "onnxruntime"):
        require(module, extra="device", purpose="to vote")
    found = ballot_of(
        Home.open(options.home),
        options.archive,
        ProxySet.open(options.proxy),
        Digest(options.digest),
        clock=SystemClock(),
        goes_on=goes_on,
    )
    data = found.to_bytes()
    return Frame({"op": "voted", "votes": found.votes}, (Tensor("ballot", "UINT8", (len(data),), data),))


def ballot_of(
    home: Home,
    archive: Path,
    proxy: ProxySet,
    digest: Digest,
    *,
    clock: Clock,
    goes_on: Callable[[], bool] = lambda: True,
) -> Ballot:
    """What the device that lives in `home` votes, with the bundle that it serves.

    Args:
        home: of the device.
        archive: the bundle.
        proxy: the set.
        digest: of its archive.
        clock: says which samples are too old to be remembered.
        goes_on: asked between batches.

    Raises:
        EdgestillError: it must not vote, or cannot.
    """
    from edgestill.device.memory import Memory
    from edgestill.device.privacy import Permissions
    from edgestill.device.trained import Trained
    from edgestill.infer.engines import engine_of
    from edgestill.infer.policy import Policy
    from edgestill.infer.student import Student
    from edgestill.learn.proxysets import question_of, samples_of
    from edgestill.learn.votes import Ballot, domain

    bundle = Bundle.open(archive)
    policy = Policy.from_bytes(bundle.read(POLICY))
    _check(policy, proxy, may_leave=Permissions.of(home.settings.leaves, policy).votes)
    trained = Trained.of(bundle, home.learned)
    if trained is not None and trained.read() is not None:
        raise SettingError(
            "a device with weights of its own training does not vote",
            where=archive,
            expected="the bundle's own weights, of whose features there are sums",
            got="others",
            fix="nothing: it votes again with the next bundle",
        )
    memory = Memory(home.learned, bundle.manifest.digest)
    known = domain(_own_sums(bundle, memory.statistics(), policy, clock))
    engine = engine_of(bundle.read(MODEL), bundle.manifest.hardware_class)
    student, name = Student(engine, policy, clock=clock), bundle.manifest.digest
    if (overlay := memory.overlay()) is not None:
        calibrated = replace(policy, temperature=overlay.temperature)
        head = overlay.head.weight, overlay.head.bias
        student, name = Student(engine, calibrated, head=head, clock=clock), Digest.of(overlay.to_bytes())
    labels = _votes(student, samples_of(proxy), known, goes_on)
    return Ballot.of(question_of(digest, proxy.head), student=name, labels=labels)


def _check(policy: Policy, proxy: ProxySet, *, may_leave: bool) -> None:
    """Refuses where nothing may leave, or the classes are others."""
    if not may_leave:
        raise SettingError(
            "votes may not leave this device",
            where="leaves",
            expected="features or raw, of the device and of its bundle, and no noise",
            got="nothing, or a policy with noise",
            fix="nothing: its owner, or its bundle's policy, wants it so",
        )
    if policy.labels != proxy.head.labels:
        raise EvidenceError(
            "a proxy set of other classes",
            where=proxy.path,
            expected=f"{len(policy.labels)} labels, as the policy has them",
            got=f"{len(proxy.head.labels)} labels, which differ from them or in their order",
            fix="make a set with the labels of the bundles that shall vote",
        )


def _own_sums(bundle: Bundle, kept: Sequence[bytes], policy: Policy, clock: Clock) -> Statistics:
    """What the device has learned from, without the bundle's own statistics."""
    from edgestill.device.learning import Lessons
    from edgestill.device.sums import Sums
    from edgestill.learn.statistics import Statistics

    if REFERENCE not in bundle.manifest.blobs:
        raise EvidenceError(
            "a bundle beside which nothing is learned",
            where=bundle.manifest.name,
            expected=f"a blob {REFERENCE}",
            got="none",
            fix="build the bundle from a model with features",
        )
    lessons = Lessons()
    sums = Sums(Statistics.from_bytes(bundle.read(REFERENCE)), young=lessons.young, windows=lessons.windows)
    sums.recall(kept)
    sums.forget(max(0, int(clock.now() // lessons.window)))
    own = sums.total()
    if own.n < (least := max(1, policy.statistics.least)):
        raise _NotYetError(f"{own.n} samples of its own, of {least} that it needs")
    return own


def _votes(
    student: Student, samples: NDArray[np.generic], known: object, goes_on: Callable[[], bool]
) -> NDArray[np.int64]:
    import numpy as np

    from edgestill.learn.leverage import Leverage
    from edgestill.learn.votes import cast

    assert isinstance(known, Leverage)
    found = []
    for at in range(0, len(samples), BATCH):
        if not goes_on():
            raise _NotYetError("it was told to end")
        answer = student.predict(samples[at : at + BATCH])
        if answer.features is None:
            raise EvidenceError(
                "a student without features does not vote",
                where=MODEL,
                expected="an output features [N, D]",
                got="none",
                fix="export the model with its features",
            )
        found.append(cast(answer.probabilities, answer.features, known))
    return np.concatenate(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edgestill.device.voting_child", description="started by the agent")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--proxy", type=Path, required=True)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
