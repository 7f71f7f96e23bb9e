"""Batches, ranks and modes that are refused by name, and their neighbours that are taken. Nothing here needs a GPU."""

import sys

import pytest

from openrlhf_orz.settings.command_line import parse

BASE = ["--actor.model_name_or_path", "m/m", "--data.prompt_dataset", "d", "--orz.device", "cuda"]
CORRECTION = "--algo.advantage.is_correction_"
KL = "--algo.kl.init_coef 0.1 --ref.num_gpus_per_node 8"
MUON = "--actor.optim muon --actor.max_norm 0"
LORA = "--ds.lora.rank 8 --train.colocate_all"
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
        ("--train.colocate_all --critic.num_gpus_per_node 4", "--critic.num_gpus_per_node, now 4, must equal"),
        ("--train.colocate_all --critic.num_nodes 2", "--critic.num_gpus_per_node, now 16, must equal"),
        (
            "--train.colocate_all --train.async_enable --critic.num_nodes 2",
            "--critic.num_gpus_per_node, now 16, must equal",
        ),
        ("--critic.num_nodes 2", "16 ranks, must divide --actor.num_nodes x"),
        ("--train.colocate_all --vllm.num_engines 4", "--vllm.tensor_parallel_size, now 4, must equal"),
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
        ("--rollout.vllm_generate_batch_size 129 --train.async_enable", "a resumed run would skip their prompts"),
        ("--rollout.vllm_generate_batch_size 64", "each step would train on 64 prompts"),
        ("--rollout.vllm_generate_batch_size 64 --train.async_enable", "each step would train on 64 prompts"),
        ("--reward.model_name_or_path r/r", "--reward.model_name_or_path (refused: answers are graded"),
        ("--reward.model_name_or_path r/r --reward.remote_url http://host", "serve the model and name it there"),
        # corrections, KL, adapters, optimizers: what OpenRLHF finds out when Ray has started, or never
        (f"{CORRECTION}level seq {CORRECTION}mode clip", "mode clip clamps the ratio of a token"),
        (
            f"{CORRECTION}level token {CORRECTION}mode clip {CORRECTION}gating tv",
            "mode clip clamps the ratio of a token",
        ),
        (f"{CORRECTION}level token {CORRECTION}gating tv", "threshold HIGH, one number (the default is for ratios)"),
        (f"{CORRECTION}level token {CORRECTION}mode mask --actor.policy_loss_type gspo", "mode does nothing with"),
        ("--algo.kl.use_loss", "--algo.kl.use_loss (only with `--algo.kl.init_coef`, refused without)"),
        ("--algo.kl.target 0.1", "--algo.kl.target (only with"),
        (f"{KL} --algo.kl.use_loss --algo.kl.estimator k1", "has a gradient of mean 0"),
        ("--algo.kl.unbiased_gradient", "--algo.kl.unbiased_gradient (only with"),
        ("--critic.freezing_steps 2 --algo.advantage.estimator reinforce", "--critic.freezing_steps (only with"),
        (
            "--train.partial_rollout_enable",
            "--train.partial_rollout_enable (only with `--train.async_enable`, refused",
        ),
        ("--actor.aux_loss_coef 0.1", "only without a critic"),
        ("--actor.optim muon", "--actor.optim muon needs --actor.max_norm 0"),
        ("--critic.optim muon", "--critic.optim muon needs --critic.max_norm 0"),
        (f"{MUON} --ds.zero_stage 3", "--actor.optim muon does not go with --ds.zero_stage 3"),
        (f"{MUON} --ds.zero_stage 0", "--actor.optim muon does not go with --ds.zero_stage 0"),
        (f"{MUON} --ds.zero_stage 1 --ds.grad_accum_dtype fp32", "does not go with --ds.grad_accum_dtype fp32"),
        (f"{MUON} --ds.adam_offload", "--actor.optim muon does not go with --ds.adam_offload"),
        (f"{MUON} --ds.tensor_parallel_size 2 --ds.zero_stage 2", "does not go with --ds.tensor_parallel_size 2"),
        ("--actor.muon.ns_steps 3", "--actor.muon.ns_steps (refused: DeepSpeed has it fixed): leave it out"),
        ("--ds.lora.rank 8", "--ds.lora.rank needs engines on the GPUs that train"),
        (f"{LORA} --train.async_enable", "--ds.lora.rank needs engines on the GPUs that train"),
        (f"{LORA} --ds.tensor_parallel_size 2", "--ds.lora.rank needs whole weights"),
        (f"{LORA} --ds.lora.target_modules q_proj lm_head", "--ds.lora.target_modules lm_head: embeddings and head"),
        (f"{LORA} --critic.optim muon --critic.max_norm 0", "--ds.lora.rank does not go with"),
        ("--ds.load_in_4bit", "--ds.load_in_4bit (refused: the policy's weights go to vLLM and to `hf/` whole"),
        ("--ds.use_universal_ckpt", "--ds.use_universal_ckpt (refused"),
        ("--ds.deepcompile", "--ds.deepcompile (refused"),
        ("--actor.freeze_visual_encoder", "--actor.freeze_visual_encoder (refused"),
        ("--ds.grad_accum_dtype float", "--ds.grad_accum_dtype float is not one of fp32, bf16, fp16"),
        ("--ds.zero_stage 0 --ds.grad_accum_dtype fp32", "--ds.grad_accum_dtype fp32 needs --ds.zero_stage 1"),
        ("--orz.device cpu --ds.param_dtype fp16", "--ds.param_dtype fp16 needs GPUs"),
        ("--orz.device cpu --vllm.tensor_parallel_size 2", "--vllm.tensor_parallel_size 2 needs GPUs"),
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
        "--actor.num_nodes 2 --critic.num_nodes 1",
        "--orz.check_sync --vllm.enable_sleep",  # OpenRLHF lets no engine sleep that has its own GPU
        "--algo.kl.init_coef 0.1 --ref.num_nodes 2",
        "--train.colocate_all --ref.num_nodes 2",
        "--algo.advantage.estimator reinforce --rollout.n_samples_per_prompt 1",
        "--algo.advantage.estimator flash_reinforce --rollout.n_samples_per_prompt 1",
        "--rollout.max_new_tokens 2047",
        "--rollout.vllm_generate_batch_size 128",
        f"{CORRECTION}level seq",
        f"{CORRECTION}level token {CORRECTION}mode clip",
        f"{CORRECTION}level seq {CORRECTION}gating tv {CORRECTION}threshold 0.1",
        f"{CORRECTION}level token --actor.policy_loss_type gspo",
        f"{KL} --algo.kl.use_loss --algo.kl.estimator k3 --algo.kl.target 0.1",
        f"{KL} --algo.kl.use_loss --algo.kl.estimator k1 --algo.kl.unbiased_gradient",
        "--actor.optim muon --actor.max_norm 0 --actor.muon.lr 0.01",
        "--actor.muon.ns_steps 5",  # what it is in any case
        f"{LORA} --ds.lora.target_modules q_proj v_proj",
        "--orz.device cpu --ds.lora.rank 8",
        "--ds.param_dtype fp16",
        "--actor.aux_loss_coef 0.1 --algo.advantage.estimator reinforce",
        "--critic.freezing_steps 2",
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
        ("--logger.wandb.key=k", "wandb"),
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
    assert f"{flags.partition('=')[0]} needs the package {package}, which is not installed" in said
    if package == "ring_flash_attn":
        assert "pip install --no-deps ring-flash-attn==" in said
    if flags == "--ds.attn_implementation flash_attention_2":
        monkeypatch.setattr(checks, "find_spec", lambda name: sys)
        parse([*BASE, *flags.split()])


