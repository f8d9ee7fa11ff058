"""The exact velocity against dense linear algebra, the score, and formulas of the literature."""

import pytest
import torch
from closed_form_world import (
    AR1,
    SWITCHING,
    clips,
    log_density_of_noised,
    network,
    outcomes,
    posterior_velocity,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_modules.diffusion import forcing
from lightning_modules.diffusion.flow import add_noise
from lightning_modules.diffusion.visibility import teacher_forcing_mask
from lightning_modules.networks.closed_form.gaussian_world import GaussianWorld

pytestmark = pytest.mark.numeric

F = 4


def noised(law, count=2, seed=0):
    """Clean and noisy latents ``[N, F, 2, 1, 1]``, levels ``[N, F]``, noise."""
    generator = torch.Generator().manual_seed(seed + 100)
    x0 = clips(law, count, seed).float()[..., None, None]
    eps, t = torch.randn(x0.shape, generator=generator), torch.rand(count, F, generator=generator)
    return x0, add_noise(x0, eps, t), t, eps


def one_hot(component, count):
    text = torch.zeros(count, 1, 2)
    if component is not None:
        text[..., component] = 1
    return text


@settings(max_examples=25)
@given(data=st.data())
def test_any_visibility_equals_dense_conditioning(data):
    """Places in any order and twice, any levels with both ends, any matrix, text or none."""
    places = data.draw(st.lists(st.integers(0, F - 1), min_size=1, max_size=5))
    count = len(places)
    levels = st.sampled_from([0.0, 0.02, 0.3, 0.5, 0.9, 1.0])
    t = [data.draw(levels) for _ in places]
    for j, place in enumerate(places):  # the same frame clean twice is another test
        if t[j] == 0 and (place, 0.0) in zip(places[:j], t[:j], strict=True):
            t[j] = 0.3
    rows = [[data.draw(st.booleans()) for j in range(count)] for i in range(count)]
    component = data.draw(st.sampled_from([None, 0, 1]))
    y = torch.randn(1, count, 2, 1, 1)
    v = network(SWITCHING)(
        y, torch.tensor([t]), one_hot(component, 1), frames=torch.tensor(places),
        visible=torch.tensor(rows),
    )  # fmt: skip
    for i, row in enumerate(rows):
        seen = [j for j in range(count) if row[j]]
        levels_used = torch.tensor(t)  # as the network gets them, float32
        expected = posterior_velocity(
            SWITCHING, y[0].flatten(1), levels_used, places, seen, i, component
        )
        torch.testing.assert_close(v[0, i].flatten().double(), expected, atol=1e-5, rtol=1e-5)


def test_bidirectional_velocity_is_the_score():
    """``score = -E[eps | y] / t`` and ``x0 = (y - t eps) / (1 - t)``, so v follows from log p."""
    _, y, t, _ = noised(SWITCHING)
    v = forcing.bidirectional(network(SWITCHING), y, t, one_hot(None, 2)).flatten(2).double()
    for row in range(2):
        point = y[row].flatten(1).double().requires_grad_()
        level = t[row].double()
        (score,) = torch.autograd.grad(log_density_of_noised(SWITCHING, point, level), point)
        eps = -level[:, None] * score
        x0 = (point.detach() - level[:, None] * eps) / (1 - level[:, None])
        torch.testing.assert_close(v[row], eps - x0, atol=1e-5, rtol=1e-5)


def test_teacher_forced_cached_and_conditional_are_one():
    x0, x_t, t, _ = noised(SWITCHING, 3)
    net, text = network(SWITCHING), one_hot(None, 3)
    parallel = forcing.teacher_forcing(net, x_t, t, text, (1,) * F, clean=x0)
    cache = net.new_cache()
    for i in range(F):
        call = {"frames": torch.tensor([i]), "cache": cache}
        with torch.no_grad():
            alone = net(x_t[:, i : i + 1], t[:, i : i + 1], text, **call)
            net(x0[:, i : i + 1], torch.zeros(3, 1), text, **call, write_cache=True)
        torch.testing.assert_close(alone, parallel[:, i : i + 1], atol=1e-6, rtol=1e-6)
    mixture = SWITCHING.conditional(x0.flatten(2).double())
    exact = mixture.velocity(x_t.flatten(2).double(), t.double())
    torch.testing.assert_close(parallel.flatten(2).double(), exact, atol=1e-6, rtol=1e-6)


def test_ar1_velocity_and_flow_map_are_the_formulas_of_the_literature():
    """``d^2 = (1-t)^2 q^2 + t^2``, ``v = (t - (1-t) q^2) / d^2 (x - (1-t) m) - m``,
    ``f = m + q (x - (1-t) m) / d``."""
    x0, x_t, t, _ = noised(AR1, 3)
    v = (
        forcing.teacher_forcing(network(AR1), x_t, t, torch.zeros(3, 1, 1), (1,) * F, clean=x0)
        .flatten(2)
        .double()
    )
    flow = AR1.flow_map(x_t.flatten(2).double(), t.double(), x0.flatten(2).double())
    x0, x_t, t = x0.flatten(2).double(), x_t.flatten(2).double(), t.double()[..., None]
    m = 0.8 * torch.cat([torch.zeros_like(x0[:, :1]), x0[:, :-1]], 1)
    q = torch.tensor([1.0, 0.6, 0.6, 0.6], dtype=torch.float64)[:, None]
    d = ((1 - t) ** 2 * q**2 + t**2).sqrt()
    rest = x_t - (1 - t) * m
    torch.testing.assert_close(v, (t - (1 - t) * q**2) / d**2 * rest - m, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(flow, m + q * rest / d, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("law", [SWITCHING, AR1], ids=["switching", "ar1"])
def test_both_ends_of_time_are_exact(law):
    """At t = 0 nothing is known of the noise, at t = 1 nothing of the frame but its law."""
    x0, _, t, eps = noised(law, 2)
    text, net = torch.zeros(2, 1, law.components), network(law)
    alone = torch.eye(F, dtype=torch.bool)
    call = {"frames": torch.arange(F), "visible": alone}
    torch.testing.assert_close(net(x0, 0 * t, text, **call), -x0, atol=1e-6, rtol=1e-6)
    mean = sum(p * torch.from_numpy(m) for _, p, m, _ in outcomes(law)).view(F, 2, 1, 1)
    torch.testing.assert_close(
        net(eps, torch.ones_like(t), text, **call), eps - mean.float(), atol=1e-5, rtol=1e-5
    )


def test_a_frame_that_sees_its_own_clean_content_knows_its_noise():
    """The leak of a mask with `<=`: the target itself, at every level."""
    x0, x_t, t, eps = noised(SWITCHING, 3)
    leaky = teacher_forcing_mask((1,) * F)
    leaky[F:, :F] |= torch.eye(F, dtype=torch.bool)
    net, text = network(SWITCHING), one_hot(None, 3)
    v = net(
        torch.cat([x0, x_t], 1), torch.cat([torch.zeros_like(t), t], 1), text,
        frames=torch.arange(F).repeat(2), visible=leaky,
    )[:, F:]  # fmt: skip
    torch.testing.assert_close(v, eps - x0, atol=1e-4, rtol=1e-4)
    proper = forcing.teacher_forcing(net, x_t, t, text, (1,) * F, clean=x0)
    assert (proper - (eps - x0)).square().mean() > 0.1, "without the leak the target is unknown"


def test_a_frame_seen_clean_twice_is_seen_once():
    """Singular but for a variance of 1e-10, and still the same answer."""
    x0, x_t, t, _ = noised(SWITCHING, 2)
    net, text = network(SWITCHING), one_hot(None, 2)

    def v(copies):
        shown = torch.cat([x0[:, :1]] * copies + [x_t[:, 1:2]], 1)
        level = torch.cat([torch.zeros(2, copies), t[:, 1:2]], 1)
        return net(shown, level, text, frames=torch.tensor([0] * copies + [1]))[:, -1]

    torch.testing.assert_close(v(2), v(1), atol=1e-5, rtol=1e-5)


def test_guidance_extrapolates_between_a_component_and_the_mixture():
    """``u + w (c - u)`` with both branches known: the teacher-forced first frame in closed form."""
    x0, x_t, t, _ = noised(SWITCHING, 3)
    net, negative, w = network(SWITCHING), torch.zeros(1, 2), 3.0

    def of(text):
        return forcing.teacher_forcing(net, x_t, t, text, (1,) * F, clean=x0)

    guided = forcing.guided(of, one_hot(1, 3), negative, w).flatten(2).double()
    flat, noisy, level = x0.flatten(2).double(), x_t.flatten(2).double(), t.double()
    known = SWITCHING.conditional(flat, torch.ones(3, dtype=torch.long)).velocity(noisy, level)
    anyone = SWITCHING.conditional(flat).velocity(noisy, level)
    torch.testing.assert_close(guided, anyone + w * (known - anyone), atol=1e-5, rtol=1e-5)
    assert (guided - known)[:, 0].abs().max() > 0.1
    torch.testing.assert_close(guided[:, 1:], known[:, 1:], atol=1e-5, rtol=1e-5)


def test_the_law_is_what_is_drawn():
    """Mean and covariance of many clips against the dense joint; signs, components, branches."""
    frames, component, signs = SWITCHING.draw(40_000, torch.Generator().manual_seed(1))
    mean = sum(p * m for _, p, m, _ in outcomes(SWITCHING))
    second = sum(p * (covariance + m[:, None] * m) for _, p, m, covariance in outcomes(SWITCHING))
    flat = frames.flatten(1)
    torch.testing.assert_close(flat.mean(0), torch.from_numpy(mean), atol=0.02, rtol=0)
    found = flat.T @ flat / len(flat)
    torch.testing.assert_close(found, torch.from_numpy(second), atol=0.03, rtol=0)
    assert abs((component == 1).double().mean() - 0.3) < 0.01
    assert signs.double().mean(0).abs().max() < 0.02
    assert set(signs.unique().tolist()) == {-1, 1}
    for belief, truth in (
        (SWITCHING.branches_of(frames), signs == 1),
        (SWITCHING.components_of(frames)[:, 1], component == 1),
    ):
        for low in (0.1, 0.4, 0.7):  # what is believed by b is true in b of the cases
            near = (belief > low) & (belief < low + 0.2)
            error = (truth[near].double() - belief[near]).mean().abs()
            assert near.sum() > 50 and error < 4 * (0.25 / near.sum()) ** 0.5


def test_log_density_is_that_of_the_joint():
    x = clips(SWITCHING, 3)
    nearly_clean = torch.full((F,), 1e-6, dtype=torch.float64)
    dense = torch.stack([log_density_of_noised(SWITCHING, one, nearly_clean) for one in x])
    torch.testing.assert_close(SWITCHING.log_density(x), dense, atol=1e-4, rtol=0)


def test_gradient_flows_into_what_is_asked_and_seen():
    x0, x_t, t, _ = noised(SWITCHING, 2)
    x0.requires_grad_(), x_t.requires_grad_()
    v = forcing.teacher_forcing(network(SWITCHING), x_t, t, one_hot(None, 2), (1,) * F, clean=x0)
    v[:, 2].sum().backward()
    assert x_t.grad[:, 2].all() and not x_t.grad[:, [0, 1, 3]].any()
    assert x0.grad[:, 1].all() and not x0.grad[:, 2:].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": (0.7, 0.2)}, "do not sum to 1"),
        ({"weights": (1.0,)}, "not a positive one for each mean"),
        ({"means": ((1.0,), (1.0, 2.0))}, "not vectors of one size"),
        ({"means": ((1.0,), (2.0,))}, "have no pairs"),
        ({"noise": 0.0}, "must be positive"),
        ({"frames": 0}, "at least one"),
    ],
)
def test_numbers_that_make_no_law_are_refused(change, message):
    numbers = {name: getattr(SWITCHING, name) for name in SWITCHING.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        GaussianWorld(**numbers | change)
