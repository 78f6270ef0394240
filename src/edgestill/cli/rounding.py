"""`edgestill learn round`: the next version of a bundle, with the head that its devices have learned together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edgestill.cli.operating import AsJson, Hub, TokenFile, operator, told
from edgestill.cli.solving import Prior, Ridge, Solving, Within
from edgestill.core.bundle import Bundle, write_archive
from edgestill.core.digest import Digest
from edgestill.core.errors import DataError, SettingError, TrustError
from edgestill.core.extras import require
from edgestill.core.files import read_plain
from edgestill.core.jsonio import Fields
from edgestill.core.units import format_size, parse_share

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.infer.policy import Policy
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.packing.newhead import Reheaded
    from edgestill.learn.statistics import Head

GIVEN: Final = "given"
_MOST: Final = 2**30


def round_(
    bundle: Annotated[Path, typer.Argument(help="The bundle whose devices sent the sums: NAME.esb.")],
    *,
    check: Annotated[
        Path,
        typer.Option(
            help="Labelled data that nothing has learned from, as the sensor gives it: .npz (x, y), or a folder of folders, a class each."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The next bundle; default NAME-VERSION.esb.")] = None,
    version: Annotated[
        str, typer.Option(help="MAJOR.MINOR.PATCH; default the bundle's, with the last number one higher.")
    ] = "",
    teacher: Annotated[
        Path | None,
        typer.Option(help="The larger model as ONNX, or the bundle's adapter: alpha is fitted anew."),
    ] = None,
    sensor: Annotated[
        str, typer.Option(help="What becomes of a reading before a teacher that takes floats sees it.")
    ] = "",
    loss: Annotated[str, typer.Option(help="Share of accuracy that the head may cost on these data.")] = "1%",
    given: Annotated[
        Path | None,
        typer.Option(
            "--head",
            metavar="HEAD.npz",
            help="As `learn solve` or `learn vote head` has written it, instead of the hub's sums.",
        ),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="The exact sum, which believes every device.")
    ] = False,
    within: Within = None,
    ridge: Ridge = 1e-3,
    prior: Prior = None,
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Make the next version of a bundle: the same, with the head that its devices have learned together."""
    for module in ("torch", "onnx_ir"):
        require(module, extra="lab", purpose="to build bundles")
    from edgestill.lab.packing.newhead import with_head
    from edgestill.learn.together import LEAST_SQUARES, heads_of

    parent = Bundle.open(bundle)
    parent.verify()
    version = version or _next(parent.manifest.version)
    path, allowed = out or Path(f"{parent.manifest.name}-{version}.esb"), parse_share(loss)
    _check(parent, bundle, path, version)
    heldout, policy = _read(parent, check)
    solving = Solving(robust=not plain, within=within, ridge=ridge, prior=prior)
    if given is not None:
        heads, said = _head_of(given, is_solved=plain or within is not None or prior is not None)
        evidence = said
    else:
        solved = solving.head(operator(hub, token_file), parent)
        said = _bounded(solved.said)
        # what a single device can do is bounded of the head that was solved, and of no other
        heads = heads_of(solved.total, ridge=ridge) if plain else {LEAST_SQUARES: solved.head}
        evidence = {"sums": said, "solved": solving.as_json()}
    made = with_head(
        parent,
        heads,
        heldout,
        version=version,
        evidence=evidence,
        teacher=None if teacher is None else _answers(teacher, parent, policy, heldout, sensor),
        allowed=allowed,
    )
    write_archive(path, made.manifest, made.blobs)
    patch = _patch(bundle, path)
    told(_report(made, path, patch, said), _told(made, path, patch, parent), as_json=as_json)


def _head_of(path: Path, *, is_solved: bool) -> tuple[dict[str, Head], JsonObject]:
    """A head that was made elsewhere, and its file's digest for the lineage."""
    import numpy as np

    from edgestill.infer.arrayfile import read_npz
    from edgestill.learn.statistics import Head

    if is_solved:
        raise SettingError(
            "a head that is given is not solved again",
            where="--head",
            expected="no --plain, --within or --prior beside it",
            got="one of them",
            fix="leave them out, or leave --head out",
        )
    found = read_npz(path, what="the head", names=("weight", "bias"))
    weight, bias = (found.get(name) for name in ("weight", "bias"))
    if (
        weight is None
        or bias is None
        or weight.ndim != 2
        or bias.shape != weight.shape[1:]
        or not all(
            one.dtype.kind == "f" and np.isfinite(one.astype(np.float64)).all() for one in (weight, bias)
        )
    ):
        raise DataError(
            "a file that holds no head",
            where=path,
            expected="weight [D, C] and bias [C], finite numbers",
            got=", ".join(f"{name} {list(one.shape)}" for name, one in found.items()) or "neither",
            fix="write it by edgestill learn solve or edgestill learn vote head",
        )
    head = Head(weight=weight.astype(np.float32), bias=bias.astype(np.float32))
    return {GIVEN: head}, {"file": str(Digest.of(read_plain(path, what="the head", at_most=_MOST)))}


