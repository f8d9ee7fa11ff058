"""Keys that move the camera of a session: blocks, origin, window, recordings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from test_window import masked_reference
from tiny_student import CAMERA, CAPTIONS, walker

from datamodules.cameras import (
    MOTIONS,
    from_stored,
    inverse,
    parse_keys,
    placed,
    to_stored,
    trajectory,
)
from experiments.generation import walk as walks
from experiments.generation.events import NewKeys, NewPrompt
from experiments.generation.session import Session
from experiments.generation.walk import FURTHEST, Camera, Walk
from experiments.worlds.room.render import INTRINSICS
from experiments.worlds.room.walks import REACH, Room, place_of, step
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import FewSteps, Past, few_step_times, rollout
from lightning_modules.networks.cameras import Posed, projective

CPU = torch.device("cpu")
TINY = walker()
LAP = "w*9, wl*6, a*5, none*2, dj*7, s*3, l*5, w*12, none, w*11"  # 61 moves, without a return


def cameras_of(poses, intrinsics=CAMERA.intrinsics):
    """``[1, F, 3, 4, 4]`` of whole walks."""
    poses = torch.from_numpy(np.array(poses))[None, :, :3]
    return projective(poses, torch.tensor(intrinsics).expand(1, poses.shape[1], 4))


def shown(session, blocks):
    return [session.next().frames for _ in range(blocks)]


def events_of(keys, first=1):
    return {block: [NewKeys(tuple(held))] for block, held in enumerate(parse_keys(keys), first)}


def same(left, right):
    return len(left) == len(right) and all(map(np.array_equal, left, right))


def streamed(session, frames):
    """Its latents ``[1, frames, C, H, W]``, and its pictures."""
    made, pictures = {}, []
    while len(made) < frames:
        pictures.append(session.next().frames)
        made |= {frame: x0 for frame, (_, x0) in session._latents.items()}
    return torch.cat([made[frame] for frame in range(frames)], 1), pictures


# -- the camera ------------------------------------------------------------------------------------


def test_keys_make_the_cameras_of_the_training_data():
    """Those that the room's shards hold, where no wall stopped the walk."""
    room = Room(frames=9)
    free = 0
    for index in range(12):
        walked = room.walk("train", 0, index)
        if max(abs(each) for pose in walked.poses for each in place_of(pose)[:2]) >= REACH - 1e-6:
            continue
        free += 1
        walk = Walk(Camera(room.stride, INTRINSICS), CPU)
        for frame, keys in enumerate(walked.keys, 1):
            walk.press(keys)
            walk.go(slice(frame, frame + 1))
        stored = from_stored(to_stored(walked.poses))
        expected = cameras_of(stored, tuple(map(float, INTRINSICS)))
        torch.testing.assert_close(walk.cameras(torch.arange(9)), expected, rtol=1e-5, atol=1e-5)
    assert free >= 3


@given(st.lists(st.frozensets(st.sampled_from(sorted(MOTIONS)), max_size=3), max_size=40),
       st.lists(st.integers(1, 4), min_size=40, max_size=40))  # fmt: skip
@trials(max_examples=40)
def test_any_walk_is_its_trajectory_from_wherever_it_is_seen(held, sizes):
    """In blocks of any size, of which every frame is moved by the keys of its block."""
    walk, stop, moves = Walk(replace(CAMERA, keys=tuple(MOTIONS)), CPU), 1, []
    world = np.eye(4)  # the origin, as the changes tell it
    for keys, size in zip(held, sizes, strict=False):
        walk.press(keys)
        walk.go(slice(stop, stop + size))
        moves, stop = moves + [keys] * size, stop + size
        if (change := walk.move_origin()) is not None:
            assert torch.linalg.norm(change[0, :3, 3]) > FURTHEST - 1e-5
            world = change[0].double().numpy() @ world
        poses = trajectory(moves, CAMERA.stride)
        newest = poses[-1] @ np.linalg.inv(world)
        assert np.linalg.norm(newest[:3, 3]) <= FURTHEST + 1e-5
        recent = torch.arange(max(0, stop - 6), stop)
        expected = cameras_of(poses @ np.linalg.inv(world))[:, recent]
        torch.testing.assert_close(walk.cameras(recent), expected, rtol=1e-4, atol=1e-4)
        walk.keep(recent.tolist())


def test_matrices_are_float32_under_autocast():
    walk = Walk(CAMERA, CPU)
    walk.press("wl")
    walk.go(slice(0, 8))
    plain = walk.cameras(torch.arange(8))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = walk.cameras(torch.arange(8))
    assert plain.dtype == torch.float32 and torch.equal(plain, mixed)


# -- the session -----------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [(1,), (3,), (1, 2)], ids=str)
@torch.no_grad()
def test_within_the_window_a_walk_is_the_rollout_of_its_trajectory(blocks):
    tiny = replace(TINY, blocks=blocks, window=9)
    sizes = {1: (1,) * 6, 3: (3, 3), 2: (1, 2, 2)}[blocks[-1]]
    held = [frozenset(keys) for keys in ("wl", "a", "", "dj", "s", "w")]

    def draw(purpose):
        parts = [
            Randomness(7, index, ["session"]).normal(purpose, (size, 4, 4, 4))
            for index, size in enumerate(sizes)
        ]
        return torch.cat(parts, 1)

    moves = [keys for keys, size in zip(held, sizes, strict=False) for _ in range(size)][1:]
    cameras = cameras_of(trajectory(moves, CAMERA.stride))
    denoise = FewSteps(few_step_times(sizes, 2, 4, 5.0), lambda step: draw(f"renoise/{step}"))
    past = Past(Posed(tiny.network, cameras), tiny.embed(CAPTIONS[0]))
    expected = rollout(past, draw("noise"), sizes, denoise)
    events = {block: [NewKeys(tuple(keys))] for block, keys in enumerate(held)}
    clip, _ = streamed(Session(tiny, CAPTIONS[0], 7, events=events), sum(sizes))
    torch.testing.assert_close(clip, expected, rtol=1e-4, atol=1e-4)
    still, _ = streamed(Session(tiny, CAPTIONS[0], 7), sum(sizes))
    assert (still - expected).abs().max() > 1e-2


