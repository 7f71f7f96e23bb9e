"""The benchmarks' own arithmetic, and the GPU benchmark's code on a tiny model on CPU."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Imports a benchmark by name; its results go to ``tmp_path``."""
    monkeypatch.setenv("BENCHMARK_RESULTS", str(tmp_path))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "common", raising=False)
    yield importlib.import_module
    sys.modules.pop("common", None)


def test_flops_by_hand(load):
    common = load("common")
    common.SHAPES = {"one": ("llama", 4, 1, 2, 1, 8, 10, True)}
    # attention 2 x 4 x 4 (q, o) + 2 x 4 x 2 (k, v) = 48, MLP 3 x 4 x 8 = 96: 144 weights, 2 FLOPs each for a token;
    # scores and their product with the values: 2 x 2 x 4 x 3^2, half of it by the causal mask
    assert common.flops("one", [3], [2]) == {"body": 2 * 144 * 3 + 2 * 4 * 9, "head": 2 * 4 * 10 * 2}


def test_a_starts_processes_and_stages(load):
    start = load("start")
    assert start.kind_of("python -m openrlhf_orz.runtime.fork_server serve 7 3 deepspeed") == "imports, once"
    assert start.kind_of("ray::OrzPolicyModelActor.fit") == "policy" and start.kind_of("ray::IDLE") == "Ray"
    assert (
        start.kind_of("python -m openrlhf_orz.cli.train_ppo_ray --x y") == "driver" and start.kind_of("ls") == "others"
    )
    lines = [(1.0, "[orz] starting Ray (1 s)"), (3.0, "[orz] policy is loaded (2 s)"), (4.0, "[orz] critic is loaded")]
    lines += [(9.004, "step 1/2  reward 0.000"), (11.0, "step 2/2"), (14.0, "[orz] 14 s in all")]
    assert start.stages_of(lines) == {
        "driver's imports and data": 1.0, "policy and critic loaded": 4.0, "first step": 9.0, "last step": 11.0,
        "saved and shut down": 14.0,
    }  # fmt: skip
    assert start.middle([{"a": {"x": 1.0}}, {"a": {"x": 3.0, "y": 4.0}}, {"a": {"x": 2.0}}], "a") == {
        "x": 2.0,
        "y": 0.0,
    }


def test_shared_prompts_count_once(load):
    common = load("common")
    pairs = [(5, 3)] * common.GROUP
    whole = common.training_flops("tiny", pairs, shared=False)
    prompt = common.flops("tiny", [5], [])["body"]
    assert whole - common.training_flops("tiny", pairs, shared=True) == 7 * prompt * (common.GROUP - 1)


def test_slope_is_the_exponent(load):
    assert load("common").slope([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2.0)


@pytest.mark.parametrize("kind", ["short", "long", "heavy"])
def test_lengths_are_recorded(load, kind):
    common = load("common")
    pairs = common.draw_lengths(kind, 64)
    assert pairs == common.draw_lengths(kind, 64) and pairs[:16] == common.draw_lengths(kind, 16)
    assert all(pairs[i][0] == pairs[i // common.GROUP * common.GROUP][0] for i in range(64))
    if kind == "heavy":
        described = common.describe_lengths(pairs)
        assert described["longest"] > 4 * described["response_median"]


def test_gpu_train_step_on_cpu(tmp_path):
    """Both paths train the same numbers: the first losses agree; the last line printed is the result. It imports torch
    and transformers, and nothing of the training stack.
    """
    code = (
        "import sys; sys.modules.update(openrlhf=None, ray=None, deepspeed=None, vllm=None, peft=None);"
        f"sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu_train_step;"
        "gpu_train_step.main(['--device', 'cpu', '--tiny', '--dtype', 'fp32', '--repeats', '1'])"
    )
    env = os.environ | {"BENCHMARK_RESULTS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "fp32" / "gpu_train_step_cpu.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == result
    for role in ("actor", "critic"):
        found = result["sizes"]["tiny"][role]
        assert found["ours"]["first_loss"] == pytest.approx(found["naive"]["first_loss"], abs=1e-5)
        assert found["ours"]["tokens_per_s"] > 0 and found["ours"]["mfu"] > 0
    assert {"hardware", "versions", "dtype", "load_average"} <= set(result)


def test_advantages_benchmark(load):
    result = load("advantages").main(["--batch", "2", "--lengths", "64", "--repeats", "1"])
    assert max(case["largest_difference"] for case in result["cases"]) < 1e-4


def test_packing_benchmark(load):
    result = load("packing").main(["--samples", "3", "--scale", "0.1", "--layers", "1", "--hidden", "32",
                                   "--lengths", "heavy", "--repeats", "1", "--dtype", "fp32"])  # fmt: skip
    assert result["cases"][0]["largest_loss_difference"] < 1e-3


def test_curation_benchmark(load, tmp_path, monkeypatch):
    """On a pool of made-up rows every planted kind is nearly always found, and little else."""
    things = "apples pears plums books coins stamps boxes trees chairs tables lamps doors keys maps bells".split()
    rows = [
        {
            "prompt": f"Sam the {things[i % 15]} seller has {i + 3} {things[i // 15]} and buys {2 * i + 5} more."
            " How many?",
            "answer": str(3 * i + 8),
        }
        for i in range(200)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("curate_pool", "curate_texts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = load("curate").main(["--quality", "--data", str(file), "--size", "100", "--set", "processes=1"])["quality"]
    assert found["pool"]["choice"] == 20 and found["chinese_kept"] == 1.0
    for kind in ("choice", "proof", "parts", "guessable", "language"):
        assert min(found[kind]["precision"], found[kind]["recall"]) >= 0.9, (kind, found)
    assert min(found[f"{kind}_duplicates"]["recall"] for kind in ("exact", "respelt", "wrapped")) >= 0.95
    assert found["duplicates_precision"] >= 0.95
    found = load("curate").main(["--contamination", str(file), "--data", str(file)])["contamination"]
    assert found["questions"] == 200 and not any(found["missed"].values()) and found["hits"] == 0


def test_rollout_path_benchmark(load):
    """Both ways end in the same batches for the ranks."""
    benchmark = load("rollout_path")
    found = []
    real = benchmark.to_the_ranks
    benchmark.to_the_ranks = lambda *given: found.append(real(*given)) or found[-1]
    result = benchmark.main(["--responses", "128", "--tokens", "200", "--ranks", "4", "--repeats", "1"])
    assert result["now"]["pickled_mib"] < result["before"]["pickled_mib"]
    before, now = found
    for ours, theirs in zip(now, before, strict=True):
        for name in ("sequences", "attention_mask", "action_mask", "rollout_log_probs", "rewards"):
            assert getattr(ours, name).nan_to_num(9.0).equal(getattr(theirs, name).nan_to_num(9.0)), name
        assert all(ours.info[key].equal(theirs.info[key]) for key in theirs.info)
