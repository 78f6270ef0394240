"""The teacher's answers are kept, found again, and refused where they are not the answers to what is asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from cache_worlds import (
    CLASSES,
    SAMPLES,
    Counting,
    Relabelled,
    Rows,
    array_source,
    ask_of,
    files_of,
    first_batch,
    net,
    open_cache,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgestill.core.errors import ClassCountError, DataError, NotFiniteError, SettingError
from edgestill.lab.data.dataset import DatasetSource
from edgestill.lab.data.source import ArraySource, Ask
from edgestill.lab.teacher import cache as module
from edgestill.lab.teacher.guide import LiveGuide
from edgestill.lab.teacher.records import Layout

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.lab.data.source import Source
    from edgestill.lab.teacher.cache import CachedGuide
    from edgestill.lab.teacher.guide import Answer

ALL = np.arange(SAMPLES)


def assert_near(found: torch.Tensor, wanted: torch.Tensor | None, tolerance: float = 1e-3) -> None:
    """To about half precision."""
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def live(source: Source, ask: Ask, **changes: Any) -> Answer:
    """What the teacher itself says."""
    return LiveGuide(net(**changes)).answer(ask, first_batch(source, ask).inputs)


def said(guide: CachedGuide, ask: Ask) -> torch.Tensor:
    """What the cache says; it must not need the inputs."""
    return guide.answer(ask, torch.empty(0)).logits


@given(st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_cache_says_what_the_teacher_says(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """For any number of samples, views, shards and batches, and any samples in any order, to half precision."""
    samples, views, shard, batch = (data.draw(st.integers(1, most)) for most in (20, 3, 9, 12))
    source = array_source(samples)
    guide = open_cache(tmp_path_factory.mktemp("cache"), source=source, views=views, shard=shard, batch=batch)
    for view in range(views):
        index = data.draw(st.lists(st.integers(0, samples - 1), min_size=1, max_size=25))
        ask = ask_of(index, view)
        assert_near(said(guide, ask), live(source, ask).logits)


def test_a_view_too_large_to_be_joined_is_read_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same answers in the same order."""
    asks = [ask_of(order, view) for view in (1, 0) for order in (ALL, ALL[::-1], ALL[[9, 3, 9, 29, 0]])]
    joined = [said(open_cache(tmp_path), ask) for ask in asks]
    monkeypatch.setattr(module, "_JOINED_BYTES", 0)
    guide = open_cache(tmp_path)
    for ask, wanted in zip(asks, joined, strict=True):
        assert torch.equal(said(guide, ask), wanted)


def test_opened_again_the_teacher_is_asked_about_a_few_samples_only(tmp_path: Path) -> None:
    """The second opening costs no pass over the data, changes no byte, and gives the same answers."""
    first = open_cache(tmp_path)
    before, teacher = files_of(tmp_path), Counting()
    again = open_cache(tmp_path, teacher=teacher)
    assert teacher.asked == [(0, place) for place in range(8)]
    assert files_of(tmp_path) == before
    assert torch.equal(said(again, ask_of(ALL)), said(first, ask_of(ALL)))
    assert (first.cost().filled, first.cost().found) == (2 * SAMPLES, 0)
    assert (again.cost().filled, again.cost().found, again.cost().seconds) == (0, 2 * SAMPLES, 0.0)


def test_the_cost_is_counted(tmp_path: Path) -> None:
    """Bytes of the files of records, seconds of filling by the given clock."""
    ticks = iter([10.0, 12.5])
    cost = open_cache(tmp_path, clock=lambda: next(ticks)).cost()
    sizes = sum(len(data) for name, data in files_of(tmp_path).items() if name.endswith(".rec"))
    assert cost.as_json() == {"size": sizes, "seconds": 2.5, "filled": 2 * SAMPLES, "found": 0}


def test_every_answer_is_asked_for_once(tmp_path: Path) -> None:
    """Beside the canaries: each sample in each view."""
    teacher = Counting()
    open_cache(tmp_path, teacher=teacher)
    assert sorted(teacher.asked[8:]) == [(view, place) for view in (0, 1) for place in range(SAMPLES)]


