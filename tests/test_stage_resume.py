"""A stage that is interrupted ends as one that is not, bit for bit.

In one process and on the stages themselves; `test_resume.py` kills processes of the command line.
"""

import pytest
import torch
from lightning.pytorch import Callback
from minimal import SaveAndStop, batch, network, stage, train
from test_stage_training import CD, DCM, MEAN_FLOW, SCM, SF, TWO_STEPS, names, tensors

from callbacks.student_ema import StudentEMA
from lightning_modules.causal_cd import CausalCD
from lightning_modules.causvid_dmd import CausVidDMD
from lightning_modules.sf_dmd import SFDMD
from lightning_modules.tf_dcm import TFdCM
from lightning_modules.tf_mean_flow import TFMeanFlow
from lightning_modules.tf_scm import TFsCM
from lightning_modules.training.distribution_matching import DistributionMatching

STEPS = 12  # rounds of four: the student's turn, three of the critic's
KINDS = {
    CausalCD: CD,
    TFdCM: DCM,
    TFsCM: SCM,
    TFMeanFlow: MEAN_FLOW,
    SFDMD: SF | {"first_few_steps": 4},
    CausVidDMD: TWO_STEPS,
}
CONSTANT, COSINE = {}, {"schedule": "cosine", "warmup_steps": 6}


class Watch(Callback):
    """Whose turn each step is, and how often it denoises each block."""

    def __init__(self) -> None:
        self.turns, self.calls = [], []

    def on_train_start(self, trainer, module) -> None:
        module.student.register_forward_pre_hook(self.count, with_kwargs=True)

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        self.calls.append([0, 0, 0, 0])

    def on_train_batch_end(self, trainer, module, *rest) -> None:
        self.turns.append(module.student_updated)

    def count(self, net, args, kwargs) -> None:
        if not kwargs.get("write_cache"):
            self.calls[-1][kwargs["frames"][0]] += 1


def trained(kind, schedule, path, stop=None, resume=None):
    """The checkpoint of the last step, without Lightning's counters, and what was watched."""
    roles = {"teacher": network(2)}
    if issubclass(kind, DistributionMatching):
        roles["critic"] = network(3)
    module, watch = stage(kind, **KINDS[kind] | schedule | roles), Watch()
    callbacks = [StudentEMA(0.5), watch]
    if stop is not None:
        callbacks.append(SaveAndStop(path, stop))
    trainer = train(module, batch(3), STEPS, resume, callbacks=callbacks)
    assert trainer.global_step == (stop or STEPS)
    if stop is None:
        trainer.save_checkpoint(path, weights_only=False)
    saved = torch.load(path, weights_only=True)
    return {key: value for key, value in saved.items() if key not in ("loops", "epoch")}, watch


@pytest.mark.parametrize("schedule", [CONSTANT, COSINE], ids=["constant", "cosine"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_interrupted_it_ends_the_same(tmp_path, kind, schedule):
    """Weights, moments, averages, rates, turns and exits, from within a critic's round."""
    whole, watched = trained(kind, schedule, tmp_path / "whole.ckpt")
    _, before = trained(kind, schedule, tmp_path / "half.ckpt", stop=6)
    ended, after = trained(kind, schedule, tmp_path / "end.ckpt", resume=tmp_path / "half.ckpt")
    assert names(ended) == names(whole)
    for one, other in zip(tensors(ended), tensors(whole), strict=True):
        assert torch.equal(one, other)
    assert ended["lr_schedulers"] == whole["lr_schedulers"]
    groups = [saved["optimizer_states"][0]["param_groups"] for saved in (ended, whole)]
    assert groups[0] == groups[1]
    assert before.turns + after.turns == watched.turns
    assert before.calls + after.calls == watched.calls
    assert (len(set(map(tuple, watched.calls))) > 1) == (kind is SFDMD), "exits that take turns"
    for name, value in whole.get("target", {}).items():
        student = whole["state_dict"][f"student.{name}"]
        assert not torch.equal(value, student), "an average, not a copy"
