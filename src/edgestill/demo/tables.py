"""The closing tables as rows of text: the same on a terminal and in `report.html`.

`ACCURACIES` also names the rows of the tables in the documentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from edgestill.demo.story import Row, Story
    from edgestill.lab.measure import Figure

ACCURACIES: Final = {
    "teacher": "teacher, before the change",
    "student": "student as trained (fp32), before",
    "int8": "student as shipped (int8), before",
    "teacher_after": "teacher, after the change",
    "shifted": "student as shipped, after",
    "control": "control (no evidence), after",
    "updated": "next student, from evidence, after",
    "kept": "next student, from evidence, before",
}
"""Accuracy -> what it is of; on devices that shared nothing."""
SHARES: Final = {
    "recovered_share": "share of the loss won back",
    "control_recovered_share": "share won back by the control",
    "escalated_share": "inputs asked about, after",
}
LEARNING: Final = {
    "personal_without": "learning devices as shipped, after",
    "personal": "learning devices, own heads, after",
}
"""Accuracies on devices that shared, on their later inputs."""
FIGURES_HEAD: Final = ("", "value", "95 % interval", "samples")
DEVICES_HEAD: Final = ("device", "before", "shipped", "own head", "updated", "asked", "sent", "ms", "noticed")
DEVICES_NOTE: Final = (
    "Accuracy of the student alone. before: before the change. Then three times the same later inputs, after it: with "
    "the student as shipped, with a head the device adopted (none: it adopted none), after the update. asked: share of "
    "inputs the teacher was asked about; sent: bytes for that; ms: median time of an answer given alone."
)


def figure_rows(story: Story) -> list[tuple[str, str, str, str]]:
    """Label, value, interval and samples of each figure."""
    figures = story.accuracies()
    rows = [_accuracy(story, text, figures[key]) for key, text in ACCURACIES.items()]
    shares = (story.recovered(), story.recovered_by_control(), story.live.escalated)
    for text, one in zip(SHARES.values(), shares, strict=True):
        rows.append(_share(story, text, one))
    return rows + [_accuracy(story, text, figures[key]) for key, text in LEARNING.items() if key in figures]


def device_rows(story: Story) -> list[tuple[str, ...]]:
    """A row a device, as `DEVICES_HEAD` says."""
    return [
        (
            row.device,
            f"{row.before:.1%}",
            f"{row.shipped:.1%}",
            "none" if row.own is None else f"{row.own:.1%}",
            f"{row.updated:.1%}",
            *_sent(row),
            f"{row.latency_ms:.1f}",
            row.drift,
        )
        for row in story.live.rows
    ]


def byte_rows(story: Story) -> list[tuple[str, str]]:
    """What was made and sent, in bytes."""
    live = story.live
    return [
        ("teacher's model file, fp32", f"{live.teacher_bytes:,}"),
        (f"student's, int8 ({story.size_ratio:.1f} times smaller)", f"{live.model_bytes:,}"),
        ("whole bundle 1.1.0, with probe and card", f"{live.bundle_bytes:,}"),
        ("patch from 1.0.0", "none" if live.patch_bytes is None else f"{live.patch_bytes:,}"),
        ("summed statistics, one message", f"{live.statistics_bytes:,}"),
    ]


def won_back(story: Story) -> str:
    """In one sentence, what the update did against the loss."""
    won, control = story.recovered(), story.recovered_by_control()
    if won is None or control is None:
        return "Nothing was lost by the change, so nothing could be won back."
    if not won.bounded:
        return "What the change cost is within the noise, so no share of it can be said to be won back."
    return (
        f"The update won back {won.value:.0%} (95 % interval {interval(won, digits=0)}) of the accuracy lost; "
        f"the same training without evidence {control.value:.0%}."
    )


def helped(story: Story) -> str:
    """In one sentence, what asking the teacher brought."""
    live, (_, many) = story.live, story.unit
    return (
        f"Devices that share answered {live.fused_before.value:.1%} rightly before the change with the teacher's help, "
        f"{live.alone_before.value:.1%} alone ({_samples(live.fused_before, many)}); after it "
        f"{live.fused_shifted.value:.1%} and {live.alone_shifted.value:.1%} ({_samples(live.fused_shifted, many)}; "
        f"interval with help {interval(live.fused_shifted, digits=0)})."
    )


def summed(story: Story) -> str:
    """In one sentence, what a last layer is worth that was solved from summed statistics alone."""
    one, shipped = story.live.head_accuracy, story.live.shipped_accuracy
    if one is None:
        return "No summed statistics came in."
    return (
        f"Sums alone, without a single input: a last layer solved from them is right on {one.value:.1%} after the change, "
        f"the student as shipped on {shipped.value:.1%} ({_samples(one, story.unit[1])} of this fleet)."
    )


def fused_parameters(story: Story) -> str:
    """In one sentence, what parameter fusion did to the teacher."""
    one = story.absorption
    if one.weight == 0:
        return "Parameter fusion: on held-out data no share of the student's weights did the teacher good; none was kept."
    verdict = "" if one.after > one.before else ", so that nothing is gained here"
    return (
        f"Parameter fusion: {one.weight:.0%} of the student's weights, chosen on held-out data, takes the teacher from "
        f"{one.before:.1%} to {one.after:.1%}{verdict}."
    )


def interval(figure: Figure, *, digits: int = 1) -> str:
    """Its ends in percent; `none` where nothing bounds it."""
    return f"{figure.low:.{digits}%} to {figure.high:.{digits}%}" if figure.bounded else "none"


def _accuracy(story: Story, text: str, one: Figure) -> tuple[str, str, str, str]:
    return text, f"{one.value:.1%}", interval(one), _samples(one, story.unit[1])


def _share(story: Story, text: str, one: Figure | None) -> tuple[str, str, str, str]:
    if one is None:
        return text, "none lost", "", ""
    value = f"{one.value:.1%}" if one.bounded else "in noise"
    return text, value, interval(one), _samples(one, story.unit[1])


def _samples(one: Figure, many: str) -> str:
    return f"{one.n} {many}" if one.n == one.groups else f"{one.n} of {one.groups} {many}"


def _sent(row: Row) -> tuple[str, str]:
    return (f"{row.escalated:.0%}", f"{row.bytes_up / 1000:.0f} kB") if row.shares else ("0", "0")
