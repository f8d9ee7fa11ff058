"""The network contract, held by every implementation; the cache they share."""

from itertools import accumulate

import pytest
import torch
from tiny_networks import (
    NETWORKS,
    PARTITIONS,
    F,
    asked,
    causal_matrix,
    teacher_forced_matrix,
)

from experiments.checkpoints.networks import load_network
from lightning_modules.networks import KVCache, Network

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module", params=NETWORKS)
def net(request) -> torch.nn.Module:
    return NETWORKS[request.param]()


@pytest.fixture
def batch(net) -> dict[str, torch.Tensor]:
    return asked(net)


def test_it_is_a_network(net):
    assert isinstance(net, Network)


def layers(net: torch.nn.Module) -> int:
    """How often frames look at each other; a closed form conditions once."""
    return getattr(net.config, "num_layers", 1)


def reachable(visible: torch.Tensor, layers: int) -> torch.Tensor:
    """Who is moved by whom, directly or through other frames."""
    sees = (visible | torch.eye(len(visible), dtype=torch.bool)).float()
    return torch.linalg.matrix_power(sees, layers) > 0


@torch.no_grad()
def test_a_folder_holds_all_of_it(net, batch, tmp_path):
    net.save_pretrained(tmp_path / "student")
    call = {"frames": torch.arange(F), "visible": causal_matrix([1, 2, 3])}
    asked = (batch["noisy"], batch["t"], batch["text"])
    assert torch.equal(load_network(tmp_path)(*asked, **call), net(*asked, **call))


@torch.no_grad()
@pytest.mark.parametrize("context_t", [0.0, 0.1])
@pytest.mark.parametrize("name", PARTITIONS)
def test_parallel_equals_cached(net, batch, name, context_t):
    blocks = PARTITIONS[name]
    clean, noisy, t, text = batch.values()
    context = torch.full_like(t, context_t)
    parallel = net(
        torch.cat((clean, noisy), 1),
        torch.cat((context, t), 1),
        text,
        frames=torch.arange(F).repeat(2),
        visible=teacher_forced_matrix(blocks),
    )[:, F:]
    cache = net.new_cache()
    for end, size in zip(accumulate(blocks), blocks, strict=True):
        now = slice(end - size, end)
        frames = torch.arange(F)[now]
        v = net(noisy[:, now], t[:, now], text, frames=frames, cache=cache)
        torch.testing.assert_close(v, parallel[:, now], atol=1e-5, rtol=1e-5)
        net(clean[:, now], context[:, now], text, frames=frames, cache=cache, write_cache=True)
        assert len(cache) == end
    assert cache.frames == tuple(range(F))
    forgetful = net(noisy[:, -1:], t[:, -1:], text, frames=torch.arange(F)[-1:])
    if blocks[-1] == 1:
        assert (forgetful - parallel[:, -1:]).abs().max() > 1e-3  # the comparison has power


@torch.no_grad()
@pytest.mark.parametrize("name", PARTITIONS)
def test_perturbing_a_frame_moves_only_who_sees_it(net, batch, name):
    visible = teacher_forced_matrix(PARTITIONS[name])
    x, t = torch.cat((batch["clean"], batch["noisy"]), 1), batch["t"].repeat(1, 2)
    call = {"frames": torch.arange(F).repeat(2), "visible": visible}
    before = net(x, t, batch["text"], **call)
    reach = reachable(visible, layers(net))
    for moved in range(2 * F):
        nudged = x.clone()
        nudged[:, moved] += 1.0
        change = (net(nudged, t, batch["text"], **call) - before).flatten(2).abs().amax((0, 2))
        assert torch.equal(change > 0, reach[:, moved])


@torch.no_grad()
@pytest.mark.parametrize("predicted", [0, 1, F, 2 * F])
@pytest.mark.parametrize("name", PARTITIONS)
def test_what_is_predicted_does_not_depend_on_how_much(net, batch, name, predicted):
    x, t = torch.cat((batch["clean"], batch["noisy"]), 1), batch["t"].repeat(1, 2)
    call = {"frames": torch.arange(F).repeat(2), "visible": teacher_forced_matrix(PARTITIONS[name])}
    call |= {"write_cache": True}
    whole, part = net.new_cache(), net.new_cache()
    expected = net(x, t, batch["text"], cache=whole, **call)[:, 2 * F - predicted :]
    v = net(x, t, batch["text"], cache=part, **call, predicted=predicted)
    assert v.shape == expected.shape and v.dtype == torch.float32
    torch.testing.assert_close(v, expected, atol=5e-6, rtol=1e-5)  # a product of fewer rows rounds
    for layer in range(layers(net)):
        assert all(map(torch.equal, whole.read(layer), part.read(layer))), "these are all the rows"
    with pytest.raises(ValueError, match=f"predicted: {2 * F + 1} .* the call has {2 * F}"):
        net(x, t, batch["text"], cache=part, **call, predicted=2 * F + 1)


