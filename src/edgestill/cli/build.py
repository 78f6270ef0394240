"""`edgestill bundle build`: a bundle of a model that was trained elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edgestill.cli.terminal import plain
from edgestill.core.errors import SettingError
from edgestill.core.extras import require
from edgestill.core.files import read_plain
from edgestill.core.units import format_size, parse_share

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgestill.lab.packing.assemble import Packed

_MOST_LABELS: Final = 10_000_000
_MOST_PATH: Final = 250


def build(
    model: Annotated[Path, typer.Argument(help="A trained classifier as ONNX.")],
    *,
    calibration: Annotated[
        Path,
        typer.Option(
            help="Data as the sensor gives it: .npz (x, y), .npy, a folder of files, or one of folders, a class each."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The bundle; default MODEL.esb.")] = None,
    labels: Annotated[
        str, typer.Option(help="Names of the classes in their order, with commas; or a file, a name a line.")
    ] = "",
    sensor: Annotated[
        str,
        typer.Option(
            help='What becomes of a reading, such as "kind=uint8,layout=channels-last,scale=1/255,mean=0.5".'
        ),
    ] = "",
    teacher: Annotated[
        Path | None, typer.Option(help="The larger model as ONNX, for the same inputs.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="What it must keep, such as size=120kB,latency=1.5ms,escalation=20%.")
    ] = None,
    logits: Annotated[
        str, typer.Option(help="The output that tells the classes, where there are several.")
    ] = "",
    features: Annotated[
        str, typer.Option(help="What the last layer is given, where that is not found.")
    ] = "",
    loss: Annotated[str, typer.Option(help="Share of accuracy that int8 may cost.")] = "0.5%",
    train: Annotated[
        str,
        typer.Option(help="What devices may train: head, last=N, biases, all, or names with wildcards."),
    ] = "",
    floats: Annotated[bool, typer.Option("--floats", help="No int8.")] = False,
    version: Annotated[str, typer.Option(help="MAJOR.MINOR.PATCH.")] = "1.0.0",
    hardware_class: Annotated[str, typer.Option(help="Where it will run; default this machine's.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Make a bundle of a model that was trained elsewhere: int8, policy, golden answers."""
    for module in ("torch", "onnx_ir"):
        require(module, extra="lab", purpose="to build bundles")
    import numpy as np

    from edgestill.core.budget import Budget
    from edgestill.core.hardware import HardwareClass
    from edgestill.core.oip import NUMPY_NAMES
    from edgestill.infer.engine import OnnxEngine
    from edgestill.infer.policy import Policy
    from edgestill.lab.gradient.step import Training
    from edgestill.lab.packing.assemble import Origin
    from edgestill.lab.packing.calibration import read_calibration
    from edgestill.lab.packing.finished import pack_onnx, standardised
    from edgestill.lab.packing.foreign import NameEnds, read_file
    from edgestill.lab.packing.gate import Gate
    from edgestill.lab.packing.sensor import Sensor

    path = out or Path(f"{model.stem}.esb")
    file, taken, ends = read_file(model), Sensor.parse(sensor), NameEnds(logits=logits, features=features)
    ((datatype, shape),) = OnnxEngine(standardised(file, taken, ends)).inputs.values()
    if datatype.startswith("FP") and calibration.is_dir():
        _check_scale(taken.scale)
    data, names = read_calibration(calibration, np.dtype(NUMPY_NAMES[datatype]), shape, labels=_names(labels))
    packed = pack_onnx(
        file,
        data,
        policy=Policy(labels=names) if names else None,
        teacher=None if teacher is None else read_file(teacher),
        sensor=taken,
        ends=ends,
        origin=Origin(name=_name_of(path), version=version, recipe={}, seed=0),
        hardware_class=HardwareClass(hardware_class) if hardware_class else None,
        gate=Gate(allowed=parse_share(loss), int8=not floats),
        budget=None if budget is None else Budget.parse(budget),
        training=Training(trainable=train) if train else None,
    )
    packed.save(path)
    if as_json:
        typer.echo(json.dumps(_report(packed, path)))
        return
    for line in _told(packed, path, len(file)):
        typer.echo(plain(line))


def _check_scale(scale: float) -> None:
    """Pictures are not scaled twice."""
    if scale != 1:
        raise SettingError(
            "pictures for a model of floats are scaled to 0 to 1 when they are read",
            where="--sensor scale",
            expected="kind=uint8 beside scale, where the device gives bytes",
            got=f"scale={scale:g} alone",
            fix="add kind=uint8, or leave scale out",
        )


def _name_of(path: Path) -> str:
    """A file's name as a model may be called."""
    return re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:64] or "student"


def _names(labels: str) -> tuple[str, ...]:
    path = Path(labels)
    if labels and "," not in labels and len(labels) <= _MOST_PATH and path.is_file():
        text = read_plain(path, what="the names", at_most=_MOST_LABELS).decode("utf-8-sig", "replace")
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    return tuple(one.strip() for one in labels.split(",") if one.strip())


def _report(packed: Packed, path: Path) -> dict[str, object]:
    figures = {"floats": packed.fp32, "file": packed.int8, "teacher": packed.teacher}
    return {
        "bundle": str(path),
        "bytes": packed.manifest.size,
        "digest": str(packed.manifest.digest),
        "of": "accuracy" if packed.labelled else "agreement with the file in floats",
        "figures": {name: one.as_json() for name, one in figures.items() if one is not None},
        "written": [one.as_json() for one in packed.tried],
        "temperature": packed.policy.temperature,
        "threshold": packed.policy.threshold,
        "footprint": None if packed.footprint is None else packed.footprint.as_json(),
    }


def _told(packed: Packed, path: Path, before: int) -> Iterator[str]:
    """The same in sentences."""
    of = "accuracy" if packed.labelled else "agreement with the file in floats"
    for name, one in (("in floats", packed.fp32), ("as shipped", packed.int8), ("teacher", packed.teacher)):
        if one is not None:
            yield f"{of}, {name}: {one} on {one.rests_on()}"
    last = packed.tried[-1]
    yield f"model: {last.way}, {format_size(last.size)} of {format_size(before)}"
    yield f"bundle: {path}, {format_size(packed.manifest.size)}"
