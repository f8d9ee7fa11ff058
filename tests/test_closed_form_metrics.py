"""The `law.*` metrics on inputs whose answer is known: the law itself, and known errors."""

import math
from functools import lru_cache

import numpy as np
import published_bugs
import pytest
import torch
from torch import nn

from experiments.metrics.registry import METRICS, Measurement, NotApplicable, selected
from experiments.metrics.statistics import resample_weights
from experiments.worlds.closed_form import facts, history
from experiments.worlds.closed_form import score as closed_form  # noqa: F401  it registers all metrics
from experiments.worlds.closed_form.context import Clips, View
from experiments.worlds.closed_form.distances import conditional_energy, energy_distance
from lightning_modules.networks.closed_form.gaussian_world import GaussianWorld
from lightning_modules.networks.closed_form.network import ClosedForm

pytestmark = pytest.mark.numeric

COUNT = 512
SWITCHING = GaussianWorld(
    means=((1.2, 0.0), (-0.6, 1.04), (-0.6, -1.04)), weights=(0.5, 0.3, 0.2), spread=0.2,
    decay=1.0, noise=0.15, angle=0.8, frames=3,
)  # fmt: skip
GAUSSIAN = GaussianWorld(
    means=((0.0, 0.0),), weights=(1.0,), spread=1.0, decay=0.8, noise=0.6, angle=0.0, frames=3
)


class ExactMap(nn.Module):
    """A student that has learnt the exact flow map, `squeezed` towards what it would be without
    noise; only on clean context, in parallel or with a cache.
    """

    def __init__(self, law: GaussianWorld, squeezed: float = 1.0) -> None:
        super().__init__()
        self.law, self.squeezed = law, squeezed

    def new_cache(self) -> list:
        return []

    def forward(
        self, x, t, text, *, frames, visible=None, cache=None, write_cache=False, predicted=None
    ):
        if write_cache:
            cache.append(x)
            return x[:, :0]
        count = x.shape[1]
        if cache is not None:
            past = torch.cat([*cache, torch.zeros_like(x)], dim=1)
            noisy = torch.zeros_like(past)
            noisy[:, -count:], level = x, torch.ones(past.shape[:2])
            level[:, -count:] = t
            v = self.velocity(noisy, level, past, text)
            return v[:, -count:]
        half = count // 2
        assert predicted == half
        return self.velocity(x[:, half:], t[:, half:], x[:, :half], text)

    def velocity(self, x, t, past, text):
        given = self.law.conditional(_filled(past, self.law), text[:, 0].argmax(1))
        noisy, level = _filled(x, self.law), t.double()
        level = nn.functional.pad(level, (0, self.law.frames - t.shape[1]), value=1.0)
        end = given.flow_map(noisy * self.squeezed, level, steps=32)[:, : x.shape[1]]
        return ((x.flatten(2).double() - end) / t[..., None]).view_as(x).float()


def _filled(x, law):
    """Vectors of a whole clip, zeros where frames are missing."""
    return nn.functional.pad(x.flatten(2).double(), (0, 0, 0, law.frames - x.shape[1]))


@lru_cache
def drawn(law: GaussianWorld, purpose: str) -> Clips:
    return View(ClosedForm.of(law, 2), 0, 2.0, 8, 1).draw(COUNT, purpose)


def beside(law: GaussianWorld, samples: Clips | None = None, student=None) -> View:
    network, reference = ClosedForm.of(law, 2), drawn(law, "reference")
    if student is not None:
        reference = reference.first(128)
    return View(network, 0, 2.0, 8, 1, reference, samples, student)


def found(metric: str, view: View) -> Measurement:
    with torch.no_grad():
        return METRICS[metric].compute(view)


def moved(law: GaussianWorld, change) -> Clips:
    """Fresh clips of the law whose vectors `change` has altered."""
    clips = drawn(law, "samples")
    return Clips(change(clips.vectors).float().view_as(clips.latents), clips.text)


def shifted(x):
    return x + 0.3


def collapsed(x):
    """Every clip takes the first clip's turns, but for its width."""
    return x[:1] + 0.1 * (x - x.mean(0))


def averaged(x):
    """Frames after the first are their law's conditional mean: between both turns."""
    return torch.cat([x[:, :1], math.cos(SWITCHING.angle) * x[:, :-1]], dim=1)


def test_samples_of_the_law_score_at_the_floor():
    view = beside(SWITCHING, drawn(SWITCHING, "samples"))
    floor = {"law.energy": 0.02, "law.sliced_wasserstein": 0.08, "law.modes.kl_covering": 0.05}
    for metric, limit in (floor | {"law.modes.kl_seeking": 0.05}).items():
        assert 0 <= found(metric, view).value < limit, metric
    low, high = found("law.energy_drift", view).interval
    assert low < 0 < high
    assert found("law.precision", view).value > 0.97 and found("law.recall", view).value > 0.9
    low, high = found("law.spread", view).interval
    assert low < 1 < high and high - low < 0.15


