"""Flags that cannot be, alone or together, and what they name that is not there."""

import os

import pytest
from command_line import GOOD, check

from openrlhf_orz.settings.checks import SCHEDULERS, ConfigError, check_numbers
from openrlhf_orz.settings.command_line import parse, training_parser
from openrlhf_orz.settings.openrlhf_flags import RECORDS

# flags, and what the message must hold
FLAGS = [
    # misspelt, cut short, old names, wrong kinds
    ("--rolout.batch_size 4", ["--rolout.batch_size is not a flag", "do you mean --rollout.batch_size"]),
    ("--rollout.batch 4", ["--rollout.batch is not a flag", "--rollout.batch_size"]),
    ("--rollout_batch_size=4", ["--rollout_batch_size is not a flag", "--rollout.batch_size"]),
    ("--lambd 1", ["--lambd is not a flag", "--algo.advantage.lambd"]),
    ("--zzz 1", ["--zzz is not a flag", "--help"]),
    ("stray", ["'stray' belongs to no flag", "quotation marks"]),
    ("--train.seed abc", ["--train.seed", "invalid int value: 'abc'"]),
    ("--rollout.batch_size 4.5", ["--rollout.batch_size", "invalid int value: '4.5'"]),
    ("--train.seed", ["--train.seed", "expected one argument"]),
    ("--orz.value_head_init zeros", ["--orz.value_head_init", "released"]),
    ("--ds.param_dtype int8", ["--ds.param_dtype", "bf16"]),
    ("--algo.advantage.estimator ppo", ["--algo.advantage.estimator", "group_norm"]),
    ("--actor.lr_scheduler flat", ["--actor.lr_scheduler flat", "constant_with_warmup"]),
    ("--ds.attn_implementation flash", ["--ds.attn_implementation flash", "orz_packed", "sdpa"]),
    ("--vllm.sync_backend mpi", ["--vllm.sync_backend mpi", "nccl"]),
    # batch sizes and updates
    ("--train.batch_size 8", ["--train.batch_size 8", "16 samples", "--orz.policy_updates"]),
    ("--train.max_epochs 2", ["--train.max_epochs 2", "--orz.policy_updates"]),
    ("--orz.policy_updates 3", ["--orz.policy_updates 3", "does not divide", "16 samples"]),
    ("--orz.policy_updates 2 --train.batch_size 4", ["--train.batch_size 4", "leave --train.batch_size out"]),
    ("--orz.critic_updates 17", ["--orz.critic_updates 17", "lower it"]),
    ("--orz.replay {tmp}/none", ["--orz.replay", "no rollouts/", "name a run's directory"]),
    ("--orz.replay {tmp} --train.async_enable", ["--train.async_enable draws", "--orz.replay"]),
    ("--orz.replay {tmp} --algo.dynamic_filtering_enable", ["--algo.dynamic_filtering_enable draws other prompts"]),
    ("--orz.replay {tmp} --orz.reward_cls m:C", ["--orz.reward_cls would not be asked: rewards are read"]),
    ("--orz.replay {tmp} --eval.dataset {tmp}/rows.jsonl --eval.steps 1", ["--eval.dataset is answered by engines"]),
    ("--orz.replay {tmp} --orz.check_sync", ["--orz.check_sync asks engines"]),
    ("--orz.replay {tmp} --orz.on_logprob_gap mask", ["--orz.on_logprob_gap needs vLLM's log-probs"]),
    ("--orz.lambda_policy long", ["--orz.lambda_policy long", "[0, 1]", "length"]),
    ("--orz.lambda_policy 1.5", ["--orz.lambda_policy 1.5", "[0, 1]"]),
    ("--orz.lambda_policy nan", ["--orz.lambda_policy nan", "[0, 1]"]),
    ("--orz.lambda_alpha 0.1", ["--orz.lambda_alpha", "--orz.lambda_policy length"]),
    (
        "--orz.critic_epochs 2 --algo.advantage.estimator group_norm",
        ["--orz.critic_epochs (only with `--algo.advantage.estimator gae`, refused without): leave it out"],
    ),
    ("--orz.critic_minibatch groups --algo.advantage.estimator rloo", ["--orz.critic_minibatch (only with"]),
    ("--orz.cross_fit_values --algo.advantage.estimator rloo", ["--orz.cross_fit_values (only with"]),
    ("--orz.value_bins 64", ["--orz.value_bins (only with `--orz.value_loss hl_gauss`, refused without)"]),
    ("--reward.remote_url {tmp}/none.py", ["--reward.remote_url: there is no file", "none.py: check the path"]),
    ("--orz.baseline group --algo.advantage.gamma 0.9", ["--orz.baseline group", "--algo.advantage.gamma 1"]),
    ("--orz.baseline group --rollout.n_samples_per_prompt 1", ["--orz.baseline group", "2 or more"]),
    ("--orz.baseline batch --orz.lambda_policy 0.9", ["--orz.lambda_policy", "--orz.baseline batch uses none"]),
    ("--orz.baseline auto --orz.cross_fit_values", ["--orz.cross_fit_values", "leave --orz.baseline out"]),
    ("--orz.rollout_values 4 --orz.cross_fit_values", ["--orz.rollout_values", "--orz.cross_fit_values"]),
    ("--orz.rollout_values 4 --orz.rollout_dump_every 0", ["--orz.rollout_values does nothing", "rollout_dump_every"]),
    ("--orz.rollout_values 4 --algo.advantage.estimator rloo", ["--orz.rollout_values (only with"]),
    ("--orz.freeze_critic layers:0", ["--orz.freeze_critic layers:0", "layers:N with N at least 1"]),
    ("--orz.freeze_critic mlp", ["--orz.freeze_critic mlp", "attention, embeddings"]),
    ("--orz.freeze_critic attention --ds.lora.rank 8", ["--orz.freeze_critic attention", "--ds.lora.rank"]),
    ("--orz.value_loss bce --algo.advantage.gamma 0.9", ["--orz.value_loss bce", "--algo.advantage.gamma 1"]),
    ("--orz.value_loss bce --critic.value_clip 0.2", ["--orz.value_loss bce", "--critic.value_clip"]),
    ("--orz.value_loss bce --orz.reward_cls m:C", ["--orz.value_loss bce", "--reward.clip_range LOW HIGH"]),
    (
        "--orz.value_loss bce --orz.reward_cls m:C --reward.clip_range -1 1",
        ["--orz.value_loss bce needs rewards in [0, 1]", "--reward.clip_range 0 1"],
    ),
    (
        "--orz.value_loss hl_gauss --reward.stop_properly_penalty_coef -0.5",
        ["--orz.value_loss hl_gauss", "--reward.stop_properly_penalty_coef"],
    ),
    ("--orz.value_loss hl_gauss --algo.kl.init_coef 0.1", ["--orz.value_loss hl_gauss", "--algo.kl.use_loss"]),
    ("--orz.value_bins 11", ["--orz.value_bins", "--orz.value_loss hl_gauss"]),
    ("--orz.value_base_rate 0.2", ["--orz.value_base_rate", "--orz.value_loss bce"]),
    ("--rollout.vllm_generate_batch_size 8", ["--rollout.vllm_generate_batch_size 8", "leave it out"]),
    (
        "--rollout.micro_batch_size 16 --actor.num_gpus_per_node 2 --critic.num_gpus_per_node 2",
        ["--rollout.micro_batch_size 16", "fewer than the 2 ranks"],
    ),
    ("--orz.fp32_head --orz.batch_invariant --orz.device cuda", ["--orz.fp32_head", "--orz.batch_invariant"]),
    ("--orz.fp32_head --algo.kl.init_coef 0.1", ["--orz.fp32_head", "--algo.kl.init_coef 0.1"]),
    ("--orz.max_num_seqs 600 --orz.max_num_batched_tokens 512", ["--orz.max_num_batched_tokens 512", "600"]),
    # ranks, engines, parallelism
    (
        "--actor.num_gpus_per_node 2 --critic.num_gpus_per_node 1",
        ["--train.colocate_all", "--critic.num_gpus_per_node"],
    ),
    (
        "--orz.device cuda --actor.num_gpus_per_node 3 --critic.num_gpus_per_node 2",
        ["--critic.num_gpus_per_node, 2 ranks", "must divide", "--actor.num_gpus_per_node, 3"],
    ),
    (
        "--orz.critic_beside always --train.colocate_all --orz.device cuda",
        ["--orz.critic_beside always", "GPUs of the critic's own"],
    ),
    ("--orz.critic_beside always --train.async_enable", ["--orz.critic_beside always", "leave it out"]),
    ("--orz.critic_beside always --orz.cross_fit_values", ["--orz.critic_beside always", "--orz.cross_fit_values"]),
    (
        "--orz.critic_beside always --ds.enable_sleep --orz.device cuda --critic.num_gpus_per_node 1",
        ["--orz.critic_beside always", "leave --ds.enable_sleep out"],
    ),
    (
        "--orz.critic_beside never --algo.advantage.estimator group_norm",
        ["--orz.critic_beside", "--algo.advantage.estimator gae"],
    ),
    ("--vllm.num_engines 3", ["--vllm.num_engines", "--actor.num_gpus_per_node"]),
    ("--orz.batch_invariant", ["--orz.batch_invariant", "H100", "--orz.device cpu"]),
    ("--ds.enable_sleep --ds.zero_stage 0 --orz.device cuda", ["--ds.enable_sleep", "--ds.zero_stage 3"]),
    ("--ds.enable_sleep --ds.zero_stage 1 --orz.device cuda", ["--ds.enable_sleep", "--ds.grad_accum_dtype fp32"]),
    (
        "--ds.tensor_parallel_size 2 --ds.zero_stage 3 --orz.device cuda",
        ["--ds.tensor_parallel_size 2", "--ds.zero_stage 3", "Give --ds.zero_stage 1 or 2"],
    ),
    ("--ds.tensor_parallel_size 3", ["--ds.tensor_parallel_size 3", "does not divide the 1 ranks"]),
    (
        "--ds.ring_attn_size 2 --actor.num_gpus_per_node 2 --critic.num_gpus_per_node 2",
        ["--ds.ring_attn_size 2", "--ds.attn_implementation flash_attention_2"],
    ),
    ("--ds.ring_attn_size 2 --actor.num_gpus_per_node 3", ["--ds.ring_attn_size 2", "3 ranks"]),
    (
        "--algo.kl.init_coef 0.1 --actor.num_gpus_per_node 2 --ref.num_gpus_per_node 1",
        ["--algo.kl.init_coef 0.1", "--ref.num_nodes 1 and --ref.num_gpus_per_node 2"],
    ),
    (
        "--ds.tensor_parallel_size 2 --actor.num_gpus_per_node 2 --critic.num_gpus_per_node 2 --ds.param_dtype fp32",
        ["--ds.tensor_parallel_size 2", "--ds.param_dtype bf16"],
    ),
    (
        "--orz.device cuda --vllm.tensor_parallel_size 3 --actor.num_gpus_per_node 3 --critic.num_gpus_per_node 3",
        ["--vllm.tensor_parallel_size 3", "4 attention heads"],
    ),
    # what cannot be together
    ("--train.async_enable --orz.check_sync", ["--orz.check_sync", "--train.async_enable"]),
    ("--train.partial_rollout_enable", ["--train.partial_rollout_enable", "--train.async_enable"]),
    ("--orz.cross_fit_values --algo.advantage.lambd 0.9", ["--orz.cross_fit_values", "--algo.advantage.lambd 1"]),
    ("--orz.cross_fit_values --critic.value_clip 0.2", ["--orz.cross_fit_values", "--critic.value_clip"]),
    (
        "--algo.advantage.estimator group_norm --rollout.n_samples_per_prompt 1",
        ["--algo.advantage.estimator group_norm", "--rollout.n_samples_per_prompt 1", "2 or more"],
    ),
    (
        "--algo.dynamic_filtering_enable --rollout.n_samples_per_prompt 1",
        ["--algo.dynamic_filtering_enable", "--rollout.n_samples_per_prompt 2"],
    ),
    ("--algo.dynamic_filtering_range 1 0", ["--algo.dynamic_filtering_range 1 0", "lower number first"]),
    ("--reward.clip_range 1 -1", ["--reward.clip_range 1 -1", "lower number first"]),
    ("--algo.advantage.is_correction_threshold 1 2 3", ["--algo.advantage.is_correction_threshold", "LOW and HIGH"]),
    ("--eval.steps 5", ["--eval.steps 5", "--eval.dataset"]),
    ("--eval.dataset {tmp}/rows.jsonl", ["--eval.dataset", "--eval.steps"]),
    ("--reward.overlong_buffer_len 9", ["--reward.overlong_buffer_len", "--rollout.max_new_tokens"]),
    ("--data.input_template Q", ["--data.input_template 'Q'", "{}"]),
    ("--data.input_template Q{} --orz.prompt_template none", ["--data.input_template", "leave one out"]),
    ("--orz.prompt_template Q", ["--orz.prompt_template 'Q'", "{{prompt}}", "paper, released, none"]),
    ("--data.apply_chat_template --orz.prompt_template none", ["--data.apply_chat_template", "--orz.prompt_template"]),
    ("--data.prompt_probs 0.5,0.5", ["--data.prompt_probs 0.5,0.5", "1 data sets"]),
    ("--data.prompt_probs half", ["--data.prompt_probs half", "commas"]),
    ("--reward.model_name_or_path {tmp}/model", ["--reward.model_name_or_path", "--reward.remote_url"]),
    ("--reward.remote_url ftp://host", ["--reward.remote_url ftp://host", "http://"]),
    ("--reward.remote_url {tmp}/gone.py", ["--reward.remote_url", "gone.py"]),
    # OpenRLHF's and our own words for "no address"
    ("--reward.remote_url=", ["--reward.remote_url ''", "leave it out"]),
    *(
        (f"--reward.remote_url {word}", [f"--reward.remote_url {word.split(chr(44))[-1]} is", "--orz.verifier"])
        for word in ("none", "agent", "orz", "http://host,none")
    ),
    ("--train.agent_func_path {tmp}/gone.py", ["--train.agent_func_path", "gone.py"]),
    ("--ds.param_dtype fp16 --orz.device cpu", ["--ds.param_dtype fp16 needs GPUs", "bf16 or fp32"]),
    ("--data.max_images_per_prompt 2", ["--data.max_images_per_prompt 2", "Leave it out"]),
    ("--use_ms", ["--use_ms", "modelscope"]),
    # lengths
    ("--rollout.max_new_tokens 480", ["--rollout.max_new_tokens 480", "--data.max_len 480"]),
    ("--data.max_len 600", ["--data.max_len 600", "512 positions", "lower it"]),
    ("--data.max_len 12", ["prompt_too_long", "tokens > 11", "--data.max_len", "rows.jsonl:1"]),
    ("--orz.max_prompt_len 9", ["prompt_too_long", "tokens > 9 (--orz.max_prompt_len", "rows.jsonl:1"]),
    # folders
    ("--ckpt.output_dir {tmp}/rows.jsonl", ["--ckpt.output_dir", "rows.jsonl is not a folder", "choose another"]),
    ("--ckpt.output_dir {tmp}/rows.jsonl/run", ["--ckpt.output_dir", "rows.jsonl is not a folder"]),
    ("--ckpt.output_dir /proc/no/run", ["--ckpt.output_dir", "cannot be written", "hoose another"]),
    ("--ckpt.output_dir {tmp}/" + "x" * 300, ["--ckpt.output_dir", "too long", "choose another"]),
    ("--ckpt.output_dir {tmp}/a,b", ["--ckpt.output_dir", "',' and '@'", "Choose another"]),
    ("--ckpt.path {tmp}/rows.jsonl/c", ["--ckpt.path", "is not a folder", "choose another"]),
    ("--logger.tensorboard_dir {tmp}/rows.jsonl", ["--logger.tensorboard_dir", "is not a folder"]),
    # data sets by name
    ("--data.prompt_dataset {tmp}/gone.jsonl", ["--data.prompt_dataset", "there is no file or folder", "gone.jsonl"]),
    ("--data.prompt_dataset {tmp}/rows.jsonl/x.jsonl", ["--data.prompt_dataset", "there is no file or folder"]),
    ("--data.prompt_dataset {tmp}/" + "x" * 300, ["--data.prompt_dataset", "too long", "Check the path"]),
    ("--data.prompt_dataset no-such/data-set", ["--data.prompt_dataset no-such/data-set", "Check the name"]),
    ("--data.input_key q", ["--data.input_key q", "Keys seen: answer, question", "Name one of them"]),
    ("--data.label_key a", ["--data.label_key a", "Keys seen", "reference answers"]),
    # models by name
    (
        "--actor.model_name_or_path {tmp}/gone",
        ["--actor.model_name_or_path", "there is no directory", "check the path"],
    ),
    ("--actor.model_name_or_path ./gone", ["--actor.model_name_or_path", "there is no directory ./gone"]),
    ("--actor.model_name_or_path {tmp}/rows.jsonl", ["--actor.model_name_or_path", "no config.json"]),
    (
        "--actor.model_name_or_path no-such/model",
        ["--actor.model_name_or_path", "there is no directory no-such/model here"],
    ),
    ("--critic.model_name_or_path {tmp}/gone", ["--critic.model_name_or_path", "there is no directory"]),
    ("--critic.model_name_or_path {tmp}", ["--critic.model_name_or_path", "no config.json"]),
]


