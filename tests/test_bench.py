"""``python -m experiments bench`` on a CPU, at the smallest sizes: what its JSON says."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from experiments.__main__ import main
from experiments.bench import clock, rollout, vae
from experiments.bench.clock import Protocol
from experiments.bench.random_models import Subject
from experiments.bench.sizes import scale_tree
from experiments.runs.recipe import Library, parse_settings
from lightning_modules.networks.wan.cuda_graphs import Replay

NETWORK = {
    "num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 8, "freq_dim": 16,
    "ffn_dim": 32, "num_layers": 1,
}  # fmt: skip
SMALL = [f"{net}.{key}={value}" for net in ("network", "score_network")
         for key, value in NETWORK.items()]  # fmt: skip
SMALL += [
    "clip_shape=[3,16,4,4]", "bench.text_tokens=5", "bench.text_encoder.d_model=8",
    "bench.text_encoder.d_kv=4", "stages.pairs.batch=2", "stages.pairs.intervals=4",
    "launch.batch_per_device=2",
]  # fmt: skip


def timed(report: dict) -> list[dict]:
    """Rows with a time."""
    return [row for row in report["rows"] if "seconds" in row]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("bench") / "all.json"
    words = ["--device", "cpu", "--warmup", "0", "--repeats", "2", "--few-steps", "1", "2"]
    assert main(["bench", "all", *SMALL, *words, "--one-process", "--out", str(out)]) == 0
    return json.loads(out.read_text())


def test_every_part_is_measured(report):
    names = [row["name"] for row in report["rows"]]
    assert len(set(names)) == len(names)
    assert names[0] == "agreement" and names[1] == "rollout/2/separate", "worth most"
    for steps in (1, 2):
        for past in ("training", "separate", "fused"):
            assert f"rollout/{steps}/{past}" in names
    trained = {row["recipe"]: [] for row in report["rows"] if "recipe" in row}
    for row in report["rows"]:
        trained.get(row.get("recipe"), []).append(row.get("turn"))
    both = ["student", "critic"]
    assert trained == {
        "stage1_diffusion_forcing": [None], "stage1_teacher_forcing": [None], "posed_base": [None],
        "continued_base": [None],
        "stage2_self_forcing_ode": [None], "stage2_causal_ode": [None],
        "stage2_causal_cd": [None], "stage2_causal_dmd": both, "stage3_asymmetric_dmd": both,
        "stage2_tf_dcm": [None], "stage2_tf_scm": [None], "stage2_tf_mean_flow": [None],
        "stage3_sf_dmd": both,
        "stage3_causvid_dmd": both,
    }  # fmt: skip
    assert {"pairs/causal", "pairs/bidirectional", "vae/encode", "vae/decode"} <= set(names)
    assert {"attention/merged", "attention/dense"} <= set(names)


def test_every_number_stands_beside_its_roofline(report):
    assert report["peak"]["matmul_flops"] > 1e8 and report["peak"]["copy_bytes"] > 1e8
    for row in timed(report):
        timed_steps = max(2, len(row.get("outcomes", [])))
        assert len(row["seconds"]) == timed_steps and min(row["seconds"]) > 0, row["name"]
        assert row["operations"] > 0 and row["bytes"] > 0 and row["peak_memory_bytes"] > 0
        assert 0 < row["roofline_s"] < min(row["seconds"]), f"{row['name']}: faster than the device"
        assert row["share_of_roofline"] == row["roofline_s"] / row.get(
            "expected_s", row["median_s"]
        )
        assert 0 < row["mfu"] <= 1
    assert all(math.isfinite(row["median_s"]) for row in timed(report))


def test_every_way_to_make_the_calls_gives_the_same_clip(report):
    row = report["rows"][0]
    assert row["finite"] and set(row) == {"task", "name", "finite", "separate", "fused"}
    for way in ("separate", "fused"):
        assert len(row[way]) == 1 and row[way][0] < 1e-5, "without graphs each clip is as the first"


def test_it_says_on_what_and_how(report):
    assert report["weights"].startswith("random")
    assert report["device"]["type"] == "cpu" and report["device"]["name"]
    assert {"python", "torch", "diffusers"} <= set(report["versions"])
    assert report["protocol"]["repeats"] == 2 and report["protocol"]["warmup"] == 0
    assert report["settings"]["network.num_layers"] == 1 and report["scale"] == "tiny"


def test_distribution_matching_is_timed_at_every_exit(report):
    """Of two steps with a first block of four: four outcomes that have every exit equally often."""
    rows = {row["name"]: row for row in report["rows"]}
    for turn in ("student", "critic"):
        row = rows[f"train/stage3_asymmetric_dmd/{turn}"]
        exits = {(found["exit"], found["first_exit"]) for found in row["outcomes"]}
        assert exits == {(first % 2, first) for first in range(4)}
        mean = sum(found["median_s"] for found in row["outcomes"]) / 4
        assert row["expected_s"] == pytest.approx(mean)
        assert sorted(found["median_s"] for found in row["outcomes"]) == sorted(row["seconds"])
    assert "expected_s" not in rows["train/stage2_causal_cd"]


def test_a_training_step_has_the_optimizer_and_the_average_of_the_run(report):
    decays = {row["recipe"]: row["student_ema_decay"] for row in report["rows"] if "recipe" in row}
    assert decays["stage3_asymmetric_dmd"] == 0.9 and decays["stage2_causal_cd"] == 0.0
    row = next(row for row in report["rows"] if row.get("recipe") == "stage1_teacher_forcing")
    assert row["optimizer"] == "GatedAdamW" and row["left_out"] == {
        "strategy": "auto",
        "devices": 1,
    }


def test_pixels_are_decoded_as_samples_are(report):
    """On the CPU in float32 whatever the network's precision: see test_the_vae_in_both_dtypes."""
    row = next(row for row in report["rows"] if row["name"] == "rollout/2/fused")
    assert row["vae_dtype"] == "float32"
    parts = sum(row[part]["median"] for part in ("noise_s", "text_s", "pixels_s"))
    whole = row["pixel_frames"] / row["throughput_e2e_fps"]["p10"]
    assert row["noise_s"]["median"] > 0 and whole > parts