@pytest.mark.parametrize("change", [shifted, collapsed, averaged])
def test_a_shifted_a_collapsed_and_an_averaging_sampler_are_caught(change):
    floor, view = (
        beside(SWITCHING, drawn(SWITCHING, "samples")),
        beside(SWITCHING, moved(SWITCHING, change)),
    )
    assert found("law.energy", view).value > 5 * found("law.energy", floor).value
    assert found("law.energy", view).interval[0] > found("law.energy", floor).interval[1]
    assert found("law.sliced_wasserstein", view).value > 0.15
    assert found("law.precision", view).value < 0.9 or found("law.recall", view).value < 0.5


def test_collapse_shows_in_the_modes_and_averaging_in_the_spread():
    collapse = beside(SWITCHING, moved(SWITCHING, collapsed))
    assert found("law.modes.kl_covering", collapse).value > 1.5
    assert found("law.modes.kl_seeking", collapse).value > 1.0
    average = found("law.spread", beside(SWITCHING, moved(SWITCHING, averaged)))
    off = (math.sin(SWITCHING.angle) / SWITCHING.noise) ** 2 * 1.2 / 2
    assert off / 2 < average.value < 2 * off, "as far from both turns as they are from their mean"


def test_drift_is_the_slope_over_frames():
    later = torch.arange(3.0)[:, None] * 0.3
    drift = found("law.energy_drift", beside(SWITCHING, moved(SWITCHING, lambda x: x + later)))
    assert drift.value > 0.02 and drift.extra["tau"] == 1 and drift.interval[0] > 0
    assert len(drift.curves["by_frame"]) == 3


def test_energy_distance_of_two_points_and_its_unbiased_form():
    """Of samples {0} and {3}: 2 * 3 - 0 - 0. Conditional draws of one law average to 0."""
    weights = np.ones((1, 1))
    value, resampled = energy_distance(np.zeros((1, 1)), np.full((1, 1), 3.0), weights)
    assert value == 6 and resampled == [6]
    rng = np.random.default_rng(0)
    same = conditional_energy(rng.normal(size=(400, 16, 2)), rng.normal(size=(400, 32, 2)))
    assert abs(same.mean()) < 4 * same.std() / 20
    near, far = rng.normal(size=(2, 200, 1))
    value, drawn_values = energy_distance(near, far + 1, resample_weights(200, 200, 0))
    assert abs(drawn_values.mean() - value) < 3 * drawn_values.std()


@pytest.mark.parametrize("law", [SWITCHING, GAUSSIAN])
def test_the_exact_flow_map_has_no_error_and_the_velocity_alone_has(law):
    exact = found("law.flow_map", beside(law, student=ExactMap(law)))
    naive = found("law.flow_map", beside(law, student=ClosedForm.of(law, 2)))
    assert exact.value < 2e-3 < 0.2 < naive.value
    assert len(exact.curves["by_time"]) == len(exact.curves["times"]) == 8
    assert naive.curves["by_time"][0] == pytest.approx(naive.extra["from_noise"])
    assert naive.interval[0] < naive.value < naive.interval[1]


def test_a_squeezed_map_is_caught_and_has_less_than_the_laws_variance():
    exact, squeezed = (beside(GAUSSIAN, student=ExactMap(GAUSSIAN, by)) for by in (1.0, 0.5))
    assert found("law.flow_map", squeezed).value > 0.1
    right, narrow = (found("law.next.variance", view) for view in (exact, squeezed))
    low, high = (
        right.interval
    )  # at 95%: one draw in twenty lies outside, one in ten thousand at twice
    assert abs(right.value - 1) < high - low
    assert narrow.value == pytest.approx(0.25, abs=0.03)
    both = found("law.next.variance", beside(SWITCHING, student=ExactMap(SWITCHING)))
    assert both.extra == pytest.approx({"left": 1, "right": 1}, abs=0.15)


def test_an_exact_sampler_keeps_to_the_law_given_a_shifted_history():
    """Given that history it stays exact; given the true one it moves as the law does."""
    rise = found("law.history", beside(SWITCHING, student=ExactMap(SWITCHING)))
    curves = rise.curves
    assert abs(rise.value) < 0.03 and max(map(abs, curves["to_shifted"])) < 0.03
    assert curves["to_true"] == pytest.approx(curves["exact_to_true"], abs=0.05)
    assert curves["to_true"][-1] > 0.2 and curves["shifts"][-1] == history.SHIFTS[-1]


def test_a_student_that_does_not_know_the_history_is_caught():
    class Deaf(ExactMap):
        def velocity(self, x, t, past, text):
            return super().velocity(x, t, past.round(), text)  # blind to small shifts

    rise = found("law.history", beside(SWITCHING, student=Deaf(SWITCHING)))
    assert rise.curves["to_shifted"][1] > 0.02


