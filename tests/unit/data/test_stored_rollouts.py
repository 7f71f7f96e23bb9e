"""Stored rollouts: which rows can be used, and why others cannot."""

import json

import pytest

from openrlhf_orz.data.sources import DataError
from openrlhf_orz.data.stored_rollouts import RolloutReader, digest, split_by_prompt


def encode(text):
    return [ord(letter) for letter in text]


def decode(ids):
    return "".join(map(chr, ids))


def row(response="ab", prompt="p", reward=1.0, **more):
    ids = encode(response)
    return {"prompt": prompt, "response": response, "reward": reward, "tokens": len(ids), "token_ids": ids,
            "prompt_tokens": len(prompt), **more}  # fmt: skip


def run_with(folder, *steps, config=None):
    (folder / "rollouts").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or {"flags": {}}))
    for step, rows in enumerate(steps, 1):
        (folder / "rollouts" / f"step_{step}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_rows_are_read_and_those_that_cannot_be_used_are_counted(tmp_path):
    old = {key: value for key, value in row("xyz").items() if key not in ("token_ids", "prompt_tokens")}
    run = run_with(
        tmp_path / "run",
        [row(), row("cd", reward=0.0, reward_trained=-0.5), old, {**old, "tokens": 2}],
        [row(between=[[0, 1]]), row(prompt_tokens=4), row(reward=None), row(""), {"prompt": 3}, row(token_ids=["a"])],
        [row("z")],
    )
    reader = RolloutReader(encode, decode, 128)
    found = reader.read(run)
    assert [decode(r.ids) for r in found] == ["ab", "cd", "xyz", "z"] and [r.reward for r in found] == [1, -0.5, 1, 1]
    assert decode(found[0].prompt_ids) == "p" and reader.retokenised == 2
    assert len(reader.left_out) == 7 and set(reader.left_out.values()) == {1}
    assert [decode(r.ids) for r in RolloutReader(encode, decode, 128).read(run, 3)] == ["z"]


def test_another_models_rollouts_are_refused(tmp_path):
    run = run_with(tmp_path / "run", [row()])
    with pytest.raises(DataError, match="not those of this model's tokenizer"):
        RolloutReader(encode, lambda ids: "other", 128).read(run)
    with pytest.raises(DataError, match="beyond the model's 97"):
        RolloutReader(encode, decode, 97).read(run)
    with pytest.raises(DataError, match="no rollouts/step_N.jsonl"):
        RolloutReader(encode, decode, 128).read(run, 5, 6)
    with pytest.raises(DataError, match="--rollouts: .*no directory"):
        RolloutReader(encode, decode, 128).read(tmp_path / "none")
    penalised = {"flags": {"algo": {"kl": {"init_coef": 0.1, "use_loss": False}}}}
    with pytest.raises(DataError, match="KL penalty"):
        RolloutReader(encode, decode, 128).read(run_with(tmp_path / "kl", [row()], config=penalised))


def test_prompts_are_held_out_whole(tmp_path):
    rows = [row(f"{reward}", f"prompt {i % 10}", float(reward)) for i in range(40) for reward in (0, 1)]
    responses = RolloutReader(encode, decode, 128).read(run_with(tmp_path / "run", rows))
    train, held_out = split_by_prompt(responses, 0.2, seed=0)
    assert len(held_out) == 16 and len(train) == 64
    assert not {r.prompt for r in train} & {r.prompt for r in held_out} and len({r.prompt for r in held_out}) == 2
    assert {r.prompt for r in split_by_prompt(responses, 0.2, seed=1)[1]} != {r.prompt for r in held_out}
    assert digest(responses) == digest(list(responses)) != digest(responses[:-1])
    with pytest.raises(DataError, match="32 responses to train on .*same reward"):
        split_by_prompt([r for r in responses if r.reward], 0.2, seed=0)
