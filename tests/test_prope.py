"""PRoPE: more heads of the same self-attention, under the network contract."""

import json
from itertools import accumulate

import pytest
import torch
from posed_networks import like_base, matrices, posed_wan, somewhere, walks
from test_cuda_graphs import Recorder
from tiny_networks import (
    PARTITIONS,
    TINY,
    F,
    asked,
    causal_matrix,
    shake,
    teacher_forced_matrix,
    tiny_wan,
)

from datamodules.cameras import from_stored
from experiments.checkpoints.networks import load_network
from lightning_modules.networks import Wan
from lightning_modules.networks.cameras import Posed, projective, tiled
from lightning_modules.networks.wan.attention import attend
from lightning_modules.networks.wan.block import WanBlock
from lightning_modules.networks.wan.cuda_graphs import Replay

pytestmark = pytest.mark.numeric
FRAMES = torch.arange(F)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def net() -> Wan:
    return posed_wan()


@pytest.fixture(scope="module")
def batch(net) -> dict[str, torch.Tensor]:
    return asked(net)


def forward(net, batch, cameras=None, **how):
    how = {"frames": FRAMES, "visible": causal_matrix([1, 2, 3])} | how
    bound = net if cameras is None else Posed(net, cameras)
    return bound(batch["noisy"], batch["t"], batch["text"], **how)


# -- the matrices ----------------------------------------------------------------------------


