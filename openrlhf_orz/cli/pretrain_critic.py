"""Fit a critic to stored rollouts, before any reinforcement learning.

    python -m openrlhf_orz.cli.pretrain_critic --rollouts RUN [RUN ...] --model M --output DIR

A part of the prompts is held out. After each round the explained variance of their returns is printed; the best critic
so far is kept, and training ends when none has been better for some rounds. DIR is then a model that
--critic.model_name_or_path takes, with the fit in DIR/pretraining.json: explained variance and calibration over all
tokens, by tenth of the response and by value. The same command goes on after a kill.

Training flags of the critic work as in training: --critic.*, --ds.*, --orz.value_loss, --orz.critic_updates and so on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.redact import printable

# training flags, or their beginnings, that say something about the critic's training; others are refused
TAKEN = (
    "critic.adam.", "critic.optim", "critic.muon.", "critic.lr", "critic.min_lr_ratio", "critic.max_norm", "ds.",
    "train.seed", "train.full_determinism_enable", "train.max_tokens_per_gpu", "train.micro_batch_size",
    "rollout.max_tokens_per_gpu", "rollout.micro_batch_size", "actor.gradient_checkpointing", "algo.advantage.gamma",
    "reward.clip_range", "orz.value_", "orz.freeze_critic", "orz.critic_updates", "orz.critic_epochs",
    "orz.critic_cls", "orz.warmup_steps", "orz.share_prefixes", "orz.device", "orz.max_skipped_steps",
    "orz.trust_remote_code",
)  # fmt: skip
REFUSED = ("ds.lora.", "ds.tensor_parallel_size", "ds.ring_attn", "ds.enable_sleep")  # of those beginnings
SETTINGS = "settings.json"


def pretraining_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m openrlhf_orz.cli.pretrain_critic", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--rollouts", nargs="+", required=True, metavar="RUN", help="run directories, whose rollouts/ are read")
    add("--model", required=True, help="what the critic begins from; its tokenizer must be that of the runs")
    add("--output", required=True, type=Path, metavar="DIR", help="where the critic goes")
    add(
        "--steps",
        nargs=2,
        type=int,
        default=(0, 10**9),
        metavar=("FIRST", "LAST"),
        help="only rollouts of these steps",
    )
    add("--held_out", type=float, default=0.1, help="share of the prompts that only test the fit (default: 0.1)")
    add("--responses", type=int, default=8192, help="of a round (default: 8192, as a rollout of the paper)")
    add("--rounds", type=int, default=50, help="at most so many rounds (default: 50)")
    add("--patience", type=int, default=3, help="end after so many rounds without a better fit (default: 3)")
    return parser


def check_own(options: argparse.Namespace) -> None:
    """Raises ConfigError for the command's own flags."""
    for name in ("responses", "rounds", "patience"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} is {getattr(options, name)}: it must be at least 1")
    if not 0 < options.held_out < 1:
        raise ConfigError(f"--held_out is {options.held_out}: it must be above 0 and below 1")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("one process fits a critic, on a CPU or one GPU: start it without torchrun")


def training_settings(options: argparse.Namespace, rest: list[str]) -> tuple[SimpleNamespace, set[str]]:
    """As ``parse``, for one rank of a critic. Raises ConfigError for a training flag that would do nothing here."""
    from openrlhf_orz.settings.command_line import explicit_flags, parse
    from openrlhf_orz.settings.derive import detect_device
    from openrlhf_orz.settings.finished import changed

    base = [
        "--actor.model_name_or_path", options.model, "--critic.model_name_or_path", options.model,
        "--data.prompt_dataset", "of-the-rollouts", "--ckpt.output_dir", str(options.output / "work"),
        "--critic.save_value_network", "--actor.num_gpus_per_node", "1", "--critic.num_gpus_per_node", "1",
    ]  # fmt: skip
    args, explicit = parse([*base, *rest], (1, 1))
    given = explicit - explicit_flags(base)
    for name in sorted(given):
        if not name.startswith(TAKEN) or name.startswith(REFUSED):
            raise ConfigError(f"--{name} does nothing where a critic alone is fitted in one process: leave it out")
    if args.orz.device == "cuda" and detect_device() != "cuda":
        raise ConfigError("--orz.device cuda: there is no GPU here")
    changes = {"ds.enable_sleep": False}  # there is nobody to make room for
    if "reward.clip_range" in explicit:
        changes["orz.verifier_grades"] = False  # the range of returns is what the flag says
    if args.orz.device == "cuda" and "ds.zero_stage" not in given:
        changes["ds.zero_stage"] = 1  # one rank has nothing to cut; gradients are summed in float32 as at stage 3
    return changed(args, changes), explicit


