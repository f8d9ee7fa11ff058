"""``fit``: train a stage on a shard set, resuming if interrupted, and hand its result on."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment

from callbacks.checkpointing import AtomicCheckpointIO, Checkpoint
from callbacks.not_finite import StopOnNaN
from callbacks.progress import Progress
from callbacks.run_record import RunRecord
from callbacks.sample_clips import Panel, SampleClips
from callbacks.student_ema import StudentEMA
from datamodules.shards.reader import open_shards
from datamodules.video import VideoDataModule
from experiments.checkpoints.networks import (
    ROLES,
    bf16,
    fresh_network,
    grown,
    load_network,
    meta_network,
    network_section,
    unfit_weight,
    with_more,
)
from experiments.generation.codec import autoencoder_of, follow_autoencoder
from experiments.generation.generation import (
    autocast,
    camera_fields,
    check_precision,
    require_autoencoder,
    require_given,
    require_network,
    require_same_encoders,
)
from experiments.launch import second_time
from experiments.launch.causality import require_scores
from experiments.launch.hardware import Launch, launch_of, micro_batches_of, prepare
from experiments.launch.memory.check import before_fit
from experiments.launch.stages import build_stage, example_stage, stage_class, stage_settings
from experiments.launch.strategies import (
    check_forward_mode,
    check_strategy,
    launch_for,
    parallel,
    resumable,
)
from experiments.runs.folder import RunFolder
from experiments.runs.signature import bind
from lightning_modules.diffusion.visibility import partition
from lightning_modules.ranges import Decay, NonNegative, NonNegativeInt, PositiveInt

log = logging.getLogger(__name__)
PANEL = 8  # prompts in TensorBoard's video panel


@dataclass(frozen=True)
class Training:
    """Settings of the training loop.

    Args:
        steps: optimizer steps, of all networks together; 0 hands the student on untrained.
        batch: clips per step, over all devices and micro-batches.
        clip_gradient: maximal gradient norm, per step.
        precision: Lightning's, ``32-true`` or ``bf16-mixed``: the others would keep the
            weights in half precision, where updates of 2e-6 are rounded away.
        ema_decay: of the student's EMA, which is handed on; 0 hands on the student itself.
        ema_start: student updates before the EMA begins.
        student_with: arguments of the network that the student of ``needs.student`` is given more,
            such as ``{cameras: true}``; their weights change no output at first.
    """

    steps: NonNegativeInt
    batch: PositiveInt
    clip_gradient: NonNegative
    precision: str
    ema_decay: Decay
    ema_start: NonNegativeInt
    student_with: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_precision(self.precision, "fit")


def check(recipe: dict[str, Any]) -> None:
    """Refuse a recipe whose settings do not fit their constructors, before anything is built."""
    kind = stage_class(recipe)
    stage = example_stage(recipe)
    second_time.require_needs_of_one_time(recipe, partial(second_time.require_one_time, kind))
    require_scores(recipe)
    training = Training(**bind(Training, recipe.get("fit", {}), section="fit"))
    if training.student_with and "student" not in recipe["needs"]:
        raise ValueError("fit.student_with: there is no needs.student; use the section network")
    launch = launch_of(recipe)
    check_strategy(launch, training.precision)
    check_forward_mode(stage, launch)
    _micro_batches(training, launch_for(kind, launch))
    if "network" in recipe:
        if "student" in recipe["needs"]:
            raise ValueError(
                "network, needs.student: a student is either new, as the section network says, or"
                " that of needs.student; remove one"
            )
        second_time.require_section_of_one_time(kind, recipe["network"])
        meta_network(recipe["network"])  # a constructor refuses what does not go together
    if shape := recipe["stage"].get("clip_shape"):
        require_given(recipe, "stage.clip_shape", shape)
        if "network" in recipe:
            require_network("student", recipe["network"], "stage.clip_shape", shape)


def run(recipe: dict[str, Any], folder: RunFolder) -> None:
    """Train ``recipe["stage"]`` in ``folder``; writes ``folder/student``.

    Raises:
        ValueError: incompatible data, networks and settings, named with the cure.
    """
    device = prepare(recipe)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # logs of devices and tips
    kind = stage_class(recipe)
    launch = launch_for(kind, launch_of(recipe))
    training = Training(**bind(Training, recipe["fit"], section="fit"))
    shards = open_shards(folder.need("data") / "shards")
    data = VideoDataModule(
        shards.folder,
        batch=training.batch,
        steps=training.steps,
        seed=recipe["seed"],
        micro_batches=_micro_batches(training, launch),
        workers=launch.workers,
        timeout_s=launch.loader_timeout_s,
        fields=[*kind.fields, *camera_fields(shards)],
    )
    if "panel" in recipe["needs"]:
        panel = open_shards(folder.need("panel") / "shards")
        require_same_encoders({"data": data.shards, "panel": panel})
    if training.steps:
        half = training.precision == "bf16-mixed"
        before_fit(folder, data, launch, half, training.ema_decay > 0, device)
    module = _build(kind, recipe, folder, data)
    _spare_memory(module, launch, training)
    _compile(module, launch, device)
    ema = StudentEMA(training.ema_decay, training.ema_start) if training.ema_decay else None
    if training.steps and not _train(module, data, folder, launch, training, ema, device):
        return  # rank 0 hands on
    if "held_out" in recipe["needs"]:  # a stage with a gate is evaluated before hand-off
        module.measure(open_shards(folder.need("held_out") / "shards").read_all(kind.fields))
    with nullcontext() if ema is None else ema.swapped(module):
        if unfit := unfit_weight(module.named_parameters()):
            raise ValueError(f"{folder.name} is not handed on: {unfit}; lower the learning rate")
        module.hand_off(folder.path)


def _micro_batches(training: Training, launch: Launch) -> int:
    return micro_batches_of(training.batch, launch) if training.steps else 1


def _build(
    kind: type[LightningModule], recipe: dict[str, Any], folder: RunFolder, data: VideoDataModule
) -> LightningModule:
    _require(kind, stage_settings(recipe), data)
    needed = {role: folder.need(role) for role in ROLES if role in recipe["needs"]}
    sections = {role: network_section(where) for role, where in needed.items()}
    if "network" in recipe:
        sections["student"] = recipe["network"]
    if more := recipe["fit"].get("student_with"):
        sections["student"] = with_more(sections["student"], more)
    for role, section in sections.items():
        shape = recipe["stage"]["clip_shape"]
        require_network(role, section, "stage.clip_shape", shape, data.shards)
    for role, where in needed.items():
        require_autoencoder(role, where, data.shards)
        second_time.require_one_time(kind, role, where, second_time.has_two_times(where))
    networks = {role: load_network(where) for role, where in needed.items()}
    if "network" in recipe:
        networks["student"] = fresh_network(recipe["network"], recipe["seed"])
    elif more:
        networks["student"] = grown(networks["student"], sections["student"], recipe["seed"])
    times = data.manifest.get("times")
    return build_stage(recipe, networks, negative=data.negative, times=times)


def _require(kind: type, settings: dict[str, Any], data: VideoDataModule) -> None:
    """The shard set must hold what the stage reads, in the stage's shape and blocks."""
    if "clip_shape" in settings and "latents" in data.fields:
        data.require(latents=tuple(settings["clip_shape"]))
    if "trajectory" in data.fields:
        data.require(trajectory=(None, *settings["clip_shape"]), past=kind.past)
        if kind.past == "causal":  # each block was generated given the blocks before it
            data.require(blocks=list(partition(settings["blocks"], settings["clip_shape"][0])))


