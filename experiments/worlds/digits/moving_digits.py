"""The tiny world: a handwritten digit moves in front of a ground of tiles, with known states.

It turns by 90 degrees at random and bounces off the walls. The future must be uncertain given the
past (captions do not tell turns and bounces), since that separates the initialisations of a causal
student; and the states must be known, so that clips can be scored without a learnt judge. The
digits are scikit-learn's (UCI, 8x8).

The law, for a sprite centre p [px; x to the right, y down, from the outer edges] and a velocity v
[px/frame]:

    p[0]    uniform near the middle, the first step staying inside; v[0] as the caption says
    v[k]    turned by +90 or -90 degrees with probability `turn`, for k >= 1
    p[k+1]  = p[k] + v[k] reflected at the walls; a component of v that met a wall changes sign

State k is (x, y, vx, vy): the position in frame k and the velocity towards frame k+1. The ground
scrolls by a law of its own (`ground`), which no caption tells; without it the ground is black.

Clip i of a split is a function of (seed, split, i) alone, hence independent of how many are made.
A digit is drawn as a cubic B-spline surface over its 8x8 values: sub-pixel motion is smooth, and
16 of the 64 cosine coefficients of an 8x8 patch keep 36 dB (a test holds it above 33).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from experiments.worlds.digits.ground import Ground
from lightning_modules.ranges import (
    FrameRate,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    UnitInterval,
)

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HEADINGS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
SPLITS = ("train", "heldout")
_ADVERBS = {"slow": "slowly", "fast": "fast"}
_CAPTION = re.compile(r"a (\w+) (?:moving (\w+), (slowly|fast)|standing (still))")
_TRAIN_SHARE = 2 / 3


@dataclass(frozen=True)
class Attributes:
    """What a caption says. `direction` is that of the first step; None when `speed` is "still"."""

    digit: int
    direction: str | None  # left, right, up, down
    speed: str  # slow, fast, still

    def __post_init__(self) -> None:
        """Refuse what the grammar has no words for."""
        if self.digit not in range(10) or self.speed not in ("slow", "fast", "still"):
            raise ValueError(f"no caption for {self}")
        if (self.direction is None) != (self.speed == "still"):
            raise ValueError(f"no caption for {self}: it moves in a direction or stands still")
        if self.direction is not None and self.direction not in HEADINGS:
            raise ValueError(f"no caption for {self}: directions are {', '.join(HEADINGS)}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a shard's json; `Attributes(**d)` reads them back."""
        return asdict(self)


def caption(attributes: Attributes) -> str:
    """E.g. "a seven moving left, fast" or "a seven standing still"."""
    subject = f"a {DIGITS[attributes.digit]}"
    if attributes.direction is None:
        return f"{subject} standing still"
    return f"{subject} moving {attributes.direction}, {_ADVERBS[attributes.speed]}"


def attributes_of(text: str) -> Attributes:
    """Inverse of `caption`; ValueError when `text` is not of the grammar."""
    match = _CAPTION.fullmatch(text)
    if match is None or match[1] not in DIGITS:
        raise ValueError(f"{text!r} is not a caption of the moving digits")
    digit = DIGITS.index(match[1])
    if match[4]:
        return Attributes(digit, None, "still")
    return Attributes(digit, match[2], "slow" if match[3] == "slowly" else "fast")


def all_captions() -> list[str]:
    """Every sentence of the grammar, 90 in all."""
    moving = [(d, s) for d in HEADINGS for s in _ADVERBS]
    kinds = [*moving, (None, "still")]
    return [caption(Attributes(digit, *kind)) for digit in range(10) for kind in kinds]


def words() -> list[str]:
    """Every word of the grammar, and its comma: the vocabulary of a text encoder."""
    return sorted({word for text in all_captions() for word in re.findall(r"\w+|,", text)})