def test_more_views_are_added_and_fewer_are_used(tmp_path: Path) -> None:
    """A longer run asks only for the views that are new; a shorter one for none."""
    open_cache(tmp_path, views=2)
    for views, new in ((4, [2, 3]), (1, [])):
        teacher = Counting()
        guide = open_cache(tmp_path, views=views, teacher=teacher)
        assert guide.views == views
        assert sorted({view for view, _ in teacher.asked[8:]}) == new
        assert_near(said(guide, ask_of(ALL, views - 1)), live(array_source(), ask_of(ALL, views - 1)).logits)


def test_without_an_augmentation_there_is_one_view(tmp_path: Path) -> None:
    """More would all be the same; and there no seeds are needed."""
    source = array_source(augmented=False)
    guide = open_cache(tmp_path, source=source, views=5)
    assert guide.views == 1
    plain = said(guide, Ask(ALL))
    assert_near(plain, live(source, Ask(ALL)).logits)
    assert torch.equal(said(guide, ask_of(ALL)), plain)


def test_a_view_the_teacher_did_not_see_is_refused(tmp_path: Path) -> None:
    """Another seed, a view beyond those kept, one sample's seed at another's place, or no seeds at all."""
    guide = open_cache(tmp_path)
    wrong = "the samples are shown in another view than the teacher answered to"
    crossed = ask_of([3, 4])
    for ask, what in (
        (ask_of(ALL, seed=8), wrong),
        (Ask(ALL, ask_of(ALL, 1).seeds, 0), wrong),
        (Ask(crossed.index[::-1].copy(), crossed.seeds), wrong),
        (Ask(ALL), wrong),
        (ask_of(ALL, 2), "a view that is not kept; at view 2; expected 0 to 1"),
        (Ask(ALL, ask_of(ALL).seeds, -1), "a view that is not kept; at view -1"),
    ):
        with pytest.raises(DataError, match=what):
            guide.answer(ask, torch.empty(0))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"teacher": Counting(net(seed=2))}, "teacher"),
        ({"source": array_source(data=1)}, "data"),
        ({"source": array_source(noise=0.3)}, "augmentation"),
        ({"source": array_source(augmented=False)}, "augmentation"),
        ({"source": array_source(SAMPLES + 1)}, "data, another samples"),
        ({"source": array_source(task="multi-label")}, "data, another task"),
        ({"seed": 8}, "seed"),
        ({"top_k": 2}, "record"),
        ({"shard": 9}, "shard"),
        ({"teacher": Counting(hint="hidden")}, "teacher, another record"),
        (
            {"source": array_source(outputs=4), "teacher": Counting(net(4))},
            "teacher, another data, another outputs, another record",
        ),
    ],
)
def test_the_cache_of_something_else_is_refused(tmp_path: Path, change: dict[str, Any], names: str) -> None:
    """The text names exactly what differs, and nothing is written."""
    open_cache(tmp_path)
    before = files_of(tmp_path)
    with pytest.raises(DataError) as caught:
        open_cache(tmp_path, **change)
    assert caught.value.what == f"this folder keeps a teacher's answers to something else: another {names}"
    assert caught.value.fix == "choose another folder, or delete this one"
    assert files_of(tmp_path) == before


def test_a_refusal_shows_both_digests(tmp_path: Path) -> None:
    """Expected is this run's, got is the folder's."""
    open_cache(tmp_path)
    other = Counting(net(seed=2))
    with pytest.raises(DataError) as caught:
        open_cache(tmp_path, teacher=other)
    assert caught.value.expected == f"teacher {other.digest} (this run's)"
    assert caught.value.got == f"teacher {Counting().digest}"


