"""The next frame given a perturbed context: Fig. 5b of Causal Forcing++ as a measurement.

The clean context is shifted by a multiple of the law's noise in a random direction and written to
the KV cache; the student then samples the last frame many times. Two curves over the shift:

- `to_shifted`: distance to the law's conditional given the *shifted* context. It is 0 for an exact
  sampler at every shift, so it measures how the student generalises beyond its training contexts.
  The paper claims that causal DMD suffers more from a history that drifts; `law.history` is the
  rise of this curve.
- `to_true`: distance to the law's conditional given the *clean* context. It rises for an exact
  sampler too (`exact_to_true`), since a shifted context has a shifted future. This is the visible
  error, which mixes the law with the student.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from experiments.metrics.registry import Measurement
from experiments.metrics.statistics import bootstrap_interval
from experiments.worlds.closed_form.context import Clips, View, of_student
from experiments.worlds.closed_form.distances import conditional_energy
from lightning_modules.diffusion.rollout import FewSteps, Past, few_step_times

SHIFTS = (0.0, 1.0, 2.0, 4.0)  # times the law's noise
PASTS = 48
DRAWS = 24  # samples of the next frame for each context


@of_student("law.history", "rise with the history's shift")
def history(view: View) -> Measurement:
    """Energy distance of the next frame given the shifted context: at the largest shift minus at
    none.
    """
    found = _shifted(view)
    rise = found["to_shifted"][-1] - found["to_shifted"][0]
    curves = {name: values.mean(axis=1).tolist() for name, values in found.items()}
    return Measurement(
        float(rise.mean()),
        PASTS,
        bootstrap_interval(rise, view.seed),
        curves={"shifts": list(SHIFTS), **curves},
    )


@of_student("law.next.variance", "conditional variance", unit="of the law's", higher_is_better=None)
def variance(view: View) -> Measurement:
    """Variance of the next frame given clean context, relative to the law's; 1 is right, 0 is the
    conditional mean. Within each branch alone: `left`, `right`.
    """
    true, drawn = _next_frames(view)[0]
    fresh = _draws(view, true, "variance")
    own, law = (frames.var(axis=1, ddof=1).sum(axis=1) for frames in (drawn, fresh))
    ratio = own / law.mean()
    extra = {}
    if view.law.angle:
        within = [_within_branches(view, true, frames) for frames in (drawn, fresh)]
        extra = {name: within[0][name] / within[1][name] for name in within[0]}
    interval = bootstrap_interval(ratio, view.seed)
    return Measurement(float(ratio.mean()), PASTS, interval, extra=extra)


def _shifted(view: View) -> dict[str, np.ndarray]:
    """Distances `[shifts, PASTS]`: to the law given the shifted context and given the clean one,
    and the distance between these two conditionals of the law.
    """
    frames = _next_frames(view)
    at_true = _draws(view, frames[0][0], "true")
    found: dict[str, list[np.ndarray]] = {"to_shifted": [], "to_true": [], "exact_to_true": []}
    for number, (past, drawn) in enumerate(frames):
        at_shifted = _draws(view, past, f"shifted/{number}")
        found["to_shifted"].append(conditional_energy(drawn, at_shifted))
        found["to_true"].append(conditional_energy(drawn, at_true))
        found["exact_to_true"].append(conditional_energy(at_shifted, at_true))
    return {name: np.stack(values) for name, values in found.items()}


@lru_cache(maxsize=1)  # all metrics of a view share the student's samples
def _next_frames(view: View) -> tuple[tuple[Tensor, np.ndarray], ...]:
    """Per shift: the context `[PASTS, F, d]` and the student's last frames `[PASTS, DRAWS, d]`."""
    clips, size = view.reference.first(PASTS), view.law.size
    direction = torch.randn((PASTS, 1, size), generator=view.generator("direction")).double()
    direction = direction / direction.norm(dim=2, keepdim=True)
    pasts = [clips.vectors + shift * view.law.noise * direction for shift in SHIFTS]
    return tuple((past, _last_frame(view, past, clips)) for past in pasts)


@torch.no_grad()
def _last_frame(view: View, past: Tensor, clips: Clips) -> np.ndarray:
    """The student's last frame given the earlier frames of a context, `[PASTS, DRAWS, d]`."""
    many = Clips(past.float().view_as(clips.latents), clips.text).repeated(DRAWS)
    committed, last = Past(view.student, many.text), len(view.sizes) - 1
    for index in range(last):
        committed.commit(many.latents[:, index : index + 1], slice(index, index + 1))
    noise = view.noise(many.latents, "next/noise")
    times = few_step_times(view.sizes, view.few_steps, view.few_steps, view.shift)
    sample = FewSteps(times, lambda step: view.noise(many.latents, f"next/renoise/{step}"))
    drawn = sample(committed, noise[:, last:], slice(last, last + 1), last)
    return drawn.flatten(1).double().unflatten(0, (len(clips), DRAWS)).numpy()


def _draws(view: View, past: Tensor, purpose: str) -> np.ndarray:
    """Exact last frames of the law given a context `[PASTS, F, d]`: `[PASTS, 4 DRAWS, d]`."""
    generator, count = view.generator(purpose), 4 * DRAWS
    means = view.law.conditional(past).means[:, -1, :2]  # [PASTS, 2, d]
    coins = torch.randint(2, (len(past), count), generator=generator)
    chosen = means.gather(1, coins[..., None].expand(-1, -1, means.shape[-1]))
    z = torch.randn(chosen.shape, generator=generator, dtype=torch.float64)
    return (chosen + view.law.noise * z).numpy()


def _within_branches(view: View, past: Tensor, drawn: np.ndarray) -> dict[str, float]:
    """Variance about each branch's mean given the context; branches without draws are left out."""
    means = view.law.conditional(past).means[:, -1, :2].numpy()
    nearest = np.linalg.norm(drawn[:, :, None] - means[:, None], axis=-1).argmin(-1)
    found = {}
    for branch, name in enumerate(("left", "right")):
        kept = [d[n == branch] for d, n in zip(drawn, nearest, strict=True)]
        variances = [d.var(axis=0, ddof=1).mean() for d in kept if len(d) > 2]
        if variances:
            found[name] = float(np.mean(variances))
    return found