@dataclass(frozen=True)
class World:
    """Parameters of the world: lengths in px, speeds in px/frame, probabilities in 0..1."""

    size: PositiveInt  # height and width of a frame
    frames: PositiveInt
    fps: FrameRate
    sprite: PositiveInt  # height and width of the enlarged digit
    slow: Positive
    fast: Positive
    turn: UnitInterval  # probability of a 90 degree turn before each step but the first
    still: UnitInterval  # share of clips that stand still
    spread: NonNegative  # starts lie at most this far from the middle of the frame, across and down
    tile: PositiveInt = 8  # side of the ground's tiles
    scroll: NonNegativeInt = 0  # px/frame by which the ground moves to the left
    dark: UnitInterval = 0.0  # of the ground's tiles, as a share of the digit's peak
    bright: UnitInterval = 0.0

    def __post_init__(self) -> None:
        """Refuse parameters for which the dynamics are not defined."""
        room = self.size - self.sprite
        if self.sprite < 8 or room <= 0 or self.frames < 2 or self.fps < 1:
            raise ValueError(f"world: no room for motion in {self}")
        if not 0 < self.slow < self.fast <= room / 2:
            raise ValueError(
                f"world: speeds need 0 < slow < fast <= (size - sprite) / 2 = {room / 2}"
            )
        if not (0 <= self.turn <= 1 and 0 <= self.still <= 1):
            raise ValueError("world: turn and still are chances, between 0 and 1")
        if not 0 <= self.spread <= room / 2:
            raise ValueError(f"world: spread {self.spread} must lie in 0 .. {room / 2}")
        if self.tile < 2 or self.size % self.tile or self.scroll < 0 or self.scroll % self.tile:
            raise ValueError(
                f"world: tiles of {self.tile} px must fill {self.size} px, and scroll"
                f" {self.scroll} px/frame be a multiple of them"
            )
        if not 0 <= self.dark <= self.bright < 1:
            raise ValueError("world: the ground's levels need 0 <= dark <= bright < 1")

    def speed(self, attributes: Attributes) -> float:
        """Pixels a frame."""
        return {"slow": self.slow, "fast": self.fast, "still": 0.0}[attributes.speed]

    def draw_attributes(self, rng: np.random.Generator) -> Attributes:
        """Digit, direction and slow/fast uniform; `still` of the clips stand still."""
        digit, heading, fast, chance = (
            rng.integers(10),
            rng.integers(4),
            rng.integers(2),
            rng.random(),
        )
        if chance < self.still:
            return Attributes(int(digit), None, "still")
        return Attributes(int(digit), list(HEADINGS)[heading], "fast" if fast else "slow")

    def trajectory(self, rng: np.random.Generator, attributes: Attributes) -> np.ndarray:
        """A path under the law: states [T, 4] (x, y, vx, vy), float32."""
        low, high = self.sprite / 2, self.size - self.sprite / 2
        heading = np.array(HEADINGS.get(attributes.direction or "", (0, 0)), float)
        velocity = heading * self.speed(attributes)
        near, far = self.size / 2 - self.spread, self.size / 2 + self.spread
        # Uniform over the starts from which the first step is as the caption says, not a bounce.
        first = np.maximum(near, low + np.maximum(-velocity, 0))
        position = rng.uniform(first, np.minimum(far, high - np.maximum(velocity, 0)))
        turns = np.where(rng.random(self.frames) < self.turn, rng.choice([-1, 1], self.frames), 0)
        states = np.empty((self.frames, 4), np.float32)
        for frame in range(self.frames):
            if frame and turns[frame]:
                velocity = turns[frame] * np.array([-velocity[1], velocity[0]])
            states[frame] = *position, *velocity
            moved = position + velocity
            position = np.where(moved < low, 2 * low - moved, moved)
            position = np.where(position > high, 2 * high - position, position)
            velocity = np.where(position == moved, velocity, -velocity)
        return states

    def render(
        self, sprites: np.ndarray, states: np.ndarray, ground: Ground | None = None
    ) -> np.ndarray:
        """The digit in front of the ground, or of black.

        Args:
            sprites: [..., 8, 8] from `digit_bank`.
            states: [..., T, 4].
            ground: of one clip.

        Returns:
            uint8 [..., T, size, size, 1].
        """
        scale = self.sprite / 8
        across = _spline((self._offsets(states[..., 0])) / scale)  # [..., T, size, 8]
        down = _spline((self._offsets(states[..., 1])) / scale)
        ink = np.clip(down @ sprites[..., None, :, :] @ np.swapaxes(across, -1, -2), 0, 1)
        behind = 0.0
        if ground is not None:
            behind = self.dark + (self.bright - self.dark) * ground.brightness(self.size)
        return np.rint(255 * (ink + (1 - ink) * behind)).astype(np.uint8)[..., None]

    def _offsets(self, centre: np.ndarray) -> np.ndarray:
        """Pixel centres minus centres of the digit's 8 columns, [..., size, 8] in pixels."""
        pixels = np.arange(self.size) + 0.5
        columns = (np.arange(8) - 3.5) * (self.sprite / 8)
        return pixels[:, None] - columns - np.asarray(centre, np.float64)[..., None, None]

    def clip(self, seed: int, split: str, index: int) -> Clip:
        """Clip `index` of `split`, independent of all other clips."""
        rng = generator(seed, split, index)
        attributes = self.draw_attributes(rng)
        sprites, labels = digit_bank(split)
        mine = np.flatnonzero(labels == attributes.digit)
        image = int(mine[rng.integers(len(mine))])
        states = self.trajectory(rng, attributes)
        ground = Ground.draw(rng, self.size, self.frames, self.tile, self.scroll)
        video = self.render(sprites[image], states, ground)
        return Clip(attributes, image, states, ground, video)