def test_the_vae_in_both_dtypes():
    tree = scale_tree("tiny", parse_settings([*SMALL, "precision=bf16-mixed"]), Library())
    subject = Subject(tree, torch.device("cpu"))
    names = [task.name for task in vae.bench(subject, Protocol(0, 1))]
    assert names == ["vae/encode", "vae/encode/bfloat16", "vae/decode", "vae/decode/bfloat16"]
    assert next(subject.vae().parameters()).dtype == torch.float32
    names = [task.name for task in vae.bench(Subject(tree, torch.device("cuda")), Protocol(0, 1))]
    assert names == ["vae/encode", "vae/encode/float32", "vae/decode", "vae/decode/float32"]


@pytest.mark.parametrize(
    ("least", "made", "times"),
    [
        (0, [9, 9, 9, 9], 0),
        (1, [0, 0, 0, 0], 1),  # nothing is ever done for the first time
        (1, [1, 2, 2, 2], 3),  # plain calls, then captured, then replayed
        (3, [1, 1, 1, 1], 3),
        (1, range(1, 100), 8),  # never settles
    ],
)
def test_warm_up_lasts_until_every_graph_is_replayed(least, made, times):
    counts = iter([0, *made])
    done = []
    assert clock.warm_up(lambda: done.append(1), least, lambda: next(counts)) == times
    assert len(done) == times


@torch.no_grad()
def test_a_rollout_with_graphs_is_timed_when_all_calls_are_replays():
    """The first clip runs plain, the second captures."""
    tree = scale_tree("tiny", parse_settings(SMALL), Library())
    subject = Subject(tree, torch.device("cpu"))
    net = subject.network(tree["network"])
    replay = Replay(net, record=lambda call, *examples: call)
    encoder = SimpleNamespace(config=SimpleNamespace(vocab_size=2))
    one = rollout.Rollout(subject, replay, encoder, None, 2, "fused")
    counts, text = [], subject.prompt()

    def clip():
        noise, later = one._draw()
        rollout.rollout(one._past(text), noise, subject.blocks, one._denoise(later.__getitem__))
        counts.append(replay.first_times)

    assert clock.warm_up(clip, 1, lambda: replay.first_times) == 3
    assert counts[0] < counts[1] == counts[2]


def test_first_frame_and_throughput_by_both_definitions(report):
    row = next(r for r in report["rows"] if r["name"] == "rollout/2/separate")
    frames, median = row["pixel_frames"], lambda key: row[key]["median"]
    assert frames == 9, "1 + 4 (3 - 1)"
    assert median("latency_first_frame_e2e_s") > median("latency_first_frame_denoise_s")
    assert median("throughput_no_vae_fps") > median("throughput_e2e_fps") > 0
    assert median("throughput_no_vae_fps") <= frames / min(row["seconds"])
    assert row["calls"] == 4 + 2 + 2 + 2, "four steps of the first frame, two of others, commits"
    fused = next(r for r in report["rows"] if r["name"] == "rollout/2/fused")
    assert fused["calls"] == 4 + 2 + 2, "commits ride along"


def test_stage_2_is_predicted_at_the_papers_counts(report):
    stage2 = report["stage2"]
    hours = {k: v["device_hours"] for k, v in stage2["initialisations"].items()}
    assert all(value > 0 for value in hours.values())
    assert stage2["counts"] == {"pairs": 80_000, "batch": 64, "steps": 5_000, "intervals": 48}
    ratio = hours["causal_ode"] / hours["causal_cd"]
    assert stage2["causal_ode_to_causal_cd"] == {"ours": pytest.approx(ratio), "paper": 4.0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rollouts_on_a_gpu(tmp_path):
    """Every way to make calls, in bfloat16, beside the peak of this device."""
    out = tmp_path / "rollout.json"
    words = ["rollout", *SMALL, "precision=bf16-mixed"]
    assert main(["bench", *words, "--device", "cuda", "--repeats", "2", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["device"]["name"] == torch.cuda.get_device_name()
    assert report["peak"]["dtype"] == "bfloat16"
    names = {row["name"] for row in report["rows"]}
    assert {f"rollout/{steps}/fused+cuda_graphs" for steps in (1, 2, 4)} <= names
    assert all(row["roofline_s"] < row["median_s"] for row in report["rows"])