def test_a_teacher_whose_code_changed_is_found_out(tmp_path: Path) -> None:
    """What no digest sees shows in its answers: a factor within `forward`, or data that changed behind its name."""
    open_cache(tmp_path)
    with pytest.raises(
        DataError, match=r"the teacher does not say what the cache remembers; .* got"
    ) as caught:
        open_cache(tmp_path, teacher=Counting(net(scale=4.0)))
    assert "choose another folder" in str(caught.value.fix)
    inner = array_source()
    changed = Relabelled(array_source(data=5), digest=inner.digest, views_digest=inner.views_digest)
    with pytest.raises(DataError, match="the teacher does not say what the cache remembers"):
        open_cache(tmp_path, source=changed)


def test_a_transform_with_a_generator_of_its_own_is_refused(tmp_path: Path) -> None:
    """Its views cannot be shown again; said before anything is asked or written."""

    class Own(Rows):
        generator = np.random.default_rng(0)

        def __getitem__(self, index: int) -> object:
            return torch.tensor([index, self.generator.random(), 0.0]), 0

    source, teacher = DatasetSource(Own(), outputs=3, name="own"), Counting()
    with pytest.raises(DataError, match=r"otherwise when it is asked again; at samples 0 to 7 in view 0"):
        open_cache(tmp_path / "new", source=source, teacher=teacher)
    assert teacher.asked == []
    assert not (tmp_path / "new").exists()


def test_answers_come_to_the_inputs_device(tmp_path: Path) -> None:
    """As those of the teacher itself do."""
    guide = open_cache(tmp_path, teacher=Counting(hint="hidden"))
    found = guide.answer(ask_of(ALL), torch.empty(0, device="meta"))
    assert found.logits.device.type == "meta"
    assert found.features is not None
    assert found.features.device.type == "meta"


def test_rounding_is_not_taken_for_another_teacher(tmp_path: Path) -> None:
    """Another machine's last digits, or a teacher in half precision, still are this teacher."""
    before = open_cache(tmp_path).cost()
    again = open_cache(tmp_path, teacher=Counting(net(scale=3.02))).cost()
    assert (again.filled, again.found) == (0, before.filled)


def test_a_cut_or_missing_file_is_filled_again_alone(tmp_path: Path) -> None:
    """The others are not asked for, and the result is as if nothing had happened."""
    open_cache(tmp_path)
    before = files_of(tmp_path)
    for damage in ("cut", "gone"):
        path = tmp_path / "view-0001" / "shard-0002.rec"
        path.write_bytes(path.read_bytes()[:-3])
        if damage == "gone":
            path.unlink()
        teacher = Counting()
        cost = open_cache(tmp_path, teacher=teacher).cost()
        assert teacher.asked[8:] == [(1, place) for place in range(16, 24)]
        assert (cost.filled, cost.found) == (8, 2 * SAMPLES - 8)
        assert files_of(tmp_path) == before


@pytest.mark.parametrize("name", ["view-0000/shard-0000.rec", "view-0001/shard-0003.rec"])
def test_an_altered_file_is_refused_until_it_is_deleted(tmp_path: Path, name: str) -> None:
    """At opening, before any training; the text says which file, and following its advice mends the cache."""
    open_cache(tmp_path)
    path, before = tmp_path / name, files_of(tmp_path)
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"the cache was altered; at .*{name}; .*delete this file"):
        open_cache(tmp_path)
    path.unlink()
    open_cache(tmp_path)
    assert files_of(tmp_path) == before


def test_a_file_from_another_cache_is_refused(tmp_path: Path) -> None:
    """Though it is whole and of the same size."""
    for name, seed in (("one", 1), ("two", 2)):
        open_cache(tmp_path / name, teacher=Counting(net(seed=seed)))
    path = "view-0001/shard-0000.rec"
    (tmp_path / "one" / path).write_bytes((tmp_path / "two" / path).read_bytes())
    with pytest.raises(DataError, match="a file of the cache that does not belong to it"):
        open_cache(tmp_path / "one")


