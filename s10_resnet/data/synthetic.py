"""A stand-in for CIFAR-10 where there is no network: ten classes of drawn shapes on 32x32 colour images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]

SIDE = 32  # pixels
RADIUS = (9.0, 12.0)  # pixels; smaller, and an 8x8 cutout could hide what tells a shape
SHIFT = 3.0  # pixels off the centre; more, and a crop shifted by another 4 would cut too much away
CONTRAST = 0.4  # least difference of shape and background in each colour channel, as a fraction of 1
WAVE = 0.15  # largest amplitude of the background's wave, as a fraction of 1
NOISE = 0.06  # standard deviation of the pixel noise, as a fraction of 1


# Each shape is a signed distance, negative inside, in a frame where the shape fills the unit circle; away from the
# edges it need not be exact.


def circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A disc."""
    return np.hypot(x, y) - 0.9


def ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A closed band."""
    return np.abs(np.hypot(x, y) - 0.75) - 0.2


def star(x: np.ndarray, y: np.ndarray, tips: int = 5, normal: float = 0.4 * np.pi) -> np.ndarray:
    """A star whose edges' normals stand `normal` radians off its tips' axes; at ``pi / tips``, a regular polygon."""
    # Every half of a tip is folded onto the first: one straight line then bounds them all.
    sector = 2 * np.pi / tips
    angle = np.abs((np.arctan2(y, x) + sector / 2) % sector - sector / 2)
    return np.hypot(x, y) * np.cos(angle - normal) - np.cos(normal)


def triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """An equilateral triangle."""
    return star(x, y, tips=3, normal=np.pi / 3)


def bar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A rectangle four times as long as wide."""
    return np.maximum(np.abs(x) - 1, np.abs(y) - 0.25)


def cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two bars at a right angle."""
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 1, np.minimum(x, y) - 0.25)


def moon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A disc with a bite taken out."""
    return np.maximum(circle(x, y), 0.75 - np.hypot(x - 0.5, y))


def stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A disc cut into parallel bands."""
    return np.maximum(circle(x, y), np.abs(x % 0.5 - 0.25) - 0.125)


def checks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The middle and the corners of a board of three by three fields."""
    board = np.cos(2 * np.pi * x) * np.cos(2 * np.pi * y) / (2 * np.pi)
    return np.maximum(np.maximum(np.abs(x), np.abs(y)) - 0.75, -board)


def dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Four discs, the corners of a square."""
    return np.hypot(np.abs(x) - 0.5, np.abs(y) - 0.5) - 0.3


SHAPES: tuple[Distance, ...] = (circle, ring, triangle, bar, star, cross, moon, stripes, checks, dots)
CLASSES: tuple[str, ...] = tuple(shape.__name__ for shape in SHAPES)


def render(shape: Distance, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws one shape in random poses and colours on random backgrounds; uint8 ``[count, 32, 32, 3]``."""

    def uniform(low: float, high: float, channels: int = 1) -> np.ndarray:
        return rng.uniform(low, high, (count, 1, 1, channels)).astype(np.float32)

    grid = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    x, y = grid[:, None] + uniform(-SHIFT, SHIFT), grid[:, None, None] + uniform(-SHIFT, SHIFT)  # [count, ...]
    radius, turn = uniform(*RADIUS), uniform(0, 2 * np.pi)
    cos, sin = np.cos(turn) / radius, np.sin(turn) / radius
    distance = radius * shape(cos * x - sin * y, sin * x + cos * y)  # pixels, [count, 32, 32, 1]
    mask = np.clip(0.5 - distance, 0, 1)  # an edge one pixel wide: no staircase

    # A long wave is a gradient, a short one a texture.
    direction, cycles, phase = uniform(0, 2 * np.pi), uniform(0.2, 4), uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * cycles / SIDE * (np.cos(direction) * x + np.sin(direction) * y) + phase)
    base = uniform(0, 1, channels=3)
    background = base + uniform(-WAVE, WAVE, channels=3) * wave  # [count, 32, 32, 3]
    # On the circle of fractions no value is commoner than another, so that colour says nothing about the class.
    colour = (base + uniform(CONTRAST, 1 - CONTRAST, channels=3)) % 1

    noise = NOISE * rng.standard_normal(background.shape, dtype=np.float32)
    image = background + mask * (colour - background) + noise
    return (255 * np.clip(image, 0, 1)).round().astype(np.uint8)


def draw(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a balanced, shuffled data set.

    Args:
        size: Number of images.
        seed: Fixes every bit. Sets of different seeds are independent, but a longer set does not begin with a shorter
            one of its seed: training and test images take two seeds, as in ``draw(10_000, seed=0)`` and
            ``draw(2_000, seed=1)``.

    Returns:
        Images, uint8 ``[size, 32, 32, 3]`` in 0..255, and labels, int64 ``[size]``, which index `CLASSES`.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(size) % len(CLASSES))
    images = np.empty((size, SIDE, SIDE, 3), dtype=np.uint8)
    for label, shape in enumerate(SHAPES):
        images[labels == label] = render(shape, np.count_nonzero(labels == label), rng)
    return images, labels
