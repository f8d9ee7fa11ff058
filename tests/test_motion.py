"""Speed and path of the moving digit in a clip, against the world's true states."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_probe import WORLD, clips

from experiments.metrics import motion
from experiments.worlds.digits.trajectory import HEADINGS, SPEEDS, follow


@pytest.mark.parametrize(
    ("shape", "fps", "rule"),
    [
        ((81, 480, 832), 16, (2, 41, 11.25, 10)),
        ((8, 32, 32), 8, (1, 8, 0.75, 2)),
        ((21, 32, 32), 8, (1, 21, 0.75, 5)),
    ],
)
def test_dynamic_rule_constants(shape, fps, rule):
    found = motion.DynamicRule.of(*shape, fps)
    assert (found.interval, found.frames, found.threshold, found.pairs) == rule


def test_flow_follows_the_true_speed():
    """Of the digit, where nothing else moves."""
    black = replace(WORLD, scroll=0, dark=0.0, bright=0.0)
    made = [black.clip(0, "heldout", number) for number in range(64)]
    magnitudes = motion.fastest(np.stack([clip.video for clip in made])).mean(axis=1)
    speeds = np.array([clip.attributes.speed for clip in made])
    assert magnitudes[speeds == "still"].max() < 0.2
    assert magnitudes[speeds == "slow"].mean() == pytest.approx(1.5, abs=0.3)
    assert magnitudes[speeds == "fast"].mean() == pytest.approx(3.0, abs=0.7)


def test_the_law_explains_true_paths_exactly():
    data = clips("heldout", 256)
    path = follow(data.states[..., :2], WORLD)
    assert path.residual.max() < 1e-4
    assert [SPEEDS[s] for s in path.speed] == [a["speed"] for a in data.attributes]
    for heading, wanted in zip(path.heading[:, 0], data.attributes, strict=True):
        assert wanted["direction"] in (None, HEADINGS[heading])
    shares = path.branches().sum(0) / path.branches().sum()
    assert shares == pytest.approx([0.75, 0.125, 0.125], abs=0.04)


def test_going_back_and_drifting_are_unlawful():
    x = np.array([16, 19, 16, 19, 16, 19, 16, 19.0])
    back = follow(np.stack([x, np.full(8, 16.0)], -1)[None], WORLD)
    assert back.residual.mean() > 0.5
    diagonal = follow((12 + 2 * np.arange(5.0))[None, :, None].repeat(2, 2), WORLD)
    assert diagonal.residual.min() > 0.5
