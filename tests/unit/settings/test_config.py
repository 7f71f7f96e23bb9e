"""Flags: the paper's defaults, what is derived, what is refused; all without Ray, vLLM or torch."""

import json
import resource
import subprocess
import sys

import pytest

from openrlhf_orz.runtime.run_dir import save_config
from openrlhf_orz.settings.command_line import explicit_flags, parse
from openrlhf_orz.settings.derive import prompt_budget
from openrlhf_orz.settings.skip_plan import needs_old_log_probs

BASE = ["--actor.model_name_or_path", "Qwen/Qwen2.5-7B", "--data.prompt_dataset", "rows.jsonl", "--orz.device", "cpu"]
SMALL = [*BASE, "--rollout.batch_size", "4", "--rollout.n_samples_per_prompt", "4", "--orz.critic_updates", "3"]


def refused(capsys, *flags) -> str:
    with pytest.raises(SystemExit) as exit:
        parse([*SMALL, *flags])
    assert exit.value.code == 2
    return capsys.readouterr().err


def test_paper_defaults():
    args, explicit = parse(BASE)
    assert (args.rollout.batch_size, args.rollout.n_samples_per_prompt, args.train.batch_size) == (128, 64, 8192)
    assert (args.actor.adam.lr, args.critic.adam.lr) == (1e-6, 5e-6)
    assert args.actor.lr_scheduler == args.critic.lr_scheduler == "constant_with_warmup"
    assert args.critic.value_clip is None and args.algo.kl.init_coef == 0 and args.actor.entropy_coef is None
    assert args.actor.adam.betas == args.critic.adam.betas == (0.9, 0.95)
    assert args.actor.adam.weight_decay == args.critic.adam.weight_decay == 0 and args.actor.eps_clip == 0.2
    assert (
        args.algo.advantage.gamma == args.algo.advantage.lambd == args.rollout.temperature == args.rollout.top_p == 1
    )
    assert args.algo.advantage.estimator == "gae" and args.train.max_epochs == 1 and args.vllm.enable_prefix_caching
    assert (args.data.input_key, args.data.label_key) == ("question", "answer")
    assert (args.orz.policy_updates, args.orz.critic_updates, args.orz.warmup_steps) == (1, 12, 50)
    assert args.critic.model_name_or_path == args.actor.model_name_or_path
    assert explicit == {"actor.model_name_or_path", "data.prompt_dataset", "orz.device"}


def test_a_flag_given_wins():
    args, _ = parse(
        [
            *SMALL,
            "--actor.adam.lr",
            "3e-4",
            "--critic.value_clip",
            "0.2",
            "--actor.lr_warmup_ratio",
            "0.1",
            "--logger.tensorboard_dir",
            "tb",
            "--vllm.num_engines",
            "1",
        ]
    )
    assert args.actor.adam.lr == 3e-4 and args.critic.value_clip == 0.2 and args.logger.tensorboard_dir == "tb"
    assert args.orz.actor_warmup_steps is None and args.orz.critic_warmup_steps == 50


def test_packs_on_a_cpu():
    """Forwards keep no activations: their packs are larger, but follow a number given; one of their own stays."""

    def packs(*flags):
        args, _ = parse([*SMALL, *flags])
        return args.train.max_tokens_per_gpu, args.rollout.max_tokens_per_gpu

    assert packs() == (2048, 8192)
    assert packs("--train.max_tokens_per_gpu", "512") == (512, 2048)
    assert packs("--train.max_tokens_per_gpu", "16384") == (16384, 16384)
    assert packs("--rollout.max_tokens_per_gpu", "1024") == (2048, 1024)


def test_derived():
    args, _ = parse(
        [*SMALL, "--actor.num_gpus_per_node", "2", "--critic.num_gpus_per_node", "2", "--ckpt.output_dir", "out"]
    )
    assert args.vllm.num_engines == 2 and args.train.colocate_all and args.ds.attn_implementation == "orz_packed"
    assert args.orz.run_dir.endswith("/out") and args.ckpt.output_dir.endswith("/out/hf")
    assert args.ckpt.path.endswith("/out/checkpoints") and not args.orz.fixed_micro_batches
    assert parse([*SMALL, "--train.micro_batch_size", "2"])[0].orz.fixed_micro_batches


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("--ds.param_dtype fp32", (0, None)),
        ("--ds.param_dtype bf16", (1, "fp32")),  # needs a master copy
        ("--ds.param_dtype bf16 --ds.zero_stage 2", (2, None)),
        ("--ds.param_dtype bf16 --ds.grad_accum_dtype bf16", (1, "bf16")),
        ("--ds.param_dtype fp32 --ds.zero_stage 3", (3, None)),
        ("--ds.param_dtype fp32 --ds.adam_offload", (2, None)),
        ("--ds.param_dtype fp32 --actor.num_gpus_per_node 2 --critic.num_gpus_per_node 2", (2, None)),
        ("--ds.param_dtype bf16 --actor.num_gpus_per_node 2 --critic.num_gpus_per_node 2", (2, None)),
        (
            "--ds.param_dtype fp32 --orz.device cuda --actor.num_gpus_per_node 1 --critic.num_gpus_per_node 1",
            (2, None),
        ),
        (
            "--ds.param_dtype bf16 --orz.device cuda --actor.num_gpus_per_node 1 --critic.num_gpus_per_node 1",
            (2, None),
        ),
    ],
)
def test_least_of_zero_where_there_is_nothing_to_cut(flags, expected):
    ds = parse([*SMALL, *flags.split()])[0].ds
    assert (ds.zero_stage, ds.grad_accum_dtype) == expected