@pytest.mark.parametrize("head", [b"", b"{", b"[]", b'{"format":1', b"\xff" * 10, b" " * 70_000])
def test_a_head_that_cannot_be_read_is_refused_until_it_is_deleted(tmp_path: Path, head: bytes) -> None:
    """The records are kept: each knows by itself whose it is."""
    open_cache(tmp_path)
    before = files_of(tmp_path)
    (tmp_path / "cache.json").write_bytes(head)
    with pytest.raises(DataError, match=r"the head of a cache cannot be read; .*delete this file"):
        open_cache(tmp_path)
    (tmp_path / "cache.json").unlink()
    assert open_cache(tmp_path).cost().filled == 0
    assert files_of(tmp_path) == before


def test_a_new_head_does_not_adopt_anothers_records(tmp_path: Path) -> None:
    """Attack: the head is deleted, so that another teacher could take the folder over."""
    open_cache(tmp_path)
    (tmp_path / "cache.json").unlink()
    with pytest.raises(DataError, match="a file of the cache that does not belong to it"):
        open_cache(tmp_path, teacher=Counting(net(seed=2)))


def test_a_head_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    """Also where it only has a field more."""
    open_cache(tmp_path)
    head = tmp_path / "cache.json"
    text = head.read_text()
    for changed, name in (
        (text.replace('"format":1', '"format":2'), "format"),
        ('{"zip":true,' + text[1:], "zip"),
    ):
        head.write_text(changed)
        with pytest.raises(DataError, match=f"to something else: another {name};"):
            open_cache(tmp_path)


