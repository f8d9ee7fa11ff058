"""Keys as events of a session: when they act, replays, images, refusals."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from test_cuda_graphs import Recorder
from test_walk import CPU, LAP, TINY, events_of, same, shown
from tiny_student import CAMERA, CAPTIONS, student

from datamodules.cameras import Stride
from experiments.generation.events import NewKeys, NewPrompt, NewSteps
from experiments.generation.session import Session
from experiments.generation.walk import Walk
from lightning_modules.networks.wan.cuda_graphs import Replay

HELD = st.frozensets(st.sampled_from(CAMERA.keys), max_size=2).map(lambda keys: NewKeys((*keys,)))
OTHER = st.sampled_from([NewPrompt(CAPTIONS[1], "rewrite"), NewPrompt(CAPTIONS[1]), NewSteps(1)])


@given(
    events=st.dictionaries(st.integers(0, 11), st.lists(HELD | OTHER, max_size=3), max_size=8),
    blocks=st.sampled_from([(1,), (2,), (1, 2)]),
)
@trials(max_examples=10)
def test_a_walk_replays_to_the_same_bytes(events, blocks):
    """However keys went up and down between two blocks; its replay has the same events again."""
    tiny = replace(TINY, blocks=blocks)
    live, made = Session(tiny, CAPTIONS[0], 3), []
    for index in range(13):
        for event in events.get(index, ()):
            live.request(event)
        made.append(live.next())
    heard = {block.index: block.events for block in made if block.events}
    again = Session(tiny, CAPTIONS[0], 3, events=heard)
    for block in made:
        other = again.next()
        assert np.array_equal(block.frames, other.frames)
        assert (block.keys, block.events) == (other.keys, other.events)


def test_a_key_changes_what_comes_after_it_and_stays_down():
    still, walked = Session(TINY, CAPTIONS[0], 0), Session(TINY, CAPTIONS[0], 0)
    assert same(shown(still, 4), shown(walked, 4))
    walked.request(NewKeys(("left", "w")))
    first, second = walked.next(), walked.next()
    assert first.events == (NewKeys(("j", "w")),) and second.events == ()
    assert first.keys == second.keys == {"j", "w"}
    assert not np.array_equal(first.frames, still.next().frames)
    walked.request(NewKeys(()))
    third = walked.next()
    assert third.events == (NewKeys(()),) and third.keys == frozenset()
    poses = {frame: pose for frame, (pose, _) in walked._walk._poses.items()}
    assert np.array_equal(poses[6], poses[5]) and not np.array_equal(poses[5], poses[4])


def test_a_key_let_go_between_two_blocks_moves_one():
    session = Session(TINY, CAPTIONS[0], 0)
    session.next()
    for keys in (("w",), ("w", "a"), ("a",), ()):
        session.request(NewKeys(keys))
    assert [session.next().keys for _ in range(2)] == [{"w", "a"}, frozenset()]
    session.request(NewKeys(("d",)))
    assert session.next().keys == {"d"}
    session.request(NewKeys(("d", "w")))
    session.request(NewKeys(()))
    assert session.next().keys == {"w"}, "one that was down before is up at once"


def test_mashed_keys_do_not_pile_up():
    session = Session(TINY, CAPTIONS[0], 0)
    for number in range(1000):
        session.request(NewKeys(("w",) if number % 2 else ("a",)))
    assert not session._events and session.next().events == (NewKeys(("a", "w")),)


@pytest.mark.parametrize("blocks", [(1,), (3,)])
def test_a_walk_may_begin_with_an_image(blocks):
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 1), np.uint8)
    tiny = replace(TINY, blocks=blocks)
    made = [
        shown(Session(tiny, CAPTIONS[0], 0, image=image, events=events), 3)
        for events in (events_of("w*2", 0), events_of("a*2", 0))
    ]
    assert np.array_equal(made[0][0], made[1][0]) and not np.array_equal(made[0][1], made[1][1])


@torch.no_grad()
def test_a_wide_lens_is_another_camera():
    wide = replace(TINY, camera=replace(CAMERA, intrinsics=(0.3, 0.3, 0.5, 0.5)))
    keys = events_of("wl*4")
    assert not same(
        *(shown(Session(each, CAPTIONS[0], 0, events=keys), 5) for each in (TINY, wide))
    )


def test_cuda_graphs_follow_the_walk():
    """The cache whose origin moves is where the graphs read it; a full window records none anew."""
    recorder = Recorder()
    graphs = replace(TINY, network=Replay(TINY.network, recorder))
    sessions = [Session(each, CAPTIONS[0], 0, events=events_of(LAP)) for each in (graphs, TINY)]
    for index in range(30):
        one, other = (session.next().frames.astype(int) for session in sessions)
        assert np.abs(one - other).max() <= 1
        if index == 12:
            before = recorder.recorded
    assert recorder.recorded == before > 0


def test_keys_that_move_nothing_are_refused():
    plain = student()
    for make in (
        lambda: Session(plain, CAPTIONS[0], 0).request(NewKeys(("w",))),
        lambda: Session(plain, CAPTIONS[0], 0, events={3: [NewKeys(("w",))]}),
    ):
        with pytest.raises(ValueError, match=r"tiny was made without cameras.*give no keys"):
            make()
    with pytest.raises(ValueError, match=r"walks without i; it knows w, s, a, d, j, l"):
        Session(TINY, CAPTIONS[0], 0).request(NewKeys(("up", "w")))
    with pytest.raises(ValueError, match="there is no key 'x'"):
        NewKeys(("x",))


def test_the_step_of_a_key_is_that_of_the_data():
    far = Walk(replace(CAMERA, stride=Stride(0.5, 15.0)), CPU)
    far.press("w")
    far.go(slice(0, 4))
    centres = far.cameras(torch.arange(4))[0, :, 1, :3, 3]
    assert [round(float(b[2] - a[2]), 5) for a, b in pairwise(centres)] == [0.5] * 3
