"""Augmentations: the same shape, the same for the same generator, and exactly what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edgestill.lab.augment import ImageShift, MotionJitter


def seeded(seed: int) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


IMAGES = torch.randint(1, 256, (20, 5, 7, 3), dtype=torch.uint8, generator=seeded(0))
MOTIONS = torch.randn((6, 8, 6), generator=seeded(0))


@pytest.mark.parametrize(("augment", "inputs"), [(MotionJitter(), MOTIONS), (ImageShift(), IMAGES)])
def test_a_view_has_the_shape_and_type_of_the_data(
    augment: MotionJitter | ImageShift, inputs: Tensor
) -> None:
    """Same seed, same view; another seed, another; the data itself stays as it is."""
    before = inputs.clone()
    one, again, other = (augment(inputs, seeded(seed)) for seed in (1, 1, 2))
    assert (one.shape, one.dtype) == (inputs.shape, inputs.dtype)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(inputs, before)


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """The image moved, slowly and plainly."""
    height, width, _ = image.shape
    moved = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                moved[row, column] = image[row - down, column - right]
    return moved


def test_an_image_moves_exactly_and_black_enters() -> None:
    """Each image is one of the 25 moves by at most two pixels, and not all by the same."""
    found = ImageShift(2)(IMAGES, seeded(3))
    moves = []
    for image, view in zip(IMAGES, found, strict=True):
        fits = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(shifted(image, down, right), view)
        ]
        assert len(fits) == 1
        moves += fits
    assert len(set(moves)) > 5


def test_no_pixels_means_no_move() -> None:
    """A shift by up to 0 is the image itself."""
    assert torch.equal(ImageShift(0)(IMAGES, seeded(0)), IMAGES)


def test_every_window_has_one_factor() -> None:
    """Without noise a window is a multiple of itself, with factors around 1."""
    factors = MotionJitter(scale=0.1, noise=0)(torch.ones(400, 3, 6), seeded(0))
    assert torch.equal(factors, factors[:, :1, :1].expand_as(factors))
    spread = factors[:, 0, 0].numpy()
    assert abs(float(np.mean(spread)) - 1) < 0.02
    assert abs(float(np.std(spread)) - 0.1) < 0.02


def test_noise_is_of_the_sensors_unit() -> None:
    """Without scaling the difference has the deviation that was asked for."""
    difference = MotionJitter(scale=0, noise=0.5)(torch.zeros(200, 8, 6), seeded(0))
    assert float(difference.std()) == pytest.approx(0.5, rel=0.05)
