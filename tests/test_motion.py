"""The motion of the camera since the frame before, which a network may be told beside PRoPE."""

import json

import numpy as np
import pytest
import torch
from posed_networks import like_base, matrices, somewhere, walks
from tiny_networks import TINY, F, asked, causal_matrix, shake, tiny_wan

from experiments.checkpoints.networks import grown, with_more
from lightning_modules.networks import Wan
from lightning_modules.networks.cameras import Posed, projective


def test_motion_is_that_since_the_frame_before_from_any_origin():
    poses, lenses = walks()
    whole = projective(poses, lenses)[:, :, 2]
    assert whole[:, 0].abs().max() == 0, "nothing is before the first frame"
    full = np.concatenate([poses.numpy(), np.zeros((*poses.shape[:2], 1, 4))], 2)
    full[..., 3, 3] = 1
    brute = full[:, 1:] @ np.linalg.inv(full[:, :-1]) - np.eye(4)
    np.testing.assert_allclose(whole[:, 1:].numpy(), brute, atol=1e-6)
    assert whole[:, 1:].abs().max() > 0.1
    far = projective(*walks(somewhere(30.0)))[:, :, 2]
    torch.testing.assert_close(far, whole, atol=1e-5, rtol=0)
    part = projective(poses[:, 2:], lenses[:, 2:], poses[:, 1:-1])[:, :, 2]
    torch.testing.assert_close(part, whole[:, 2:], atol=1e-6, rtol=0)


@torch.no_grad()
def test_motion_says_what_attention_does_not():
    """A network whose camera heads are silent obeys motion, and begins without it."""
    base, posed = like_base()
    batch, cameras = asked(base), matrices()
    how = {"frames": torch.arange(F), "visible": causal_matrix([1, 2, 3])}
    call = batch["noisy"], batch["t"], batch["text"]
    assert torch.equal(Posed(posed, cameras)(*call, **how), base(*call, **how))
    torch.nn.init.normal_(posed.motion_embedder.linear_2.weight)
    still = cameras.clone()
    still[:, :, 2] = 0
    seen = Posed(posed, cameras)(*call, **how)
    assert (seen - Posed(posed, still)(*call, **how)).abs().max() > 1e-2


def test_motion_without_cameras_is_refused():
    with pytest.raises(ValueError, match="network.motion is that of cameras"):
        Wan(**TINY, motion=True)


@torch.no_grad()
def test_a_network_with_weights_is_given_cameras_and_answers_as_before():
    base = tiny_wan()
    section = with_more(TINY, {"cameras": True, "motion": True})
    more = grown(base, section, seed=0)
    assert torch.equal(grown(base, section, seed=0).motion_embedder.linear_1.weight,
                       more.motion_embedder.linear_1.weight)  # fmt: skip
    batch, how = asked(base), {"frames": torch.arange(F)}
    call = batch["noisy"], batch["t"], batch["text"]
    assert torch.equal(Posed(more, matrices())(*call, **how), base(*call, **how))


def test_what_would_change_the_answers_is_refused():
    with pytest.raises(ValueError, match="student_with: camera cannot.*did you mean 'cameras'"):
        with_more(TINY, {"camera": True})
    with pytest.raises(ValueError, match="num_layers cannot be given to a network"):
        with_more(TINY, {"num_layers": 3})


@torch.no_grad()
def test_cameras_may_enter_by_motion_alone():
    """Plain action conditioning: no heads under PRoPE, parallel as cached, and no origin."""
    net = shake(Wan(**TINY, cameras=True, prope=False, motion=True)).eval()
    assert not [name for name, _ in net.named_parameters() if "to_prope" in name]
    batch, cameras, how = asked(net), matrices(), {"visible": causal_matrix([1, 2, 3])}
    call = batch["noisy"], batch["t"], batch["text"]
    whole = Posed(net, cameras)(*call, frames=torch.arange(F), **how)
    other = cameras.clone()
    other[:, :, :2] = torch.randn_like(other[:, :, :2])
    assert torch.equal(Posed(net, other)(*call, frames=torch.arange(F), **how), whole)
    other[:, 3:, 2] = 0
    still = Posed(net, other)(*call, frames=torch.arange(F), **how)
    assert torch.equal(still[:, :3], whole[:, :3]) and (still - whole).abs().max() > 1e-2
    parallel = Posed(net, cameras)(*call, frames=torch.arange(F), visible=causal_matrix([3, 3]))
    noisy, t, text = call
    for frames in (None, F):
        cache, made = net.new_cache(frames), []
        for at in torch.arange(F).split(3):
            part = noisy[:, at], t[:, at], text
            made.append(Posed(net, cameras)(*part, frames=at, cache=cache, write_cache=True))
            before = [part.clone() for part in cache.read(0)]
            cache.move_origin(torch.from_numpy(somewhere(3.0))[None].float())
            assert all(map(torch.equal, cache.read(0), before)), "nothing is under PRoPE"
        torch.testing.assert_close(torch.cat(made, 1), parallel, atol=1e-5, rtol=1e-5)


def test_cameras_that_enter_by_nothing_are_refused():
    with pytest.raises(ValueError, match="network.prope is false.*set network.motion=true"):
        Wan(**TINY, cameras=True, prope=False)


def test_what_is_usual_is_not_said(tmp_path):
    both = {"cameras": True, "motion": True}
    for how in ({}, both, both | {"prope": False}):
        Wan(**TINY, **how).save_pretrained(tmp_path)
        told = json.loads((tmp_path / "config.json").read_text())
        assert {key: told[key] for key in ("cameras", "motion", "prope") if key in told} == how
        assert Wan.from_pretrained(tmp_path).config.prope == how.get("prope", True)
