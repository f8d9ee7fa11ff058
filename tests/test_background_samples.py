"""What `sample` stores in the background: the bytes of one after the other, also when cut short."""

import json
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from minimal import TEXT, draw, network
from test_background import no_threads
from test_sample import SETTINGS
from test_values import manifest

from datamodules.shards.reader import ShardWriter, open_shards
from datamodules.shards.shard_file import ShardFile
from datamodules.shards.work import ShardMaker
from experiments.generation import generation, outputs
from experiments.generation.background import Background
from experiments.generation.sampling import Sampling
from experiments.runs.errors import told
from experiments.runs.folder import RunFolder
from experiments.verbs import sample as verb
from lightning_modules.diffusion.randomness import DrawnAhead, Randomness

CPU, COUNT = torch.device("cpu"), 7


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
