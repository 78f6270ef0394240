"""`edgestill learn vote`: let a fleet vote on samples that everybody has, and make a head of what came together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from edgestill.cli.operating import AsJson, Hub, TokenFile, label_of, operator, table, told
from edgestill.core.bundle import PUBLIC, Bundle, replace
from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError, SettingError
from edgestill.core.extras import require
from edgestill.core.files import read_plain
from edgestill.core.manifest import POLICY, REFERENCE
from edgestill.core.oip import NUMPY_NAMES
from edgestill.core.proxyset import MAX_ARCHIVE_BYTES, ProxySet
from edgestill.core.release import PROXY
from edgestill.core.units import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.oip import InferResponse
    from edgestill.learn.votes import Outcome

app = typer.Typer(help="Let devices vote on samples that everybody has.", no_args_is_help=True)
Round = Annotated[str, typer.Argument(metavar="ROUND", help="Its number.")]
Set = Annotated[Path | None, typer.Option("--set", metavar="NAME.esp", help="The samples of the round.")]
BATCH: Final = 32
MAX_TEACHER_BYTES: Final = 2**31
HUB: Final = "hub"


@app.command("set")
def make_set(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="What the sensor gives: pictures, .wav, .csv, or .npy."),
    ],
    *,
    bundle: Annotated[Path, typer.Option(help="A bundle that takes such inputs: its labels are asked for.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="NAME.esp", help="Where the set goes.")],
    name: Annotated[str, typer.Option(help="Of the set; default: the bundle's.")] = "",
    version: Annotated[str, typer.Option(help="MAJOR.MINOR.PATCH.")] = "1.0.0",
    as_json: AsJson = False,
) -> None:
    """Make a set of samples without labels. It is published like a bundle; everybody who can reach the hub can have it."""
    require("onnxruntime", extra="device", purpose="to know what the model takes")
    import numpy as np

    from edgestill.infer.recordings import read_inputs
    from edgestill.infer.student import load
    from edgestill.learn.proxysets import pack

    model, opened = load(bundle), Bundle.open(bundle)
    _, datatype, shape = model.input
    kind = np.dtype(NUMPY_NAMES[datatype])
    samples = np.concatenate([model.checked(read_inputs(path, kind, shape)) for path in inputs])
    data = pack(samples, name=name or opened.manifest.name, version=version, labels=model.policy.labels)
    replace(output, data, mode=PUBLIC)
    target = ProxySet.open(output).head.target
    said = {"file": str(output), "target": target, "samples": len(samples), "size": len(data)}
    told(
        said,
        [f"{len(samples)} samples; publish them: edgestill release publish {output}"],
        as_json=as_json,
    )


@app.command()
def start(
    target: Annotated[
        str, typer.Argument(metavar="proxy/NAME/VERSION/samples.esp", help="That the publisher lists.")
    ],
    *,
    label: Annotated[
        list[str] | None, typer.Option(metavar="K=V", help="Only devices that carry it.")
    ] = None,
    hardware_class: Annotated[str, typer.Option(help="Only devices of it.")] = "",
    open_for: Annotated[str, typer.Option("--for", metavar="TIME", help="Until it closes.")] = "7d",
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Open a voting round about a set: devices answer it in idle hours with what they serve."""
    if re.fullmatch(PROXY, target) is None:
        raise SettingError(
            "not a name of a proxy set",
            where="TARGET",
            expected="proxy/NAME/1.2.3/samples.esp",
            got=target[:200],
            fix="name it as edgestill release publish has told it",
        )
    said = operator(hub, token_file).start_voting(
        target,
        seconds=parse_duration(open_for),
        labels=dict(label_of(one) for one in label or ()),
        hardware_class=hardware_class,
    )
    line = (
        f"round {said['id']} is open to {said['devices']} devices; edgestill learn vote status {said['id']}"
    )
    told(said, [line], as_json=as_json)