def same_as_before(path: Path, now: dict) -> None:
    """Write what the fit depends on, or compare. Raises ConfigError, naming what differs."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(now, indent=1) + "\n")
        return
    before = json.loads(path.read_text())
    for key, value in now.items():
        if before.get(key) != value:
            raise ConfigError(
                f"--output: {path.parent} was begun with {key} {before.get(key)}, now it is {value}: give the same, or"
                " choose another folder"
            )


def pretrain(options: argparse.Namespace, rest: list[str]) -> dict:
    """The whole command; returns the content of pretraining.json. Raises ConfigError, DataError, OSError."""
    check_own(options)
    output, work = options.output, options.output / "work"
    finished_before = output / "pretraining.json"
    if output.exists() and not work.exists() and any(output.iterdir()) and not finished_before.exists():
        raise ConfigError(f"--output: {output} holds something else: choose another folder")
    args, explicit = training_settings(options, rest)

    from openrlhf_orz.runtime.console import keep_terminal, say
    from openrlhf_orz.settings.families import fit_to_models
    from openrlhf_orz.settings.models import check_models
    from openrlhf_orz.settings.upstream import allow_remote_code, check_openrlhf

    check_openrlhf()
    allow_remote_code(args.orz.trust_remote_code)
    args, remarks = fit_to_models(args, explicit)
    for remark in remarks:
        print(f"[orz] {remark}", flush=True)
    train, held_out, facts = read(options, args)
    from openrlhf_orz.settings.finished import changed

    longest = max(len(r.prompt_ids) + len(r.ids) for r in [*train, *held_out])
    args = changed(args, {"data.max_len": longest})
    check_models(args)
    limits = limits_of(args, [r.reward for r in [*train, *held_out]])
    identity = {
        "rollouts_sha256": facts["rollouts_sha256"], "model": options.model, "held_out": options.held_out,
        "responses": options.responses, "value_loss": args.orz.value_loss, "seed": args.train.seed,
    }  # fmt: skip
    if finished_before.exists() and not work.exists():
        report = json.loads(finished_before.read_text())
        for key, value in identity.items():
            if report.get(key) != value:
                raise ConfigError(
                    f"--output: {output} is finished, with {key} {report.get(key)}: choose another folder"
                )
        print(f"[orz] {output} is finished; for another fit choose another folder", flush=True)
        return report
    same_as_before(work / SETTINGS, identity)
    keep_terminal()
    say(
        f"{len(train)} responses to train on, {len(held_out)} held out, of {facts['prompts']} and"
        f" {facts['prompts_held_out']} prompts; {sum(facts['left_out'].values())} left out"
    )
    for reason, count in facts["left_out"].items():
        say(f"  {count} left out: {reason}")
    history, best = fit(options, args, train, held_out, limits, facts["rollouts_sha256"])
    report = {**identity, **facts, "rounds": history, "best": best}
    from openrlhf_orz.trainer.pretraining import finish

    finish(Path(args.ckpt.output_dir + "_critic"), output, report, work)
    return report


def read(options: argparse.Namespace, args: SimpleNamespace):
    """(to train on, held out, facts for the report)."""
    from transformers import AutoTokenizer

    from openrlhf_orz.data.stored_rollouts import RolloutReader, digest, split_by_prompt
    from openrlhf_orz.settings.models import load_config

    trust = args.orz.trust_remote_code
    config = load_config("--model", options.model, trust).get_text_config()
    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=trust)
    reader = RolloutReader(
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        config.vocab_size,
    )
    responses = [one for run in options.rollouts for one in reader.read(run, *options.steps)]
    for note in reader.notes:
        print(f"[orz] {note}", flush=True)
    train, held_out = split_by_prompt(responses, options.held_out, args.train.seed)
    return train, held_out, {
        "rollouts": [str(Path(run).resolve()) for run in options.rollouts], "rollouts_sha256": digest(responses),
        "responses_train": len(train), "responses_held_out": len(held_out),
        "prompts": len({r.prompt for r in train}), "prompts_held_out": len({r.prompt for r in held_out}),
        "left_out": dict(reader.left_out), "without_token_ids": reader.retokenised,
    }  # fmt: skip


def limits_of(args: SimpleNamespace, rewards: list[float]) -> tuple[float, float]:
    """The range of returns. Raises ConfigError where the value loss allows another one only."""
    low, high = min(rewards), max(rewards)
    if args.orz.value_loss != "mse":
        from openrlhf_orz.settings.critic_checks import returns_range

        least, most = returns_range(args)
        if low < least or high > most:
            raise ConfigError(
                f"--orz.value_loss {args.orz.value_loss}: rewards reach from {low:g} to {high:g}, and it is for"
                f" [{least:g}, {most:g}]: give --reward.clip_range LOW HIGH, or --orz.value_loss mse"
            )
    return low, high


def fit(options: argparse.Namespace, args: SimpleNamespace, train, held_out, limits, sha256: str):
    """(the held-out fit of each round, the best of them); the best critic is then in ``--ckpt.output_dir``_critic."""
    from openrlhf_orz.cli.train_ppo_ray import driver_output
    from openrlhf_orz.runtime import checkpoints, resume
    from openrlhf_orz.runtime.console import say
    from openrlhf_orz.runtime.private import new_scratch, private_folder
    from openrlhf_orz.runtime.run_dir import held
    from openrlhf_orz.runtime.universal import universal_copy
    from openrlhf_orz.settings.finished import RunFacts, changed, for_openrlhf
    from openrlhf_orz.settings.own_code import own_class

    with held(args):
        checkpoints.clear_partial(args.ckpt.path)
        checkpoints.clear_partial(args.orz.run_dir)
        found = None
        if checkpoints.all_checkpoints(args.ckpt.path):
            found = resume.find_checkpoint(changed(args, {"ckpt.load_enable": True}), sha256)
        run = RunFacts(
            policy_steps=options.rounds, prompts_sha256=sha256, recorded_flags=resume.flag_values(args),
            checkpoints=args.ckpt.path, resume_from=found and str(found), scratch=new_scratch(),
            universal=universal_copy(found, args),
        )  # fmt: skip
        with private_folder(run.scratch), driver_output(args):
            from openrlhf_orz.trainer.critic import OrzCriticModelActor
            from openrlhf_orz.trainer.pretraining import Pretraining, Schedule

            schedule = Schedule(options.responses, options.rounds, options.patience)
            cls = own_class("critic_cls", args.orz.critic_cls, OrzCriticModelActor)
            work = Pretraining(for_openrlhf(args, run), cls, train, held_out, limits, schedule, say)
            work.run()
        return work.history, work.best


def main(argv: list[str] | None = None) -> int:
    options, rest = pretraining_parser().parse_known_args(argv)
    from openrlhf_orz.data.sources import DataError
    from openrlhf_orz.settings.upstream import WrongBuild

    try:
        report = pretrain(options, rest)
    except (ConfigError, DataError, WrongBuild, OSError, FloatingPointError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on in {options.output}", file=sys.stderr)
        return 130
    best = report["best"]
    print(fit_table(best))
    if best["round"] == 0:
        print("no round made the fit better: DIR holds what --model gave. Try another --critic.adam.lr")
    print(f"[orz] --critic.model_name_or_path {options.output}   (round {best['round']}; its fit: pretraining.json)")
    return 0


def fit_table(fit: dict) -> str:
    """Explained variance and calibration by position, as lines."""
    lines = [f"{'response':>10}  {'explained':>9}  {'value':>7}  {'return':>7}  {'calibration error':>17}"]

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    rows = [("all", fit), *((f"{row['from']:.0%} - {row['to']:.0%}", row) for row in fit["by_position"])]
    for name, row in rows:
        shown = [number(row[key]) for key in ("explained_variance", "value_mean", "return_mean", "calibration_error")]
        lines.append(f"{name:>10}  {shown[0]:>9}  {shown[1]:>7}  {shown[2]:>7}  {shown[3]:>17}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
