"""The trainer's side of checkpoints: when, what of its own goes in, and what happens when one fails."""

import json
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import ray
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.utils.logging_utils import init_logger

from openrlhf_orz.runtime import checkpoints
from openrlhf_orz.runtime.stop import Stopped, StopRequested, stop_if_asked, training_mark
from openrlhf_orz.runtime.watchdog import within
from openrlhf_orz.trainer import random_state

logger = init_logger(__name__)

MARGIN = 1.1  # free space asked for, over the size of the checkpoint before


def plain(samples: list) -> list[dict]:
    """Experiences as dicts of tensors, lists and numbers, which load without executing code."""
    return [{field.name: getattr(sample, field.name) for field in fields(sample)} for sample in samples]


class Checkpointing:
    """Mixed into the trainer. OpenRLHF decides when (``--ckpt.save_steps``, the best metric); the rest is here."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # OpenRLHF's own saving, within its logging, would end the run where a disk is full
        self.save_steps, self.args.ckpt.save_steps = self.args.ckpt.save_steps, float("inf")
        self.folder = Path(self.args.ckpt.path)
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.committing: Future | None = None
        self.last_states: dict | None = None  # of the last finished step
        self.saved_step = None
        self.held_up: float | None = None
        self.faults = {"checkpoints_failed": 0}

    # ---- saving

    def save_logs_and_checkpoints(self, global_step, logs_dict=None, client_states=None):
        self.last_states = dict(client_states or {})
        begin = time.monotonic()
        if global_step % self.save_steps == 0:
            self.save(f"global_step{global_step}")
            self.held_up = time.monotonic() - begin  # this step's line is written by now: it stands in the next
        super().save_logs_and_checkpoints(global_step, logs_dict, client_states)
        try:
            stop_if_asked(self.args)
        except StopRequested:
            raise self.stopped() from None

    def save_best_checkpoint(self, eval_metrics, global_step, client_states=None):
        self.attempt(f"best_global_step{global_step}",
                     lambda: super(Checkpointing, self).save_best_checkpoint(eval_metrics, global_step, client_states))  # fmt: skip

    def save(self, tag: str) -> bool:
        """Write the checkpoint ``tag`` of the step just finished; True if it is on its way to the disk."""

        def ranks():
            refs = self.actor_model_group.async_run_method(
                method_name="save_checkpoint", tag=tag, client_states=dict(self.last_states)
            )
            if self.critic_model_group is not None:
                refs += self.critic_model_group.async_run_method(method_name="save_checkpoint", tag=tag)
            ray.get(refs)

        return self.attempt(tag, ranks)

    def attempt(self, tag: str, write) -> bool:
        """Have ``write`` put the ranks' part into place, add the trainer's, and commit in the background.

        A failure is counted and reported; the checkpoints before it stay as they are.
        """
        partial = checkpoints.partial_path(self.folder, tag)
        try:
            self.wait_for_commit()
            self.check_space()
            shutil.rmtree(partial, ignore_errors=True)
            with within(self.args.orz.checkpoint_timeout_s, "checkpoint", "checkpoint_timeout_s", self.logs):
                write()
            if not partial.is_dir():  # the metric was not better than the best
                return False
            self.write_own(partial)
        except (OSError, ray.exceptions.RayTaskError) as error:
            self.failed(tag, error)
            shutil.rmtree(partial, ignore_errors=True)
            ranks = max(len(g._actor_handlers) for g in (self.actor_model_group, self.critic_model_group) if g)
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
        """trainer.json and trainer.pt: what the ranks do not know."""
        generator = getattr(self, "samples_generator", None)
        state = {
            **{key: value for key, value in self.last_states.items() if isinstance(value, (int, float, str, dict))},
            "best_eval_metric_key": self.best_eval_metric_key,
            "best_eval_metric_value": self.best_eval_metric_value,
            "latest_eval_metric_value": self._latest_eval_metric_value,
            "faults": self.all_faults(),
            "prompts_sha256": self.args.orz.prompts_sha256,
            "flags": self.args.orz.flags,
        }
        if generator is not None and self.prompts_dataloader.exhausted and not self.unused():
            state["episode"] += 1  # or the resumed run would look for prompts in an episode that has none left
        (partial / checkpoints.TRAINER).write_text(json.dumps(state, indent=1, default=str))
        torch.save({"random": random_state.capture(), "unused": plain(self.unused())}, partial / checkpoints.STATE)

    def unused(self) -> list:
        """Responses that are drawn but not yet trained on."""
        return getattr(getattr(self, "samples_generator", None), "_sample_buffer", None) or []

    def commit(self, partial: Path) -> None:
        checkpoints.commit(partial)
        checkpoints.rotate(self.folder, self.args.ckpt.max_num, self.args.ckpt.max_mem * 1024**3)

    def wait_for_commit(self) -> None:
        """Until the last checkpoint is complete; a failure is counted, not raised."""
        committing, self.committing = self.committing, None
        if committing is not None:
            try:
                committing.result()
            except OSError as error:
                self.failed("in the background", error)
                checkpoints.clear_partial(self.folder)

    def failed(self, what: str, error: Exception) -> None:
        self.faults["checkpoints_failed"] += 1
        last = checkpoints.all_checkpoints(self.folder)
        kept = f"{last[0]} is kept" if last else "there is none before it"
        cause = (str(error).strip().splitlines() or [repr(error)])[-1]
        print(f"checkpoint {what} failed, {kept}: {cause}", flush=True)
        self.run_dir.note(f"checkpoint {what} failed, {kept}: {cause}")

    # ---- resuming and stopping

    def init_checkpoint_states(self):
        """Where to begin: the checkpoint's place, or the start."""
        if self.args.orz.resume_from is None:
            self.args.ckpt.load_enable = False
            return super().init_checkpoint_states()
        folder = Path(self.args.orz.resume_from)
        states = json.loads((folder / checkpoints.TRAINER).read_text())
        own = torch.load(folder / checkpoints.STATE, weights_only=True)
        random_state.restore(own["random"])
        self.last_states = {k: states[k] for k in ("episode", "global_step", "total_consumed_prompts")}
        self.last_states["data_loader_state_dict"] = states["data_loader_state_dict"]
        self.saved_step = states["global_step"]
        for key, value in states["faults"].items():
            self.restore_fault(key, value)
        generator = getattr(self, "samples_generator", None)
        if generator is not None and own["unused"]:
            generator._sample_buffer = [Experience(**sample) for sample in own["unused"]]
            loader = states["data_loader_state_dict"]
            left = loader["position"] < len(self.prompts_dataloader)
            generator._dataloader_iter = iter(self.prompts_dataloader) if left else None
        return states

    def all_faults(self) -> dict[str, int]:
        """Everything survived so far, by kind."""
        return {**self.faults, **getattr(getattr(self, "samples_generator", None), "faults", {})}

    def restore_fault(self, key: str, value: int) -> None:
        for owner in (self, getattr(self, "samples_generator", None)):
            if owner is not None and key in owner.faults:
                owner.faults[key] = value

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

    def fit(self, *args, **kwargs):
        training_mark(self.args).touch()
        try:
            super().fit(*args, **kwargs)
        except StopRequested:
            raise self.stopped() from None
        finally:
            training_mark(self.args).unlink(missing_ok=True)
            self.wait_for_commit()
