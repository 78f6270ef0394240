"""`edgestill demo`: which scenario, where to, and the other folds in a process beside the live fleet."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import tempfile
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import torch

from edgestill import __version__
from edgestill.core.clock import SystemClock
from edgestill.core.errors import DemoError, SettingError
from edgestill.demo.images import images
from edgestill.demo.rehearse import Outcome, rehearse
from edgestill.demo.report import write_report
from edgestill.demo.route import Route, View
from edgestill.demo.scratch import scratch
from edgestill.demo.signals import signals_put_off
from edgestill.demo.watch import FOLDS, watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from edgestill.core.jsonio import JsonObject
    from edgestill.demo.scenario import Scenario
    from edgestill.demo.story import Story

SCENARIOS: Final = ("watch", "images")


def scenario_named(name: str, *, seed: int = 0, data: Path | None = None) -> Scenario:
    """The scenario of this name.

    Raises:
        SettingError: there is none, or `data` is given for `watch`.
    """
    if name == "images":
        return images(seed=seed, data=data)
    if name != "watch":
        raise SettingError(
            "no such scenario",
            where="--scenario",
            expected=", ".join(SCENARIOS),
            got=repr(name),
            fix="name one of these",
        )
    if data is not None:
        raise SettingError(
            "the watch scenario brings its own data",
            where="--data",
            fix="use --scenario images",
            expected="no --data with --scenario watch",
            got=data,
        )
    return watch(seed=seed)


def walk(scenario: Scenario, out: Path, view: View, *, seed: int = 0) -> Story:
    """Walks the route, measures the other folds meanwhile, and writes the report into `out`.

    Raises:
        PathError: the folder cannot be written. DemoError: a step did not come to its end.
    """
    folds = range(1, FOLDS) if scenario.name == "watch" else range(0)
    # the other core is for rehearsals, hub and devices; and what comes out must not depend on how many there are
    torch.set_num_threads(1)
    route = Route(scenario, out, view, about=_about(seed))
    with scratch() as held, _rehearsals(list(folds), seed) as rehearsed:
        story = route.walk(rehearsed, held)
    write_report(story, out)
    return story


def _about(seed: int) -> JsonObject:
    """What a reader must know to walk it again: version, time, seed, and the machine as it was before the first step."""
    return {
        "version": __version__,
        "date": datetime.fromtimestamp(SystemClock().now(), UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "machine": {
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "architecture": platform.machine(),
            "system": platform.system(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "onnxruntime")},
        },
    }


@contextmanager
def _rehearsals(folds: list[int], seed: int) -> Iterator[Callable[[], list[Outcome]]]:
    """The outcomes of these folds of `watch`, made by one process beside this one; it ends with the context."""
    if not folds:
        yield list
        return
    spawn = multiprocessing.get_context("spawn")
    # What the process keeps for a while lies in a folder of this one, who cleans up where it is ended in the middle.
    with tempfile.TemporaryDirectory(prefix="folds-") as folder:
        pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_settle, initargs=(folder,))
        futures: list[Future[Outcome]] = []
        try:
            with _no_interrupts():
                futures += [pool.submit(_fold, fold, seed) for fold in folds]
            yield lambda: [_result(future) for future in futures]
        finally:
            if not all(
                future.done() for future in futures
            ):  # one that has nothing to do ends by itself, in order
                for process in list((pool._processes or {}).values()):  # noqa: SLF001  # the pool has no public way to stop now
                    process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)


def _settle(folder: str) -> None:
    """Of the process beside: one thread, its own place for temporary files, and an end when this process ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    tempfile.tempdir = folder


def _end_with_parent() -> None:
    """In a child: waits until its parent is gone, killed perhaps, and then ends without another step."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C: whoever started them ends them. Here it is only put off.

    The mask is for them, who inherit it. Here it would not do: other threads still take the signal.
    """
    with signals_put_off():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _result(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise DemoError(
            "the process that measures the other folds died",
            expected="an outcome",
            fix="is there memory enough?",
            where="the process beside the fleet",
            got="its end",
        ) from error


def _fold(fold: int, seed: int) -> Outcome:
    return rehearse(watch(seed=seed, fold=fold))
