"""The linear path: round trips, grids against published numbers, guidance in one convention."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.diffusion import flow

pytestmark = pytest.mark.numeric

times = st.floats(0.0, 1.0)


def draw(seed: int, t: float, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x0, eps = (torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=dtype) for _ in range(2))
    return x0, eps, torch.full((2, 3), t, dtype=dtype)


@given(seed=st.integers(0, 99), t=times)
def test_conversions_round_trip(seed, t):
    x0, eps, t = draw(seed, t)
    x_t, v = flow.add_noise(x0, eps, t), flow.velocity(x0, eps)
    torch.testing.assert_close(flow.to_x0(x_t, v, t), x0)


@given(seed=st.integers(0, 99), t=times, t_next=times, solver=st.sampled_from([*flow.SOLVERS]))
def test_every_solver_is_exact_on_a_straight_path(seed, t, t_next, solver):
    x0, eps, t = draw(seed, t)
    t_next = torch.full_like(t, t_next)
    straight = flow.velocity(x0, eps)
    stepped = flow.SOLVERS[solver](lambda x, t: straight, flow.add_noise(x0, eps, t), t, t_next)
    torch.testing.assert_close(stepped, flow.add_noise(x0, eps, t_next))


def test_heun_does_not_ask_the_velocity_at_time_zero():
    """It calls it there for samples that end above 0 in the same batch, and drops the answer."""

    def v(x, t):
        return torch.where(flow.per_frame(t) == 0, torch.nan, x - flow.per_frame(t))

    x, t = torch.ones(2, 3, 1, 1, 1), torch.full((2, 3), 0.4)
    t_next = torch.tensor([[0.0], [0.2]]).expand(2, 3)
    stepped = flow.heun(v, x, t, t_next)
    assert torch.equal(stepped[0], flow.euler(v, x, t, t_next)[0])
    middle = 1 - 0.2 * 0.6  # x at t = 0.2 by Euler; v there is x - t
    assert torch.allclose(stepped[1], torch.tensor(1 - 0.2 * (0.6 + middle - 0.2) / 2))


def test_no_noise_at_time_zero():
    x0, eps, t = draw(0, 0.0, torch.float32)
    assert torch.equal(flow.add_noise(x0, eps, t), x0)
    assert torch.equal(flow.to_x0(x0, eps, t), x0)  # G(x, 0) = x, whatever the network says


def test_published_few_step_list_and_ode_grid():
    four = flow.time_grid(4, 5.0)[:-1]
    torch.testing.assert_close(1000 * four, torch.tensor([1000, 937.5, 2500 / 3, 625.0]).double())
    ode = flow.time_grid(48, 5.0)
    assert torch.equal(ode[[0, 12, 24, 36]], four)
    assert ode[0] == 1 and ode[-1] == 0 and len(ode) == 49
    torch.testing.assert_close(1000 * ode[1:3], torch.tensor([995.7627, 991.3793]).double())
    torch.testing.assert_close(1000 * ode[47], torch.tensor(96.153846).double())


@pytest.mark.parametrize("by, expected", [(5.0, 0.9375), (8.0, 0.96)])
def test_shift_of_three_quarters(by, expected):
    assert flow.shift(0.75, by) == pytest.approx(expected)


def test_times_are_exact_not_looked_up():
    """A sigma between two members of the 1000-step grid is used as it is (published: nearest)."""
    grid = flow.time_grid(1000, 5.0)
    t = (grid[400] + grid[401]) / 2
    x0, eps, _ = draw(0, 0.0)
    level = torch.full((2, 3), t.item(), dtype=torch.float64)
    assert torch.equal(flow.add_noise(x0, eps, level), (1 - t) * x0 + t * eps)


def test_grid_keeps_neighbouring_times_apart():
    """Times rounded to bf16, as published, make steps of 4.2 thousandths into 4 or 8."""
    grid = flow.time_grid(48, 5.0).float()
    steps = grid[:-1] - grid[1:]
    exact = flow.time_grid(48, 5.0)
    torch.testing.assert_close(steps.double(), exact[:-1] - exact[1:], rtol=1e-4, atol=0)
    rounded = grid.to(torch.bfloat16).double()
    ratio = (rounded[:-1] - rounded[1:]) / (exact[:-1] - exact[1:])
    assert ratio.max() > 1.5 and ratio.min() < 0.7  # what this test would catch


def test_guidance_has_one_meaning():
    conditional, unconditional = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.allclose(flow.guide(conditional, unconditional, 1.0), conditional)
    published_three = conditional + 3 * (conditional - unconditional)
    torch.testing.assert_close(flow.guide(conditional, unconditional, 4.0), published_three)


def test_training_weight_is_the_published_table():
    t = torch.tensor([1.0, 0.99, 0.9375, 0.833333, 0.625, 0.5, 0.25, 0.1, 0.005]).double()
    expected = torch.tensor([0.0, 0.064, 0.398, 1.025, 1.914, 2.076, 1.464, 0.638, 0.032]).double()
    torch.testing.assert_close(flow.training_weight(t, 5.0), expected, rtol=0, atol=0.01)
    on_grid = flow.training_weight(flow.time_grid(1000, 5.0)[:-1], 5.0)
    assert on_grid.mean().item() == pytest.approx(1.0)
    assert on_grid.min() >= 0