def test_off_policy_by_name():
    args, _ = parse([*SMALL, "--orz.policy_updates", "2"])
    assert args.train.batch_size == 8 and "several policy steps" in needs_old_log_probs(args)
    assert needs_old_log_probs(parse(SMALL)[0]) is None
    assert "always" in needs_old_log_probs(parse([*SMALL, "--orz.old_log_probs", "always"])[0])
    kl = parse([*SMALL, "--algo.kl.init_coef", "0.01"])[0]
    assert "--algo.kl.init_coef" in needs_old_log_probs(kl)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--train.batch_size", "8"], ["--train.batch_size 8", "--orz.policy_updates"]),
        (["--train.max_epochs", "2"], ["--train.max_epochs 2", "--orz.policy_updates"]),
        (["--orz.policy_updates", "3"], ["--orz.policy_updates 3", "16 samples", "choose a number that does"]),
        (["--orz.policy_updates", "0"], ["--orz.policy_updates is 0"]),
        (["--orz.critic_updates", "17"], ["--orz.critic_updates 17", "--rollout.batch_size"]),
        (["--rollout.max_new_tokens", "2048"], ["--rollout.max_new_tokens 2048", "--data.max_len 2048"]),
        (
            ["--actor.num_gpus_per_node", "2", "--critic.num_gpus_per_node", "1"],
            ["--train.colocate_all, the default", "--critic.num_gpus_per_node, now 1, must equal"],
        ),
        (["--vllm.num_engines", "3"], ["--vllm.num_engines"]),
        (["--actor.model_name_or_path", "./nowhere/model"], ["--actor.model_name_or_path", "no directory ./nowhere"]),
        (["--algo.advantage.lambd", "1.5"], ["--algo.advantage.lambd is 1.5"]),
        (["--rollout.batch_size", "0"], ["--rollout.batch_size is 0"]),
        (["--orz.value_head_init", "zeros"], ["--orz.value_head_init", "released"]),
        (["--no.such.flag", "1"], ["--no.such.flag"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refused_by_name(capsys, flags, named):
    message = refused(capsys, *flags)
    for text in named:
        assert text in message


def test_missing_model_and_data(capsys):
    with pytest.raises(SystemExit):
        parse(["--orz.device", "cpu"])
    message = capsys.readouterr().err
    assert "--actor.model_name_or_path is missing" in message and "--data.prompt_dataset is missing" in message


def test_prompt_budget():
    assert prompt_budget(parse(SMALL)[0]) == 2047  # max_len 2048, one token left for the response
    assert prompt_budget(parse([*SMALL, "--rollout.max_new_tokens", "1000"])[0]) == 1048
    assert prompt_budget(parse([*SMALL, "--orz.max_prompt_len", "100"])[0]) == 100


def test_config_json_holds_no_key(tmp_path):
    args, explicit = parse([*SMALL, "--logger.wandb.key", "sesame"])
    save_config(args, explicit, tmp_path / "config.json")
    text = (tmp_path / "config.json").read_text()
    assert "sesame" not in text
    content = json.loads(text)
    assert content["flags"]["rollout"]["batch_size"] == 4 and content["versions"]["openrlhf"].startswith("0.11.2+orz.")
    assert "logger.wandb.key" in content["explicit"]


def test_explicit_flags():
    assert explicit_flags(["--train.seed", "42", "--ds.packing_samples"]) == {"train.seed", "ds.packing_samples"}


@pytest.mark.parametrize("flags, status", [(["--help"], 0), ([*BASE, "--train.batch_size", "3"], 2)])
def test_answers_at_once_without_heavy_imports(flags, status):
    code = (
        "import sys\nfrom openrlhf_orz.cli.train_ppo_ray import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as e:\n"
        "    loaded = {'ray', 'vllm', 'torch', 'deepspeed'} & set(sys.modules)\n"
        "    print('loaded', sorted(loaded), file=sys.stderr)\n    raise"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == status and "loaded []" in result.stderr
    # of CPU time: a crowded machine may take any time
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
