"""A part of a source, as a source of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

from edgestill.core.digest import Digest
from edgestill.core.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.lab.data.source import Ask, Batch, Source, Task


@final
@dataclass(frozen=True, slots=True, eq=False)
class PartSource:
    """Some samples of another source, numbered anew from 0.

    Attributes:
        whole: the other source.
        index: int64 `[N]`, their places there.
    """

    whole: Source
    index: NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(self.index) == 0:
            raise DataError(
                "no samples",
                where="a part of the data",
                expected="at least one",
                got="none",
                fix="choose a larger share of the data",
            )

    def __len__(self) -> int:
        return len(self.index)

    @property
    def task(self) -> Task:
        """The whole's."""
        return self.whole.task

    @property
    def outputs(self) -> int:
        """The whole's."""
        return self.whole.outputs

    @property
    def labelled(self) -> bool:
        """The whole's."""
        return self.whole.labelled

    @property
    def augmented(self) -> bool:
        """The whole's."""
        return self.whole.augmented

    @property
    def digest(self) -> Digest:
        """Of the whole's and of the places."""
        return Digest.of_chunks([str(self.whole.digest).encode(), self.index.tobytes()])

    @property
    def views_digest(self) -> Digest:
        """The whole's: the augmentation is the same."""
        return self.whole.views_digest

    def batches(self, asks: Sequence[Ask]) -> Iterator[Batch]:
        """The whole's batches at these places."""
        yield from self.whole.batches([replace(ask, index=self.index[ask.index]) for ask in asks])