@pytest.mark.parametrize("flags, named", FLAGS, ids=[case[0][:80] for case in FLAGS])
def test_flags(run, flags, named):
    check(run(*flags.split()), 2, named)


def test_empty_stop_string(run):
    check(run("--orz.stop", "User:", ""), 2, ["--orz.stop", "leave it out"])


def test_everything_wrong_is_said_at_once(run):
    check(run("--rollout.top_p", "2", "--train.seed", "-1"), 2, ["--rollout.top_p is 2.0", "--train.seed is -1"])


NUMBERS = {
    action.option_strings[0][2:]: action for action in training_parser()._actions if action.type in (int, float)
}


def test_every_numeric_flag_has_a_range():
    assert set(NUMBERS) == {name for name, flag in RECORDS.items() if flag.range}


# numbers next to the allowed ones, written down here: not taken from the records
OUT_OF_RANGE = """
rollout.temperature 0, -1, nan; rollout.top_p 0, 1.01; rollout.batch_size 0; rollout.n_samples_per_prompt 0
algo.advantage.gamma 1.1, -0.1; algo.advantage.lambd 1.01, -0.01; algo.kl.init_coef -0.01
actor.adam.eps 0; critic.adam.eps 0; actor.adam.lr -1e-9; critic.adam.lr -1e-9; actor.adam.weight_decay -0.1
actor.adam.betas 1.0, -0.1; critic.adam.betas 1.0, -0.1; actor.lr_warmup_ratio 1.1; actor.min_lr_ratio -0.1
actor.eps_clip -0.1; critic.value_clip 0; actor.dual_clip 1; actor.max_norm -1; critic.max_norm -1
actor.num_gpus_per_node 0; critic.num_nodes 0; critic.freezing_steps -2
train.batch_size 0; train.micro_batch_size 0; train.num_episodes 0; train.max_epochs 0; train.max_tokens_per_gpu 0
train.seed -1, 4294967296; train.ema_beta inf; data.max_len 0; eval.steps 0; reward.stop_properly_penalty_coef 1.1
vllm.tensor_parallel_size 0; vllm.gpu_memory_utilization 0, 1.1; ds.zero_stage 4, -1; ds.lora.dropout 1
ckpt.save_steps 0, -2; ckpt.max_mem 0, -inf, nan
orz.policy_updates 0; orz.critic_updates 0; orz.warmup_steps -1; orz.max_prompt_len 0; orz.grader_workers 0
orz.critic_epochs 0; orz.lambda_alpha 0; orz.positive_nll -0.1
orz.value_bins 7; orz.value_base_rate 0, 1
orz.report_every -2; orz.rollout_dump_every -1; orz.rollout_dump_max 0; orz.rollout_values -1
orz.max_restarts -1; orz.max_skipped_steps 0
orz.sync_timeout_s -1; orz.sync_bucket_mib 0
"""
AT_THE_EDGE = """
algo.advantage.gamma 0, 1; algo.advantage.lambd 0, 1; rollout.temperature 0.01; rollout.top_p 1; actor.adam.betas 0
actor.lr_warmup_ratio 0, 1; critic.min_lr_ratio 0; actor.adam.lr 0; ds.zero_stage 0, 3; train.seed 0, 4294967295
ckpt.max_mem inf; ckpt.save_steps -1, 1; eval.steps -1; orz.report_every -1; orz.sync_timeout_s 0; orz.warmup_steps 0
orz.policy_updates 1; orz.critic_updates 1; orz.max_restarts 0; algo.kl.init_coef 0; critic.freezing_steps -1
"""
DEFAULTS = vars(training_parser().parse_args([]))