def _check(parent: Bundle, bundle: Path, path: Path, version: str) -> None:
    """Looks whether this can become the next version, before anybody is asked."""
    from edgestill.core.hardware import HardwareClass
    from edgestill.lab.packing.assemble import Origin, check_follows

    head = parent.manifest
    check_follows(
        head,
        Origin(name=head.name, version=version, recipe={}, seed=0),
        HardwareClass(head.hardware_class),
    )
    if path.exists() and path.samefile(bundle):
        raise SettingError(
            "the next version would replace the one that it follows",
            where="--out",
            expected="another file: patches are made from the one before",
            got=path,
            fix="leave --out out",
        )


def _bounded(said: JsonObject) -> JsonObject:
    """What a hub said of its sums and a bundle may tell: numbers, no names of devices."""
    fields = Fields(said, "sums")
    kept: JsonObject = {
        name: fields.integer(name) for name in ("devices", "samples", "window") if fields.has(name)
    }
    kept |= {name: fields.number(name) for name in ("largest", "moved") if fields.has(name)}
    return kept | ({"settled": fields.boolean("settled")} if fields.has("settled") else {})


def _next(version: str) -> str:
    first, second, last = version.split(".")
    return f"{first}.{second}.{int(last) + 1}"


def _read(parent: Bundle, path: Path) -> tuple[Samples, Policy]:
    import numpy as np

    from edgestill.core.manifest import MODEL, POLICY
    from edgestill.core.oip import NUMPY_NAMES
    from edgestill.infer.engine import OnnxEngine
    from edgestill.infer.policy import Policy
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.packing.calibration import read_calibration

    policy = Policy.from_bytes(parent.read(POLICY))
    ((datatype, shape),) = OnnxEngine(parent.read(MODEL)).inputs.values()
    found, _ = read_calibration(path, np.dtype(NUMPY_NAMES[datatype]), shape, labels=policy.labels)
    if not isinstance(found, Samples):
        raise DataError(
            "a head cannot be judged by data without labels",
            where=path,
            expected="labels: the array y, or a folder a class",
            got="inputs alone",
            fix="label some hundred of them",
        )
    return found, policy


def _answers(
    path: Path, parent: Bundle, policy: Policy, heldout: Samples, sensor: str
) -> NDArray[np.float32]:
    """The teacher's logits; of the bundle's adapter those for the student's features."""
    from edgestill.core.manifest import MODEL
    from edgestill.infer.engines import engine_of
    from edgestill.lab.measure import run_model
    from edgestill.lab.packing.assemble import answers_from
    from edgestill.lab.packing.finished import teacher_answers
    from edgestill.lab.packing.foreign import read_file
    from edgestill.lab.packing.sensor import Sensor

    file = read_file(path)
    if policy.adapter is None:
        return teacher_answers(file, heldout, Sensor.parse(sensor))
    if Digest.of(file) != policy.adapter:
        raise TrustError(
            "another adapter than the bundle's",
            where=path,
            expected=policy.adapter,
            got=Digest.of(file),
            fix="name the .adapter.onnx that was written beside the bundle",
        )
    _, features = run_model(engine_of(parent.read(MODEL), parent.manifest.hardware_class), heldout.inputs)
    return answers_from(file, features)


def _patch(before: Path, after: Path) -> int | None:
    """Bytes of the patch between two archives; None where it cannot be told."""
    if before.is_dir():
        return None
    require("zstandard", extra="agent", purpose="to make patches")
    from edgestill.delta.codec import diff

    return len(diff(*(read_plain(one, what="the bundle", at_most=_MOST) for one in (before, after))))


def _report(made: Reheaded, path: Path, patch: int | None, said: JsonObject) -> dict[str, object]:
    return {
        "bundle": str(path),
        "digest": str(made.manifest.digest),
        "version": made.manifest.version,
        "head": made.chosen,
        "before": made.before.as_json(),
        "after": made.after.as_json(),
        "rounded": made.rounded,
        "patch": patch,
        "temperature": made.policy.temperature,
        "threshold": made.policy.threshold,
        "sums": said,
    }


def _told(made: Reheaded, path: Path, patch: int | None, parent: Bundle) -> Iterator[str]:
    yield f"head: {made.chosen}"
    yield f"accuracy of {parent.manifest.version}: {made.before} on {made.before.rests_on()}"
    yield f"accuracy of {made.manifest.version}: {made.after}"
    yield f"answers that codes of the head changed: {made.rounded:.2%}"
    if patch is not None:
        yield f"patch for devices with {parent.manifest.version}: {format_size(patch)}"
    yield f"bundle: {path}; deliver it: edgestill release publish {path}"
