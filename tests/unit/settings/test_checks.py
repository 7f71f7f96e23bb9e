"""Batches, ranks and modes that are refused by name, and their neighbours that are taken. Nothing here needs a GPU."""

import sys

import pytest

from openrlhf_orz.settings.command_line import parse

BASE = ["--actor.model_name_or_path", "m/m", "--data.prompt_dataset", "d", "--orz.device", "cuda"]
SMALL = "--rollout.batch_size 4 --rollout.n_samples_per_prompt 4 --orz.critic_updates 2"


def message(capsys, flags: str) -> str:
    with pytest.raises(SystemExit) as exit:
        parse([*BASE, *flags.split()])
    assert exit.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        # 16 samples on 8 ranks
        (f"{SMALL} --orz.policy_updates 4", "--orz.policy_updates 4 needs as many samples on each of 8 ranks"),
        (f"{SMALL} --orz.critic_updates 3", "--orz.critic_updates 3 needs as many samples on each of 8 ranks"),
        (f"{SMALL} --actor.num_nodes 3", "are 16 batches, fewer than the 24 ranks"),
        # GPUs that models share
        ("--train.colocate_all --critic.num_gpus_per_node 4", "as many critic ranks (4:"),
        ("--train.colocate_all --critic.num_nodes 2", "as many critic ranks (16:"),
        ("--train.colocate_all --train.async_enable --critic.num_nodes 2", "as many critic ranks (16:"),
        ("--train.colocate_all --vllm.num_engines 4", "--vllm.tensor_parallel_size (4) to equal"),
        ("--train.colocate_all --orz.check_sync --vllm.enable_sleep", "--vllm.enable_sleep has their cache asleep"),
        ("--algo.kl.init_coef 0.1 --train.colocate_all --ref.num_nodes 2", "give --ref.num_nodes 1"),
        ("--algo.kl.init_coef 0.1 --train.colocate_actor_ref --ref.num_gpus_per_node 4", "--ref.num_gpus_per_node 8"),
        # one response to a prompt
        *(
            (f"--algo.advantage.estimator {name} --rollout.n_samples_per_prompt 1", "every advantage would be 0")
            for name in ("rloo", "reinforce_baseline", "group_norm", "dr_grpo")
        ),
        ("--rollout.max_new_tokens 2048", "leaves no room for a prompt in --data.max_len 2048"),
        ("--rollout.vllm_generate_batch_size 129", "is above --rollout.batch_size 128"),
        ("--reward.model_name_or_path r/r", "--reward.model_name_or_path would not be used"),
        ("--reward.overlong_buffer_len 101 --rollout.max_new_tokens 100", "(100): give that, at least as large"),
    ],
)
def test_refused(capsys, flags, named):
    assert named in message(capsys, flags)


@pytest.mark.parametrize(
    "flags",
    [
        f"{SMALL} --orz.policy_updates 2",
        f"{SMALL} --actor.num_nodes 2 --orz.critic_updates 1",
        f"{SMALL} --orz.critic_updates 3 --algo.advantage.estimator group_norm",  # no critic
        "--train.colocate_all --train.async_enable --vllm.num_engines 4",
        "--train.colocate_all --critic.num_nodes 2 --algo.advantage.estimator reinforce",
        "--critic.num_nodes 2",
        "--orz.check_sync --vllm.enable_sleep",  # OpenRLHF lets no engine sleep that has its own GPU
        "--algo.kl.init_coef 0.1 --ref.num_nodes 2",
        "--train.colocate_all --ref.num_nodes 2",
        "--algo.advantage.estimator reinforce --rollout.n_samples_per_prompt 1",
        "--algo.advantage.estimator flash_reinforce --rollout.n_samples_per_prompt 1",
        "--rollout.max_new_tokens 2047",
        "--rollout.vllm_generate_batch_size 128",
        "--rollout.vllm_generate_batch_size 129 --train.async_enable",
        "--reward.model_name_or_path r/r --reward.remote_url http://host",
        f"--reward.model_name_or_path r/r --train.agent_func_path {__file__}",
        "--reward.overlong_buffer_len 100 --rollout.max_new_tokens 100",
    ],
)
def test_taken(flags):
    parse([*BASE, *flags.split()])


@pytest.mark.parametrize(
    ("datasets", "given", "taken"),
    [
        ("a,b", "0.5,0.5", True),
        ("a,b", "0.1,0.9", True),
        ("a", "1", True),
        ("a,b", "0.5,0.6", False),
        ("a,b", "0.5,0.4", False),
        ("a,b", "1,0", False),
        ("a,b", "1.5,-0.5", False),
        ("a,b", "1", False),
        ("a,b", "x,y", False),
    ],
)
def test_probabilities_of_data_sets(capsys, datasets, given, taken):
    flags = ["--data.prompt_dataset", datasets, "--data.prompt_probs", given]
    if taken:
        parse([*BASE, *flags])
    else:
        assert f"--data.prompt_probs {given}: give a number above 0" in message(capsys, " ".join(flags))


@pytest.mark.parametrize(
    ("flags", "package"),
    [
        ("--use_ms", "modelscope"),
        ("--ds.load_in_4bit", "bitsandbytes"),
        ("--ds.use_liger_kernel", "liger_kernel"),
        ("--ds.attn_implementation flash_attention_2", "flash_attn"),
        ("--ds.ring_attn_size 2", "flash_attn"),
        ("--ds.ring_attn_size 2", "ring_flash_attn"),
    ],
)
def test_packages_that_are_missing(capsys, monkeypatch, flags, package):
    from openrlhf_orz.settings import checks

    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    ring = " --orz.device cuda --actor.num_gpus_per_node 2 --critic.num_gpus_per_node 2" * ("ring" in flags)
    said = message(capsys, flags + ring)
    assert f"{flags} needs the package {package}, which is not installed" in said
    if package == "ring_flash_attn":
        assert "pip install --no-deps ring-flash-attn==" in said
    if flags == "--ds.attn_implementation flash_attention_2":
        monkeypatch.setattr(checks, "find_spec", lambda name: sys)
        parse([*BASE, *flags.split()])


def test_each_wrong_thing_is_said_once(capsys):
    lines = message(
        capsys, "--rollout.micro_batch_size 8192 --vllm.sync_backend mpi --orz.policy_updates 3"
    ).splitlines()
    assert len(lines) == 4 and len(set(lines)) == 4, lines