@app.command()
def status(
    id: Annotated[str, typer.Argument(metavar="[ROUND]", help="Default: the newest ones.")] = "",  # noqa: A002  # the wire's own word
    *,
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the newest voting rounds, or one with its devices."""
    client = operator(hub, token_file)
    said = client.voting(id) if id else client.votings()
    told(said, _lines(said) if id else _rows(said), as_json=as_json)


@app.command()
def close(id: Round, *, hub: Hub = "", token_file: TokenFile = None, as_json: AsJson = False) -> None:  # noqa: A002
    """Close a round; what was cast stays."""
    said = operator(hub, token_file).close_voting(id)
    told(said, [f"round {said['id']} about {said['target']} is {said['state']}"], as_json=as_json)


@app.command()
def outcome(
    id: Round,  # noqa: A002
    *,
    out: Annotated[Path, typer.Option(help="File for the label distributions.")] = Path("outcome.npz"),
    weight: Annotated[
        list[str] | None,
        typer.Option(metavar="DEVICE=W", help="What a device's votes count for, 0 to 1; default 1."),
    ] = None,
    teacher: Annotated[
        str, typer.Option(metavar="MODEL.onnx|hub", help="Votes too: a file, or the hub's own. Needs --set.")
    ] = "",
    proxy: Set = None,
    teacher_weight: Annotated[float, typer.Option(help="What the teacher's vote counts for.")] = 1.0,
    teacher_temperature: Annotated[float, typer.Option(help="That its logits are divided by.")] = 1.0,
    hub: Hub = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Put together what was cast so far, be the round open or closed, with the teacher's voice where one is named."""
    require("numpy", extra="device", purpose="to put votes together")
    client = operator(hub, token_file)
    found = _outcome(client.outcome(id, weights=_weights_of(weight or ())))
    if teacher:
        asked = _asker(teacher, teacher_temperature, hub, token_file)
        found = found.with_teacher(asked(_samples(proxy, found)), teacher_weight)
    from edgestill.learn.outcomes import outcome_file

    replace(out, outcome_file(found), mode=PUBLIC)
    said = {
        "file": str(out),
        "samples": found.question.samples,
        "classes": found.question.classes,
        "voters": found.voters,
        "students": found.students,
        "voted_on": int((found.voted > 0).sum()),
        "labelled": int((found.weight > 0).sum()),
    }
    line = f"{out}: {said['voters']} devices with {said['students']} students voted on {said['voted_on']} of {said['samples']} samples"
    told(said, [line], as_json=as_json)


@app.command()
def head(
    bundle: Annotated[Path, typer.Argument(help="The bundle whose network shall learn.")],
    *,
    outcome: Annotated[Path, typer.Option(help="As `vote outcome` has written it.")],
    proxy: Set = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the head goes: an .npz file.")],
    at_least: Annotated[int, typer.Option(min=0, help="Voters that a sample needs.")] = 1,
    prior: Annotated[
        float,
        typer.Option(min=0, help="What the bundle's own statistics count for, as a share of the votes."),
    ] = 1.0,
    ridge: Annotated[float, typer.Option(help="As a share of the mean square of a feature.")] = 1e-3,
    as_json: AsJson = False,
) -> None:
    """Distil an outcome into the head of a bundle's network, whatever networks have voted."""
    require("onnxruntime", extra="device", purpose="to run a model")
    from edgestill.infer.arrayfile import read_npz
    from edgestill.learn.outcomes import NAMES, outcome_of
    from edgestill.learn.robust import with_prior
    from edgestill.learn.statistics import Statistics
    from edgestill.learn.together import head_file, head_of

    found = outcome_of(read_npz(outcome, what="the outcome", names=NAMES))
    opened = Bundle.open(bundle)
    if REFERENCE not in opened.manifest.blobs:
        raise SettingError(
            "a bundle that nothing is learned beside",
            where=bundle,
            expected=f"a blob {REFERENCE}",
            got="none",
            fix="build the bundle from a model with features",
        )
    reference = Statistics.from_bytes(opened.read(REFERENCE))
    features = _features(bundle, opened, proxy, found)
    empty = Statistics.empty(
        backbone=reference.backbone, window=0, classes=reference.classes, features=reference.features
    )
    learned = found.learned_by(empty, features, at_least=at_least)
    if not learned.n:
        raise EvidenceError(
            "no sample with so many voters",
            where=outcome,
            expected=f"a sample that {at_least} devices have voted on",
            got=f"at most {int(found.voted.max())}",
            fix="ask for fewer (--at-least), or wait for more votes",
        )
    both = with_prior(learned, reference, prior) if prior else learned
    replace(output, head_file(head_of(both, ridge=ridge)), mode=PUBLIC)
    said = {"file": str(output), "samples": learned.n, "of": found.question.samples}
    told(said, [f"{output}: learned from {learned.n} of {said['of']} samples"], as_json=as_json)


def _features(bundle: Path, opened: Bundle, proxy: Path | None, found: Outcome) -> NDArray[np.float32]:
    """`[N, D]` of the whole set, by the bundle's network."""
    import numpy as np

    from edgestill.infer.policy import Policy
    from edgestill.infer.student import load

    samples = _samples(proxy, found)
    labels = Policy.from_bytes(opened.read(POLICY)).labels
    assert proxy is not None
    if labels != ProxySet.open(proxy).head.labels:
        raise EvidenceError(
            "an outcome about other classes",
            where=bundle,
            expected="the labels of the proxy set, in their order",
            got=f"{len(labels)} labels",
            fix="take a bundle whose policy has these labels",
        )
    model = load(bundle)
    rows = [model.predict(batch).features for batch in _batches(samples)]
    if any(one is None for one in rows):
        raise SettingError(
            "a network without features",
            where=bundle,
            expected="an output features [N, D]",
            got="none",
            fix="export the model with its features",
        )
    return np.concatenate([one for one in rows if one is not None])


def _samples(proxy: Path | None, found: Outcome) -> NDArray[np.generic]:
    """The samples that were voted on; SettingError where they are not those of the file, or none is named."""
    from edgestill.learn.proxysets import question_of, samples_of

    if proxy is None:
        raise SettingError(
            "the samples are not named",
            where="--set",
            expected="NAME.esp, which the round is about",
            got="nothing",
            fix="add --set NAME.esp",
        )
    opened = ProxySet.open(proxy)
    data = read_plain(proxy, what="the proxy set", at_most=MAX_ARCHIVE_BYTES)
    if question_of(Digest.of(data), opened.head) != found.question:
        raise SettingError(
            "another set than was voted on",
            where=proxy,
            expected=found.question.proxy,
            got=Digest.of(data),
            fix="name the file that was published",
        )
    return samples_of(opened)


def _asker(
    teacher: str, temperature: float, hub: str, token_file: Path | None
) -> Callable[[NDArray[np.generic]], NDArray[np.float32]]:
    """What asks a teacher about all samples, some at a time."""
    import numpy as np

    ask = _of_hub(temperature, hub, token_file) if teacher == HUB else _of_file(Path(teacher), temperature)
    return lambda samples: np.concatenate([ask(batch) for batch in _batches(samples)])


def _of_file(path: Path, temperature: float) -> Callable[[NDArray[np.generic]], NDArray[np.float32]]:
    require("onnxruntime", extra="device", purpose="to run a teacher")
    from edgestill.infer.confidence import softmax
    from edgestill.infer.engine import OnnxEngine
    from edgestill.infer.serving.served import LOGITS, of_engine

    served = of_engine(
        OnnxEngine(read_plain(path, what="the teacher", at_most=MAX_TEACHER_BYTES)),
        name="teacher",
        version="1",
    )
    if not 0 < temperature < float("inf"):
        raise SettingError(
            "a temperature out of range",
            where="--teacher-temperature",
            expected="above 0, finite",
            got=temperature,
            fix="choose 1 where nothing was calibrated",
        )

    def ask(batch: NDArray[np.generic]) -> NDArray[np.float32]:
        return softmax(served.run(batch, None).outputs[LOGITS], temperature)  # type: ignore[arg-type]  # `run` gives float32

    return ask


def _of_hub(
    temperature: float, hub: str, token_file: Path | None
) -> Callable[[NDArray[np.generic]], NDArray[np.float32]]:
    from edgestill.cli.operating import token_of
    from edgestill.link.http import HttpTransport
    from edgestill.link.inference import RemoteModel

    model = RemoteModel(
        HttpTransport(),
        hub,
        model="teacher",
        clock=SystemClock(),
        timeout=60.0,
        credential=token_of(token_file),
        temperature=temperature,
    )
    return lambda batch: model.predict(batch).probabilities


def _batches(samples: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    return (samples[at : at + BATCH] for at in range(0, len(samples), BATCH))


def _outcome(said: InferResponse) -> Outcome:
    import numpy as np

    from edgestill.learn.outcomes import outcome_of

    arrays: dict[str, NDArray[np.generic]] = {
        one.name: np.frombuffer(one.data, np.dtype(NUMPY_NAMES[one.datatype]).newbyteorder("<")).reshape(
            one.shape
        )
        for one in said.outputs
        if one.datatype in NUMPY_NAMES
    }
    beside = {name: np.array(said.parameters.get(name)) for name in ("proxy", "voters", "students")}
    return outcome_of(arrays | beside)


def _weights_of(texts: Sequence[str]) -> dict[str, float]:
    given = [_weight_of(one) for one in texts]
    found = dict(given)
    if len(found) < len(given):
        raise SettingError(
            "a device is weighed twice",
            where="--weight",
            expected="each device once",
            got=", ".join(name for name, _ in given)[:200],
            fix="leave one of them out",
        )
    return found


def _weight_of(text: str) -> tuple[str, float]:
    found = re.fullmatch(r"([A-Za-z0-9_-]{1,64})=([0-9]{1,3}(?:\.[0-9]{1,9})?)", text, re.ASCII)
    if found is None:
        raise SettingError(
            "not a weight", where="--weight", expected="DEVICE=0.5", got=text[:80], fix="write lamp=0.5"
        )
    return found[1], float(found[2])


def _rows(said: Any) -> Iterator[str]:
    rows = (
        (one["id"], one["target"], one["state"], one["samples"], one["voted"], one["reason"])
        for one in said["votings"]
    )
    yield from table(("ROUND", "TARGET", "STATE", "SAMPLES", "VOTED", "WHY"), rows)


def _lines(said: Any) -> Iterator[str]:
    yield f"{said['target']}: {said['state']}, {said['samples']} samples"
    if said["reason"]:
        yield f"why: {said['reason']}"
    counts = said["counts"]
    yield ", ".join(f"{counts[state]} {state}" for state in ("voted", "waited for", "revoked"))
    rows = (
        (name, one["state"], one["votes"], one["student"]) for name, one in sorted(said["devices"].items())
    )
    yield from table(("DEVICE", "STATE", "VOTES", "STUDENT"), rows)
