"""Our flags (``--orz.*``), one record each. openrlhf_flags.py holds such records for OpenRLHF's flags.

A flag's record is all there is to say about it: the parser, the range checks, the rules for resuming a run and
docs/flags.md are made from it. The flag acts where the code says ``args.`` and its name: ``args.orz.critic_updates``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from openrlhf_orz.settings.effects import CRITIC, Effect, only_with

STOP_STRINGS = ("User:", "Human:", "Assistant:", "</answer>")


class Resume(Enum):
    """What it means that a flag differs between a run and its resumption (runtime/resume.py)."""

    FREE = "may differ"  # where things are written and shown, how long to wait, how work is laid out in memory
    MEANING = "may differ if allowed"  # it says what is computed: only with --orz.allow_changed_flags
    CONVERTED = "may differ: converted"  # it says how a checkpoint is cut into files (runtime/universal.py)
    LAYOUT = "must be the same"  # it says what is in them, or how they are cut in a way that cannot be converted


FREE, MEANING, CONVERTED, LAYOUT = Resume


@dataclass(frozen=True)
class NumberRange:
    """Which numbers a flag may have. A NaN is never allowed, an infinity only with ``infinite``."""

    words: str
    allows: Callable[[float], bool]
    infinite: bool = False


AT_LEAST_0 = NumberRange("at least 0", lambda x: x >= 0)
AT_LEAST_1 = NumberRange("at least 1", lambda x: x >= 1)
AT_LEAST_MINUS_1 = NumberRange("at least -1", lambda x: x >= -1)
AT_LEAST_1_OR_NEVER = NumberRange("at least 1, or -1 for never", lambda x: x == -1 or x >= 1)
ABOVE_0 = NumberRange("above 0", lambda x: x > 0)
ABOVE_0_OR_INFINITE = NumberRange("above 0", lambda x: x > 0, infinite=True)
ABOVE_1 = NumberRange("above 1", lambda x: x > 1)
AT_MOST_1 = NumberRange("at most 1", lambda x: x <= 1)
ABOVE_0_AT_MOST_1 = NumberRange("above 0 and at most 1", lambda x: 0 < x <= 1)
FROM_0_TO_1 = NumberRange("in [0, 1]", lambda x: 0 <= x <= 1)
AT_LEAST_8 = NumberRange("at least 8", lambda x: x >= 8)
INSIDE_0_1 = NumberRange("above 0 and below 1", lambda x: 0 < x < 1)
FROM_0_BELOW_1 = NumberRange("at least 0 and below 1", lambda x: 0 <= x < 1)
ZERO_STAGES = NumberRange("0, 1, 2 or 3", lambda x: x in (0, 1, 2, 3))
SEEDS = NumberRange("in [0, 4294967295]", lambda x: 0 <= x < 2**32)
FINITE = NumberRange("a finite number", math.isfinite)

OPENRLHFS_OWN = object()  # the default of a flag whose default we leave as OpenRLHF has it


@dataclass(frozen=True)
class Flag:
    """One flag. OpenRLHF's parser knows its own flags' type, choices and help; their records leave these out."""

    name: str  # with dots, as on the command line and in the nested arguments
    resume: Resume
    default: Any = OPENRLHFS_OWN
    help: str = ""  # of OpenRLHF's flags: why our default is another one
    type: Callable[[str], Any] = str  # bool: a switch
    range: NumberRange | None = None  # of each number, where there are several; None itself is always allowed
    choices: tuple[str, ...] | None = None
    nargs: str | None = None
    effect: Effect | None = None  # each of OpenRLHF's flags has one; ours where they may do nothing


ORZ_FLAGS = (
    Flag(
        "orz.policy_updates",
        MEANING,
        1,
        "policy steps per rollout; above 1 the run is off-policy (U.S. in Fig. 13)",
        int,
        AT_LEAST_1,
    ),
    Flag(
        "orz.critic_updates",
        MEANING,
        12,
        "critic steps per rollout: mini-batches, each sample exactly once",
        int,
        AT_LEAST_1,
        effect=CRITIC,
    ),
    Flag(
        "orz.critic_epochs",
        MEANING,
        1,
        "passes of the critic over the rollout, each in --orz.critic_updates mini-batches, shuffled anew",
        int,
        AT_LEAST_1,
        effect=CRITIC.or_refused(),
    ),
    Flag(
        "orz.critic_minibatch",
        MEANING,
        "samples",
        "what the critic's mini-batches are cut from: samples (the paper), or groups: all responses to a prompt are in"
        " one mini-batch, which computes the prompt once (--orz.share_prefixes)",
        choices=("samples", "groups"),
        effect=CRITIC.or_refused(),
    ),
    Flag(
        "orz.lambda_policy",
        MEANING,
        None,
        "lambda of the policy's advantages: a number in [0, 1], or length for 1 - 1/(alpha l) of a response of l"
        " tokens; the critic's targets keep --algo.advantage.lambd, which is the default here, too",
        effect=CRITIC.or_refused(),
    ),
    Flag(
        "orz.lambda_alpha",
        MEANING,
        0.05,
        "alpha of --orz.lambda_policy length",
        float,
        ABOVE_0,
        effect=only_with("orz.lambda_policy length", lambda v: v["orz.lambda_policy"] == "length").or_refused(),
    ),
    Flag(
        "orz.value_loss",
        LAYOUT,
        "mse",
        "mse: Eq. 2; bce: the value is a probability, trained by cross-entropy; hl_gauss: a histogram of returns,"
        " trained by cross-entropy to a Gaussian around each return",
        choices=("mse", "bce", "hl_gauss"),
        effect=CRITIC.or_refused(),
    ),
    Flag(
        "orz.value_bins",
        LAYOUT,
        51,
        "bins of --orz.value_loss hl_gauss",
        int,
        AT_LEAST_8,
        effect=only_with("orz.value_loss hl_gauss", lambda v: v["orz.value_loss"] == "hl_gauss").or_refused(),
    ),
    Flag(
        "orz.value_base_rate",
        LAYOUT,
        None,
        "with --orz.value_loss bce: the value that a new head's bias gives (default: 0.5)",
        float,
        INSIDE_0_1,
        effect=only_with("orz.value_loss bce", lambda v: v["orz.value_loss"] == "bce").or_refused(),
    ),
    Flag(
        "orz.baseline",
        MEANING,
        "critic",
        "what advantages subtract from the return: the critic's values, the mean of the prompt's responses or of the"
        " batch; auto: the critic where it explains variance of this rollout's returns, else a mean",
        choices=("critic", "group", "batch", "auto"),
        effect=CRITIC.or_refused(),
    ),
    Flag(
        "orz.positive_nll",
        MEANING,
        0.0,
        "weight in the policy's loss of the negative log-likelihood of right responses (--orz.right_reward)",
        float,
        AT_LEAST_0,
    ),
    Flag(
        "orz.freeze_critic",
        LAYOUT,
        "none",
        "what of the critic does not train, and needs no gradients and no optimizer states: none, attention,"
        " embeddings, or layers:N for the embeddings and the first N layers",
        effect=CRITIC.or_refused(),
    ),
    Flag(
        "orz.warmup_steps",
        MEANING,
        50,
        "linear warm-up in optimizer steps; the critic counts its steps",
        int,
        AT_LEAST_0,
    ),
    Flag(
        "orz.value_head_init",
        MEANING,
        "released",
        "released: N(0, 1/(H+1)) as the released code; kaiming: U(-1/sqrt(H), 1/sqrt(H)); paper: U(-sqrt5, sqrt5)",
        choices=("released", "kaiming", "paper"),
    ),
    Flag(
        "orz.old_log_probs",
        MEANING,
        "auto",
        "auto: skip the forward where it is redundant; always",
        choices=("auto", "always"),
    ),
    Flag(
        "orz.cross_fit_values",
        MEANING,
        False,
        "take each value in the critic's training forward, before the update that uses it: saves the values' forward",
        bool,
        effect=CRITIC.or_refused(),
    ),
    Flag(
        "orz.critic_beside",
        FREE,
        "auto",
        "auto: where the critic has GPUs of its own it trains on and takes values while the next rollout is generated,"
        " which needs the new policy alone; always; never",
        choices=("auto", "always", "never"),
        effect=CRITIC.or_refused(),
    ),
    Flag(
        "orz.share_prefixes",
        FREE,
        "auto",
        "auto: compute a prefix that sequences of a pack share (a prompt) once, where that is exact; never",
        choices=("auto", "never"),
    ),
    Flag(
        "orz.prompt_template",
        FREE,
        "paper",
        "paper (Table 1), released, none, or a text that contains {{prompt}}; on resumption the prompts are compared",
    ),
    Flag("orz.stop", MEANING, STOP_STRINGS, "stop strings; they stay in the response", nargs="*"),
    Flag(
        "orz.max_prompt_len",
        FREE,
        2048,
        "longest prompt in tokens; longer ones are left out and reported; on resumption the prompts are compared",
        int,
        AT_LEAST_1,
    ),
    Flag(
        "orz.verifier",
        MEANING,
        "math",
        "grades rows that name no verifier of their own (docs/reward.md)",
        choices=("math", "letter", "exact", "reasoning_gym"),
    ),
    Flag(
        "orz.keep_cut_rewards",
        MEANING,
        False,
        "a response cut by length keeps the reward that its text earns; else it earns at most 0",
        bool,
    ),
    Flag(
        "orz.right_reward",
        FREE,
        1.0,
        "least reward of a response that metrics count as right, for rewards that are not 0 or 1",
        float,
        FINITE,
    ),
    Flag("orz.trainer_cls", MEANING, None, "MODULE:CLASS, a trainer of one's own (docs/extending.md)"),
    Flag("orz.actor_cls", MEANING, None, "MODULE:CLASS, a policy of one's own"),
    Flag("orz.critic_cls", MEANING, None, "MODULE:CLASS, a critic of one's own"),
    Flag("orz.agent_cls", MEANING, None, "MODULE:CLASS, an agent of one's own: how a response comes about"),
    Flag("orz.reward_cls", MEANING, None, "MODULE:CLASS, a reward of one's own: grade(response, label, stopped)"),
    Flag("orz.plain_math_verify", MEANING, False, "grade by Math-Verify behind the guards, without our rules", bool),
    Flag(
        "orz.grader_workers",
        FREE,
        None,
        "grading processes on each machine (default: one a core, at most 8)",
        int,
        AT_LEAST_1,
    ),
    Flag(
        "orz.replay",
        MEANING,
        None,
        "RUN: train on the rollouts that this run has dumped instead of generating; for debugging a critic, a loss or"
        " a resumption, as it is not on-policy",
    ),
    Flag("orz.rollout_dump_every", FREE, 1, "write rollouts/step_N.jsonl every N steps; 0: never", int, AT_LEAST_0),
    Flag("orz.rollout_dump_max", FREE, None, "most responses in each of these files (default: all)", int, AT_LEAST_1),
    Flag(
        "orz.rollout_values",
        FREE,
        0,
        "responses of each rollout file, spread over it, that have the critic's value and the advantage of each token",
        int,
        AT_LEAST_0,
        effect=CRITIC.or_refused(),
    ),
    Flag(
        "orz.report_every",
        FREE,
        0,
        "write report.html every N steps and at the end; 0: only at the end; -1: never",
        int,
        AT_LEAST_MINUS_1,
    ),
    Flag(
        "orz.logprob_gap_every",
        FREE,
        16,
        "compare vLLM's log-probs with the trainer's on one response in N, and on all of the first steps; 0: never",
        int,
        AT_LEAST_0,
    ),
    Flag(
        "orz.max_logprob_gap",
        MEANING,
        0.05,
        "what is done above this mean |log p_vllm - log p_trainer| in nats a token says --orz.on_logprob_gap",
        float,
        ABOVE_0_OR_INFINITE,
    ),
    Flag(
        "orz.on_logprob_gap",
        MEANING,
        "warn",
        "at a gap above --orz.max_logprob_gap warn; error: end the run, as --orz.check_sync does; mask: warn and leave"
        " each response whose own gap is above it out of the policy's step",
        choices=("warn", "error", "mask"),
    ),
    Flag(
        "orz.fp32_head",
        MEANING,
        False,
        "compute logits in float32 in vLLM and in the trainer, from what the layers give in --ds.param_dtype; slower,"
        " for a smaller gap between their log-probs",
        bool,
    ),
    Flag(
        "orz.batch_invariant",
        MEANING,
        False,
        "GPUs from H100 on: vLLM computes a response the same way whatever else is in its batch; slower, for a smaller"
        " gap to the trainer's log-probs",
        bool,
    ),
    Flag(
        "orz.check_sync",
        FREE,
        False,
        "after each weight sync compare vLLM with the trainer: its weights, by checksums (a difference ends the run),"
        " and log-probs on fixed sequences",
        bool,
    ),
    Flag(
        "orz.sync_bucket_mib",
        FREE,
        512,
        "size in MiB of the buckets in which weights are gathered and sent to vLLM",
        int,
        AT_LEAST_1,
    ),
    Flag(
        "orz.max_num_seqs",
        FREE,
        None,
        "responses that a vLLM engine generates at once (default: on a GPU its share of the rollout, at most 1024 and"
        " what the KV cache holds; on a CPU vLLM's own, 128)",
        int,
        AT_LEAST_1,
    ),
    Flag(
        "orz.max_num_batched_tokens",
        FREE,
        None,
        "tokens that a vLLM engine computes in one step, prompts above all (default: on a GPU 16384, or less"
        " where memory is short; on a CPU vLLM's own)",
        int,
        AT_LEAST_1,
    ),
    Flag("orz.device", MEANING, "auto", "auto: cuda where a GPU is found, else cpu", choices=("auto", "cpu", "cuda")),
    Flag("orz.cpu_kvcache_mib", FREE, 512, "KV cache of each vLLM engine on CPU, in MiB", int, AT_LEAST_1),
    Flag("orz.trust_remote_code", MEANING, False, "let model repositories run their own code", bool),
    Flag(
        "orz.max_restarts",
        FREE,
        0,
        "after a failure resume from the newest checkpoint, at most N times",
        int,
        AT_LEAST_0,
    ),
    Flag(
        "orz.max_skipped_steps",
        FREE,
        3,
        "end after N optimizer steps in a row with gradients that are not finite; such steps are skipped and their"
        " batches kept in nonfinite/",
        int,
        AT_LEAST_1,
    ),
    Flag(
        "orz.allow_changed_flags", FREE, False, "resume although flags that change the meaning of the run differ", bool
    ),
    Flag(
        "orz.put_aside",
        FREE,
        False,
        "a new run in a used folder moves what is there to before-TIME; without it such a run is refused",
        bool,
    ),
    Flag(
        "orz.start_timeout_s",
        FREE,
        3600.0,
        "longest start of the engines and models, or of one engine again; 0: no limit",
        float,
        AT_LEAST_0,
    ),
    Flag(
        "orz.generation_timeout_s",
        FREE,
        3600.0,
        "restart an engine that has answered nothing for so long; 0: never",
        float,
        AT_LEAST_0,
    ),
    Flag(
        "orz.training_timeout_s",
        FREE,
        7200.0,
        "longest step from rollout to weight sync; then the run ends, with the stacks of its processes in logs/;"
        " 0: no limit",
        float,
        AT_LEAST_0,
    ),
    Flag(
        "orz.trainer_timeout_s",
        FREE,
        600.0,
        "end if the trainer's process has shown no life for so long; 0: never",
        float,
        AT_LEAST_0,
    ),
    Flag(
        "orz.sync_timeout_s",
        FREE,
        1800.0,
        "longest weight sync, and longest wait for an engine to wake; 0: no limit",
        float,
        AT_LEAST_0,
    ),
    Flag("orz.checkpoint_timeout_s", FREE, 3600.0, "longest write of a checkpoint; 0: no limit", float, AT_LEAST_0),
    Flag(
        "orz.stop_timeout_s",
        FREE,
        None,
        "after SIGTERM or Ctrl-C, longest wait for the current step and its checkpoint (default: one and a half times"
        " what the last ones took, at least 120)",
        float,
        AT_LEAST_0,
    ),
    Flag(
        "orz.worker_logs",
        FREE,
        False,
        "show the logs of all Ray workers on the console instead of progress lines only",
        bool,
    ),
)
