"""The detectors that are compared, each begun anew after an alarm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from river import drift as river

from edgestill.device.noticing import STREAMS
from edgestill.learn.adwin import Adwin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from edgestill.learn.drift import PageHinkley

Alarms = list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """One way to notice.

    Attributes:
        title: in tables.
        alarms: (signal, values) -> places in the values at which it alarmed.
    """

    title: str
    alarms: Callable[[str, NDArray[Any]], Alarms]


def in_blocks(values: NDArray[Any], block: int) -> NDArray[Any]:
    """The mean of every so many values; what is left over counts for nothing."""
    whole: NDArray[Any] = values[: len(values) // block * block].reshape(-1, block).mean(axis=1)
    return whole


def _stateful(test: PageHinkley | Adwin, values: Iterable[float]) -> Alarms:
    state, found = test.start(), []
    for place, value in enumerate(values):
        state = test.update(state, value)  # type: ignore[arg-type]  # its own
        if state.alarm:
            found.append(place)
            state = test.start()
    return found


def _device(signal: str, values: NDArray[Any]) -> Alarms:
    return _stateful(STREAMS[signal], values.tolist())


def _adwin(_signal: str, values: NDArray[Any]) -> Alarms:
    return _stateful(Adwin(), values.tolist())


def _longer(signal: str, values: NDArray[Any]) -> Alarms:
    own = STREAMS[signal]
    test = replace(own, block=2 * own.block, warm_up=own.warm_up // 2 + 1, reference=own.reference // 2)
    return _stateful(test, values.tolist())


def _adwin_of_blocks(signal: str, values: NDArray[Any]) -> Alarms:
    """As fair to it as we could: over the device's blocks, in deviations of the first of them, rises only."""
    block, first = STREAMS[signal].block, STREAMS[signal].warm_up
    means, found, begun = in_blocks(values, block), [], 0
    test = Adwin(clock=1)
    state = test.start()
    for place in range(len(means)):
        known = place + 1 - begun
        if known < first:
            continue
        scale = 1 / max(float(means[begun : begun + first].std(ddof=1)), 1e-9)
        for mean in means[begun : place + 1] if known == first else means[place : place + 1]:
            before, state = state, test.update(state, scale * float(mean))
        if not state.alarm:
            continue
        if state.mean > before.mean:
            found.append(block * place + block - 1)
            begun, state = place + 1, test.start()
        else:
            state = replace(state, cuts=0)
    return found


def _theirs(kind: type[river.ADWIN | river.PageHinkley]) -> Callable[[str, NDArray[Any]], Alarms]:
    def alarms(_signal: str, values: NDArray[Any]) -> Alarms:
        test, found = kind(), []
        for place, value in enumerate(values.tolist()):
            test.update(value)  # begins anew by itself after an alarm
            if test.drift_detected:
                found.append(place)
        return found

    return alarms


DETECTORS: Final = {
    "device": Detector(title="Page-Hinkley, as a device uses it", alarms=_device),
    "device_longer": Detector(title="the same over blocks twice as long", alarms=_longer),
    "adwin_blocks": Detector(title="ADWIN over a device's blocks", alarms=_adwin_of_blocks),
    "adwin": Detector(title="ADWIN, value by value", alarms=_adwin),
    "river_adwin": Detector(title="river's ADWIN, its defaults", alarms=_theirs(river.ADWIN)),
    "river_page_hinkley": Detector(
        title="river's PageHinkley, its defaults", alarms=_theirs(river.PageHinkley)
    ),
}