def test_an_answer_that_cannot_be_kept_stops_the_fill_and_names_the_sample(tmp_path: Path) -> None:
    """Shards before it stay, its own is not there, and nothing half written is left."""
    source = array_source()

    class Breaks(Counting):
        def answer(self, ask: Ask, inputs: Any) -> Answer:
            found = super().answer(ask, inputs)
            found.logits[(ask.index == 21) & (ask.view == 1)] = float("nan")
            return found

    with pytest.raises(NotFiniteError, match=r"cannot be kept; at sample 21 in view 1: logits"):
        open_cache(tmp_path, source=source, teacher=Breaks())
    names = list(files_of(tmp_path))
    assert names == [
        "cache.json",
        *(f"view-000{view}/shard-000{at}.rec" for view, most in ((0, 4), (1, 2)) for at in range(most)),
    ]
    teacher = Counting()
    open_cache(tmp_path, source=source, teacher=teacher)
    assert sorted(teacher.asked[8:]) == [(1, place) for place in range(16, 30)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_a_broken_teacher_is_found_before_anything_is_asked(tmp_path: Path, value: float) -> None:
    """Its first answers say it."""
    teacher = net()
    with torch.no_grad():
        teacher.head.bias[0] = value
    with pytest.raises(NotFiniteError, match=r"sample 0 in view 0"):
        open_cache(tmp_path, teacher=Counting(teacher))
    assert [name for name in files_of(tmp_path) if name.endswith(".rec")] == []


def test_a_teacher_in_training_mode_does_not_drift(tmp_path: Path) -> None:
    """Filling a cache leaves weights, BatchNorm statistics and modes bit-equal."""
    teacher = net()
    open_cache(tmp_path, teacher=LiveGuide(teacher))
    assert all(torch.equal(value, net().state_dict()[name]) for name, value in teacher.state_dict().items())
    assert all(one.training for one in teacher.modules())


def test_another_number_of_outputs_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """The teacher's classes must be the data's."""
    with pytest.raises(
        ClassCountError, match=r"another number of outputs; at teacher; expected 4 \(the data's\); got \[5\]"
    ):
        open_cache(tmp_path / "new", source=array_source(outputs=4))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"views": 0}, "at views; expected at least 1; got 0"),
        ({"batch": 0}, "at batch; expected at least 1; got 0"),
        ({"shard": 0}, "at shard; expected at least 1; got 0"),
        ({"world": 0}, "at world; expected at least 1; got 0"),
        ({"rank": 2, "world": 2}, "at rank; expected 0 to 1; got 2"),
        ({"rank": -1}, "at rank; expected 0 to 0; got -1"),
        ({"top_k": 0}, f"at top_k; expected 1 to {CLASSES - 1}; got 0"),
        ({"top_k": CLASSES}, f"at top_k; expected 1 to {CLASSES - 1}; got {CLASSES}"),
        (
            {"top_k": 2, "source": array_source(task="multi-label")},
            "at top_k; expected None for multi-label; got 2",
        ),
        ({"top_k": 2, "source": array_source(task="regression")}, "at top_k; expected None for regression"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    """Before anything is written."""
    with pytest.raises(SettingError, match=text):
        open_cache(tmp_path / "new", **change)
    assert not (tmp_path / "new").exists()


def test_values_of_a_regression_are_kept_exactly(tmp_path: Path) -> None:
    """In float32, and beyond what float16 holds."""
    source, teacher = array_source(task="regression", outputs=1), net(1, scale=1e7)
    guide = open_cache(tmp_path, source=source, teacher=LiveGuide(teacher), batch=SAMPLES, shard=SAMPLES)
    ask = ask_of(ALL, 1)
    assert torch.equal(said(guide, ask), live(source, ask, outputs=1, scale=1e7).logits)


def test_a_hints_features_are_kept(tmp_path: Path) -> None:
    """In their shape, as float32, to half precision."""
    guide = open_cache(tmp_path, teacher=Counting(hint="hidden"))
    found = guide.answer(ask_of(ALL, 1), torch.empty(0)).features
    inputs = first_batch(array_source(), ask_of(ALL, 1)).inputs
    wanted = LiveGuide(net(), hint="hidden").answer(ask_of(ALL, 1), inputs).features
    assert found is not None
    assert found.dtype == torch.float32
    assert_near(found, wanted)


def test_the_largest_logits_are_enough(tmp_path: Path) -> None:
    """The cache of two of five classes gives their probabilities, and the mass of the rest."""
    guide, ask = open_cache(tmp_path, top_k=2), ask_of(ALL, 1)
    found, wanted = said(guide, ask).softmax(1), live(array_source(), ask).logits.softmax(1)
    top = wanted.topk(2, 1)
    assert_near(found.gather(1, top.indices), top.values, 1e-2)


def test_progress_is_told_by_samples(tmp_path: Path) -> None:
    """It grows to the number of samples that were missing, and is silent where none was."""
    told: list[tuple[int, int]] = []
    open_cache(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (2 * SAMPLES, 2 * SAMPLES)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    told.clear()
    open_cache(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == []


def test_a_dataset_with_workers_fills_the_same_cache(tmp_path: Path) -> None:
    """Byte for byte, since each sample's view hangs on its seed alone."""

    class Sums(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :3] * 2

    for workers in (0, 2):
        source = DatasetSource(Rows(20), outputs=3, name="rows", workers=workers)
        open_cache(tmp_path / str(workers), source=source, teacher=LiveGuide(Sums()))
    assert files_of(tmp_path / "0") == files_of(tmp_path / "2")


def test_tuples_and_dictionaries_can_be_cached(tmp_path: Path) -> None:
    """Text with its mask, for instance; unaugmented, so one view."""

    class Bag(torch.nn.Module):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(ids, 5).float().mul(mask[:, :, None]).sum(1)

    ids, mask = torch.arange(60).view(20, 3) % 5, torch.ones(20, 3)
    wanted = Bag()(ids, mask)
    for name, inputs in (("tuple", (ids, mask)), ("dictionary", {"mask": mask, "ids": ids})):
        source = ArraySource(inputs, None, "classes", 5)
        guide = open_cache(tmp_path / name, source=source, teacher=LiveGuide(Bag()))
        assert torch.equal(said(guide, Ask(np.arange(20))), wanted)


def test_by_default_a_file_holds_4096_records_or_32_mib(tmp_path: Path) -> None:
    """Few classes fill 4096; wide features fewer, so that little is lost when a fill is stopped."""
    open_cache(tmp_path / "few", shard=None)
    assert json.loads((tmp_path / "few" / "cache.json").read_text())["shard"] == 4096
    layout = Layout(outputs=5, features=(30_000, 100))
    head = module._head(Counting(), array_source(), seed=0, layout=layout, shard=None)
    assert head.shard == 8
    assert layout.dtype.itemsize > 2**20
