"""A network of two times: what it answers before training, what it can learn, where it may go."""

import pytest
import torch
from minimal import SHAPE, batch, draw, network

from experiments.checkpoints.convert import export_network
from experiments.checkpoints.networks import load_network, network_section, new_network
from experiments.launch.checks import problem
from experiments.launch.memory.check import as_trained
from experiments.launch.memory.count import FULL, Load
from experiments.launch.second_time import (
    has_two_times,
    require_one_time,
    require_section_of_one_time,
    require_velocity,
)
from experiments.runs.recipe import resolve
from lightning_modules.asymmetric_dmd import AsymmetricDMD
from lightning_modules.bidirectional import Bidirectional
from lightning_modules.causal_cd import CausalCD
from lightning_modules.diffusion import forcing
from lightning_modules.networks import ClosedForm, TwoTimeWan
from lightning_modules.networks.tally import Tally
from lightning_modules.networks.wan.precision import to_bfloat16
from lightning_modules.tf_mean_flow import TFMeanFlow

T = torch.tensor([[0.9, 0.6, 0.5, 0.2], [1.0, 0.3, 0.8, 0.0]])


def asked(net, until=None):
    data = batch(2)
    how = {} if until is None else {"until": until}
    return forcing.teacher_forcing(
        net, draw(3, 2, *SHAPE), T, data["text"], (1, 1, 2), clean=data["latents"], **how
    )


@torch.no_grad()
def test_a_new_one_answers_as_the_network_it_was_made_of():
    wan = network(1)
    two = wan.with_second_time()
    for until in (None, T, 0.5 * T, torch.zeros_like(T)):
        assert torch.equal(asked(two, until), asked(wan))
    assert two.with_second_time() is two and Tally("student").with_second_time()


