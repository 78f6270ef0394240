"""`edgestill serve` as a process on a free port of the loopback, before a model that is made into a bundle here."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgestill.core.bundle import build, write_archive
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.golden import Golden
from edgestill.infer.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

NAME = "large"


@contextmanager
def serving(
    folder: Path, model: bytes, example: NDArray[np.generic], labels: tuple[str, ...]
) -> Iterator[str]:
    """The server's address; the model is named `large` there."""
    archive = folder / f"{NAME}.esb"
    logits = OnnxEngine(model).run({"input": example})["logits"]
    manifest, blobs = build(
        name=NAME,
        version="1.0.0",
        hardware_class="any",
        blobs={
            "model.onnx": model,
            "policy.json": Policy(labels=labels).to_bytes(),
            "golden.npz": Golden(input=example, logits=logits, tolerance=0.1).to_bytes(),
            "lineage.json": b"{}",
            "card.md": b"# large\n",
        },
    )
    write_archive(archive, manifest, blobs)
    command = [sys.executable, "-m", "edgestill.cli", "serve", str(archive)]
    child = subprocess.Popen(  # noqa: S603  # our own program
        [*command, "--port", "0", "--rate", "100000", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert child.stdout is not None
        yield str(json.loads(child.stdout.readline())["url"])
    finally:
        child.terminate()
        child.wait(30)