def _spare_memory(module: LightningModule, launch: Launch, training: Training) -> None:
    """Memory settings, which do not change a result."""
    for role, network in module.networks().items():
        if role == "teacher" and training.precision == "bf16-mixed":
            bf16(network)
        elif role in ("student", "critic") and hasattr(network, "gradient_checkpointing"):
            network.gradient_checkpointing = launch.gradient_checkpointing
        elif role in ("student", "critic") and launch.gradient_checkpointing:
            kind = type(network).__name__
            log.warning("launch.gradient_checkpointing: %s (%s) does not offer it", kind, role)


def _compile(module: LightningModule, launch: Launch, device: torch.device) -> None:
    sharded = launch.strategy == "deepspeed" and launch.zero_stage == 3
    if not launch.compile or device.type != "cuda" or sharded:
        return
    for network in module.networks().values():
        if hasattr(network, "compile_blocks"):
            network.compile_blocks()


def _train(
    module: LightningModule,
    data: VideoDataModule,
    folder: RunFolder,
    launch: Launch,
    training: Training,
    ema: StudentEMA | None,
    device: torch.device,
) -> bool:
    """Fit from the start or from ``last.ckpt``; KeyboardInterrupt if it was stopped.

    Returns whether this is rank 0, which holds the whole module on the CPU afterwards.
    """
    last = folder.path / "checkpoints" / "last.ckpt"
    checkpoint, record = Checkpoint(last, launch.checkpoint_every_s), RunRecord()
    callbacks = [Progress(folder.progress), StopOnNaN(), record]
    callbacks += [ema] if ema else []
    if launch.panel_every and "panel" in folder.recipe["needs"]:
        callbacks.append(_panel(folder, launch, training.precision, device, ema))
    trainer = Trainer(
        accelerator=launch.accelerator,
        devices=launch.devices,
        num_nodes=launch.nodes,
        **parallel(module, launch, training.precision),
        max_steps=training.steps,
        max_epochs=1,
        accumulate_grad_batches=data.micro_batches,
        gradient_clip_val=training.clip_gradient,
        plugins=[AtomicCheckpointIO(), LightningEnvironment()],
        callbacks=[*callbacks, checkpoint],
        logger=TensorBoardLogger(folder.path, name="tb", version=""),
        log_every_n_steps=launch.log_every,
        default_root_dir=folder.path,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resumable(last, launch))
    if trainer.is_global_zero:
        folder.record(record.summary())
    if checkpoint.interrupted:
        raise KeyboardInterrupt
    return trainer.is_global_zero


def _panel(
    folder: RunFolder,
    launch: Launch,
    precision: str,
    device: torch.device,
    ema: StudentEMA | None,
) -> SampleClips:
    """Callback that samples the first held-out prompts at intervals, next to real clips if any."""
    shards = open_shards(folder.need("panel") / "shards")
    follow_autoencoder(shards, folder)
    cameras = camera_fields(shards)
    fields = [name for name in ("text", "video", *cameras) if name in shards.fields]
    samples = [shards.read(index, fields) for index in range(min(PANEL, len(shards)))]
    stacked = {
        field: torch.stack([torch.from_numpy(sample[field]) for sample in samples])
        for field in fields
    }
    return SampleClips(
        Panel(
            text=stacked["text"].float(),
            keys=[sample["key"] for sample in samples],
            captions=[sample["caption"] for sample in samples],
            videos=stacked.get("video"),
            cameras={name: stacked[name] for name in cameras},
        ),
        autoencoder_of(shards.manifest, device, compile=launch.compile),
        folder.path,
        launch.panel_every,
        shards.manifest["fps"],
        ema,
        at_once=launch.batch_per_device,
        autocast=partial(autocast, device, precision),
    )
