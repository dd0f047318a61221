"""What a dataset of shapes is made of."""

import math
from dataclasses import dataclass

from detr_d2.utils.errors import UserError

THING_CLASSES = ("disc", "square", "triangle", "star", "ring", "cross")
STUFF_CLASSES = ("cloud", "stripes", "checks", "grain")


@dataclass(frozen=True)
class ShapesSpec:
    """The parameters that a dataset follows from; equal ones give equal files.

    Attributes:
        num_images: how many.
        seed: datasets of different seeds share no image.
        sides: the shortest and the longest side that an image may have, in pixels.
        difficulty: in [0, 1]. More of it means objects of more different sizes, turned further, that hide more of
            each other, in any colour and closer to that of what is behind them, on bolder patterns, under more noise.
        max_objects: an image holds one to so many objects, but for one in twenty, which holds none.
    """

    num_images: int
    seed: int = 0
    sides: tuple[int, int] = (128, 192)
    difficulty: float = 0.15
    max_objects: int = 10

    def __post_init__(self) -> None:
        low, high = self.sides
        problems = {
            f"num_images is {self.num_images}: set 1 or more": self.num_images < 1,
            f"seed is {self.seed}: set 0 or more": self.seed < 0,
            f"sides are {self.sides}: set two lengths, 32 or more, the shortest first": not 32 <= low <= high,
            f"difficulty is {self.difficulty}: set 0 to 1": not 0 <= self.difficulty <= 1,
            f"max_objects is {self.max_objects}: set 1 or more": self.max_objects < 1,
        }
        for problem, found in problems.items():
            if found:
                raise UserError(f"ShapesSpec: {problem}.")

    @property
    def diameters(self) -> tuple[float, float]:
        """The least and the greatest of an object, relative to the image's shorter side."""
        return 0.22 - 0.14 * self.difficulty, 0.45 + 0.2 * self.difficulty

    @property
    def largest_turn(self) -> float:
        """Radians by which objects are turned, at most, to either side."""
        return math.radians(4 + 20 * self.difficulty)

    @property
    def least_visible(self) -> float:
        """The share of every object that neither other objects nor the border hide."""
        return 0.8 - 0.5 * self.difficulty

    @property
    def hue_spread(self) -> float:
        """How far a thing's hue may be from the one that is typical of its class: all of the circle is 1."""
        return min(1, 0.1 + self.difficulty)

    @property
    def least_contrast(self) -> float:
        """Distance of an object's colour from the mean colour behind it, in [0, 255 √3]."""
        return 180 - 100 * self.difficulty

    @property
    def texture_contrast(self) -> float:
        """Of the background's patterns, in (0, 1]."""
        return 0.25 + 0.75 * self.difficulty

    @property
    def noise(self) -> float:
        """Standard deviation of the camera's noise, of 255."""
        return 1 + 10 * self.difficulty