IDLE = """
actor.eps_clip_low_high 0.1 0.3; actor.dual_clip 3; actor.gradient_checkpointing_reentrant; actor.muon.lr 0.1
actor.min_lr_ratio 0.2; critic.min_lr_ratio 0.2; critic.muon.momentum 0.9; algo.advantage.is_correction_mode clip
algo.dynamic_filtering_range 0.1 0.9; algo.kl.estimator k3; algo.kl.horizon 5; data.dataloader_num_workers 2
data.image_key pictures; ds.lora.alpha 4; ds.lora.target_modules q_proj; ds.zpg 8; eval.temperature 0.5; local_rank 3
logger.wandb.org us; ref.num_nodes 2; ref.offload; reward.num_nodes 2; reward.offload; reward.overlong_penalty_factor 2
train.async_queue_size 2; train.colocate_critic_reward; train.ema_beta 0.5; ds.ring_attn_head_stride 2
"""


def test_a_flag_that_does_nothing_is_named(capsys):
    """All of them are taken; what OpenRLHF would act on all the same is set back."""
    given = [case.strip() for case in IDLE.replace("\n", ";").split(";") if case.strip()]
    args, explicit = parse([*BASE, *(word for case in given for word in f"--{case}".split())])
    said = capsys.readouterr().out
    for case in given:
        assert f"[orz] --{case.split()[0]} has no effect: " in said
    assert (args.local_rank, args.data.dataloader_num_workers, args.train.colocate_critic_reward) == (-1, 0, False)
    parse(
        [*BASE, "--algo.kl.init_coef", "0.1", "--ref.num_nodes", "1", "--train.enable_ema", "--train.ema_beta", "0.5"]
    )
    assert "has no effect" not in capsys.readouterr().out
    for stage, idle in ((3, False), (2, True)):  # DeepSpeed offloads no weights below ZeRO-3
        parse([*BASE, "--algo.kl.init_coef", "0.1", "--ref.offload", "--ds.zero_stage", str(stage)])
        assert ("--ref.offload has no effect" in capsys.readouterr().out) is idle


def test_without_a_critic_its_flags_do_nothing(capsys):
    flags = "--algo.advantage.estimator group_norm --critic.adam.lr 1e-4 --algo.advantage.lambd 0.9"
    parse([*BASE, *flags.split(), "--algo.advantage.no_std_norm"])
    said = capsys.readouterr().out
    for name in ("critic.adam.lr", "algo.advantage.lambd", "algo.advantage.no_std_norm"):
        assert f"[orz] --{name} has no effect: only with `--algo.advantage.estimator gae" in said


def test_adapters_on_all_layers_may_be_asked_for_by_name():
    for given in ([], ["--ds.lora.target_modules", "all-linear"], ["--ds.lora.target_modules"]):
        assert parse([*BASE, *LORA.split(), *given])[0].ds.lora.target_modules == "all-linear"


def test_each_wrong_thing_is_said_once(capsys):
    lines = message(
        capsys, "--rollout.micro_batch_size 8192 --vllm.sync_backend mpi --orz.policy_updates 3"
    ).splitlines()
    assert len(lines) == 4 and len(set(lines)) == 4, lines