class Watched:
    """A network that notes how far away the cameras are that it is called with."""

    def __init__(self, net):
        self.net, self.config, self.new_cache, self.furthest = net, net.config, net.new_cache, 0.0

    def __call__(self, x, t, text, *, cameras, **how):
        centres = cameras[0, :, 1, :3, 3]  # of the inverse: where the cameras are
        self.furthest = max(self.furthest, float(centres.norm(dim=-1).max()))
        return self.net(x, t, text, cameras=cameras, **how)


@pytest.mark.parametrize(("blocks", "sinks"), [((1,), 0), ((1,), 1), ((2,), 0)], ids=str)
@torch.no_grad()
def test_a_walk_of_ten_clips_is_its_uncached_twin(blocks, sinks):
    """One pass over all frames so far for each block, in which dropped frames are masked and the
    origin never moves.
    """
    frames, window = 10 * TINY.clip_shape[0], TINY.clip_shape[0]
    sizes = blocks * (frames // blocks[0])
    net = Watched(TINY.network)
    tiny = replace(TINY, network=net, blocks=blocks, sinks=sinks, steps=1, first_steps=1)
    held = parse_keys(LAP)[: len(sizes)]
    events = {block: [NewKeys(tuple(keys))] for block, keys in enumerate(held)}
    session = Session(tiny, CAPTIONS[0], 3, events=events)
    clip, pictures = streamed(session, frames)
    assert torch.isfinite(clip).all() and sum(map(len, pictures)) == frames
    noise = torch.cat(
        [
            Randomness(3, index, ["session"]).normal("noise", (size, 4, 4, 4))
            for index, size in enumerate(sizes)
        ],
        1,
    )
    moves = [keys for keys, size in zip(held, sizes, strict=True) for _ in range(size)][1:]
    poses = trajectory(moves, CAMERA.stride)
    posed = Posed(TINY.network, cameras_of(poses))
    text = tiny.embed(CAPTIONS[0])
    expected = masked_reference(posed, noise, clip, text, sizes, window, sinks)
    torch.testing.assert_close(clip, expected, rtol=1e-3, atol=1e-3)
    walked = np.linalg.norm([np.linalg.inv(pose)[:3, 3] for pose in poses], axis=1).max()
    assert walked > 3 * FURTHEST, "the walk goes far from where it began"
    reach = window * CAMERA.stride.step
    assert net.furthest <= FURTHEST + reach + 1e-4
    kept = session._walk._poses
    assert len(kept) <= window and max(kept) == frames - 1


@pytest.mark.parametrize("how", ["keep", "rewrite", "cut"])
@pytest.mark.parametrize("teacher", [False, True])
def test_where_the_origin_is_changes_nothing(monkeypatch, how, teacher):
    """Nor for the second branch of guidance, or for frames that are shown again."""
    guided = {"sampler": "autoregressive_ode", "guidance": 2.0, "steps": 3, "first_steps": 1}
    tiny = replace(TINY, **(guided if teacher else {}))
    events = events_of("w*3, wl*4, a*3, dj*4")
    events[9] = [*events[9], NewPrompt(CAPTIONS[1], how)]
    made = []
    for far in (0.0, 1e9):
        monkeypatch.setattr(walks, "FURTHEST", far)
        made.append(streamed(Session(tiny, CAPTIONS[0], 0, events=events), 15)[0])
    torch.testing.assert_close(*made, rtol=1e-3, atol=1e-3)


# -- walls -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["w*12", "a*9, l*3, s*20", "d*30", "j*5, w*7, a*9"])
def test_walls_stop_a_walk_where_they_stopped_the_datas(keys):
    room, start = Room(), (0.9, -0.4, 37.0)
    walk = Walk(replace(CAMERA, walls=((-REACH, REACH),) * 2), CPU, start)
    free, poses = Walk(CAMERA, CPU, start), [placed(*start)]
    for frame, held in enumerate(parse_keys(keys), 1):
        poses.append(step(poses[-1], held, room.stride))
        for each in (walk, free):
            each.press(held)
            each.go(slice(frame, frame + 1))
    last = np.array([pose for pose, _ in walk._poses.values()]) @ placed(*start)
    np.testing.assert_allclose(last, poses, atol=1e-12)
    gone = inverse(free._poses[len(poses) - 1][0] @ placed(*start))
    assert np.abs(gone[[0, 2], 3]).max() > REACH, "without walls it goes on"


def test_a_session_knows_walls_only_where_it_begins_in_their_world():
    tiny = replace(TINY, camera=replace(CAMERA, walls=((-REACH, REACH),) * 2))
    image, events = np.zeros((32, 32, 1), np.uint8), events_of("w*12")
    made = [
        shown(Session(each, CAPTIONS[0], 0, image=image, start=start, events=events), 13)
        for each, start in ((tiny, (0, 0, 0)), (tiny, None), (TINY, (0, 0, 0)))
    ]
    assert same(made[1], made[2]) and same(made[0][:5], made[1][:5]) and not same(*made[:2])
