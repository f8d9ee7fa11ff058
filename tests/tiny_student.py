"""A random student of the tiny world: for sessions, or on disk as a run that is done."""

import json
from pathlib import Path

import numpy as np
import torch
from tiny_rollouts import make_net

from datamodules.cameras import Stride
from datamodules.shards.reader import ShardWriter
from experiments.generation.student import Student
from experiments.generation.walk import Camera
from experiments.runs.yaml_reader import dump_yaml
from lightning_modules.networks.encoders import PatchTransform, TinyText

WORDS = ["a", "one", "two", "three", "moving", "left", "right"]
TEXT = {"words": WORDS, "length": 6, "dim": 8, "seed": 0}
CAMERA = Camera(Stride(0.3, 15.0), (0.5, 0.5, 0.5, 0.5), ("w", "s", "a", "d", "j", "l"))
CAPTIONS = ("a one moving left", "a two moving right")


def student(**other) -> Student:
    """Frames of 2 x 2 patches: 32 x 32 pixels of gray."""
    text = TinyText(**TEXT)
    how = {
        "name": "tiny", "identity": "0" * 16, "network": make_net(), "text": text,
        "autoencoder": PatchTransform([0.0] * 4, 1.0, kept=4), "negative": text.encode([""])[0],
        "clip_shape": (6, 4, 4, 4), "blocks": (1,), "sampler": "few_steps", "steps": 2,
        "first_steps": 4, "shift": 5.0, "guidance": 1.0, "window": 6, "sinks": 0, "fps": 8,
        "precision": "32-true", "device": torch.device("cpu"), "captions": CAPTIONS,
    }  # fmt: skip
    return Student(**how | other)


def walker(**other) -> Student:
    """The same with cameras: a random network that keys move."""
    return student(**{"network": make_net(cameras=True), "camera": CAMERA} | other)


def write_run(folder: Path, tiny: Student | None = None, **stage) -> Path:
    """The run folder of a student, with the data that it names."""
    tiny = tiny or student()
    about = {
        "fps": 8, "channels": 4, "normalisation": {"mean": [0.0] * 4, "std": 1.0},
        "autoencoder": {"class": "PatchTransform", "id": tiny.autoencoder.id, "kept": 4},
        "text_encoder": {"class": "TinyText", "id": tiny.text.id, **TEXT}, "negative_prompt": "",
    }  # fmt: skip
    cameras = {}
    if tiny.camera:
        stride = tiny.camera.stride
        about["cameras"] = {"step": stride.step, "turn": stride.turn, "keys": tiny.camera.keys}
        cameras = {"poses": np.tile(np.eye(4, dtype=np.float32)[:3], (6, 1, 1)),
                   "intrinsics": np.tile(np.float32(tiny.camera.intrinsics), (6, 1))}  # fmt: skip
    data, run = folder / "data", folder / "run"
    negative = tiny.negative.numpy()
    with ShardWriter(data / "shards", "prompts", about=about, negative=negative) as writer:
        for number, caption in enumerate(CAPTIONS):
            arrays = {"text": tiny.embed(caption)[0].numpy(), **cameras}
            writer.write(f"train-{number}", arrays, {"caption": caption})
    settings = {
        "class": "AsymmetricDMD", "clip_shape": [6, 4, 4, 4], "blocks": "framewise", "shift": 5.0,
        "few_steps": 2, "first_few_steps": 4,
    }  # fmt: skip
    recipe = {
        "recipe": "stage3_asymmetric_dmd", "verb": "fit", "seed": 0, "stage": settings | stage,
        "fit": {"precision": "32-true"}, "launch": {"accelerator": "cpu", "threads": 1},
        "needs": {"data": str(data)},
    }  # fmt: skip
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_yaml(recipe))
    tiny.network.save_pretrained(run / "student")
    (run / "done.json").write_text(json.dumps({"run": "run"}))
    return run
