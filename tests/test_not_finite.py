"""A number that is not finite: where it came from is said, and what mends it."""

import pytest
import torch
from toy_training import Batches, Toy, fit

from callbacks.checkpointing import Checkpoint
from callbacks.not_finite import StopOnNaN


class Poisoned(Batches):
    """Two rows of batch 3 are not finite."""

    def train_dataloader(self):
        batches = super().train_dataloader()
        batches[3]["x"][1] = float("nan")
        batches[3]["x"][2, 0] = float("inf")
        return batches


def test_samples_are_named_and_the_learning_rate_is_not_blamed(tmp_path):
    with pytest.raises(ValueError, match=r"step 3: the loss is nan; .*x of 3/1, 3/2\.") as said:
        fit(tmp_path, [StopOnNaN(), Checkpoint(tmp_path / "last.ckpt")], data=Poisoned(10))
    assert "Lower" not in str(said.value) and "not the cause" in str(said.value)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_weights_are_named_with_their_network(tmp_path, role):
    module = Toy()
    with torch.no_grad():
        module.networks()[role].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=rf"weights are not \({role}: weight\), and were not when"):
        fit(tmp_path, [StopOnNaN(), Checkpoint(tmp_path / "last.ckpt")], module)


def test_a_loss_that_diverges_blames_training_and_names_the_batch(tmp_path):
    with pytest.raises(ValueError, match=r"step 7: .*the data of 7/0, 7/1, .*finite.*Lower the"):
        fit(tmp_path, [StopOnNaN(), Checkpoint(tmp_path / "last.ckpt")], Toy(poison_at=7))


def test_long_lists_are_cut(tmp_path):
    class All(Batches):
        def train_dataloader(self):
            loader = super().train_dataloader()
            x = torch.full((20, 3), float("nan"))
            loader[0] = {"key": [f"k{row}" for row in range(20)], "x": x}
            return loader

    with pytest.raises(ValueError, match="k7 and 12 more"):
        fit(tmp_path, [StopOnNaN(), Checkpoint(tmp_path / "last.ckpt")], data=All(1))
