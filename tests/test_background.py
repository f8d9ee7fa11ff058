"""Clips are stored while the next ones are generated: at once, in bounded memory, to an end."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
import torch

from experiments.generation.background import Background, ahead

CPU, WAIT_S = torch.device("cpu"), 20


def no_threads() -> bool:
    names = [thread.name for thread in threading.enumerate()]
    return not [name for name in names if name.startswith(("decoder", "writer", "drawer"))]


class Stub:
    """A saver that does what it is told, and counts the clips that it holds."""

    def __init__(self, stored=lambda sample: None, write=lambda sample: None, frames=3):
        self._stored, self._write, self._frames = stored, write, frames
        self.written, self.loaded = [], False

    def load(self):
        self.loaded = True

    def stored(self, samples, clips):
        for sample in samples:
            self._stored(sample)
        return [({}, np.zeros((self._frames, 2, 2, 3), np.uint8)) for _ in samples]

    def write(self, sample, frames):
        for _ in frames:
            self._write(sample)
        self.written.append(sample["key"])


def batch_of(*numbers):
    return [{"key": f"clip-{number}"} for number in numbers], torch.zeros(len(numbers), 1)


def keys(stored):
    return [sample["key"] for sample, _ in stored]


def test_three_batches_are_worked_on_at_once():
    """Each stage waits until the two others have begun: one after the other never ends."""
    met = threading.Barrier(3, timeout=WAIT_S)

    def meet(sample, key):
        if sample["key"] == key and not sample.setdefault("met", False):
            sample["met"] = True
            met.wait()

    stub = Stub(lambda sample: meet(sample, "clip-1"), lambda sample: meet(sample, "clip-0"))
    with Background(stub, 1, CPU, writers=1) as background:
        assert stub.loaded
        done = keys(background.put(*batch_of(0))) + keys(background.put(*batch_of(1)))
        met.wait()
        done += keys(background.rest())
    assert done == ["clip-0", "clip-1"]


@pytest.mark.parametrize("batch, writers, limit", [(1, 1, 2), (1, 4, 5), (3, 4, 3), (8, 4, 2)])
def test_no_more_batches_are_held_than_the_limit(batch, writers, limit):
    gate, held, most = threading.Event(), set(), []
    stub = Stub(write=lambda sample: gate.wait(WAIT_S))
    with Background(stub, batch, CPU, writers) as background, ThreadPoolExecutor(1) as pool:
        assert background.limit == limit

        def fill():
            for number in range(limit + 3):
                held.add(number)
                most.append(len(held))
                clips = range(number * batch, (number + 1) * batch)
                for key in keys(background.put(*batch_of(*clips))):
                    held.discard(int(key.removeprefix("clip-")) // batch)
            return [*background.rest()]

        filling = pool.submit(fill)
        time.sleep(0.1)
        try:
            assert not filling.done() and max(most) <= limit + 1 and not stub.written
        finally:
            gate.set()
        filling.result(WAIT_S)
    assert max(most) == limit + 1 and len(stub.written) == batch * (limit + 3)


def test_the_next_is_computed_while_the_last_is_used():
    begun = [threading.Event() for _ in range(3)]
    with closing(ahead(lambda number: begun[number].set() or 2 * number, range(3))) as pairs:
        assert next(pairs) == (0, 0) and begun[1].wait(WAIT_S)
        assert next(pairs) == (1, 2) and begun[2].wait(WAIT_S)
        assert [*pairs] == [(2, 4)]
    assert list(ahead(str, [])) == [] and no_threads()


def test_leaving_early_ends_the_writers():
    begun, ends = threading.Event(), []

    def write(sample):
        begun.set()
        time.sleep(0.01)
        ends.append(sample["key"])

    stub = Stub(write=write, frames=1000)
    with pytest.raises(KeyboardInterrupt), Background(stub, 1, CPU, writers=1) as background:
        for number in range(2):
            assert not keys(background.put(*batch_of(number)))
        assert begun.wait(WAIT_S)
        raise KeyboardInterrupt
    assert len(ends) < 1000 and set(ends) == {"clip-0"} and not stub.written and no_threads()
