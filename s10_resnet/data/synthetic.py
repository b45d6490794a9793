"""The synthetic data set: ten classes of geometric shapes on 32x32 color images, generated without any download.

Position, size, rotation and colors are random, so that only the shape tells the class.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SignedDistance = Callable[[np.ndarray, np.ndarray], np.ndarray]

SIZE = 32  # height and width of an image, pixels
RADIUS = (9.0, 12.0)  # pixels; in a smaller shape, an 8x8 cutout could hide what distinguishes it
SHIFT = 3.0  # largest distance from the center, pixels; a random crop adds up to 4 and must not cut off the shape
CONTRAST = 0.4  # smallest difference of shape and background in each color channel, as a fraction of 1
WAVE = 0.15  # largest amplitude of the background's wave, as a fraction of 1
NOISE = 0.06  # standard deviation of the pixel noise, as a fraction of 1


# Each shape is a signed distance function, negative inside, scaled to fit the unit circle. It has to be exact at the
# edges only.


def circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A disc."""
    return np.hypot(x, y) - 0.9


def ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A circular band."""
    return np.abs(np.hypot(x, y) - 0.75) - 0.2


def star(x: np.ndarray, y: np.ndarray, tips: int = 5, normal: float = 0.4 * np.pi) -> np.ndarray:
    """A star; ``normal`` is the angle of an edge's normal to its tip's axis, in radians (``pi / tips``: a polygon)."""
    # By symmetry, fold every half of a tip onto the first one: a single straight line bounds them all.
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
    """Two bars that cross at a right angle."""
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 1, np.minimum(x, y) - 0.25)


def moon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A crescent."""
    return np.maximum(circle(x, y), 0.75 - np.hypot(x - 0.5, y))


def stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A disc cut into parallel bands."""
    return np.maximum(circle(x, y), np.abs(x % 0.5 - 0.25) - 0.125)


def checks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five of the nine squares of a 3x3 checkerboard."""
    board = np.cos(2 * np.pi * x) * np.cos(2 * np.pi * y) / (2 * np.pi)
    return np.maximum(np.maximum(np.abs(x), np.abs(y)) - 0.75, -board)


def dots(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Four discs at the corners of a square."""
    return np.hypot(np.abs(x) - 0.5, np.abs(y) - 0.5) - 0.3


SHAPES: tuple[SignedDistance, ...] = (circle, ring, triangle, bar, star, cross, moon, stripes, checks, dots)
CLASSES: tuple[str, ...] = tuple(shape.__name__ for shape in SHAPES)


def render(shape: SignedDistance, count: int, rng: np.random.Generator) -> np.ndarray:
    """Renders ``count`` images of one shape with random position, size, rotation, colors and background.

    Returns:
        uint8 ``[count, 32, 32, 3]``.
    """

    # In planes [count, C, 32, 32]: NumPy is several times slower where the last axis is that of three colors.
    def uniform(low: float, high: float, channels: int = 1) -> np.ndarray:
        return rng.uniform(low, high, (count, channels, 1, 1)).astype(np.float32)

    grid = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    x, y = grid + uniform(-SHIFT, SHIFT), grid[:, None] + uniform(-SHIFT, SHIFT)  # [count, 1, 1, 32], [count, 1, 32, 1]
    radius, angle = uniform(*RADIUS), uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    distance = radius * shape(cos * x - sin * y, sin * x + cos * y)  # pixels, [count, 1, 32, 32]
    mask = np.clip(0.5 - distance, 0, 1)  # anti-aliased: an edge is one pixel wide

    # A long wave looks like a gradient, a short one like a texture.
    direction, cycles, phase = uniform(0, 2 * np.pi), uniform(0.2, 4), uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * cycles / SIZE * (np.cos(direction) * x + np.sin(direction) * y) + phase)
    base = uniform(0, 1, channels=3)
    background = base + uniform(-WAVE, WAVE, channels=3) * wave  # [count, 3, 32, 32]
    # Modulo 1 both colors are uniformly distributed, so that colors do not depend on the class.
    color = (base + uniform(CONTRAST, 1 - CONTRAST, channels=3)) % 1

    image = background + mask * (color - background)
    image = image.transpose(0, 2, 3, 1) + NOISE * rng.standard_normal((count, SIZE, SIZE, 3), dtype=np.float32)
    return (255 * np.clip(image, 0, 1)).round().astype(np.uint8)


def generate(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Generates a balanced, shuffled data set.

    Args:
        size: Number of images.
        seed: Seed of labels and images. The first images of a larger set are not those of a smaller set of the same
            seed, so training and test split need two seeds.

    Returns:
        Images, uint8 ``[size, 32, 32, 3]``, and labels, int64 ``[size]``, indices of `CLASSES`.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(size) % len(CLASSES))
    images = np.empty((size, SIZE, SIZE, 3), dtype=np.uint8)
    for label, shape in enumerate(SHAPES):
        of_class = labels == label
        images[of_class] = render(shape, int(of_class.sum()), rng)
    return images, labels