@dataclass(frozen=True)
class Clip:
    """A clip: `image` of the bank, true states [T, 4] f32, ground, video [T, size, size, 1] u8."""

    attributes: Attributes
    image: int
    states: np.ndarray
    ground: Ground
    video: np.ndarray


def generator(seed: int, split: str, index: int) -> np.random.Generator:
    """The random generator of one clip."""
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([seed, SPLITS.index(split), index]))
    )


@lru_cache(maxsize=2)
def digit_bank(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digits that `split` may use.

    Two thirds of each class train, the rest is held out, less images equal to a train image.

    Returns:
        read-only: spline coefficients [n, 8, 8] f64 (the surface peaks at 1), labels [n] int64.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    from sklearn.datasets import load_digits  # takes a second to import; only curation needs it

    data = load_digits()
    images, labels = data.images, data.target.astype(np.int64)
    order = np.random.Generator(np.random.PCG64(0)).random(len(labels)).argsort(kind="stable")
    rank = np.empty(len(labels))
    for digit in range(10):
        members = order[labels[order] == digit]
        rank[members] = np.arange(len(members)) / len(members)
    train = rank < _TRAIN_SHARE
    seen = {image.tobytes() for image in images[train]}
    fresh = np.array([image.tobytes() not in seen for image in images])
    chosen = np.flatnonzero(train if split == "train" else ~train & fresh)
    sprites = images[chosen] / _peak(images[chosen])
    for array in (sprites, labels := labels[chosen]):
        array.setflags(write=False)
    return sprites, labels


def _peak(images: np.ndarray) -> np.ndarray:
    """Highest point of each digit's spline surface, [n, 1, 1], on a grid of quarter pixels."""
    grid = _spline((np.arange(0, 8, 0.25) - 0.5)[:, None] - np.arange(8))
    return (grid @ images @ grid.T).max(axis=(-1, -2), keepdims=True)


def _spline(distance: np.ndarray) -> np.ndarray:
    """Cubic B-spline, in units of the knot distance: C2, sums to 1 over knots, 0 beyond 2."""
    d = np.abs(distance)
    near = 2 / 3 - d**2 + d**3 / 2
    far = np.maximum(2 - d, 0) ** 3 / 6
    return np.where(d < 1, near, far)
