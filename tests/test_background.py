"""Clips are stored while the next ones are generated: the same bytes, in bounded memory."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from minimal import TEXT, draw, network
from test_sample import SETTINGS
from test_values import manifest

from datamodules.shards.reader import ShardWriter, open_shards
from datamodules.shards.shard_file import ShardFile
from datamodules.shards.work import ShardMaker
from experiments.generation import generation, outputs
from experiments.generation.background import Background, ahead
from experiments.generation.sampling import Sampling
from experiments.runs.errors import told
from experiments.runs.folder import RunFolder
from experiments.verbs import sample as verb
from lightning_modules.diffusion.randomness import DrawnAhead, Randomness

CPU, COUNT, WAIT_S = torch.device("cpu"), 7, 20


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    folder, text = tmp_path_factory.mktemp("prompts"), draw(1, COUNT, *TEXT).numpy()
    negative = draw(2, *TEXT).numpy()
    with ShardWriter(folder, "prompts", about=manifest(), negative=negative) as writer:
        for number in range(COUNT):
            writer.write(f"clip-{number}", {"text": text[number]}, {"caption": "a one"})
    return open_shards(folder)


@pytest.fixture(autouse=True)
def several_shards(monkeypatch):
    monkeypatch.setattr(generation, "SHARD_BYTES", 4_400)


def run_folder(where: Path) -> RunFolder:
    if not where.exists():
        where.mkdir(parents=True)
        (where.parent / "base-00000000").mkdir()
        (where.parent / "base-00000000" / "done.json").write_text("{}")
        recipe = "recipe: sample\nverb: sample\nseed: 7\nneeds: {student: base-00000000}\n"
        (where / "recipe.yaml").write_text(recipe)
    return RunFolder(where)


def sampled(prompts, where: Path, student=None, **settings) -> dict[str, bytes]:
    """The bytes of every file that ``sample`` makes."""
    folder = run_folder(where / "sample")
    chosen = Sampling(**(SETTINGS | {"count": COUNT, "save": "mp4"} | settings))
    student = student or network(1)
    maker = ShardMaker(verb.generated_clips(student, prompts, chosen, folder, 7, CPU), folder)
    maker.make_all()
    maker.complete()
    return contents(folder.path)


def contents(run: Path) -> dict[str, bytes]:
    files = [path for path in run.rglob("*") if path.is_file() and path.suffix != ".claim"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


class InTurn:
    """In the place of `Background`: one after the other, in the foreground."""

    def __init__(self, saver, *_):
        self.saver = saver

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def put(self, samples, clips):
        stored = self.saver.stored(samples, clips)
        for sample, (arrays, video) in zip(samples, stored, strict=True):
            if video is not None:
                self.saver.write(sample, video)
            yield sample, arrays

    def rest(self):
        return iter(())


def no_threads() -> bool:
    names = [thread.name for thread in threading.enumerate()]
    return not [name for name in names if name.startswith(("decoder", "writer", "drawer"))]


# -- the same bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("save", ["pixels", "mp4"])
def test_the_same_bytes_as_one_after_the_other(prompts, tmp_path, monkeypatch, batch, save):
    how = {"batch": batch, "save": save, "context_t": 0.1}
    made = {}
    with monkeypatch.context() as patch:
        patch.setattr(verb, "Background", InTurn)
        patch.setattr(verb, "ahead", zip_with)
        patch.setattr(verb, "DrawnAhead", Undrawn)
        made[0] = sampled(prompts, tmp_path / "0", **how)
    for writers in (1, 5):
        monkeypatch.setattr(verb, "Background", partial(Background, writers=writers))
        made[writers] = sampled(prompts, tmp_path / f"{writers}", **how)
    assert made[0] == made[1] == made[5]
    assert sum(name.endswith(".tar") for name in made[0]) > 1
    assert sum(name.endswith(".mp4") for name in made[0]) == (COUNT if save == "mp4" else 0)
    assert no_threads()


def zip_with(function, items):
    """In the place of `ahead`."""
    for item in items:
        yield item, function(item)


class Undrawn(Randomness):
    """In the place of `DrawnAhead`: draws when it is asked."""

    def __init__(self, seed, step, keys, *_):
        super().__init__(seed, step, keys)

    def to(self, device):
        return self


def test_draws_are_those_of_randomness_whatever_the_default_dtype():
    plain, keys = Randomness(3, 0, ["a", "b"]), ["a", "b"]
    expected = [plain.normal(purpose, (2, 3)) for purpose in ("noise", "context", "other")]
    torch.set_default_dtype(torch.bfloat16)  # as diffusers does while it loads, in any thread
    try:
        drawn = DrawnAhead(3, 0, keys, ["noise", "context"], (2, 3)).to(CPU)
        made = [drawn.normal(purpose, (2, 3)) for purpose in ("noise", "context", "other")]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, made, expected)) and made[0].dtype == torch.float32
    assert torch.equal(drawn.normal("noise", (3, 2)), plain.normal("noise", (3, 2)))


@pytest.mark.parametrize("sampler", ["few_steps", "autoregressive_ode"])
def test_all_noise_is_drawn_ahead(prompts, tmp_path, monkeypatch, sampler):
    names, rows = [], Randomness._rows

    def spied(self, *given):
        names.append(threading.current_thread().name)
        return rows(self, *given)

    monkeypatch.setattr(Randomness, "_rows", spied)
    sampled(prompts, tmp_path, sampler=sampler, context_t=0.1)
    batches, each = -(-COUNT // 2), {"few_steps": 4, "autoregressive_ode": 2}[sampler]
    assert len(names) == batches * each and {name[:6] for name in names} == {"drawer"}


# -- at once, in bounded memory --------------------------------------------------------------------


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


# -- errors and ends -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["clip-0", "clip-4"])
@pytest.mark.parametrize("where", ["_pixels", "write"])
def test_an_error_names_the_clip_and_ends_the_shard(prompts, tmp_path, monkeypatch, where, key):
    right = getattr(outputs.Saver, where)

    def fails(self, samples, given):
        if key in str(samples):
            raise RuntimeError("the library broke")
        return right(self, samples, given)

    monkeypatch.setattr(outputs.Saver, where, fails)
    with pytest.raises(RuntimeError) as failed:
        sampled(prompts, tmp_path, batch=1)
    assert told(failed.value) == f"the library broke (of sample '{key}')"
    shards = tmp_path / "sample" / "shards"
    notes = [json.loads(path.read_text()) for path in shards.glob("??????.json")]
    kept = {name for note in notes for name in note["members"]}
    assert key not in kept and no_threads()
    assert not [*shards.glob("*.part"), *tmp_path.rglob("*.tmp")]


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


@pytest.mark.parametrize("at", [2, 3, 5])
def test_interrupted_and_gone_on_with(prompts, tmp_path, monkeypatch, at):
    """Ctrl-C, also while files are being written: what remains is whole, and the rest the same."""
    expected = sampled(prompts, tmp_path / "whole", batch=1)
    student, calls = network(1), []
    forward = student.forward

    def interrupted(*given, **named):
        calls.append(None)
        if len(calls) == at * 9:
            raise KeyboardInterrupt
        return forward(*given, **named)

    monkeypatch.setattr(student, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sampled(prompts, tmp_path / "cut", student, batch=1)
    left = contents(tmp_path / "cut" / "sample")
    assert no_threads() and len(left) < len(expected)
    for name, content in left.items():
        if name.endswith((".tar", ".mp4")):
            assert expected[name] == content
    assert not [name for name in left if name.endswith((".tmp", ".part"))]
    assert sampled(prompts, tmp_path / "cut", batch=1) == expected


def test_interrupted_while_a_shard_is_written(prompts, tmp_path, monkeypatch):
    """The threads end with the shard, not when the garbage collector comes."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ShardFile, "write", interrupted)
    with pytest.raises(KeyboardInterrupt) as stopped:
        sampled(prompts, tmp_path, batch=1)
    assert no_threads() and stopped.tb, "which holds the frames"
