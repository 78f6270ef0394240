"""`edgestill predict`: answers for an npy file, from a bundle, with no fleet and no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated
from zipfile import BadZipFile

import typer

from edgestill.cli.terminal import plain
from edgestill.core.errors import DataError, PathError
from edgestill.core.extras import require


def predict(
    bundle: Annotated[Path, typer.Argument(help="A bundle: NAME.esb or a folder.")],
    inputs: Annotated[
        Path, typer.Argument(metavar="INPUT", help="npy file [N, ...] of what the sensor gives.")
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Answer a batch with a bundle's student alone."""
    require("onnxruntime", extra="device", purpose="to run a model")
    import numpy as np

    from edgestill.infer.student import load

    model = load(bundle)
    try:
        with inputs.open("rb") as source:
            batch = np.load(source, allow_pickle=False)
    except OSError as error:
        raise PathError("cannot read the input", where=inputs, got=error.strerror or error) from error
    except (ValueError, EOFError, BadZipFile, MemoryError) as error:
        raise DataError("not an npy file of plain numbers", where=inputs, got=error) from error
    if not isinstance(batch, np.ndarray):
        raise DataError("several arrays", where=inputs, expected="an npy file, one array", got="an npz file")
    answer = model.predict(batch)
    rows = [
        {"label": model.policy.labels[int(one.argmax())], "confidence": round(float(sure), 4)}
        for one, sure in zip(answer.probabilities, answer.confidence, strict=True)
    ]
    if as_json:
        typer.echo(json.dumps({"answers": rows, "latency_ms": round(answer.latency * 1000, 3)}))
        return
    for row in rows:
        typer.echo(f"{row['confidence']:.3f}  {plain(str(row['label']))}")