def cases(table: str) -> list[tuple[str, float]]:
    lines = [part.strip().partition(" ") for part in table.replace("\n", ";").split(";") if part.strip()]
    return [(name, float(number)) for name, _, numbers in lines for number in numbers.split(", ")]


@pytest.mark.parametrize(("name", "number"), cases(OUT_OF_RANGE))
def test_numbers_out_of_range(name, number):
    for given in (number, [0.5, number], (number, 0.5)):
        with pytest.raises(ConfigError, match=f"--{name} is .*: it must be "):
            check_numbers(DEFAULTS | {name: given})


def test_numbers_at_the_edge_are_taken():
    for name, number in cases(AT_THE_EDGE):
        check_numbers(DEFAULTS | {name: number})


def test_every_wrong_number_is_named():
    wrong = {"train.seed": -1, "orz.critic_updates": 0, "rollout.top_p": 2.0}
    with pytest.raises(ConfigError) as refusal:
        check_numbers(DEFAULTS | wrong)
    assert sorted(str(refusal.value).splitlines()) == [
        "--orz.critic_updates is 0: it must be at least 1",
        "--rollout.top_p is 2.0: it must be above 0 and at most 1",
        "--train.seed is -1: it must be in [0, 4294967295]",
    ]


@pytest.mark.parametrize(
    ("name", "number"),
    [("ckpt.max_mem", float("nan")), ("ckpt.max_mem", -float("inf")), ("rollout.temperature", float("inf"))],
)
def test_what_is_not_finite_is_said_to_be(name, number):
    with pytest.raises(ConfigError, match=f"--{name} is {number}: it must be a finite number"):
        check_numbers(DEFAULTS | {name: number})


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_make_no_sense(name, capsys):
    action, limits = NUMBERS[name], RECORDS[name].range
    wrong = [str(x) for x in (-7, -0.5, 0, 1, 2, 2**33) if not limits.allows(x) and action.type(x) == x]
    assert wrong or limits.words == "a finite number"
    if action.type is float:
        wrong += ["nan"] if limits.infinite else ["nan", "inf"]
    for value in wrong:
        # a list of two: the wrong number beside a right one
        given = [f"--{name}", value, "0.5"] if action.nargs == 2 else [f"--{name}", value]
        with pytest.raises(SystemExit) as exit:
            parse(["--actor.model_name_or_path", "m", "--data.prompt_dataset", "d", *given])
        message = capsys.readouterr().err
        assert exit.value.code == 2 and f"--{name} is " in message and "it must be " in message, message


