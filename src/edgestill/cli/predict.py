"""`edgestill predict`: answers for what a sensor wrote into a file, from a bundle, with no fleet and no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgestill.cli.terminal import plain
from edgestill.core.bundle import Bundle
from edgestill.core.errors import DtypeError, EdgestillError, NotFiniteError, ShapeError
from edgestill.core.extras import require


def predict(
    bundle: Annotated[Path, typer.Argument(help="A bundle: NAME.esb or a folder.")],
    inputs: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="What the sensor gives: a picture, .wav, .csv, or .npy [N, ...]."
        ),
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Answer a batch with a bundle's student alone; every byte of the bundle is checked first."""
    require("onnxruntime", extra="device", purpose="to run a model")
    import numpy as np

    from edgestill.core.oip import NUMPY_NAMES
    from edgestill.infer.recordings import read_inputs
    from edgestill.infer.student import load

    Bundle.open(bundle).verify()
    model = load(bundle)
    _, datatype, shape = model.input
    batch = read_inputs(inputs, np.dtype(NUMPY_NAMES[datatype]), shape)
    try:
        answer = model.predict(batch)
    except EdgestillError as error:  # which names the model's input or part, and cannot know the file
        of = inputs if isinstance(error, ShapeError | DtypeError | NotFiniteError) else bundle
        error.where = f"{of}: {error.where}"
        raise
    rows = [
        {"label": model.policy.labels[int(one.argmax())], "confidence": round(float(sure), 4)}
        for one, sure in zip(answer.probabilities, answer.confidence, strict=True)
    ]
    if as_json:
        typer.echo(json.dumps({"answers": rows, "latency_ms": round(answer.latency * 1000, 3)}))
        return
    for row in rows:
        typer.echo(f"{row['confidence']:.3f}  {plain(str(row['label']))}")
