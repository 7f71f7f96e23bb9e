"""The flags' records: each flag of both parsers has one; what may change on resumption; the pages made from them."""

import re
from pathlib import Path

import pytest

from openrlhf_orz.settings.command_line import training_parser
from openrlhf_orz.settings.flag_table import flags_page, shown_default
from openrlhf_orz.settings.flags import CONVERTED, FREE, LAYOUT, MEANING, ORZ_FLAGS
from openrlhf_orz.settings.openrlhf_flags import OPENRLHF_FLAGS, PAPER_DEFAULTS, RECORDS
from openrlhf_orz.settings.upstream import openrlhf_parser

ROOT = Path(__file__).parents[3]

MUST_BE_THE_SAME = """
ds.ring_attn_size ds.tensor_parallel_size ds.zpg ds.param_dtype orz.freeze_critic orz.value_loss orz.value_bins
orz.value_base_rate
"""
IS_CONVERTED = """
actor.num_nodes actor.num_gpus_per_node critic.num_nodes critic.num_gpus_per_node ds.zero_stage ds.grad_accum_dtype
"""
MAY_DIFFER = """
actor.gradient_checkpointing_enable actor.gradient_checkpointing_reentrant ckpt.best_metric_key ckpt.disable_ds
ckpt.load_enable ckpt.max_mem ckpt.max_num ckpt.output_dir ckpt.path ckpt.save_hf ckpt.save_steps
data.dataloader_num_workers data.disable_fast_tokenizer data.input_key data.input_template data.label_key
data.max_samples data.prompt_dataset data.prompt_split ds.adam_offload ds.attn_implementation
ds.enable_sleep ds.overlap_comm ds.packing_samples ds.use_liger_kernel eval.dataset eval.n_samples_per_prompt
eval.split eval.steps eval.temperature local_rank logger.logging_steps logger.tensorboard_dir logger.wandb.group
logger.wandb.key logger.wandb.org logger.wandb.project logger.wandb.run_name ref.num_gpus_per_node ref.num_nodes
ref.offload reward.num_gpus_per_node reward.num_nodes reward.offload
rollout.max_tokens_per_gpu train.full_determinism_enable train.max_tokens_per_gpu train.num_episodes
vllm.enable_prefix_caching vllm.enable_sleep vllm.enforce_eager vllm.gpu_memory_utilization vllm.num_engines
vllm.sync_backend vllm.sync_with_ray vllm.tensor_parallel_size orz.allow_changed_flags orz.check_sync
orz.checkpoint_timeout_s orz.cpu_kvcache_mib orz.generation_timeout_s orz.grader_workers orz.logprob_gap_every
orz.max_num_batched_tokens orz.max_num_seqs
orz.max_prompt_len orz.max_restarts orz.max_skipped_steps orz.prompt_template orz.put_aside orz.report_every
orz.right_reward orz.rollout_dump_every orz.rollout_dump_max orz.rollout_values
orz.critic_beside orz.share_prefixes orz.start_timeout_s orz.stop_timeout_s
orz.sync_bucket_mib orz.sync_timeout_s orz.trainer_timeout_s orz.training_timeout_s orz.worker_logs
"""
# these, too, follow from the two lists above; they are what nobody should be able to change by accident
CHANGES_THE_MEANING = """
algo.advantage.gamma algo.advantage.lambd algo.advantage.estimator algo.advantage.no_std_norm algo.kl.init_coef
algo.kl.use_loss algo.kl.estimator actor.adam.lr critic.adam.lr actor.adam.betas critic.adam.betas
actor.adam.weight_decay actor.lr_scheduler critic.lr_scheduler actor.lr_warmup_ratio actor.max_norm actor.eps_clip
actor.entropy_coef critic.value_clip critic.freezing_steps rollout.batch_size rollout.n_samples_per_prompt
rollout.temperature rollout.top_p rollout.max_new_tokens train.batch_size train.max_epochs train.seed
train.async_enable data.max_len reward.clip_range reward.remote_url actor.model_name_or_path critic.model_name_or_path
orz.policy_updates orz.critic_updates orz.critic_epochs orz.lambda_policy orz.lambda_alpha
orz.baseline orz.positive_nll orz.warmup_steps orz.value_head_init orz.old_log_probs orz.cross_fit_values
orz.stop orz.plain_math_verify orz.verifier orz.keep_cut_rewards orz.trainer_cls orz.reward_cls
orz.device orz.trust_remote_code
"""


