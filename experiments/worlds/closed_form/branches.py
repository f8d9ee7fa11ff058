"""Mode coverage of generated clips, and their variance within each mode.

A clip's mode is its first frame's component and the sign of each turn: the argmax of the law's
posterior given the clip. A frame between two branches is assigned to the likelier one; how far off
the branches it lies is measured by `law.spread`.
"""

import numpy as np
import torch
from torch import Tensor

from experiments.metrics.distances import divergence
from experiments.metrics.registry import Measurement, NotApplicable
from experiments.metrics.statistics import bootstrap_interval, spread_interval
from experiments.worlds.closed_form.context import View, of_samples


def modes(view: View, vectors: Tensor) -> np.ndarray:
    """Component and turns of each clip as one number, int [N]: ``component 2^(F-1) + turns``."""
    turns = (view.law.branches_of(vectors) > 0.5).long()
    places = 2 ** torch.arange(turns.shape[1])
    component = view.law.components_of(vectors).argmax(1)
    return (component * 2 ** turns.shape[1] + turns @ places).numpy()


def _frequencies(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Expected mode counts [K] under the law, and generated ones with resamples [1 + R, K]."""
    if view.law.angle == 0:
        raise NotApplicable("the law does not branch")
    turns = 2 ** (view.law.frames - 1)
    chance = np.repeat(np.array(view.law.weights) / turns, turns)
    own = modes(view, view.samples.vectors)[:, None] == np.arange(len(chance))
    return chance * len(own), np.vstack([own.sum(axis=0), view.weights @ own])


def _kl(view: View, covering: bool) -> Measurement:
    law, counts = _frequencies(view)
    kl = divergence(law, counts) if covering else divergence(counts, law)
    by_turns = counts[0].reshape(len(view.law.weights), -1).sum(axis=0)
    return Measurement(
        float(kl[0]),
        len(view.samples),
        spread_interval(float(kl[0]), kl[1:]),
        curves={"turns": (by_turns / by_turns.sum()).tolist()},
    )


@of_samples("law.modes.kl_covering", "KL(law || generated) of modes", unit="nats")
def kl_covering(view: View) -> Measurement:
    """KL(law || clips) over modes: large when clips miss modes (mode seeking)."""
    return _kl(view, covering=True)


@of_samples("law.modes.kl_seeking", "KL(generated || law) of modes", unit="nats")
def kl_seeking(view: View) -> Measurement:
    """KL(clips || law) over modes: large when clips often take modes rare under the law."""
    return _kl(view, covering=False)


@of_samples(
    "law.spread",
    "spread about the branch",
    scope="sample",
    unit="of the law's",
    higher_is_better=None,
)
def spread(view: View) -> Measurement:
    """Mean squared distance of a frame to the branch means given its own predecessor, weighted by
    the branch posterior, divided by the same of the law: 1 is right, below 1 is collapsed, above 1
    is off the branches. Also per branch.
    """
    clips = view.samples.vectors
    given = view.law.conditional(clips)
    belief = given.responsibilities(clips)[:, 1:, :2]
    squares = (clips[:, 1:, None] - given.means[:, 1:, :2]).square().mean(-1) / view.law.noise**2
    per_clip = (belief * squares).sum(2).mean(1).numpy()
    each = ((belief * squares).sum((0, 1)) / belief.sum((0, 1))).tolist()
    return Measurement(
        float(per_clip.mean()),
        len(clips),
        bootstrap_interval(per_clip, view.seed),
        per_clip,
        extra=dict(zip(("left", "right"), each, strict=True)),
    )
