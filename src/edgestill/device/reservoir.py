"""Which samples stay when there is room for few: reservoir sampling, balanced over classes.

The scheme is class-balancing reservoir sampling (Chrysakis and Moens 2020, "Online Continual Learning from Imbalanced
Data", algorithm 1), which is Vitter's algorithm R (1985, "Random Sampling with a Reservoir") within each class. With
m samples kept of the n that came of a class, the newest counted:

- While there is room, it goes to whoever comes.
- When there is none, a class of which all is kept, and which is not one of the largest, takes the place of a random
  sample of the largest class. So each class comes to `room // classes` samples, if that many come.
- Any other sample is taken with probability m / n, and takes the place of a random one of its class.

Within a class all that came are kept with the same probability. Besides, samples are forgotten here (the paper never
does): then n shrinks as m does, so that the share m / n of the stream that is kept stays. From then on

- a class of which not all is kept takes newcomers with probability m / n even where there is room. Otherwise a nightly
  forgetting would fill the buffer with what comes just after midnight. Below its `room // classes` it grows at the
  cost of the largest.
- a class that has less than half of its `room // classes`, or nothing, begins anew: what it has counts as all that came.

Nothing here touches a disk or a clock; the coin is handed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random


@dataclass(frozen=True, slots=True)
class Place:
    """A sample that gives way.

    Attributes:
        label: its class.
        index: its number among those of its class.
    """

    label: int
    index: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """A sample is taken.

    Attributes:
        instead_of: the one that gives way; None where there is room.
    """

    instead_of: Place | None


@final
class Reservoir:
    """The samples of one part of a buffer, known by the slots they lie in.

    Args:
        room: samples it holds at most, positive.
        classes: positive.

    Attributes:
        seen: how many samples of each class came, those that were forgotten not counted.
    """

    def __init__(self, room: int, classes: int) -> None:
        self.seen = [0] * classes
        self._room = room
        self._share = room // classes
        self._members: list[list[int]] = [[] for _ in range(classes)]
        self._kept = 0

    def __len__(self) -> int:
        return self._kept

    @property
    def is_over(self) -> bool:
        """Whether there are more than there is room for."""
        return self._kept > self._room

    def members(self, label: int) -> list[int]:
        """The slots of a class."""
        return self._members[label]

    def slots(self) -> Iterator[int]:
        """All slots, class by class."""
        for members in self._members:
            yield from members

    def kept(self) -> tuple[int, ...]:
        """How many samples of each class are kept."""
        return tuple(map(len, self._members))

    def choose(self, label: int, random: Random) -> Admitted | None:
        """Counts a sample that came, and says whether it is taken; nothing is taken yet."""
        kept = len(self._members[label])
        if kept == 0 or 2 * kept < self._share:
            self.seen[label] = kept
        self.seen[label] += 1
        has_room = self._kept < self._room
        is_whole = self.seen[label] == kept + 1
        is_sure = is_whole and (has_room or kept < self._largest())
        if not is_sure and random.random() * self.seen[label] >= kept:
            return None
        if has_room:
            return Admitted(None)
        if is_sure or kept < self._share:
            return Admitted(self.of_the_largest(random))
        return Admitted(Place(label, random.randrange(kept)))

    def of_the_largest(self, random: Random) -> Place:
        """A random sample of a largest class."""
        most = self._largest()
        label = random.choice([one for one, members in enumerate(self._members) if len(members) == most])
        return Place(label, random.randrange(most))

    def put(self, slot: int, label: int) -> None:
        """A sample lies in this slot now."""
        self._members[label].append(slot)
        self._kept += 1
        self.seen[label] = max(self.seen[label], len(self._members[label]))

    def take(self, place: Place) -> int:
        """Lets a sample go, and says which slot it lay in."""
        members = self._members[place.label]
        members[place.index], members[-1] = members[-1], members[place.index]
        self._kept -= 1
        return members.pop()

    def drop(self, slot: int, label: int) -> None:
        """Lets the sample in this slot go."""
        self.take(Place(label, self._members[label].index(slot)))

    def forget(self, is_gone: Callable[[int], bool]) -> list[int]:
        """Lets all samples go of whose slot this is true, and counts as seen so many fewer; the slots.

        The share of the stream that is kept stays as it is in each class.
        """
        gone: list[int] = []
        for label, members in enumerate(self._members):
            left = [slot for slot in members if not is_gone(slot)]
            gone += [slot for slot in members if is_gone(slot)]
            seen = self.seen[label]
            self.seen[label] = -(-seen * len(left) // len(members)) if members else 0
            self._members[label] = left
        self._kept -= len(gone)
        return gone

    def _largest(self) -> int:
        return max(map(len, self._members))