def test_every_flag_has_one_record():
    theirs = {action.dest for action in openrlhf_parser()._actions} - {"help"}
    names = [flag.name for flag in (*ORZ_FLAGS, *OPENRLHF_FLAGS)]
    assert len(names) == len(set(names)) == len(RECORDS)
    assert {flag.name for flag in OPENRLHF_FLAGS} == theirs
    assert all(flag.name.startswith("orz.") for flag in ORZ_FLAGS)


def test_every_flag_of_both_is_taken():
    ours = {option for action in training_parser()._actions for option in action.option_strings}
    theirs = {option for action in openrlhf_parser()._actions for option in action.option_strings}
    assert theirs < ours
    assert ours - theirs == {f"--{flag.name}" for flag in ORZ_FLAGS} | {"--dry_run"}


def test_the_parser_has_the_records_types_and_defaults():
    actions = {action.dest: action for action in training_parser()._actions}
    for flag in ORZ_FLAGS:
        action = actions[flag.name]
        assert action.default == flag.default and action.choices == flag.choices and action.nargs in (flag.nargs, 0)
        assert action.type == (None if flag.type is bool else flag.type) and flag.help in action.help
        assert flag.help and (flag.type not in (int, float) or flag.range)
    for name, default in PAPER_DEFAULTS.items():
        assert actions[name].default == default


def test_what_may_differ_on_resumption():
    assert {name for name, flag in RECORDS.items() if flag.resume is LAYOUT} == set(MUST_BE_THE_SAME.split())
    assert {name for name, flag in RECORDS.items() if flag.resume is CONVERTED} == set(IS_CONVERTED.split())
    assert {name for name, flag in RECORDS.items() if flag.resume is FREE} == set(MAY_DIFFER.split())
    assert {RECORDS[name].resume for name in CHANGES_THE_MEANING.split()} == {MEANING}


def test_the_page_of_flags_is_made_from_the_records():
    page = (ROOT / "docs" / "flags.md").read_text()
    assert page == flags_page(), "run: python -m openrlhf_orz.settings.flag_table > docs/flags.md"
    for name, default in (
        ("orz.critic_updates", "`12`"),
        ("orz.start_timeout_s", "`3600`"),
        ("orz.check_sync", "off"),
    ):
        assert f"| `--{name}` | {default} |" in page
    assert "| none (OpenRLHF: `0.5`): Eq. 2 is not clipped |" in page
    assert "| `--ds.zero_stage` | works | `2`; derived: CPU `0` or `1`, 8 GPUs `3` |" in page
    assert "| `--vllm.num_engines` | works | none; derived: CPU `1`, 8 GPUs `8` |" in page
    assert "| `--algo.advantage.gamma` | only with `--algo.advantage.estimator gae` or `reinforce` | `1` |" in page


def test_every_flag_of_openrlhf_has_a_verdict():
    """Works, beside another one or by itself, is refused, or has no effect; the page says it for each."""
    page = (ROOT / "docs" / "flags.md").read_text()
    for flag in OPENRLHF_FLAGS:
        assert flag.effect is not None, flag.name
        words = flag.effect.words
        assert re.match(
            r"works$|only (with `--|without a critic|with several policy steps)|refused: |no effect: ", words
        ), (
            flag.name,
            words,
        )
        assert (flag.effect.acts is None) == (words == "works"), flag.name
        assert f"| `--{flag.name}` | {words} |" in page
        if named := re.match(r"only with `--([\w.]+)", words):
            assert named[1] in RECORDS, f"{flag.name}: there is no flag {named[1]}"


def test_readme_names_the_defaults():
    rows = re.findall(r"^\| `--([\w.]+)` \| (.+?) \| .+ \|$", (ROOT / "README.md").read_text(), re.M)
    assert {"orz.policy_updates", "orz.critic_updates"} <= {name for name, _ in rows}
    for name, default in rows:
        assert default == shown_default(RECORDS[name].default), name


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, "none"),
        (False, "off"),
        (True, "on"),
        (3600.0, "`3600`"),
        (5e-6, "`5e-06`"),
        (12, "`12`"),
        (("a", "b"), "`a` `b`"),
        ("auto", "`auto`"),
    ],
)
def test_how_defaults_are_shown(value, cell):
    assert shown_default(value) == cell
