"""Signals around training: before the first step, after the last one, and Lightning's answer."""

import os
import signal

import pytest
from lightning.pytorch.callbacks import Callback
from toy_training import Batches, fit

from callbacks.checkpointing import Checkpoint, stopped


class SignalsIn(Callback):
    """Sends SIGTERM in one of Lightning's hooks."""

    def __init__(self, hook):
        setattr(self, hook, lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start"])
def test_asked_before_the_first_step_it_takes_none(tmp_path, hook):
    checkpoint, before = Checkpoint(tmp_path / "last.ckpt"), signal.getsignal(signal.SIGTERM)
    module, trainer = fit(tmp_path, [checkpoint, SignalsIn(hook)])
    assert checkpoint.interrupted and not module.losses and not checkpoint.path.exists()
    assert stopped(trainer), "so that nobody puts networks together for nothing"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("hook", ["on_train_end", "on_fit_end"])
def test_asked_after_the_last_step_it_ends(tmp_path, hook):
    """What is handed on is put together then, by all ranks."""
    checkpoint, before = Checkpoint(tmp_path / "last.ckpt"), signal.getsignal(signal.SIGTERM)
    module, trainer = fit(tmp_path, [checkpoint, SignalsIn(hook)])
    assert len(module.losses) == 10 and not stopped(trainer)
    assert signal.getsignal(signal.SIGTERM) is before


def test_lightnings_own_answer_to_a_signal_is_off(tmp_path):
    """It is a broadcast, while the other ranks do something else; here between the callbacks."""

    class Asks(Batches):
        def train_dataloader(self):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().train_dataloader()

    checkpoint = Checkpoint(tmp_path / "last.ckpt")
    module, trainer = fit(tmp_path, [checkpoint], data=Asks(10))
    assert checkpoint.interrupted and not module.losses and not trainer.received_sigterm
