"""The event files of short real runs, read back: what TensorBoard shows of each stage."""

import io
import math
from pathlib import Path

import pytest
from minimal_runs import finished, prepared, run
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = {"stage1_teacher_forcing": 20, "stage2_causal_cd": 20, "stage3_asymmetric_dmd": 20}


def events(made: Path) -> EventAccumulator:
    found = EventAccumulator(str(made / "tb"), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


@pytest.mark.parametrize("stage", STEPS)
def test_losses_and_gradient_norms(stage):
    """At every step the newest value of each; whose turn it is not keeps its own."""
    found, steps = events(finished(prepared(), stage)), range(STEPS[stage])
    turns = {"train/loss": steps, "train/grad_norm_student": steps}
    if stage.startswith("stage3"):  # one student step, then five of the critic
        student, critic = ([n for n in steps if (n % 6 == 0) is own] for own in (True, False))
        turns = {"train/loss": student, "train/grad_norm_student": student}
        turns |= {"train/critic_loss": critic, "train/grad_norm_critic": critic}
    for tag, own in turns.items():
        entries = found.Scalars(tag)
        assert [entry.step for entry in entries] == list(steps)[own[0] :], tag
        assert all(math.isfinite(entry.value) and entry.value > 0 for entry in entries), tag
        values = [entry.value for entry in entries]
        changed = {entries[0].step} | {
            entry.step for entry, before in zip(entries[1:], values, strict=False)
            if entry.value != before
        }  # fmt: skip
        assert changed == set(own), tag


@pytest.mark.parametrize("stage", STEPS)
def test_loss_by_noise_level(stage):
    found = events(finished(prepared(), stage))
    tags = [tag for tag in found.Tags()["scalars"] if tag.startswith("loss_at_t/")]
    assert len(tags) >= 2 and set(tags) <= {
        f"loss_at_t/{low:.2f}-{low + 0.25:.2f}" for low in (0, 0.25, 0.5, 0.75)
    }
    assert all(math.isfinite(e.value) for tag in tags for e in found.Scalars(tag))


@pytest.mark.parametrize("stage", STEPS)
def test_throughput(stage):
    rates = events(finished(prepared(), stage)).Scalars("throughput/clips_per_s")
    assert [entry.step for entry in rates] == list(range(STEPS[stage]))
    times = [entry.wall_time for entry in rates]
    whole = 4 * (len(rates) - 1) / (times[-1] - times[0])
    parts = sum(4 / entry.value for entry in rates[1:])
    assert 4 * (len(rates) - 1) / parts == pytest.approx(
        whole, rel=0.4
    )  # the clock of a busy machine


def test_panel(tmp_path):
    """Animated images with captions, real next to generated."""
    made = run(
        tmp_path, "fit", "base", "--with-needs", "launch.panel_every=2", "stages.base.steps=5"
    )
    found = events(made)
    assert {"samples/clips", "samples/sheet"} <= set(found.Tags()["images"])
    clips = found.Images("samples/clips")
    assert [entry.step for entry in clips] == [2, 4, 5], "now and then, and at the end"
    picture = Image.open(io.BytesIO(clips[-1].encoded_image_string))
    assert picture.format == "GIF" and picture.n_frames == 4
    assert (picture.width, picture.height) == (clips[-1].width, clips[-1].height)
    sheet = Image.open(io.BytesIO(found.Images("samples/sheet")[-1].encoded_image_string))
    assert sheet.format == "PNG" and sheet.width > 4 * 32
    assert sorted(file.name for file in (made / "samples").iterdir()) == [
        f"step-000000{step}.{kind}" for step in (2, 4, 5) for kind in ("gif", "png")
    ]
