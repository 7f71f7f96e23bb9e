"""The trainer's side of checkpoints: when, what goes in beside the ranks' parts, and what happens when one fails."""

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import ray
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.utils.logging_utils import init_logger

from openrlhf_orz.runtime import checkpoints
from openrlhf_orz.runtime.console import tell_stage
from openrlhf_orz.runtime.run_dir import RunDir, stack_versions
from openrlhf_orz.runtime.stopping import (
    SHORTEST_STOP_S,
    Stopped,
    StopRequested,
    last_seconds,
    stop_if_asked,
    stop_mark,
)
from openrlhf_orz.runtime.watchdog import phase_limit
from openrlhf_orz.trainer.rank import capture_random_states, restore_random_states

logger = init_logger(__name__)

RETRY_S = 20.0  # from one try to write the trained models to the next
MARGIN = 1.1  # free space asked for, over the size of the last checkpoint


def plain(samples: list) -> list[dict]:
    """Experiences as dicts of tensors, lists and numbers, which load without executing code."""
    return [{field.name: getattr(sample, field.name) for field in fields(sample)} for sample in samples]


class NoRollouts:
    """What a trainer knows of the rollouts that another process draws (asynchronous training): nothing."""

    faults: dict[str, int] = {}
    unused: list[Experience] = []  # responses that are drawn but not yet trained on
    exhausted = False  # the prompts of the episode are drawn, and all their responses are trained on

    def restore(self, unused: list[dict], position: int) -> None:
        """Go on where a checkpoint was: with its ``unused`` responses, from the prompt at ``position``."""


class DrawnRollouts(NoRollouts):
    """The rollouts of OpenRLHF's samples generator in this process.

    Args:
        generator: OpenRLHF's SamplesGenerator, ours by class.
        loader: its prompts.
    """

    def __init__(self, generator, loader):
        self.generator, self.loader, self.faults = generator, loader, generator.faults

    @property
    def unused(self) -> list[Experience]:
        return getattr(self.generator, "_sample_buffer", None) or []  # OpenRLHF makes it with the first rollout

    @property
    def exhausted(self) -> bool:
        return self.loader.exhausted and not self.unused

    def restore(self, unused: list[dict], position: int) -> None:
        if unused:
            self.generator._sample_buffer = [Experience(**sample) for sample in unused]
            self.generator._dataloader_iter = iter(self.loader) if position < len(self.loader) else None


