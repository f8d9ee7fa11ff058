"""The training steps of a stage, run on networks that only record what is asked of them.

Whatever a stage is, its own ``training_step`` says what it costs: which networks it calls, with how
many frames under which mask, beside how large a cache and with what gradient. What chance decides
for a whole step (``Randomness.shared_integer``), or comes in turn (``in_turn``), is enumerated, so
expectations are exact.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_modules.diffusion.randomness import Randomness
from lightning_modules.networks.tally import Call, Tally
from lightning_modules.training.gated_adamw import GatedAdamW
from lightning_modules.training.stage import Stage

T = TypeVar("T")
Choose = Callable[[str, int], int]
MOST = 16
"""Outcomes that are tried of one choice; of a choice of more, so many, evenly spread."""


@dataclass(frozen=True)
class Case:
    """One outcome of what chance decides for a step.

    Args:
        probability: of it.
        calls: of each network, by role, in their order.
        choices: what was decided, by purpose (`Chosen` decides the same again).
    """

    probability: float
    calls: Mapping[str, tuple[Call, ...]]
    choices: Mapping[str, int]


@dataclass(frozen=True)
class Held:
    """A network that a stage holds.

    Args:
        like: the role of the network that it is, or is a copy of.
        trained: whether an optimizer moves it.
    """

    like: str
    trained: bool


@dataclass(frozen=True)
class DryRun:
    """What a stage asks of its networks.

    Args:
        networks: that it holds, by role.
        steps: for each set of networks that learn together in a step, by role: its cases.
    """

    networks: Mapping[str, Held]
    steps: Mapping[tuple[str, ...], tuple[Case, ...]]

    def expected(self, roles: tuple[str, ...]) -> dict[tuple[str, Call], float]:
        """How often each call is made, on average, of the network of a role or of its copy.

        Args:
            roles: that learn in the step.
        """
        times: dict[tuple[str, Call], float] = {}
        for case in self.steps[roles]:
            for role, calls in case.calls.items():
                for call in calls:
                    key = (self.networks[role].like, call)
                    times[key] = times.get(key, 0.0) + case.probability
        return times


def dry_run(stage: Stage, shapes: Mapping[str, Sequence[int]] | None = None) -> DryRun:
    """Run every kind of step once for each outcome of its choices; nothing is updated.

    Args:
        stage: around `Tally` networks, of any ``clip_shape``: 1 x 1 latents serve.
        shapes: of fields beside latents, text and trajectories.

    Raises:
        ValueError: a field of its batches of which no example can be made, or the stage's own.
    """
    networks = stage.networks()
    optimizer = stage.optimizer()
    trainer = _trainer(optimizer)
    stage.trainer = trainer
    stage.log = lambda *_, **__: None
    batch = example_batch(stage.fields, 1, stage.clip_shape, stage.negative.shape, shapes=shapes)
    steps: dict[tuple[str, ...], tuple[Case, ...]] = {}
    for trainer.global_step in range(stage.update_cycle):
        stage.on_train_batch_start(batch, trainer.global_step)
        if (roles := learning(networks, optimizer)) not in steps:
            steps[roles] = tuple(_cases(stage, networks, batch))
        stage.on_train_batch_end(None, batch, trainer.global_step)
    trained = _moved(networks, optimizer.param_groups)
    held = {role: Held(network.role, role in trained) for role, network in networks.items()}
    return DryRun(held, steps)


def learning(networks: Mapping[str, nn.Module], optimizer: GatedAdamW) -> tuple[str, ...]:
    """Roles of the networks that the next update moves."""
    return _moved(networks, [g for g in optimizer.param_groups if g.get("active", True)])


def example_batch(
    fields: Sequence[str],
    count: int,
    clip_shape: Sequence[int],
    text_shape: Sequence[int],
    states: int = 4,
    shapes: Mapping[str, Sequence[int]] | None = None,
    name: str = "clip",
) -> dict[str, Any]:
    """Random samples of a stage's fields, always the same ones, under keys that begin with a name.

    Args:
        fields: of the stage.
        count: samples.
        clip_shape: ``[F, C, H, W]``.
        text_shape: ``[L, D]`` of a prompt.
        states: noisy ones of a trajectory, beside its end.
        shapes: of other fields.

    Raises:
        ValueError: a field of a shape that nobody says.
    """
    generator = torch.Generator().manual_seed(0)
    known = {
        **(shapes or {}),
        "latents": tuple(clip_shape),
        "text": tuple(text_shape),
        "trajectory": (states + 1, *clip_shape),
    }
    if unknown := [field for field in fields if field not in known]:
        raise ValueError(
            f"the stage reads the field {unknown[0]!r}, of which no shape is known here: hand it to"
            f" example_batch in shapes (there are: {', '.join(known)})"
        )
    arrays = {f: torch.randn(count, *known[f], generator=generator) for f in fields}
    return {"key": [f"{name}-{row}" for row in range(count)], **arrays}


def outcomes(run: Callable[[Choose], T]) -> Iterator[tuple[float, T]]:
    """Call ``run`` once for each outcome of the choices it asks for; yield it with its probability.

    A choice is asked for by its purpose and its number of outcomes; asked for again, it is the
    same. Later choices may depend on earlier ones.
    """
    path: list[int] = []
    while True:
        taken: dict[str, tuple[int, int]] = {}

        def choose(purpose: str, below: int, path=path, taken=taken) -> int:
            if purpose not in taken:
                option = path[len(taken)] if len(taken) < len(path) else 0
                taken[purpose] = option, min(below, MOST)
            option, options = taken[purpose]
            return option * below // options

        result = run(choose)
        yield 1 / prod(options for _, options in taken.values()), result
        made = list(taken.values())
        while made and made[-1][0] + 1 == made[-1][1]:
            made.pop()
        if not made:
            return
        path = [option for option, _ in made]
        path[-1] += 1


class Chosen(Randomness):
    """Randomness whose choices for a whole step are made by another.

    Args:
        random: of which all else is.
        choose: makes the choices.
    """

    def __init__(self, random: Randomness, choose: Choose) -> None:
        super().__init__(random.seed, random.step, random.keys, random.device)
        self._choose = choose

    def shared_integer(self, purpose: str, below: int) -> int:
        return self._choose(purpose, below)

    def in_turn(self, purpose: str, below: int, count: int) -> int:
        return self._choose(purpose, below)


def _cases(stage: Stage, networks: Mapping[str, Tally], batch: dict[str, Any]) -> Iterator[Case]:
    def run(choose: Choose) -> tuple[dict[str, tuple[Call, ...]], dict[str, int]]:
        choices: dict[str, int] = {}

        def noted(purpose: str, below: int) -> int:
            choices[purpose] = choose(purpose, below)
            return choices[purpose]

        for network in networks.values():
            network.restart()
        drawn = Randomness("dry run", 0, batch["key"])
        stage.randomness = lambda batch: Chosen(drawn, noted)
        _loss(stage, batch)
        return {role: tuple(network.calls) for role, network in networks.items()}, choices

    for probability, (calls, choices) in outcomes(run):
        yield Case(probability, calls, choices)


def _loss(stage: Stage, batch: dict[str, Any]) -> Tensor:
    with torch.enable_grad():
        return stage.training_step(batch, stage.global_step)


def _moved(networks: Mapping[str, nn.Module], groups: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Roles of the networks that have a parameter in these groups."""
    moved = {id(parameter) for group in groups for parameter in group["params"]}
    return tuple(
        role for role, net in networks.items() if any(id(p) in moved for p in net.parameters())
    )


def _trainer(optimizer: GatedAdamW) -> SimpleNamespace:
    """What a stage's step and hooks ask of a Trainer that logs nothing."""
    return SimpleNamespace(
        global_step=0,
        log_every_n_steps=0,
        accumulate_grad_batches=1,
        strategy=SimpleNamespace(_lightning_optimizers=[optimizer]),
    )
