"""A client's side without Flower: what it sums, says and learns, with a real engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from federated_worlds import (
    CLASSES,
    SKEWED,
    WIDTH,
    client_node,
    digits,
    features_of,
    kind_of,
    of_classes,
    write_bundle,
)

from edgestill.core import bundle
from edgestill.core.errors import BundleError, DataError, EvidenceError, SettingError
from edgestill.federated.answers import agreed
from edgestill.federated.node import Node, Samples, check_head
from edgestill.learn import screens
from edgestill.learn.statistics import Head, solve, usual_ridge
from edgestill.learn.votes import ABSTAIN, Question

if TYPE_CHECKING:
    from pathlib import Path

PROXY = digits().proxy
ABOUT = Question.about(PROXY.inputs, CLASSES)


def test_the_sums_are_those_of_the_features(tmp_path: Path) -> None:
    """What a node sums through its engine is what numpy sums over the same features."""
    mine = of_classes(digits().train, SKEWED[0])
    expected = kind_of(0).add(features_of(0, mine.inputs), np.eye(CLASSES)[mine.targets])
    found = client_node(tmp_path, 0).statistics()
    assert (found.backbone, found.n) == (expected.backbone, expected.n)
    assert np.allclose(found.a, expected.a, rtol=1e-5)
    assert np.allclose(found.b, expected.b, rtol=1e-5, atol=1e-4)


def test_sums_of_skewed_nodes_give_the_head_of_all_data(tmp_path: Path) -> None:
    """Added over clients who saw disjoint classes, the sums give the head of one who saw everything, up to rounding."""
    path = write_bundle(tmp_path / "b.esb", 0)
    parts = [of_classes(digits().train, classes) for classes in ((0, 1, 2), (3, 4, 5), (6, 7, 8, 9))]
    first, *others = (Node.open(path, part).statistics() for part in parts)
    together, alone = sum(others, start=first), Node.open(path, digits().train).statistics()
    assert together.n == alone.n == len(digits().train.targets)
    ridge = usual_ridge(alone)
    assert np.allclose(solve(together, ridge=ridge).weight, solve(alone, ridge=ridge).weight, atol=1e-6)


def test_a_node_abstains_about_classes_that_it_has_not_seen(tmp_path: Path) -> None:
    """It speaks about most inputs of its own classes and about few of others."""
    said = client_node(tmp_path, 0).answers(PROXY.inputs, ABOUT)
    own = np.isin(PROXY.targets, SKEWED[0])
    assert said.known[own].mean() > 0.85
    assert said.known[~own].mean() < 0.5
    right = said.targets.argmax(axis=1) == PROXY.targets
    assert right[own & said.known].mean() > 0.9


def test_who_shall_not_abstain_says_something_about_nearly_everything(tmp_path: Path) -> None:
    """The larger the limit, the more is said; without one, something about everything."""
    path = write_bundle(tmp_path / "b.esb", 0)
    mine = of_classes(digits().train, SKEWED[0])
    limits = (1.0, 2.0, np.inf)
    shy, usual, bold = (Node.open(path, mine, limit=one).answers(PROXY.inputs, ABOUT) for one in limits)
    assert shy.known.sum() < usual.known.sum() < bold.known.sum()
    assert bold.known.all()


@pytest.mark.parametrize("taught", [False, True])
def test_a_ballot_names_what_the_answers_find_likeliest(tmp_path: Path, taught: bool) -> None:
    """Both forms abstain about the same inputs and name the same classes, with a lesson and without."""
    node, other = (client_node(tmp_path, client, seed=client) for client in range(2))
    lesson = (PROXY.inputs, other.answers(PROXY.inputs, ABOUT)) if taught else None
    said = node.answers(PROXY.inputs, ABOUT, lesson=lesson)
    ballot = node.ballot(PROXY.inputs, ABOUT, lesson=lesson)
    assert np.array_equal(ballot.labels, np.where(said.known, said.targets.argmax(axis=1), ABSTAIN))
    assert ballot.student == node.like.backbone.hex[:16]
    assert 0 < ballot.votes < len(PROXY.inputs)
    assert len(ballot.to_bytes()) < 250 < len(said.to_bytes()) / 30


def test_what_nodes_say_together_is_right_where_each_alone_is_not(tmp_path: Path) -> None:
    """Four nodes of different networks and classes agree on the right class of nine in ten inputs they speak about."""
    nodes = [client_node(tmp_path, client, seed=client) for client in range(4)]
    together = agreed([one.answers(PROXY.inputs, ABOUT) for one in nodes])
    known = together.known
    assert known.mean() > 0.7
    assert (together.targets.argmax(axis=1) == PROXY.targets)[known].mean() > 0.9


def test_a_lesson_teaches_a_node_what_it_has_not_seen(tmp_path: Path) -> None:
    """With what all said, a node names far more of the test right than from its own samples."""
    nodes = [client_node(tmp_path, client, seed=client) for client in range(4)]
    lesson = (PROXY.inputs, agreed([one.answers(PROXY.inputs, ABOUT) for one in nodes]))
    for node in nodes:
        alone, taught = node.score(node.learned()), node.score(node.learned(lesson))
        assert alone.right / alone.n < 0.5
        assert taught.right / taught.n > 0.8


def test_a_lesson_of_silence_changes_nothing(tmp_path: Path) -> None:
    """Where nobody said anything, the head is that of the own samples, bit for bit."""
    node = client_node(tmp_path, 0)
    silence = agreed([node.answers(PROXY.inputs, ABOUT)], quorum=2)
    assert not silence.known.any()
    assert np.array_equal(node.learned((PROXY.inputs, silence)).weight, node.learned().weight)


def test_targets_may_be_a_teachers_probabilities(tmp_path: Path) -> None:
    """Class numbers and their one-hot rows give the same sums."""
    path = write_bundle(tmp_path / "b.esb", 0)
    mine = of_classes(digits().train, SKEWED[1])
    rows = Samples(mine.inputs, np.eye(CLASSES)[mine.targets])
    one, other = (Node.open(path, samples).statistics() for samples in (mine, rows))
    assert np.array_equal(one.b, other.b)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_teachers_rounded_probabilities_give_sums_that_pass_the_screens(tmp_path: Path, dtype: str) -> None:
    """Rows that are 1 up to their own rounding are made 1 in doubles before they are summed."""
    path = write_bundle(tmp_path / "b.esb", 0)
    inputs = digits().train.inputs[:200]
    soft = np.random.default_rng(0).dirichlet(np.ones(CLASSES), len(inputs)).astype(dtype)
    sums = Node.open(path, Samples(inputs, soft)).statistics()
    screens.read(sums.to_bytes("float64"), backbone=sums.backbone)
    assert np.allclose(sums.b[-1], soft.astype(np.float64).sum(axis=0), rtol=1e-3)


@pytest.mark.parametrize(
    ("inputs", "targets", "says"),
    [
        (digits().train.inputs[:3], np.array([1, 2]), "3 inputs, 2 targets"),
        (digits().train.inputs[:0], np.array([], dtype=np.int64), "0 inputs, 0 targets"),
        (digits().train.inputs[:1], np.array([10]), "0 to 9"),
        (digits().train.inputs[:1], np.array([-1]), "0 to 9"),
        (digits().train.inputs[:1], np.array([0.5]), "another shape"),
        (digits().train.inputs[:1], np.eye(3)[:1], "another shape"),
        (digits().train.inputs[:1], np.full((1, CLASSES), 0.2), "no distributions"),
        (digits().train.inputs[:1], np.full((1, CLASSES), np.nan), "no distributions"),
        (digits().train.inputs[:1], np.eye(CLASSES)[:1] * 3 - 0.2, "no distributions"),
    ],
)
def test_samples_that_do_not_fit_are_refused(
    tmp_path: Path, inputs: np.ndarray, targets: np.ndarray, says: str
) -> None:
    """Counts that differ, nothing at all, and classes that are none."""
    with pytest.raises(DataError) as caught:
        Node.open(write_bundle(tmp_path / "b.esb", 0), Samples(inputs, targets))
    assert says in str(caught.value)


def test_a_bundle_without_a_reference_cannot_take_part(tmp_path: Path) -> None:
    """The reference names the backbone; without one the bundle is refused, with what to do."""
    opened = bundle.Bundle.open(write_bundle(tmp_path / "b.esb", 0))
    blobs = {name: opened.read(name) for name in opened.manifest.blobs if name != "reference.stats"}
    manifest, ordered = bundle.build(
        name="digits", version="1.0.0", hardware_class=opened.manifest.hardware_class, blobs=blobs
    )
    (tmp_path / "without.esb").write_bytes(bundle.archive_bytes(manifest, ordered))
    with pytest.raises(BundleError, match="cannot learn"):
        Node.open(tmp_path / "without.esb", digits().train)


def test_attack_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Another width, another number of classes, and NaN, whoever sends them."""
    node = client_node(tmp_path, 0)
    good = node.learned()
    bad = good.weight.copy()
    bad[0, 0] = np.nan
    for head in (Head(good.weight[1:], good.bias), Head(good.weight, good.bias[1:]), Head(bad, good.bias)):
        with pytest.raises(EvidenceError, match="a head that cannot be used"):
            node.score(head)
        with pytest.raises(EvidenceError):
            check_head(head, node.like)


def test_what_a_node_cannot_do_is_said(tmp_path: Path) -> None:
    """Asked about other classes, without samples held out, or with a limit of nothing: a coded error each."""
    path = write_bundle(tmp_path / "b.esb", 0)
    node = Node.open(path, digits().train)
    with pytest.raises(EvidenceError, match="other classes"):
        node.answers(PROXY.inputs, Question.about(PROXY.inputs, CLASSES + 1))
    with pytest.raises(DataError, match="held out"):
        node.score(node.learned())
    with pytest.raises(EvidenceError, match="other classes"):
        node.ballot(PROXY.inputs, Question.about(PROXY.inputs, CLASSES + 1))
    for limit in (0.0, np.nan):
        with pytest.raises(SettingError, match="limit"):
            Node.open(path, digits().train, limit=limit)
    assert node.like.n == 0
    assert node.like.features == WIDTH
