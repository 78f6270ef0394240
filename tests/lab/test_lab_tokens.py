"""Views of texts: what a view is made of, and that it depends on a text and its seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgestill.core.errors import DtypeError, SettingError, ShapeError
from edgestill.lab.data.augment import Augment, ImageShift, OneOf
from edgestill.lab.data.seeds import view_seeds
from edgestill.lab.data.tokens import TokenDropout, TokenMix, TokenNeighbours, neighbours

FIRST, LENGTH, VOCABULARY = 10, 12, 60
BEGIN, END = 1, 2


def texts(count: int, seed: int) -> Tensor:
    """Texts of 1 to 10 tokens between two marks, then padding."""
    random = np.random.default_rng(seed)
    rows = torch.zeros((count, LENGTH), dtype=torch.int64)
    for row in rows:
        size = int(random.integers(1, LENGTH - 1))
        tokens = torch.from_numpy(random.integers(FIRST, VOCABULARY, size))
        row[: size + 2] = torch.cat([torch.tensor([BEGIN]), tokens, torch.tensor([END])])
    return rows


TEXTS, OTHERS = texts(40, 0), texts(30, 1)
SEEDS = view_seeds(0, 0, np.arange(40))
TABLE = torch.randint(FIRST, VOCABULARY, (VOCABULARY, 3), generator=torch.Generator().manual_seed(0))
DROPOUT = TokenDropout(first=FIRST)
NEAR = TokenNeighbours(TABLE, first=FIRST)
MIX = TokenMix(OTHERS, first=FIRST)
ALL = [DROPOUT, NEAR, MIX, OneOf((DROPOUT, NEAR, MIX))]


def tokens(row: Tensor) -> list[int]:
    """The tokens of one text."""
    return [int(one) for one in row if one >= FIRST]


@pytest.mark.parametrize("augment", ALL)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_view_of_a_text_has_its_shape_and_type(augment: Augment, dtype: torch.dtype) -> None:
    """Same seeds, same view; other seeds, another; the text itself stays as it is."""
    inputs = TEXTS.to(dtype)
    one, again, other = (augment(inputs, view_seeds(0, view, np.arange(40))) for view in (1, 1, 2))
    assert (one.shape, one.dtype) == (inputs.shape, dtype)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(inputs, TEXTS.to(dtype))


@pytest.mark.parametrize("augment", ALL)
@given(chosen=st.lists(st.integers(0, 39), max_size=12))
def test_a_view_of_a_text_does_not_know_its_batch(augment: Augment, chosen: list[int]) -> None:
    """Any batch, in any order, with repetitions, alone or empty: each text's view is the same."""
    whole = augment(TEXTS, SEEDS)
    assert torch.equal(augment(TEXTS[chosen], SEEDS[chosen]), whole[chosen])


def test_dropped_tokens_leave_zeros() -> None:
    """Marks stay, and what is left stands where it stood; over many views about a quarter of the tokens is gone."""
    gone = []
    for view in range(50):
        found = DROPOUT(TEXTS, view_seeds(3, view, np.arange(40)))
        changed = found != TEXTS
        assert (found[changed] == 0).all()
        assert (TEXTS[changed] >= FIRST).all()
        gone.append(float(changed.sum() / (TEXTS >= FIRST).sum()))
    assert 0.2 < np.mean(gone) < 0.3  # half of `most`


def test_replaced_tokens_are_neighbours() -> None:
    """A changed token is one of those that its table names, each of them comes, and marks stay."""
    met = set()
    for view in range(50):
        found = NEAR(TEXTS, view_seeds(3, view, np.arange(40)))
        changed = found != TEXTS
        assert (TEXTS[changed] >= FIRST).all()
        for before, after in zip(TEXTS[changed].tolist(), found[changed].tolist(), strict=True):
            assert after in TABLE[before]
            met.add((before, after))
    named = {(one, int(other)) for one in range(FIRST, VOCABULARY) for other in TABLE[one] if one != other}
    assert met <= named
    assert len(met) > 0.9 * len(named)


def test_a_mixed_text_is_a_run_of_each() -> None:
    """Begin mark, a run of the text, a run of another text, end mark, padding; both runs are what they say."""
    known = [tokens(row) for row in OTHERS]
    partners = set()
    for view in range(20):
        for before, after in zip(TEXTS, MIX(TEXTS, view_seeds(5, view, np.arange(40))), strict=True):
            ours, mixed = tokens(before), tokens(after)
            assert after.tolist() == [BEGIN, *mixed, END, *[0] * (LENGTH - 2 - len(mixed))]
            fits = [
                (size, place)
                for size in range(1, len(ours) + 1)
                for place, other in enumerate(known)
                if is_run(mixed[:size], ours) and mixed[size:] and is_run(mixed[size:], other)
            ]
            assert fits
            partners |= {place for _size, place in fits}
    assert len(partners) == len(known)


