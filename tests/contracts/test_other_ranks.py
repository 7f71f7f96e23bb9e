"""Checkpoints of real DeepSpeed that other ranks load, in another ZeRO stage."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_zero_gradients import run_ranks

from openrlhf_orz.runtime.checkpoints import TRAINER
from openrlhf_orz.runtime.resume import flag_values
from openrlhf_orz.runtime.universal import universal_copy
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.command_line import parse

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