def test_the_matrix_and_its_inverse_are_those_of_the_formula():
    poses, lenses = walks()
    found = projective(poses, lenses)
    assert found.dtype == torch.float32
    for clip, frame in ((0, 3), (2, 5)):
        fx, fy, cx, cy = lenses[clip, frame].tolist()
        lift = torch.tensor(
            [[fx, 0, cx - 0.5, 0], [0, fy, cy - 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
            dtype=torch.float64,
        )
        whole = lift @ torch.from_numpy(from_stored(poses[clip, frame].numpy()))
        torch.testing.assert_close(found[clip, frame, 0].double(), whole, atol=1e-6, rtol=0)
        inverse = torch.linalg.inv(whole)
        torch.testing.assert_close(found[clip, frame, 1].double(), inverse, atol=1e-6, rtol=0)


def test_the_tiled_product_has_the_right_gradient():
    x = torch.randn(2, 6, 2, 8, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(tiled, (x, matrix))


# -- the network -----------------------------------------------------------------------------


@torch.no_grad()
def test_with_a_zero_output_it_is_the_base_bit_for_bit(batch):
    base, posed = like_base()
    assert torch.equal(forward(posed, batch, matrices()), forward(base, batch))


def test_a_network_without_cameras_has_the_state_and_the_config_it_had(tmp_path):
    base = tiny_wan()
    assert not any("prope" in name for name in base.state_dict())
    base.save_pretrained(tmp_path)
    assert "cameras" not in json.loads((tmp_path / "config.json").read_text())


@torch.no_grad()
def test_a_folder_holds_its_cameras(net, batch, tmp_path):
    net.save_pretrained(tmp_path / "student")
    again = load_network(tmp_path)
    assert again.config.cameras is True
    assert torch.equal(forward(again, batch, matrices()), forward(net, batch, matrices()))


@torch.no_grad()
def test_cameras_matter_and_missing_ones_are_refused(net, batch):
    seen = forward(net, batch, matrices())
    assert (forward(net, batch, matrices().flip(0)) - seen).abs().max() > 1e-2
    with pytest.raises(ValueError, match="bind it"):
        forward(net, batch)
    with pytest.raises(ValueError, match="network.cameras=true"):
        forward(tiny_wan(), batch, matrices())
    with pytest.raises(ValueError, match="frame 5 has no camera"):
        forward(net, batch, matrices()[:, :3])


@pytest.mark.parametrize(("distance", "error"), [(1, 3e-6), (10, 1e-5), (100, 1e-4)])
@torch.no_grad()
def test_where_the_world_has_its_origin_changes_nothing(net, batch, distance, error):
    moved = forward(net, batch, matrices(somewhere(distance)))
    torch.testing.assert_close(moved, forward(net, batch, matrices()), atol=error, rtol=error)


@torch.no_grad()
def test_frames_of_one_camera_see_each_other_whichever_it_is(net, batch):
    still = matrices()[:, :1].expand(-1, F, -1, -1, -1)
    other = matrices(somewhere(2.0))[:, 3:4].repeat(1, F, 1, 1, 1)
    other[:, :, 2] = 0  # at rest
    torch.testing.assert_close(forward(net, batch, still), forward(net, batch, other), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", PARTITIONS)
@pytest.mark.parametrize("capacity", [None, F])
@pytest.mark.parametrize("origin", [None, somewhere(1.5)], ids=["still", "moved"])
def test_parallel_equals_cached_wherever_the_origin_moves(net, batch, name, capacity, origin):
    """The origin is moved under the cache after every block but the last."""
    blocks, (clean, noisy, t, text) = PARTITIONS[name], batch.values()
    zeros = torch.zeros_like(t)
    parallel = Posed(net, matrices())(
        torch.cat((clean, noisy), 1),
        torch.cat((zeros, t), 1),
        text,
        frames=FRAMES.repeat(2),
        visible=teacher_forced_matrix(blocks),
    )[:, F:]
    cache, world = net.new_cache(capacity), None
    for end, size in zip(accumulate(blocks), blocks, strict=True):
        now = slice(end - size, end)
        how = {"frames": FRAMES[now], "cache": cache}
        bound = Posed(net, matrices(world))
        v = bound(noisy[:, now], t[:, now], text, **how)
        torch.testing.assert_close(v, parallel[:, now], **CLOSE)
        bound(clean[:, now], zeros[:, now], text, **how, write_cache=True)
        if origin is not None:
            cache.move_origin(torch.from_numpy(origin).expand(3, 4, 4))
            world = origin if world is None else origin @ world


@torch.no_grad()
def test_a_later_camera_moves_nothing_before_it(net, batch):
    cameras = matrices()
    later = torch.cat([cameras[:, :4], matrices(somewhere(1.0))[:, 4:]], 1)
    how = {"visible": causal_matrix([1] * F)}
    before, after = (forward(net, batch, each, **how) for each in (cameras, later))
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().max() > 1e-3


@torch.no_grad()
def test_a_batch_of_three_is_three_of_one(net, batch):
    together = forward(net, batch, matrices())
    for one in range(3):
        part = slice(one, one + 1)
        alone = forward(net, {k: v[part] for k, v in batch.items()}, matrices()[part])
        torch.testing.assert_close(alone[0], together[one], **CLOSE)


@torch.no_grad()
def test_twice_the_heads_are_two_attentions():
    q, k, v = torch.randn(3, 2, 10, 4, 8).unbind()
    once = attend(q, k, v)
    halves = [
        attend(*(part[:, :, heads] for part in (q, k, v))) for heads in (slice(2), slice(2, 4))
    ]
    assert torch.equal(once, torch.cat(halves, -1))


@torch.no_grad()
def test_attention_is_the_paper_s_token_by_token():
    """A loop in float64, written from the formula: o_i = P_i sum_j softmax(q' k' / sqrt(d)) v'."""
    torch.manual_seed(3)
    block = WanBlock(16, 32, 2, "rms_norm_across_heads", True, 1e-6)
    block.add_cameras()
    shake(block)
    cameras = matrices()[:1, :3]
    x = torch.randn(1, 3, 2, 16)  # three frames of two tokens
    one = torch.tensor([1.0, 0.0]).expand(6, 1, 4, 2).contiguous()
    shift, scale = torch.zeros(2, 1, 3, 1, 16).unbind()
    q, k, v = block.self_attention_qkv(x, shift, scale, one, cameras, None)
    layer = block.attn1
    plain_q, plain_k, plain_v = (part[0, :, :2].double() for part in (q, k, v))  # RoPE by 1
    heads = attend(q, k, v)[0].double().unflatten(-1, (4, 8))
    for head in range(2):
        for token in range(6):
            P = cameras[0, token // 2, 0].double()
            scores, values = [], []
            for other in range(6):
                back = torch.linalg.inv(cameras[0, other // 2, 0].double())
                groups = zip(
                    *(
                        part.view(2, 4)
                        for part in (
                            plain_q[token, head],
                            plain_k[other, head],
                            plain_v[other, head],
                        )
                    ),
                    strict=True,
                )
                turned = [(q4 @ P @ back @ k4, back @ v4) for q4, k4, v4 in groups]
                scores.append(sum(score for score, _ in turned) / 8**0.5)
                values.append(torch.cat([value for _, value in turned]))
            weights = torch.stack(scores).softmax(0)
            inner = sum(w * value for w, value in zip(weights, values, strict=True))
            torch.testing.assert_close(heads[token, 2 + head], inner, atol=1e-5, rtol=1e-5)
    out = block.self_attention_out(heads.flatten(1)[None].float(), cameras)
    outer = torch.stack(
        [
            torch.cat([cameras[0, token // 2, 0] @ four for four in row.float().view(-1, 4)])
            for token, row in enumerate(heads[:, 2:].flatten(1))
        ]
    )
    expected = layer.to_out[0](heads[:, :2].flatten(1).float()) + layer.to_prope(outer)
    torch.testing.assert_close(out[0], expected, **CLOSE)


def test_checkpointing_changes_no_gradient_and_the_first_one_reaches_the_new_output(batch):
    _, posed = like_base()

    def gradients():
        posed.zero_grad()
        forward(posed, batch, matrices()).square().mean().backward()
        return {name: parameter.grad.clone() for name, parameter in posed.named_parameters()}

    plain = gradients()
    posed.gradient_checkpointing = True
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], msg=name)
    assert plain["blocks.0.attn1.to_prope.weight"].abs().max() > 0


# -- precision -------------------------------------------------------------------------------


@torch.no_grad()
def test_matrices_stay_float32_under_autocast(net, batch, monkeypatch):
    multiplied = []

    def recorded(x, matrix):
        out = tiled(x, matrix)
        exact = tiled(x.double(), matrix.double())
        multiplied.append((matrix.dtype, (out - exact).norm() / exact.norm()))
        return out

    monkeypatch.setattr("lightning_modules.networks.wan.block.tiled", recorded)
    with torch.autocast("cpu", torch.bfloat16):
        forward(net, batch, matrices(somewhere(3.0)))
    assert len(multiplied) == 4 * TINY["num_layers"]
    assert {dtype for dtype, _ in multiplied} == {torch.float32}
    assert max(error for _, error in multiplied) < 3e-3, "one rounding of the result, no more"


@torch.no_grad()
def test_a_thousand_moves_of_the_origin_stay_near_one(net):
    """Each rounds the bfloat16 keys once more; without moves the distance would ruin them."""
    keys = torch.randn(1, 8, 4, 8)
    caches = {dtype: Wan(**TINY | {"num_layers": 1}).new_cache() for dtype in ("exact", "half")}
    caches["exact"].append([0, 1], [(keys.double(), keys.double())])
    caches["half"].append([0, 1], [(keys.bfloat16(), keys.bfloat16())])
    turn = torch.from_numpy(somewhere(0.0))[None]
    for _ in range(1000):
        for cache in caches.values():
            cache.move_origin(turn)
    exact, half = (cache.read(0)[0].double() for cache in caches.values())
    assert torch.equal(half[:, :, :2], keys[:, :, :2].bfloat16().double()), "RoPE's are untouched"
    error = (half - exact)[:, :, 2:].norm() / exact[:, :, 2:].norm()
    assert 1e-3 < error < 0.1


@torch.no_grad()
def test_graphs_read_the_cameras_they_are_given(net, batch):
    recorder = Recorder()
    replay = Replay(net, recorder)
    cache, t = replay.new_cache(2), batch["t"][:, :1]
    how = {"frames": torch.tensor([0]), "cache": cache}
    for cameras in (matrices(), matrices(), matrices().flip(0), matrices(somewhere(1.0)).flip(0)):
        seen = Posed(replay, cameras)(batch["noisy"][:, :1], t, batch["text"], **how)
        plain = Posed(net, cameras)(batch["noisy"][:, :1], t, batch["text"], frames=how["frames"])
        torch.testing.assert_close(seen, plain, **CLOSE)
    assert recorder.recorded == 1 and recorder.replayed == 3