def is_run(part: list[int], whole: list[int]) -> bool:
    """Whether these stand side by side in the whole."""
    return any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))


def test_mixing_fits_into_the_longest_text() -> None:
    """Two texts that fill all the room keep their end mark and lose no token of their runs."""
    full = torch.arange(FIRST, FIRST + LENGTH - 2).expand(40, -1)
    rows = torch.cat([torch.full((40, 1), BEGIN), full, torch.full((40, 1), END)], 1)
    for view in range(20):
        found = TokenMix(rows, first=FIRST)(rows, view_seeds(7, view, np.arange(40)))
        assert (found == END).sum(1).eq(1).all()
        assert (found >= FIRST).sum(1).ge(LENGTH - 4).all()


def test_a_text_without_tokens_is_mixed_too() -> None:
    """Marks alone, or nothing at all: what is added is a run of the other text, behind them."""
    bare = torch.zeros((2, LENGTH), dtype=torch.int64)
    bare[1, 0] = BEGIN
    nothing, marked = MIX(bare, SEEDS[:2])
    assert nothing[0] >= FIRST
    assert marked[0] == BEGIN
    assert marked[1] >= FIRST


def test_neighbours_are_the_nearest_allowed() -> None:
    """By the angle, nearest first, never the token itself, never one that is not allowed."""
    angles = torch.tensor([0.0, 0.1, 0.3, 0.35, 1.5])
    embeddings = torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1, 6)[:, None]
    found = neighbours(embeddings, 2, allowed=torch.tensor([0, 2, 3, 4]))
    assert found.tolist() == [[2, 3], [0, 2], [3, 0], [2, 0], [3, 2]]


def test_one_of_draws_evenly_among_its_parts() -> None:
    """Each view is that of one part under the same seed, and each part has its share."""
    parts = (DROPOUT, NEAR, MIX)
    counts = np.zeros(3)
    for view in range(30):
        seeds = view_seeds(9, view, np.arange(40))
        each = [part(TEXTS, seeds) for part in parts]
        found = OneOf(parts)(TEXTS, seeds)
        same = torch.stack([(found == one).all(1) for one in each])
        assert same.any(0).all()
        counts += same.sum(1).numpy()
    assert (counts > 30 * 40 / 4).all()


def test_one_of_grows_with_its_parts() -> None:
    """A part's new version is a new version of the choice, so that a cache of the old views is refused."""

    class Newer:
        version = 2

        def __call__(self, inputs: Tensor, seeds: object) -> Tensor:
            return inputs

    assert OneOf((ImageShift(), Newer())).version == OneOf((ImageShift(), ImageShift())).version + 1


def test_what_is_no_text_is_refused() -> None:
    """Other shapes and types, and texts of another length, are named."""
    with pytest.raises(ShapeError, match=r"\[N, L\]"):
        DROPOUT(TEXTS[0], SEEDS[:1])
    with pytest.raises(DtypeError, match="whole numbers"):
        NEAR(TEXTS.float(), SEEDS)
    with pytest.raises(ShapeError, match="another length"):
        MIX(TEXTS[:, :5], SEEDS)
    with pytest.raises(ShapeError, match="no neighbours"):
        TokenNeighbours(TABLE[:, :0])
    with pytest.raises(ShapeError, match="no texts"):
        TokenMix(OTHERS[:0])


@pytest.mark.parametrize("most", [0.0, 1.5, float("nan")])
def test_a_share_is_a_share(most: float) -> None:
    """More than nothing, at most all."""
    with pytest.raises(SettingError, match="share"):
        TokenDropout(most)
    with pytest.raises(SettingError, match="share"):
        TokenNeighbours(TABLE, most)


def test_settings_out_of_range_are_named() -> None:
    """0 is padding; there are no more neighbours than allowed tokens; a choice needs something to choose from."""
    with pytest.raises(SettingError, match="0 is no token"):
        TokenDropout(first=0)
    with pytest.raises(SettingError, match="1 to 2"):
        neighbours(torch.eye(4), 3, allowed=torch.arange(3))
    with pytest.raises(SettingError, match="nothing to choose from"):
        OneOf(())
