"""Our flags (``--orz.*``), and the paper's defaults for OpenRLHF's."""

from dataclasses import dataclass

STOP_STRINGS = ("User:", "Human:", "Assistant:", "</answer>")

# Sec. 3.1; what the paper does not state is as in OpenRLHF. A flag given by the user wins over all of these.
PAPER_DEFAULTS = {
    "rollout.batch_size": 128,
    "rollout.n_samples_per_prompt": 64,
    "rollout.temperature": 1.0,
    "rollout.top_p": 1.0,
    "train.batch_size": None,  # derived: one policy step for each rollout
    "train.max_epochs": 1,
    "actor.adam.lr": 1e-6,
    "critic.adam.lr": 5e-6,
    "actor.adam.betas": (0.9, 0.95),
    "critic.adam.betas": (0.9, 0.95),
    "actor.adam.weight_decay": 0.0,
    "critic.adam.weight_decay": 0.0,
    "actor.lr_scheduler": "constant_with_warmup",
    "critic.lr_scheduler": "constant_with_warmup",
    "actor.eps_clip": 0.2,
    "critic.value_clip": None,  # Eq. 2 is not clipped
    "algo.advantage.estimator": "gae",
    "algo.advantage.gamma": 1.0,
    "algo.advantage.lambd": 1.0,
    "algo.kl.init_coef": 0.0,  # no reference model at all
    "data.input_key": "question",
    "data.label_key": "answer",
    "vllm.enable_prefix_caching": True,  # a prompt is prefilled once for its responses
    "ckpt.output_dir": None,  # derived: runs/orz-TIME
    "ckpt.path": None,  # derived: OUTPUT_DIR/checkpoints
}


@dataclass(frozen=True)
class Flag:
    name: str
    default: object
    help: str
    type: type | None = str  # None: a switch
    choices: tuple | None = None
    nargs: str | None = None


FLAGS = (
    Flag("policy_updates", 1, "policy steps per rollout; above 1 the run is off-policy (U.S. in Fig. 13)", int),
    Flag("critic_updates", 12, "critic steps per rollout: mini-batches, each sample exactly once", int),
    Flag("warmup_steps", 50, "linear warm-up in optimizer steps, the critic's own for the critic", int),
    Flag(
        "value_head_init",
        "released",
        "released: N(0, 1/(H+1)) as the released code; kaiming: U(-1/sqrt(H), 1/sqrt(H)); paper: U(-sqrt5, sqrt5)",
        choices=("released", "kaiming", "paper"),
    ),
    Flag("old_log_probs", "auto", "auto: skip the forward where it is redundant; always", choices=("auto", "always")),
    Flag(
        "cross_fit_values",
        False,
        "take each value in the critic's training forward, before the update that uses it: saves the values' forward",
        None,
    ),
    Flag(
        "share_prefixes",
        "auto",
        "auto: train on what sequences of a pack have in common (a prompt) once, where that is exact; never",
        choices=("auto", "never"),
    ),
    Flag("prompt_template", "paper", "paper (Table 1), released, none, or a text that contains {{prompt}}"),
    Flag("stop", STOP_STRINGS, "stop strings, kept in the response", nargs="*"),
    Flag("max_prompt_len", 2048, "longest prompt in tokens; longer ones are left out and reported", int),
    Flag("plain_math_verify", False, "grade by Math-Verify alone, without our guards and rules", None),
    Flag("grader_workers", None, "grading processes on each machine (default: one a core, at most 8)", int),
    Flag("rollout_dump_every", 1, "write rollouts/step_N.jsonl every N steps; 0: never", int),
    Flag("rollout_dump_max", None, "at most so many responses in each file (default: all)", int),
    Flag("report_every", 0, "write report.html every N steps, too, not only at the end; -1: never", int),
    Flag("logprob_gap_every", 16, "compare vLLM's log-probs with the trainer's on one response in N; 0: never", int),
    Flag(
        "check_sync",
        False,
        "after each weight sync compare vLLM with the trainer: its weights, by checksums, and log-probs",
        None,
    ),
    Flag("sync_bucket_mib", 512, "weights are gathered and sent to vLLM in buckets of so many MiB", int),
    Flag("device", "auto", "auto: cuda where a GPU is found, else cpu", choices=("auto", "cpu", "cuda")),
    Flag("cpu_kvcache_mib", 512, "KV cache of each vLLM engine on CPU, in MiB", int),
    Flag("trust_remote_code", False, "let model repositories run their own code", None),
    Flag("max_restarts", 0, "after a failure resume from the newest checkpoint, at most so many times", int),
    Flag("max_skipped_steps", 3, "end after so many optimizer steps in a row with gradients that are not finite", int),
    Flag("allow_changed_flags", False, "resume although flags that change the meaning of the run differ", None),
    Flag(
        "start_timeout_s",
        3600.0,
        "longest start of the engines and models, or of one engine again; 0: no limit",
        float,
    ),
    Flag("generation_timeout_s", 3600.0, "restart an engine that has answered nothing for so long; 0: never", float),
    Flag(
        "training_timeout_s",
        7200.0,
        "longest step from rollout to weight sync, then end with all stacks; 0: no limit",
        float,
    ),
    Flag("trainer_timeout_s", 600.0, "end if the trainer's process has shown no life for so long; 0: never", float),
    Flag("sync_timeout_s", 1800.0, "longest weight sync, likewise", float),
    Flag("checkpoint_timeout_s", 3600.0, "longest write of a checkpoint, likewise", float),
    Flag(
        "stop_timeout_s", 120.0, "after SIGTERM or Ctrl-C, longest wait for the step in hand and its checkpoint", float
    ),
    Flag("worker_logs", False, "show the logs of all Ray workers on the console instead of progress lines only", None),
)


def add_flags(parser) -> None:
    """Set the paper's defaults on OpenRLHF's parser and add ``--orz.*``."""
    parser.set_defaults(**PAPER_DEFAULTS)
    group = parser.add_argument_group("Open-Reasoner-Zero")
    for flag in FLAGS:
        if flag.type is None:
            group.add_argument(f"--orz.{flag.name}", action="store_true", default=flag.default, help=flag.help)
        else:
            group.add_argument(
                f"--orz.{flag.name}",
                type=flag.type,
                default=flag.default,
                choices=flag.choices,
                nargs=flag.nargs,
                help=flag.help if flag.default is None else f"{flag.help} (default: {flag.default})",
            )
