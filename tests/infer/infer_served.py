"""Models for the tests of `infer.serving`: what they answer can be told from the question."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from edgestill.core.answer import Answer
from edgestill.core.oip import InferRequest, InferResponse, Tensor
from edgestill.infer.serving.served import Port, Rows, Served, of_predict

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

LABELS = ("low", "middle", "high")


def doubling(
    run: Callable[[NDArray[np.generic], float | None], Rows] | None = None, *, heeds_deadlines: bool = False
) -> Served:
    """A model named `double` that takes float32 `[N, D]`, D free, and gives `twice`."""
    return Served(
        name="double",
        version="1",
        platform="test",
        input=Port(name="input", datatype="FP32", shape=(None, None)),
        outputs=(Port(name="twice", datatype="FP32", shape=(None, None)),),
        run=run or twice,
        heeds_deadlines=heeds_deadlines,
    )


def twice(batch: NDArray[np.generic], _: float | None) -> Rows:
    """Each input twice, and its first number told beside it."""
    rows = batch.astype(np.float32) * 2
    return Rows({"twice": rows}, {"first": tuple(batch[:, 0].tolist())})


class Gated:
    """`twice`, which waits within each run until it is let go; remembers the size of every run."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.sizes: list[int] = []

    def __call__(self, batch: NDArray[np.generic], deadline: float | None) -> Rows:
        """Answers once it may."""
        self.sizes.append(len(batch))
        self.begun.release()
        assert self.go.wait(30)
        return twice(batch, deadline)


class Sums:
    """A `Predict`: the class is the sum of the input's numbers, modulo three; it remembers the deadlines."""

    def __init__(self) -> None:
        self.deadlines: list[float | None] = []

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """Sure of it."""
        self.deadlines.append(deadline)
        chosen = batch.sum(axis=1).astype(int) % 3
        probabilities = np.eye(3, dtype=np.float32)[chosen]
        return Answer(
            probabilities=probabilities,
            confidence=probabilities.max(axis=1),
            decided_by=tuple("fused" if one == 2 else "student" for one in chosen),
            features=batch.astype(np.float32),
            alpha=(chosen / 4).astype(np.float32),
        )


def sums(model: Sums | None = None) -> Served:
    """It, served as `sums`."""
    return of_predict(
        model or Sums(),
        name="sums",
        version="7",
        takes=("input", "UINT8", (None, 2)),
        labels=LABELS,
        features=2,
    )


def tensor(name: str, array: NDArray[np.generic], datatype: str) -> Tensor:
    """An array as the wire has it."""
    return Tensor(name, datatype, array.shape, array.astype(array.dtype.newbyteorder("<")).tobytes())


def asked(
    array: NDArray[np.generic], datatype: str = "FP32", *, binary: bool = True, **rest: object
) -> tuple[bytes, int | None]:
    """A request: body and length of its JSON."""
    request = InferRequest(inputs=(tensor("input", array, datatype),), binary=binary, **rest)  # type: ignore[arg-type]  # handed through
    return request.encode(binary=binary)


def output(answer: tuple[bytes, int | None] | InferResponse, name: str) -> NDArray[np.generic]:
    """One output of an answer."""
    response = answer if isinstance(answer, InferResponse) else InferResponse.decode(*answer)
    (found,) = (one for one in response.outputs if one.name == name)
    return np.frombuffer(found.data, "<f4").reshape(found.shape)
