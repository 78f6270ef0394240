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
    """Answer a batch with a bundle's student alone: the probability of the likeliest class, and its name.

    Every byte of the bundle is checked first. With --json also the confidence by the policy's measure, which decides about asking.
    """
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
    policy = model.policy
    rows = [
        {
            "label": policy.labels[int(one.argmax())],
            "probability": round(float(one.max()), 4),
            "confidence": round(float(sure), 4),
        }
        for one, sure in zip(answer.probabilities, answer.confidence, strict=True)
    ]
    if as_json:
        told = {"answers": rows, "measure": policy.measure, "latency_ms": round(answer.latency * 1000, 3)}
        typer.echo(json.dumps(told))
        return
    for row in rows:
        typer.echo(f"{row['probability']:.3f}  {plain(str(row['label']))}")