def trained(two, steps=30):
    """Learns twice its second time, which nothing else tells it."""
    optimizer = torch.optim.AdamW(two.parameters(), 3e-3)
    for step in range(steps):
        until = T * draw(step, 2, 1).sigmoid()
        loss = (asked(two, until) - 2 * until[:, :, None, None, None]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return two


def difference(two) -> float:
    with torch.no_grad():
        return (asked(two, T) - asked(two)).abs().max().item()


def test_it_learns_its_second_time_unless_all_of_its_embedding_is_zero():
    """With every weight zero no layer receives a gradient: the last layer alone must be."""
    assert difference(trained(network(1).with_second_time())) > 0.1
    dead = network(1).with_second_time()
    torch.nn.init.zeros_(dead.span_embedder.linear_1.weight)
    torch.nn.init.zeros_(dead.span_embedder.linear_1.bias)
    assert difference(trained(dead, 5)) == 0


@torch.no_grad()
def test_left_out_the_second_time_is_zero():
    two = network(1).with_second_time()
    torch.nn.init.normal_(two.span_embedder.linear_2.weight)
    assert torch.equal(asked(two), asked(two, torch.zeros_like(T)))
    assert not torch.allclose(asked(two), asked(two, T))
    with pytest.raises(AssertionError, match="a network of one time"):
        asked(network(1), T)


@torch.no_grad()
def test_it_is_saved_and_loaded_whole(tmp_path):
    two = network(1).with_second_time()
    torch.nn.init.normal_(two.span_embedder.linear_2.weight)
    two.save_pretrained(tmp_path / "student")
    loaded = load_network(tmp_path)
    assert type(loaded) is TwoTimeWan and torch.equal(asked(loaded, T), asked(two, T))
    section = network_section(tmp_path)
    assert section["class"] == "TwoTimeWan" and type(new_network(section)) is TwoTimeWan
    assert to_bfloat16(loaded).span_embedder.linear_1.weight.dtype == torch.float32


def test_its_memory_is_counted_with_the_weights_of_its_second_time(tmp_path):
    network(1).save_pretrained(tmp_path / "student")
    plain = network_section(tmp_path)
    for recipe, net in (
        ("stage2_tf_mean_flow", network(1).with_second_time()),
        ("stage2_tf_scm", network(1)),
    ):
        section = as_trained(resolve(recipe, "tiny").recipe, plain)
        weights = Load(section, SHAPE, 1, 3, FULL).parameters
        assert weights == sum(each.numel() for each in net.parameters())


def test_export_refuses_it_and_says_why(tmp_path):
    network(1).with_second_time().save_pretrained(tmp_path / "student")
    with pytest.raises(ValueError, match="a TwoTimeWan is not exported: .*not those of stock Wan"):
        export_network(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


MEAN_FLOW = {"recipe": "stage2_tf_mean_flow"}


@pytest.mark.parametrize(
    ("recipe", "role"),
    [("stage2_causal_cd", "student"), ("stage2_tf_scm", "teacher"), ("stage3_sf_dmd", "critic"),
     ("stage2_ar_diffusion", "student")],
)  # fmt: skip
def test_a_stage_that_ignores_its_second_time_refuses_it_before_any_run(recipe, role):
    run = resolve(recipe, "tiny", {f"needs.{role}": MEAN_FLOW})
    said = problem(run.recipe)
    assert f"needs.{role}: stage2_tf_mean_flow-" in said and "has a second time" in said


def test_distribution_matching_takes_it_as_a_student():
    for recipe in ("stage3_sf_dmd", "stage3_asymmetric_dmd", "stage3_causvid_dmd"):
        assert not problem(resolve(recipe, "tiny", {"init": "tf_mean_flow"}).recipe)


def test_a_folder_with_one_is_refused_when_it_is_loaded():
    require_one_time(AsymmetricDMD, "student", "folder", True)
    require_one_time(CausalCD, "student", "folder", False)
    with pytest.raises(ValueError, match="needs.student: folder has a second time, which CausalCD"):
        require_one_time(CausalCD, "student", "folder", True)


SOLVERS = [
    ("causal_pairs", "teacher", {}),
    ("bidirectional_pairs", "teacher", {}),
    ("sample", "student", {"sampler": "autoregressive_ode"}),
    ("sample", "student", {"sampler": "bidirectional_ode"}),
]


@pytest.mark.parametrize(("recipe", "role", "settings"), SOLVERS)
def test_an_ode_of_its_mean_velocity_is_refused_before_any_run(tmp_path, recipe, role, settings):
    """Of a run that is not made yet, and of a folder; the sampler of students takes both."""
    wan = new_network(resolve("base", "tiny").recipe["network"])
    wan.save_pretrained(tmp_path / "one" / "student")
    wan.with_second_time().save_pretrained(tmp_path / "two" / "student")
    two = {"folder": str(tmp_path / "two")}
    for where, said in ((MEAN_FLOW, "stage2_tf_mean_flow-"), (two, str(tmp_path / "two"))):
        run = resolve(recipe, "tiny", settings | {f"needs.{role}": where})
        wrong = problem(run.recipe)
        assert f"needs.{role}: {said}" in wrong and "has a second time and answers" in wrong
        assert "the network of Stage 1" in wrong
        assert ("sampler=few_steps" in wrong) == (role == "student")
    one = {"folder": str(tmp_path / "one")}
    for where in (one, {"recipe": "stage2_tf_scm"}):
        run = resolve(recipe, "tiny", settings | {f"needs.{role}": where})
        assert "second time" not in problem(run.recipe)


def test_the_sampler_of_students_takes_it():
    assert not problem(resolve("sample", "tiny", {"needs.student": MEAN_FLOW}).recipe)


def test_a_stage_refuses_a_folder_of_two_times_before_any_run(tmp_path):
    wan = new_network(resolve("base", "tiny").recipe["network"])
    wan.with_second_time().save_pretrained(tmp_path / "student")
    how = {"needs.teacher": {"folder": str(tmp_path)}}
    wrong = problem(resolve("stage2_tf_scm", "tiny", how).recipe)
    assert f"needs.teacher: {tmp_path} has a second time, which TFsCM ignores" in wrong


def test_a_new_network_of_two_times_is_refused_where_its_stage_ignores_the_second():
    recipe = resolve("base", "tiny").recipe
    section = recipe["network"] | {"class": "TwoTimeWan"}
    wrong = problem(recipe | {"network": section})
    assert "network.class: TwoTimeWan has a second time, which Bidirectional" in wrong
    assert "leave the key out" in wrong
    require_section_of_one_time(TFMeanFlow, section)
    require_section_of_one_time(Bidirectional, recipe["network"])


def test_an_ode_is_not_solved_with_its_mean_velocity(tmp_path):
    network(1).save_pretrained(tmp_path / "one" / "student")
    network(1).with_second_time().save_pretrained(tmp_path / "two" / "student")
    one, two = tmp_path / "one", tmp_path / "two"
    assert (has_two_times(one), has_two_times(two)) == (False, True)
    require_velocity("teacher", one, has_two_times(one))
    with pytest.raises(ValueError, match=r"needs.teacher: .*two has a second time.*Stage 1"):
        require_velocity("teacher", two, has_two_times(two))


def test_settings_that_do_not_fit_are_refused():
    shares = {"stage.r_equals_t": 0.6, "stage.r_is_zero": 0.6}
    said = problem(resolve("stage2_tf_mean_flow", "tiny", shares).recipe)
    assert "stage.r_is_zero: 0.6" in said and "more than all clips" in said
    with pytest.raises(ValueError, match="needs.student: a ClosedForm offers no second time"):
        TFMeanFlow(
            student=ClosedForm.__new__(ClosedForm), tangent="upwind", tangent_step=0.02,
            weight_floor=1e-3, r_equals_t=0.1, r_is_zero=0.1, time_mean=0.0, time_std=1.0,
        )  # fmt: skip
