"""``--ckpt.load_enable``, before Ray starts: find the newest good checkpoint and check that it is of this run."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from openrlhf_orz.runtime import checkpoints
from openrlhf_orz.runtime.files import write_aside
from openrlhf_orz.runtime.run_dir import stack_versions
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.flags import FREE, LAYOUT, MEANING
from openrlhf_orz.settings.openrlhf_flags import RECORDS
from openrlhf_orz.settings.redact import redact

# No flag, but --ckpt.output_dir as a whole path: where a run writes never matters to a checkpoint.
RUN_DIR = "orz.run_dir"
FINISHED = "finished.json"
CONSTANT = ("constant", "constant_with_warmup")  # schedules that do not depend on how long the run is


class FlagValues(dict):
    """A dict that does not print its content: OpenRLHF prints all arguments at the start, and this is one of them."""

    def __repr__(self):
        return "(all flags)"


def flag_values(args: SimpleNamespace) -> FlagValues:
    """Nested arguments as {"group.name": value}, with JSON's types and without secrets."""
    found = FlagValues()

    def walk(prefix, node):
        for key, value in vars(node).items():
            if hasattr(value, "__dict__"):
                walk(f"{prefix}{key}.", value)
            elif f"{prefix}{key}" != "logger.wandb.key":
                found[f"{prefix}{key}"] = json.loads(redact(json.dumps(value, default=str)))

    walk("", args)
    return found


def prompts_sha256(paths: list[str], drawn: int) -> str:
    """sha256 over the files of prepared prompts, and over how many an episode draws where that is not each once.

    It changes with the prompts and with their order.
    """
    digest, rows = hashlib.sha256(), 0
    for path in paths:
        content = Path(path).read_bytes()
        digest.update(content)
        rows += content.count(b"\n")
    if drawn != rows:
        digest.update(str(drawn).encode())
    return digest.hexdigest()


def _rule(name: str, now: dict) -> str:
    """What follows from another value of a flag: FREE, MEANING or LAYOUT."""
    if name == "train.num_episodes":  # a longer run stretches a schedule that ends with it
        ends = [now[f"{role}.lr_scheduler"] not in CONSTANT for role in ("actor", "critic")]
        by_ratio = [now[f"orz.{role}_warmup_steps"] is None for role in ("actor", "critic")]
        return MEANING if any(ends + by_ratio) else FREE
    if name == RUN_DIR:
        return FREE
    return RECORDS[name].resume if name in RECORDS else MEANING


def changed_flags(saved: dict, now: dict) -> tuple[list[str], list[str]]:
    """(flags with which the checkpoint cannot be loaded, flags that change what is computed), one line each."""
    layout, meaning = [], []
    for name in sorted(saved.keys() & now.keys()):  # a flag that one version lacks has no value to compare
        if saved[name] == now[name]:
            continue
        line = f"--{name} was {saved[name]}, is {now[name]}"
        rule = _rule(name, now)
        if rule is LAYOUT:
            layout.append(line)
        elif rule is MEANING:
            meaning.append(line)
    return layout, meaning


def read_trainer(checkpoint: Path) -> dict:
    """What the trainer has written into a checkpoint. Raises ConfigError if it is not what this version writes."""
    path = checkpoint / checkpoints.TRAINER
    try:
        saved = json.loads(path.read_text())
        if isinstance(saved["flags"], dict) and isinstance(saved.get("versions", {}), dict):
            return {"prompts_sha256": saved["prompts_sha256"], "global_step": saved["global_step"], **saved}
        reason = "its flags or versions are no objects"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = repr(error)
    raise ConfigError(f"{path} cannot be used ({reason}): remove this checkpoint, or resume with what has written it")


def changes(args: SimpleNamespace, checkpoint: str | None) -> list[str]:
    """A line for each flag of another meaning in the checkpoint that is resumed from. Raises ConfigError."""
    return changed_flags(read_trainer(Path(checkpoint))["flags"], flag_values(args))[1] if checkpoint else []


class Finished(Exception):
    """The run that the command asks for is there, whole."""


def mark_finished(args: SimpleNamespace, steps: int, prompts: str) -> None:
    """Note in the run's directory that all ``steps`` are done and the models are written."""
    state = {"steps": steps, "prompts_sha256": prompts, "flags": flag_values(args)}
    with suppress(OSError), write_aside(Path(args.orz.run_dir) / FINISHED) as stream:  # on a full disk it is not noted
        json.dump(state, stream, indent=1, default=str)


