"""Checkpoints of real DeepSpeed that other ranks load, in another ZeRO stage, or cli.publish, on none."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_zero_gradients import run_ranks

from openrlhf_orz.runtime.checkpoints import TRAINER
from openrlhf_orz.runtime.resume import flag_values
from openrlhf_orz.runtime.universal import universal_copy
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.command_line import parse
from openrlhf_orz.trainer.exports import convert_checkpoint, policy_state

# ZeRO stages of two ranks, then one, then two again; "sums": bfloat16 at ZeRO-1, with gradients summed in float32
WAYS = ["critic-2-2-2", "policy-3-3-3", "policy-2-3-1", "critic-3-1-3", "policy-sums-sums-sums"]
STAY = {"policy": "2", "critic": "2", "sums": "sums"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder, and each step's results by name."""
    folder, results = tmp_path_factory.mktemp("universal"), {}
    for step, world in ((1, 2), (2, 1), (3, 2)):
        cases = [f"{way}:{way.split('-')[0]}:{way.split('-')[step]}" for way in WAYS]
        if step == 1:
            cases += [f"stay-{name}:{name.replace('sums', 'policy')}:{stage}" for name, stage in STAY.items()]
        for name, found in run_ranks(world, "universal", str(folder), str(step), *cases).items():
            results.setdefault(name, []).extend(found)
    return folder, results


def pieces(folder):
    """Of each parameter that trains: whole weight and moments in float32, and the number of steps."""
    files = (folder / "step3" / "universal").glob("tag/zero/*/*.pt")
    loaded = {f"{file.parent.name}/{file.stem}": torch.load(file, weights_only=True) for file in files}
    return {name: value["param"].flatten() if isinstance(value, dict) else value for name, value in loaded.items()}


@pytest.mark.parametrize("way", WAYS)
def test_from_two_ranks_to_one_and_back(runs, way):
    """The losses, the weights and the moments are those of a run that stays on two ranks."""
    folder, results = runs
    sums = "sums" in way
    stay = "stay-sums" if sums else f"stay-{way.split('-')[0]}"
    for ours, theirs in zip(results[way], results[stay], strict=True):
        # to the order of sums in float32, or bfloat16's rounding
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2 if sums else 1e-5), results
        assert ours["lr"] == theirs["lr"] and ours["gap"] < (1e-2 if sums else 1e-7), results
    assert "critic" in way or ours["lr"] < results[way][0]["lr"]
    found, expected = pieces(folder / way), pieces(folder / stay)
    assert found.keys() == expected.keys() and len(found) > 40
    for key, value in expected.items():
        if key.endswith("/step"):
            assert int(found[key]) == int(value) == 3
        else:
            gap = (found[key] - value).abs().max() / value.abs().max().clamp(min=1e-12)
            assert gap < (0.1 if sums else 1e-4), (key, gap)


def test_the_command_converts_or_says_why_not(runs, tmp_path):
    """DeepSpeed's own process; a failure leaves the checkpoint as it was and nothing else."""
    path, base = (
        tmp_path / "checkpoints" / "global_step1",
        ["--actor.model_name_or_path", "m", "--data.prompt_dataset"],
    )
    base += ["d", "--ckpt.output_dir", str(tmp_path), "--orz.device", "cpu", "--ds.zero_stage"]
    shutil.copytree(runs[0] / "policy-2-3-1" / "step1" / "saved" / "tag", path / "_actor" / "global_step1")
    for rank in (0, 1):
        (path / "_actor" / f"rank{rank}.pt").touch()
    flags = flag_values(parse([*base, "2"])[0])
    (path / TRAINER).write_text(json.dumps({"flags": flags, "prompts_sha256": "", "global_step": 1}))
    copy = universal_copy(path, parse([*base, "3"])[0])
    assert sorted(f.name for f in Path(copy, "_actor").iterdir()) == ["global_step1", "latest_universal"]
    next(path.rglob("*optim_states.pt")).unlink()
    left = sorted(path.rglob("*"))
    with pytest.raises(
        ConfigError, match="DeepSpeed cannot convert .*global_step1 .*: resume on 2 ranks, with --ds.z"
    ):
        universal_copy(path, parse([*base, "3"])[0])
    assert sorted(path.rglob("*")) == left and list(path.parent.iterdir()) == [path]


def test_a_policy_of_two_ranks_is_published_bit_by_bit(tmp_path):
    """At ZeRO-2 and 3, in bfloat16, with adapters: what the run itself would save, and loads in transformers."""
    from ds_setup import model_config
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_ranks(2, "exported", str(tmp_path), *(cases := ["whole:2", "whole:bf16", "adapters:bf16"]))
    expected = {case: torch.load(tmp_path / case / "whole.pt", weights_only=True) for case in cases}
    for case, whole in expected.items():
        state = policy_state(tmp_path / case / "tag", torch.bfloat16 if "bf16" in case else torch.float32)
        tied = {name for name in state if name.endswith("lm_head.weight")}  # which are saved once
        assert state.keys() - whole.keys() == tied and len(tied) == 1
        for name, tensor in whole.items():
            assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), (case, name)
    base = tmp_path / "base"
    model_config(architectures=["Qwen2ForCausalLM"]).save_pretrained(base)
    AutoTokenizer.from_pretrained("examples/tiny_base").save_pretrained(base)
    for case, adapters in (("whole:bf16", False), ("adapters:bf16", True), ("adapters:bf16", False)):
        flags = {"actor.model_name_or_path": str(base), "orz.trust_remote_code": False, "ds.param_dtype": "bf16",
                 "ds.lora.rank": 4 if "adapters" in case else 0, "ds.lora.alpha": 8, "ds.lora.dropout": 0,
                 "ds.lora.target_modules": "all-linear", "data.apply_chat_template": True}  # fmt: skip
        checkpoint, output = tmp_path / f"{case}{adapters}" / "best_global_step2", tmp_path / f"out-{case}{adapters}"
        shutil.copytree(tmp_path / case / "tag", checkpoint / "_actor" / checkpoint.name)
        (checkpoint / TRAINER).write_text(json.dumps({"flags": flags, "prompts_sha256": "", "global_step": 2}))
        convert_checkpoint(checkpoint, output, adapters)
        whole = expected[case]
        if adapters:
            saved = load_file(output / "adapter_model.safetensors")
            assert saved and all(
                torch.equal(x, whole[n.replace(".weight", ".default.weight")]) for n, x in saved.items()
            )
            continue
        for name, tensor in AutoModelForCausalLM.from_pretrained(output).state_dict().items():
            if "adapters" in case:
                name = f"base_model.model.{name}"
                layer = name.removesuffix(".weight")
                if f"{layer}.lora_A.default.weight" in whole:
                    a, b = (whole[f"{layer}.lora_{x}.default.weight"].float() for x in "AB")
                    was = whole[f"{layer}.base_layer.weight"]
                    assert torch.equal(tensor, (was + 2 * (b @ a)).to(was.dtype)) and not torch.equal(tensor, was)
                    continue
            assert torch.equal(tensor, whole.get(name, tensor)), name
