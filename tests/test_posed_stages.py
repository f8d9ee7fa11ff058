"""Every stage binds its networks to the cameras of the batch: a network with cameras refuses to be
called without them, so one forgotten place fails here.
"""

import pytest
import torch
from tiny_networks import TINY, shake

from datamodules.cameras import Stride, parse_keys, to_stored, trajectory
from experiments.checkpoints.networks import ROLES
from experiments.launch.stages import EXAMPLE_TIMES, build_stage, stage_class
from experiments.runs.recipe import Library, recipes, resolve
from lightning_modules.networks import Wan
from lightning_modules.training.dry_run import example_batch
from lightning_modules.training.stage import Stage

pytestmark = pytest.mark.filterwarnings("ignore:.*self.log.*trainer. reference")
CLIP, TEXT = (4, 16, 4, 4), (3, 32)
RECIPES = {name: resolve(name, "tiny").recipe for name in recipes(Library(), "fit")}
STAGES = [
    name
    for name, recipe in RECIPES.items()
    if issubclass(stage_class(recipe), Stage) and recipe["fit"]["steps"]
]


def posed_network(seed: int) -> Wan:
    torch.manual_seed(seed)
    return shake(Wan(**TINY | {"num_layers": 1, "attention_head_dim": 12}, cameras=True))


def built(name: str) -> Stage:
    recipe = RECIPES[name]
    small = {**recipe, "stage": {**recipe["stage"], "clip_shape": list(CLIP)}}
    networks = {role: posed_network(seed) for seed, role in enumerate(ROLES)}
    return build_stage(small, networks, negative=torch.zeros(TEXT), times=EXAMPLE_TIMES)


def cameras(*walks: str) -> dict[str, torch.Tensor]:
    poses = [to_stored(trajectory(parse_keys(keys), Stride(0.3, 15))) for keys in walks]
    lens = torch.full((len(walks), CLIP[0], 4), 0.5)
    return {"poses": torch.stack([torch.from_numpy(each) for each in poses]), "intrinsics": lens}


def of_batch(stage: Stage, *walks: str) -> dict:
    batch = example_batch(stage.fields, 2, CLIP, TEXT, states=len(EXAMPLE_TIMES))
    return batch | cameras(*walks)


@pytest.mark.parametrize("name", STAGES)
def test_a_step_of_every_stage_reads_the_cameras(name):
    stage = built(name)
    for updated in (True, False) if stage.update_cycle > 1 else (True,):
        stage.student_updated = updated
        losses = [
            stage.training_step(of_batch(stage, *walks), 0).item()
            for walks in (("w*3", "l*3"), ("a*3", "j*3"), ("w*3", "l*3"))
        ]
        assert losses[0] == losses[2] != losses[1]
    bare = {field: x for field, x in of_batch(stage, "w*3", "l*3").items() if field != "poses"}
    with pytest.raises(ValueError, match="bind it"):
        stage.training_step(bare, 0)


@pytest.mark.parametrize("name", STAGES)
def test_samples_of_every_stage_follow_the_cameras(name):
    stage = built(name)
    text, keys = torch.zeros(2, *TEXT), ["a", "b"]
    one, other = (
        stage.sample(text, keys, cameras(*walks)) for walks in (("w*3", "l*3"), ("a*3", "l*3"))
    )
    assert torch.isfinite(one).all() and not torch.allclose(one[0], other[0])
    torch.testing.assert_close(one[1], other[1], atol=1e-5, rtol=1e-5)
