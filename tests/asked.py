"""Recorded network calls of the stages, by recipe at Wan's scale or with a test's own settings."""

from functools import cache

from experiments.launch.stages import asked_of_networks

SETTINGS = {
    "shift": 5.0, "learning_rate": 1e-3, "betas": [0.0, 0.999], "weight_decay": 0.0,
    "text_dropout": 0.1, "loss_weight": "none",
    "intervals": 48, "guidance": 3.0, "solver": "euler", "decay": 0.99,
    "terminal_pair": True, "few_steps": 4, "first_few_steps": 4, "critic_learning_rate": 1e-3,
    "critic_steps": 5, "t_min": 0.02, "t_max": 0.98, "time_shift": 3.0, "levels": [],
    "noisy_from": None, "tangent": "upwind", "tangent_step": 0.01, "tangent_warmup_steps": 0,
    "tangent_floor": 0.1, "time_mean": -0.8, "time_std": 1.6, "weight_floor": 1e-3,
    "r_equals_t": 0.25, "r_is_zero": 0.25,
}  # fmt: skip


@cache
def asked(stage: str, blocks=1, frames: int = 21, **settings):
    """Of a stage, with the settings that it takes."""
    from experiments.launch.stages import stage_class
    from experiments.runs.signature import parameters_of

    takes = parameters_of(stage_class({"stage": {"class": stage}}))
    own = {name: value for name, value in (SETTINGS | settings).items() if name in takes}
    own |= {"class": stage, "clip_shape": [frames, 16, 60, 104], "blocks": blocks}
    return asked_of_networks({"seed": 0, "stage": own})