def check_finished(args: SimpleNamespace, steps: int, prompts: str) -> None:
    """With ``--ckpt.load_enable``: raise Finished if all ``steps`` of this run are done.

    Without a checkpoint a longer run, or another one, would begin anew in the finished one's place: ConfigError.
    """
    mark = Path(args.orz.run_dir) / FINISHED
    if not args.ckpt.load_enable or args.orz.replay or not mark.is_file():
        return
    try:
        saved = json.loads(mark.read_text())
        steps_done, flags, prompts_done = int(saved["steps"]), dict(saved["flags"]), saved["prompts_sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{mark} cannot be read ({error!r}): remove it, and the run goes on") from None
    changes = [line for lines in changed_flags(flags, flag_values(args)) for line in lines]
    if prompts_done != prompts:
        changes.append("--data.prompt_dataset (or how it is prepared): the prompts are others")
    if not changes and steps <= steps_done and os.path.isdir(args.ckpt.output_dir):
        raise Finished(f"the run in {args.orz.run_dir} is finished, {steps_done} steps: nothing to do")
    if not checkpoints.all_checkpoints(args.ckpt.path):
        more = "".join(f"\n  {change}" for change in changes) or f"\n  {steps} steps are asked for"
        raise ConfigError(
            f"{args.orz.run_dir} holds a finished run of {steps_done} steps, and no checkpoint to go on from:"
            f"{more}\nchoose another folder, or keep this one aside: --orz.put_aside without --ckpt.load_enable"
            " (RESUME=0 of the launchers)"
        )


def unmark_finished(args: SimpleNamespace) -> None:
    """Take the mark away, of a run that begins."""
    (Path(args.orz.run_dir) / FINISHED).unlink(missing_ok=True)


def find_checkpoint(args: SimpleNamespace, prompts: str) -> Path | None:
    """The checkpoint to resume from, or None to start from the beginning; says which on the console.

    Args:
        args: final, nested arguments.
        prompts: ``prompts_sha256`` of the prepared prompts.

    Raises ConfigError if the newest good checkpoint belongs to a run with flags that cannot change, or (unless
    ``--orz.allow_changed_flags``) with other prompts or other flags that say what is computed. Ranks and ZeRO stage
    are universal.py's.
    """
    if not args.ckpt.load_enable:
        return None
    found, skipped = checkpoints.newest_valid(args.ckpt.path)
    for damaged, line in skipped.items():
        aside = checkpoints.put_damaged_aside(damaged)
        print(f"[orz] warning: {line}; it is now {aside.name}; trying the one before it", flush=True)
    if found is None:
        print(f"[orz] --ckpt.load_enable: no checkpoint to resume from in {args.ckpt.path}, starting anew", flush=True)
        return None
    saved = read_trainer(found)
    now = stack_versions()
    for name, was in saved.get("versions", {}).items():
        if was != now.get(name):
            print(f"[orz] warning: {found} was written with {name} {was}, this is {now.get(name)}", flush=True)
    layout, meaning = changed_flags(saved["flags"], flag_values(args))
    if layout:
        raise ConfigError(
            f"{found} is cut in another way, or of another critic, and cannot be loaded with these flags:\n  "
            + "\n  ".join(layout)
            + "\nresume with the flags that it was written with"
        )  # fmt: skip
    if saved["prompts_sha256"] != prompts:
        meaning.append("--data.prompt_dataset (or how it is prepared): the prompts are not those of the checkpoint")
    if meaning and not args.orz.allow_changed_flags:
        raise ConfigError(
            f"{found} is of a run with another meaning:\n  " + "\n  ".join(meaning)
            + "\nresume with the same flags, or say --orz.allow_changed_flags to go on with the new ones"
        )  # fmt: skip
    for line in meaning:
        print(f"[orz] warning: {line} (--orz.allow_changed_flags)", flush=True)
    print(f"[orz] resuming from {found}: step {saved['global_step']}", flush=True)
    return found


def rewind(path: Path, step: int) -> int:
    """Move the lines after ``step`` from a run's JSON-lines file to ``lost-NAME``. Returns how many.

    Steps after the checkpoint are made again. A line that a kill has cut is moved as well.
    """
    if not path.exists():
        return 0
    keep, lost = [], []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            ours = line.endswith("\n") and json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            ours = False
        (keep if ours else lost).append(line)
    if lost:
        with open(path.with_name(f"lost-{path.name}"), "a") as stream:
            stream.writelines(line if line.endswith("\n") else line + "\n" for line in lost)
        with write_aside(path) as stream:
            stream.writelines(keep)
    return len(lost)