def test_no_gradient_through_the_cache(net, batch):
    past = batch["clean"].clone().requires_grad_()
    cache = net.new_cache()
    with torch.no_grad():
        net(
            past[:, :2],
            batch["t"][:, :2],
            batch["text"],
            frames=torch.arange(2),
            cache=cache,
            write_cache=True,
        )
    assert not any(part.requires_grad for n in range(layers(net)) for part in cache.read(n))
    own = batch["noisy"][:, 2:3].clone().requires_grad_()
    v = net(own, batch["t"][:, 2:3], batch["text"], frames=torch.tensor([2]), cache=cache)
    with torch.no_grad():  # the cache grows while the graph is alive
        net(
            past[:, 2:3],
            batch["t"][:, 2:3],
            batch["text"],
            frames=torch.tensor([2]),
            cache=cache,
            write_cache=True,
        )
    v.square().sum().backward()
    assert own.grad.abs().sum() > 0 and past.grad is None
    net.zero_grad(set_to_none=True)


@torch.no_grad()
def test_batch_of_three_is_three_of_one(net, batch):
    call = {"frames": torch.arange(F), "visible": causal_matrix([1, 2, 3])}
    together = net(batch["noisy"], batch["t"], batch["text"], **call)
    for one in range(3):
        alone = net(*(batch[key][one : one + 1] for key in ("noisy", "t", "text")), **call)
        torch.testing.assert_close(alone[0], together[one], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_time_and_position_of_each_frame_matter(net, batch):
    base = net(batch["noisy"], batch["t"], batch["text"], frames=torch.arange(F))
    spread = net(batch["noisy"], batch["t"], batch["text"], frames=2 * torch.arange(F))
    assert (spread - base).abs().max() > 1e-3
    later = batch["t"].clone()
    later[:, 2] = 1 - later[:, 2]
    alone = torch.eye(F, dtype=torch.bool)
    call = {"frames": torch.arange(F), "visible": alone}
    change = net(batch["noisy"], later, batch["text"], **call) - net(
        batch["noisy"], batch["t"], batch["text"], **call
    )
    assert torch.equal(change.flatten(2).abs().amax((0, 2)) > 1e-4, torch.arange(F) == 2)


def test_write_under_gradient_is_refused(net, batch):
    call = {"frames": torch.arange(F), "write_cache": True}
    with pytest.raises(AssertionError, match="no_grad"):
        net(batch["noisy"], batch["t"], batch["text"], cache=net.new_cache(), **call)
    cache, pair = KVCache(layers=1), (torch.zeros(1, 4, 2, 8),) * 2
    with pytest.raises(AssertionError, match="no_grad"):
        cache.append([0], [pair])
    with torch.no_grad():
        cache.append([0, 1], [pair])
    with pytest.raises(AssertionError, match="no_grad"):
        cache.keep(1)
    with torch.no_grad(), pytest.raises(AssertionError, match="needs a cache"):
        net(batch["noisy"], batch["t"], batch["text"], **call)


@torch.no_grad()
def test_window_and_sinks():
    cache = KVCache(layers=2)
    for frame in range(6):
        part = torch.full((2, 4, 1, 3), float(frame))
        cache.append([frame], [(part, -part)] * 2)
    cache.keep(4, sinks=1)
    assert cache.frames == (0, 3, 4, 5) and len(cache) == 4
    for layer in range(2):
        keys, values = cache.read(layer)
        assert keys[0, :, 0, 0].tolist() == [0.0] * 4 + [3.0] * 4 + [4.0] * 4 + [5.0] * 4
        assert torch.equal(values, -keys)
    cache.keep(9)
    assert len(cache) == 4
    with pytest.raises(ValueError, match="sinks"):
        cache.keep(2, sinks=2)
