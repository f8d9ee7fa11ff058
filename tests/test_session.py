"""A session is a function of (student, seed, events by block)."""

from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from tiny_student import CAPTIONS, student

from experiments.generation.events import NewPrompt, NewSteps
from experiments.generation.session import Session
from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.diffusion.rollout import FewSteps, Past, few_step_times, rollout

ONE, TWO = CAPTIONS
TINY = student()


def shown(session, blocks):
    return [session.next().frames for _ in range(blocks)]


def equal(left, right):
    return [np.array_equal(*pair) for pair in zip(left, right, strict=True)]


@pytest.mark.parametrize("blocks", [(1,), (3,), (1, 2)], ids=str)
@torch.no_grad()
def test_within_the_window_it_is_the_rollout(blocks):
    """The plain one, which caches nothing in place, with the noise of all blocks drawn before."""
    tiny = replace(TINY, blocks=blocks, window=9)
    sizes = {1: (1,) * 6, 3: (3, 3), 2: (1, 2, 2)}[blocks[-1]]

    def draw(purpose):
        parts = [
            Randomness(7, index, ["session"]).normal(purpose, (size, 4, 4, 4))
            for index, size in enumerate(sizes)
        ]
        return torch.cat(parts, 1)

    times = few_step_times(sizes, 2, 4, 5.0)
    denoise = FewSteps(times, lambda step: draw(f"renoise/{step}"))
    clip = rollout(Past(tiny.network, tiny.embed(ONE)), draw("noise"), sizes, denoise)
    session = Session(tiny, ONE, 7)
    made = [session.next() for _ in sizes]
    whole = tiny.autoencoder.decode(clip)[0].numpy().astype(int)
    difference = np.abs(np.concatenate([block.frames for block in made]) - whole)
    assert difference.max() <= 1 and (difference == 0).mean() > 0.99  # a commit is rounded anew
    assert [block.first for block in made] == [0, *accumulate(sizes)][:-1]
    assert [block.steps for block in made] == [4] + [2] * (len(sizes) - 1)


EVENTS = st.one_of(
    st.builds(NewPrompt, st.sampled_from(CAPTIONS), st.sampled_from(["keep", "rewrite", "cut"])),
    st.builds(NewSteps, st.integers(1, 4)),
)


@given(
    events=st.dictionaries(st.integers(0, 11), st.lists(EVENTS, max_size=2), max_size=4),
    sinks=st.integers(0, 2),
    follow=st.booleans(),
)
@trials(max_examples=8)
def test_a_recording_replays_to_the_same_bytes(events, sinks, follow):
    tiny = replace(TINY, sinks=sinks, sinks_follow=follow and sinks > 0)
    live = Session(tiny, ONE, 3)
    made, heard = [], {}
    for index in range(12):
        for event in events.get(index, ()):
            live.request(event)
        block = live.next()
        made.append(block.frames)
        if block.events:
            heard[block.index] = block.events
    assert heard == {index: tuple(those) for index, those in events.items() if those}
    assert all(equal(shown(Session(tiny, ONE, 3, events=heard), 12), made))


@pytest.mark.parametrize(
    "event", [NewPrompt(TWO, "keep"), NewPrompt(TWO, "rewrite"), NewPrompt(TWO, "cut"), NewSteps(1)]
)
def test_an_event_changes_what_comes_after_it_and_nothing_before(event):
    plain, other = Session(TINY, ONE, 0), Session(TINY, ONE, 0)
    before = equal(shown(plain, 8), shown(other, 8))
    other.request(event)
    block = other.next()
    assert all(before) and block.events == (event,)
    assert not np.array_equal(block.frames, plain.next().frames)
    assert other.next().events == ()


def test_the_three_ways_to_change_a_prompt_differ():
    made = []
    for how in ("keep", "rewrite", "cut"):
        session = Session(TINY, ONE, 0)
        shown(session, 4)
        session.request(NewPrompt(TWO, how))
        made.append(session.next().frames)
    assert not any(np.array_equal(made[a], made[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_the_same_prompt_rewritten_changes_nothing():
    """While nothing has been dropped, the context that is shown again is the one that was there."""
    session = Session(TINY, ONE, 0)
    shown(session, 4)
    session.request(NewPrompt(ONE, "rewrite"))
    with torch.no_grad():
        session._past.commit(session._latents[3][1], slice(3, 4))
        session._past._write_pending()
        before = [p.clone() for layer in range(2) for p in session._past.cache.read(layer)]
        session._act(NewPrompt(ONE, "rewrite"), 1)
    after = [part for layer in range(2) for part in session._past.cache.read(layer)]
    assert sorted(session._past.held) == [0, 1, 2, 3]
    for one, two in zip(before, after, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_a_cut_leaves_the_last_frame():
    session = Session(TINY, ONE, 0)
    shown(session, 5)
    session.request(NewPrompt(TWO, "cut"))
    session.next()
    assert sorted(session._past.held) == [4] and sorted(session._latents) == [4, 5]


@pytest.mark.parametrize("sinks", [0, 1])
def test_nothing_grows_without_end(sinks):
    session = Session(replace(TINY, sinks=sinks), ONE, 0)
    held = []
    for _ in range(40):
        session.next()
        held.append(len(session._latents))
    assert held[10:] == held[10:11] * 30 and held[-1] <= TINY.window
    assert not session._events and session._past.cache.capacity == TINY.window


def test_it_begins_with_an_image():
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 1), np.uint8)
    chunks = replace(TINY, blocks=(2,))
    session = Session(chunks, ONE, 0, image=image)
    first, second = session.next(), session.next()
    latents = chunks.autoencoder.encode(torch.from_numpy(image)[None, None])
    assert np.array_equal(first.frames, chunks.autoencoder.decode(latents)[0].numpy())
    assert (len(first.frames), len(second.frames)) == (1, 2)


def test_an_ar_teacher_streams_too():
    teacher = replace(TINY, sampler="autoregressive_ode", guidance=2.0, steps=3, first_steps=1)
    assert len(shown(Session(teacher, ONE, 0), 8)) == 8


def test_what_is_refused():
    session = Session(TINY, ONE, 0)
    with pytest.raises(ValueError, match=r"unknown words \['cat'\]"):
        session.request(NewPrompt("a cat"))
    assert session.next().events == ()
    with pytest.raises(ValueError, match="--window: 2 latent frames have no room for 1 sinks"):
        replace(TINY, window=2, sinks=1)
    broken = replace(TINY, network=lambda x, *_, **__: x * torch.nan)
    broken.network.new_cache = TINY.network.new_cache
    with pytest.raises(ValueError, match="block 0 of tiny is not finite"):
        Session(broken, ONE, 0).next()
