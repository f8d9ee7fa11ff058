"""What a training step of each stage asks of its networks (the table of "work per step")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from experiments.bench import count
from experiments.bench.count import CHECKPOINTED, PLAIN, Pass, Work
from experiments.bench.random_models import Subject
from experiments.bench.sizes import NetworkSize

_ADAMW_BYTES = 28  # a weight, its two moments in and out, its gradient in: seven times float32


@dataclass(frozen=True)
class Ask:
    """A forward of one network, ``times`` times on average, with or without its backward.

    Args:
        step: the forward of one clip.
        size: of the network.
        times: how often, where chance decides.
        trained: whether gradients are taken through it.
    """

    step: Pass
    size: NetworkSize
    times: float = 1.0
    trained: bool = False


def turns(recipe: Mapping[str, Any], subject: Subject) -> dict[str, list[Ask]]:
    """The forwards of a step: of the student's turn and the critic's, or of the only kind (``""``).

    Raises:
        KeyError: a stage of which nothing is known here.
    """
    own = subject.size()
    beside = count.teacher_forcing(subject.blocks)
    settings = recipe["stage"]
    guided = 1 if settings.get("guidance", 1) == 1 else 2
    learn = Ask(beside, own, trained=True)
    kind = settings["class"]
    if kind in ("TeacherForcing", "CausalODE"):
        return {"": [learn]}
    if kind == "SelfForcingODE":
        return {"": [Ask(count.diffusion_forcing(subject.blocks), own, trained=True)]}
    if kind == "CausalCD":
        return {"": [Ask(beside, own, guided + 1.0), learn]}
    if kind == "CausalDMD":
        before = (settings["few_steps"] - 1) / 2  # passes before the one that is left by
        return {
            "student": [Ask(beside, own, before + 1 + guided), learn],
            "critic": [Ask(beside, own, before + 1), learn],
        }
    return _self_rollout(settings, subject, guided)


def _self_rollout(
    settings: Mapping[str, Any], subject: Subject, guided: int
) -> dict[str, list[Ask]]:
    """Stage 3: a rollout that is left early, then two scores that see the whole clip."""
    assert settings["class"] == "AsymmetricDMD", settings["class"]
    own, sizes = subject.size(), subject.blocks
    whole = count.bidirectional(sum(sizes))
    steps = [settings["first_few_steps"]] + [settings["few_steps"]] * (len(sizes) - 1)
    commits, left, before = [], [], 0
    for index, (block, most) in enumerate(zip(sizes, steps, strict=True)):
        step = Pass(block, block * (before + block), before, index == 0)
        left += [(step, (most - 1) / 2)]
        commits += [Ask(step, own)] if index + 1 < len(sizes) else []
        before += block
    early = [Ask(step, own, times) for step, times in left]
    return {
        "student": [
            *early,
            *(Ask(replace(step, reads_prompt=True), own, trained=True) for step, _ in left),
            *commits,
            Ask(whole, own),
            Ask(whole, subject.size("teacher"), guided),
        ],
        "critic": [
            *early,
            *(Ask(step, own) for step, _ in left),
            *commits,
            Ask(whole, own, trained=True),
        ],
    }


def cost(subject: Subject, ask: Ask, clips: int, checkpointed: bool) -> Work:
    """What the device does for it, recomputation included."""
    passes = (CHECKPOINTED if checkpointed else PLAIN) if ask.trained else 1
    return _forward(subject, ask, clips) * (ask.times * passes)


def needed(subject: Subject, ask: Ask, clips: int) -> float:
    """Operations that the algorithm needs for it."""
    return _forward(subject, ask, clips).operations * ask.times * (PLAIN if ask.trained else 1)


def optimizer(subject: Subject) -> Work:
    """AdamW on one network."""
    return Work(0.0, _ADAMW_BYTES * subject.size().parameters)


def _forward(subject: Subject, ask: Ask, clips: int) -> Work:
    return count.work(
        ask.size,
        replace(ask.step, batch=clips),
        subject.tokens,
        subject.text_tokens,
        subject.value_bytes,
    )
