"""Augmentations: a view depends on a sample and its seed alone, and is exactly what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgestill.core.errors import DtypeError, SettingError, ShapeError
from edgestill.lab.data.augment import ImageShift, MotionJitter
from edgestill.lab.data.seeds import integers, normal, view_seeds

IMAGES = torch.randint(1, 256, (20, 5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MOTIONS = torch.randn((6, 8, 6), generator=torch.Generator().manual_seed(0))
BOTH = [(MotionJitter(), MOTIONS), (ImageShift(mirror=True), IMAGES)]
SEEDS = view_seeds(0, 0, np.arange(20))


@pytest.mark.parametrize(("augment", "inputs"), BOTH)
def test_a_view_has_the_shape_and_type_of_the_data(
    augment: MotionJitter | ImageShift, inputs: Tensor
) -> None:
    """Same seeds, same view; other seeds, another; the data itself stays as it is."""
    before, n = inputs.clone(), len(inputs)
    one, again, other = (augment(inputs, view_seeds(0, view, np.arange(n))) for view in (1, 1, 2))
    assert (one.shape, one.dtype) == (inputs.shape, inputs.dtype)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(inputs, before)


@pytest.mark.parametrize(("augment", "inputs"), BOTH)
@given(chosen=st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_a_view_does_not_know_its_batch(
    augment: MotionJitter | ImageShift, inputs: Tensor, chosen: list[int]
) -> None:
    """Any batch, in any order, with repetitions or alone: each sample's view is bit for bit the same."""
    whole = augment(inputs[:6], SEEDS[:6])
    assert torch.equal(augment(inputs[chosen], SEEDS[chosen]), whole[chosen])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_motions_type_stays(dtype: torch.dtype) -> None:
    """Whatever the precision, the view is the float32 view rounded to it."""
    inputs = MOTIONS.to(dtype)
    found = MotionJitter()(inputs, SEEDS[:6])
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), MotionJitter()(inputs.float(), SEEDS[:6]), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float16, torch.float32, torch.bool])
def test_an_image_moves_the_same_way_in_every_type(dtype: torch.dtype) -> None:
    """A shift only copies, so that any type will do."""
    found = ImageShift(mirror=True)(IMAGES.to(dtype), SEEDS)
    assert torch.equal(found, ImageShift(mirror=True)(IMAGES, SEEDS).to(dtype))


def test_no_samples_have_no_views() -> None:
    """An empty batch is an empty batch."""
    assert MotionJitter()(MOTIONS[:0], SEEDS[:0]).shape == (0, 8, 6)
    assert ImageShift()(IMAGES[:0], SEEDS[:0]).shape == (0, 5, 7, 3)


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """The image moved, slowly and plainly."""
    height, width, _ = image.shape
    moved = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                moved[row, column] = image[row - down, column - right]
    return moved


@pytest.mark.parametrize("mirror", [False, True])
def test_an_image_moves_exactly_and_black_enters(mirror: bool) -> None:
    """Each image is moved as its seed's whole numbers say, and turned after that where they say so."""
    moves, turns = integers(SEEDS, 5, 2), integers(SEEDS, 2, 1, stream=1)[:, 0]
    found = ImageShift(2, mirror=mirror)(IMAGES, SEEDS)
    for image, view, (row, column), turn in zip(IMAGES, found, moves.tolist(), turns.tolist(), strict=True):
        wanted = shifted(image, 2 - row, 2 - column)
        assert torch.equal(view, wanted.flip(1) if mirror and turn else wanted)
    assert len({tuple(move) for move in moves.tolist()}) > 5
    assert 0 < turns.sum() < len(turns)


def test_no_pixels_means_no_move() -> None:
    """A shift by up to 0 is the image itself."""
    assert torch.equal(ImageShift(0)(IMAGES, SEEDS), IMAGES)


def test_a_motion_is_scaled_and_stirred_exactly() -> None:
    """Each window is its own factor times itself plus its own noise, to the last bit."""
    found = MotionJitter(scale=0.1, noise=0.02)(MOTIONS, SEEDS[:6])
    for at, window in enumerate(MOTIONS):
        seed = SEEDS[at : at + 1]
        factor = 1 + torch.from_numpy(normal(seed, 1)) * 0.1
        noise = torch.from_numpy(normal(seed, 48, stream=1)).view(8, 6) * 0.02
        assert torch.equal(found[at], window * factor + noise)


def test_every_window_has_one_factor() -> None:
    """Without noise a window is a multiple of itself, with factors around 1."""
    seeds = view_seeds(1, 0, np.arange(400))
    factors = MotionJitter(scale=0.1, noise=0)(torch.ones(400, 3, 6), seeds)
    assert torch.equal(factors, factors[:, :1, :1].expand_as(factors))
    spread = factors[:, 0, 0].numpy()
    assert abs(float(np.mean(spread)) - 1) < 0.02
    assert abs(float(np.std(spread)) - 0.1) < 0.02


def test_noise_is_of_the_sensors_unit() -> None:
    """Without scaling the difference has the deviation that was asked for."""
    difference = MotionJitter(scale=0, noise=0.5)(torch.zeros(200, 8, 6), view_seeds(1, 0, np.arange(200)))
    assert float(difference.std()) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_jitter_out_of_range_is_refused(value: float) -> None:
    """Before any sample is spoilt by it."""
    with pytest.raises(
        SettingError, match=r"a jitter is out of range; at noise; expected at least 0, finite"
    ):
        MotionJitter(noise=value)
    with pytest.raises(SettingError, match=r"at scale"):
        MotionJitter(scale=value)


def test_a_shift_out_of_range_is_refused() -> None:
    """A move by fewer than no pixels has no meaning."""
    with pytest.raises(
        SettingError, match=r"a shift is out of range; at pixels; expected at least 0; got -1"
    ):
        ImageShift(-1)


def test_inputs_of_another_kind_are_refused() -> None:
    """Images are not windows, windows are not images, and whole numbers have no room for noise."""
    with pytest.raises(ShapeError, match=r"expected \[N, T, C\]; got \[20, 5, 7, 3\]"):
        MotionJitter()(IMAGES, SEEDS)
    with pytest.raises(ShapeError, match=r"expected \[N, H, W, C\]; got \[6, 8, 6\]"):
        ImageShift()(MOTIONS, SEEDS[:6])
    with pytest.raises(DtypeError, match=r"expected floating point; got torch.int16"):
        MotionJitter()(MOTIONS.to(torch.int16), SEEDS[:6])