class TrainerCheckpoints:
    """Saves, resumes and stops a run. The trainer calls it after each step and each evaluation.

    Args:
        args: the settings, with ``args.run``.
        groups: the model groups that hold a state, policy first.
        run_dir: where failures are reported.
        rollouts: the rollouts that this process draws.
        own_state: gives what else of the trainer goes into trainer.json.
    """

    def __init__(self, args, groups: list, run_dir: RunDir, rollouts: NoRollouts, own_state: Callable[[], dict]):
        self.args, self.groups, self.run_dir = args, groups, run_dir
        self.rollouts, self.own_state = rollouts, own_state
        self.folder = Path(args.run.checkpoints)
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.committing: Future | None = None
        self.last_states: dict | None = None  # OpenRLHF's client states of the last finished step
        self.exhausted = False  # whether the episode's prompts were all drawn and trained on by then
        self.saved_step: int | None = None
        self.seconds: float | None = None  # for which the last checkpoint held up the training
        self.faults = {"checkpoints_failed": 0}
        self.warned = False

    # ---- saving

    def due(self, step: int) -> bool:
        """Whether ``--ckpt.save_steps`` asks for a checkpoint of this step."""
        return self.args.run.save_steps >= 1 and step % self.args.run.save_steps == 0

    def nothing_due(self, step: int, client_states: dict) -> bool:
        """Whether a step needs no ``after_step``: no checkpoint, no stop, and a rollout of the episode is to come."""
        if self.due(step) or self.rollouts.exhausted or stop_mark(self.args).exists():
            return False
        self.finished(client_states)
        return True

    def finished(self, client_states: dict) -> None:
        """Note where the run is after a step: a rollout that is interrupted later draws prompts for nothing."""
        self.last_states, self.exhausted = dict(client_states), self.rollouts.exhausted

    def after_step(self, step: int, client_states: dict) -> None:
        """Save if it is time; raise Stopped if the run was asked to stop."""
        self.finished(client_states)
        if self.due(step):
            tell_stage(self.run_dir.path, f"writing the checkpoint of step {step}")
            begin = time.monotonic()
            self.save(f"global_step{step}")
            self.seconds = time.monotonic() - begin
        try:
            stop_if_asked(self.args)
        except StopRequested:
            raise self.stopped() from None

    def warn_of_stop(self) -> None:
        """Say once that a stop may take longer than whoever sends the signal is likely to wait."""
        needed, window = last_seconds(self.run_dir.path), self.args.orz.stop_timeout_s or SHORTEST_STOP_S
        if needed > window and not self.warned:
            self.warned = True
            self.run_dir.note(
                f"to stop takes up to {needed:.0f} s, the last step and its checkpoint: give it as long, in Slurm by"
                " --signal=B:TERM@SECONDS, and with --orz.stop_timeout_s"
            )

    def take_seconds(self) -> dict[str, float]:
        """``seconds_checkpoint`` of the last checkpoint, once: its step's line is written before it."""
        seconds, self.seconds = self.seconds, None
        return {} if seconds is None else {"seconds_checkpoint": seconds}

    def save(self, tag: str) -> bool:
        """Write the checkpoint ``tag`` of the step just finished; True if it is on its way to the disk."""

        def ranks():
            policy, *others = self.groups
            refs = policy.async_run_method(
                method_name="save_checkpoint", tag=tag, client_states=dict(self.last_states or {})
            )
            for group in others:
                refs += group.async_run_method(method_name="save_checkpoint", tag=tag)
            ray.get(refs)

        return self.attempt(tag, ranks)

    def attempt(self, tag: str, write: Callable[[], object]) -> bool:
        """Have ``write`` put the ranks' part into place, add the trainer's, and commit in the background.

        A failure is counted and reported; the checkpoints before it stay as they are.
        """
        partial = checkpoints.partial_path(self.folder, tag)
        try:
            self.wait_for_commit()
            self.check_space()
            shutil.rmtree(partial, ignore_errors=True)
            timeout = self.args.orz.checkpoint_timeout_s
            with phase_limit(timeout, "checkpoint", "checkpoint_timeout_s", self.run_dir.path / "logs"):
                write()
            if not partial.is_dir():  # the metric was not better than the best
                return False
            self.write_own(partial)
        except (OSError, ray.exceptions.RayTaskError) as error:
            self.failed(tag, error)
            shutil.rmtree(partial, ignore_errors=True)
            ranks = max(len(group._actor_handlers) for group in self.groups)
            if ranks > 1 and isinstance(error, ray.exceptions.RayTaskError):
                raise  # the other ranks wait for the one that failed
            return False
        self.committing = self.writer.submit(self.commit, partial)
        self.saved_step = checkpoints.step_of(tag)
        return True

    def check_space(self) -> None:
        """Raise OSError before anything is written if the disk cannot hold another checkpoint like the last."""
        last = checkpoints.all_checkpoints(self.folder)[:1]
        needed = int(MARGIN * checkpoints.size_of(last[0])) if last else 0
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(28, f"{free >> 20} MiB are free and a checkpoint takes {needed >> 20}", str(self.folder))

    def write_own(self, partial: Path) -> None:
        """Write trainer.json and trainer.pt: what the ranks do not know."""
        states = self.last_states or {}
        state = {
            **{key: value for key, value in states.items() if isinstance(value, (int, float, str, dict))},
            **self.own_state(),
            "faults": self.all_faults(),
            "prompts_sha256": self.args.run.prompts_sha256,
            "flags": self.args.run.recorded_flags,
            "versions": stack_versions(),
        }
        if self.exhausted:
            state["episode"] += 1  # or the resumed run would look for prompts in an episode that has none left
        (partial / checkpoints.TRAINER).write_text(json.dumps(state, indent=1, default=str))
        torch.save(
            {"random": capture_random_states(), "unused": plain(self.rollouts.unused)}, partial / checkpoints.STATE
        )

    def commit(self, partial: Path) -> None:
        """Prove the checkpoint, rename it into place, and delete old ones."""
        written = checkpoints.commit(partial)
        checkpoints.rotate(self.folder, self.args.ckpt.max_num, self.args.ckpt.max_mem * 1024**3, written)

    def wait_for_commit(self) -> None:
        """Return when the last checkpoint is complete; a failure is counted, not raised."""
        committing, self.committing = self.committing, None
        if committing is not None:
            try:
                committing.result()
            except OSError as error:
                self.failed("in the background", error)
                checkpoints.clear_partial(self.folder)

    def failed(self, what: str, error: Exception) -> None:
        """Count and report a checkpoint that could not be written."""
        self.faults["checkpoints_failed"] += 1
        last = checkpoints.all_checkpoints(self.folder)
        kept = f"{last[0]} is kept" if last else "there is none before it"
        cause = (str(error).strip().splitlines() or [repr(error)])[-1]
        print(f"checkpoint {what} failed, {kept}: {cause}", flush=True)
        self.run_dir.note(f"checkpoint {what} failed, {kept}: {cause}")

    def save_models(self) -> None:
        """Write the trained models for transformers. While a disk is full they wait in memory, and say so.

        Raises StopRequested if the run is asked to stop while they wait; RuntimeError when
        ``--orz.checkpoint_timeout_s`` is over.
        """
        timeout = self.args.orz.checkpoint_timeout_s
        end = time.monotonic() + (timeout or float("inf"))
        for group in self.groups:
            while True:
                with phase_limit(timeout, "save", "checkpoint_timeout_s", self.run_dir.path / "logs"):
                    errors = ray.get(group.async_run_method(method_name="try_save_model"))
                if errors[0] is None:
                    break
                told = f"the trained model cannot be written to {self.args.ckpt.output_dir}: {errors[0]}"
                if time.monotonic() + RETRY_S > end:
                    raise RuntimeError(f"{told}, for longer than --orz.checkpoint_timeout_s")
                self.run_dir.note(
                    f"{told}; it waits in memory and is tried again every {RETRY_S:g} s: free some space"
                )
                stop_if_asked(self.args)
                time.sleep(RETRY_S)

    # ---- resuming and stopping

    def resume(self) -> dict | None:
        """OpenRLHF's client states of the checkpoint to resume from, with random states and unused responses set;
        None for a new run.
        """
        if self.args.run.resume_from is None:
            return None
        if self.args.run.universal is not None:  # DeepSpeed has loaded it
            shutil.rmtree(self.args.run.universal, ignore_errors=True)
        folder = Path(self.args.run.resume_from)
        states = json.loads((folder / checkpoints.TRAINER).read_text())
        own = torch.load(folder / checkpoints.STATE, weights_only=True)
        restore_random_states(own["random"])
        self.last_states = {
            key: states[key] for key in ("episode", "global_step", "total_consumed_prompts", "data_loader_state_dict")
        }
        self.saved_step = states["global_step"]
        for faults in (self.faults, self.rollouts.faults):
            faults.update({kind: count for kind, count in states["faults"].items() if kind in faults})
        self.rollouts.restore(own["unused"], states["data_loader_state_dict"]["position"])
        return states

    def all_faults(self) -> dict[str, int]:
        """Everything survived so far, by kind."""
        return {**self.faults, **self.rollouts.faults}

    def stopped(self) -> Stopped:
        """Save the last finished step, unless that has been done, and say where."""
        if self.last_states is None:
            return Stopped("stopped before the first step: nothing to save")
        step = self.last_states["global_step"]
        if self.saved_step != step:
            self.save(f"global_step{step}")
        self.wait_for_commit()
        found = [c for c in checkpoints.all_checkpoints(self.folder) if checkpoints.step_of(c) == step]
        if not found:
            return Stopped(f"stopped after step {step}, which could not be saved; see the lines above")
        return Stopped(f"stopped after step {step}; resume with the same flags and --ckpt.load_enable: {found[0]}")