def test_schedulers_are_those_of_transformers():
    from transformers import SchedulerType

    assert set(SCHEDULERS) <= {kind.value for kind in SchedulerType}


def test_last_rollout_smaller_than_the_ranks(run, tmp_path):
    """Nine prompts, four a rollout, one response each: two ranks, and the last rollout has one sample."""
    (tmp_path / "rows.jsonl").write_text(GOOD * 9)
    two = ("--actor.num_gpus_per_node", "2", "--critic.num_gpus_per_node", "2")
    flags = ("--rollout.n_samples_per_prompt", "1", "--orz.critic_updates", "1", *two)
    named = ["--rollout.batch_size 4", "of 9 prompts the last rollout has 1", "the 2 ranks", "--data.max_samples"]
    check(run(*flags), 2, named)
    check(run(*flags, "--data.max_samples", "8"), "starts", ["8 prompts, 2 steps"])
    check(run(*flags, "--rollout.batch_size", "16"), "starts", ["9 prompts, 1 steps"])
    (tmp_path / "rows.jsonl").write_text(GOOD)
    check(run(*flags), 2, ["of 1 prompts the last rollout has 1"])


def test_another_build_of_openrlhf(run, monkeypatch):
    from openrlhf_orz.settings import upstream

    monkeypatch.setattr(upstream, "version", lambda name: "0.11.2")
    check(run(), 2, ["OpenRLHF 0.11.2 is installed", "bash tools/setup.sh"])


@pytest.mark.parametrize(("flags", "switch"), [((), "0"), (("--orz.trust_remote_code",), "1")])
def test_remote_code_is_allowed_by_the_flag_alone(run, monkeypatch, flags, switch):
    monkeypatch.setenv("OPENRLHF_TRUST_REMOTE_CODE", "1" if switch == "0" else "0")
    check(run(*flags), "starts", [])
    assert os.environ["OPENRLHF_TRUST_REMOTE_CODE"] == switch


def test_what_is_sound_reaches_ray(run):
    """Else the cases above could all fail for one and the same reason."""
    check(run(), "starts", ["1 prompts, 1 steps"])