def test_the_bidirectional_ode_leaves_a_variance_and_the_ar_ode_none():
    """Var(x0 | x_t, past) > 0 against 0; in the Gaussian world as the closed form has it."""
    law = beside(GAUSSIAN)
    measured = found("law.injectivity.bidirectional", law)
    covariance = torch.tensor([[0.8 ** abs(i - j) for j in range(3)] for i in range(3)]).double()
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ values.sqrt().diag() @ vectors.T
    expected = [float(root[i, i + 1 :].square().sum()) for i in range(3)]
    assert measured.curves["by_frame"] == pytest.approx(expected, rel=0.1, abs=1e-9)
    assert found("law.injectivity.causal", law).value < 1e-10
    given_noise = found("law.injectivity.given_noise", law)
    assert given_noise.curves["by_frame"] == pytest.approx(expected)
    low, high = measured.interval
    assert low < given_noise.value < high, "Monte Carlo's interval has the closed form"
    given_past = found("law.injectivity.given_past", law).curves["by_frame"]
    assert given_past[0] == pytest.approx(expected[0]) and 0 < given_past[1] < expected[1]
    with pytest.raises(NotApplicable):
        found("law.injectivity.given_past", beside(SWITCHING))


def test_the_ode_regressions_residual_is_what_the_law_leaves():
    """The exact AR map has none; beside the bidirectional ODE even the conditional mean has it."""
    view = beside(GAUSSIAN, student=ExactMap(GAUSSIAN))
    assert found("law.residual.causal", view).value < 1e-5

    class Mean(nn.Module):
        """``E[x0^i | noise of frames <= i]``: row i of the root, up to the diagonal."""

        def forward(self, x, t, text, *, frames, visible):
            lags = torch.tensor([[0.8 ** abs(i - j) for j in range(3)] for i in range(3)])
            values, vectors = torch.linalg.eigh(lags)
            mean = (vectors @ values.sqrt().diag() @ vectors.T).tril()
            return x - torch.einsum("ij,bjchw->bichw", mean, x)

    best = found("law.residual.bidirectional", beside(GAUSSIAN, student=Mean()))
    least = found("law.injectivity.bidirectional", view)
    assert best.value == pytest.approx(least.value, rel=0.1)
    assert best.extra["variance"] == pytest.approx(1 - least.value, abs=0.03), "total variance"
    causal = found("law.residual.causal", view)
    assert causal.extra["variance"] == pytest.approx(1, abs=1e-3)


def test_euler_is_of_first_and_heun_of_second_order():
    view = beside(GAUSSIAN)
    assert found("law.order.euler", view).value == pytest.approx(1, abs=0.1)
    heun = found("law.order.heun", view)
    assert heun.value == pytest.approx(2, abs=0.2)
    assert len(heun.curves["errors"]) == len(facts.INTERVALS)


def test_own_clean_content_leaks_the_target():
    strict, own = (found(f"law.leak.{kind}", beside(SWITCHING)) for kind in ("strict", "own"))
    assert own.value < 1e-8 and own.extra["to_target"] < 1e-4
    assert strict.value > 0.3 and strict.extra["to_target"] > 0.1


def test_published_bugs_have_a_size_where_they_bite_and_none_where_they_cannot():
    view = beside(SWITCHING)
    told, mixed = published_bugs.bf16_time(view), published_bugs.mixed_shift(view)
    assert told.curves["by_time"][0] == 0, "1000 is a bf16 number"
    assert 1e-4 < told.value < mixed.value
    assert 1e-4 < published_bugs.nearest_sigma(view).value < mixed.value
    declared = published_bugs.undone_context_noise(view).value
    assert 0 < published_bugs.noisy_commit(view).value < declared
    guided = published_bugs.guidance(view)
    away = [guided.extra[f"to_component_at_{scale}"] for scale in (1, 3, 4)]
    assert away[0] < away[1] < away[2] and guided.value > 0.01
    with pytest.raises(NotApplicable):
        published_bugs.guidance(beside(GAUSSIAN))
    step = published_bugs.bf16_step(view)
    assert step.extra["off_by_a_tenth"] == 23, "of the 48 steps, counted by hand"


def test_without_the_pair_that_reaches_data_cd_rests_at_another_map():
    loose = found("law.bug.no_terminal_pair", beside(SWITCHING))
    assert loose.extra["loss"] < 1e-10 and loose.value > 1.5 * loose.extra["anchored"]


def test_all_is_what_the_needs_allow_and_a_missing_need_is_named():
    law = {metric.id for metric in selected("all", ["law_alone"])}
    assert {"law.injectivity.causal", "law.bug.no_terminal_pair"} <= law and "law.energy" not in law
    judged = {metric.id for metric in selected("all", ["law", "samples"])}
    assert "law.energy" in judged and not judged & law, "facts are measured once, not with each row"
    assert all(m.kind == "exact" for m in METRICS.values() if m.id.startswith("law."))
    with pytest.raises(ValueError, match="law.flow_map needs student"):
        selected(["law.flow_map"], ["law", "samples"])
