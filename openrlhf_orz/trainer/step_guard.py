"""Gradients that are not finite: DeepSpeed skips the step on all ranks together; we count, dump and give up in time.

DeepSpeed looks at the gradient tensors themselves and all ranks agree on it. The norm that it reports is no guide:
a NaN group counts as -1 there, so the norm of two such groups is 1.414.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from openrlhf_orz.trainer.live_objects import check_gradients

# What of a sample is written for study; (A,) or (S,) each.
FIELDS = ("sequences", "attention_mask", "action_mask", "action_log_probs", "values", "returns", "advantages")


def dump(path: Path, items: list) -> None:
    """Write the samples of a mini-batch as safetensors: ``NUMBER.FIELD``."""
    tensors = {
        f"{number}.{field}": value.detach().cpu().contiguous()
        for number, item in enumerate(items)
        for field in FIELDS
        if isinstance(value := getattr(item, field, None), torch.Tensor)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def samples_of_step(buffer, last: int) -> list:
    """The samples of the optimizer step that ends with micro-batch ``last`` of a replay buffer."""
    first = last
    while first and not buffer.dynamic_optimizer_step[first - 1]:
        first -= 1
    return [buffer.items[i] for part in buffer.dynamic_indices[first : last + 1] for i in part]


class StepGuard:
    """Watches an engine's skipped steps.

    Args:
        engine: DeepSpeed's.
        folder: where batches are dumped; at most ``DUMPS`` by each rank.
        name: "policy" or "critic".
        rank: of this process.
        limit: skipped steps in a row after which the run ends.
    """

    DUMPS = 10

    def __init__(self, engine, folder: str | Path, name: str, rank: int, limit: int):
        check_gradients(engine)
        self.engine, self.folder, self.name, self.rank, self.limit = engine, Path(folder), name, rank, limit
        self.seen = engine.skipped_steps
        self.in_a_row = self.total = 0

    @classmethod
    def of(cls, args, engine, name: str) -> StepGuard:
        """By the settings; batches go into the run directory's ``nonfinite``."""
        folder = Path(args.orz.run_dir) / "nonfinite"
        return cls(engine, folder, name, torch.distributed.get_rank(), args.orz.max_skipped_steps)

    def seeks_a_scale(self) -> bool:
        """Whether DeepSpeed answers a skipped step in float16 by a smaller loss scale. At 1 it ends the run itself."""
        return self.engine.fp16_enabled() and self.engine.optimizer.loss_scale > 1

    def after_step(self, buffer, last: int) -> bool:
        """Call after each optimizer step, whose last micro-batch of ``buffer`` is ``last``; whether it was taken.

        Raises FloatingPointError, on every rank alike, after ``limit`` skipped steps in a row; in float16 steps that
        are skipped to find a loss scale do not count.
        """
        skipped, self.seen = self.engine.skipped_steps - self.seen, self.engine.skipped_steps
        if not skipped:
            self.in_a_row = 0
            return True
        self.total += 1
        if self.seeks_a_scale():
            return False
        self.in_a_row += 1
        where = self.folder / f"{self.name}_step{self.engine.global_steps}_{self.total}_rank{self.rank}.safetensors"
        if self.total <= self.DUMPS:
            try:
                dump(where, samples_of_step(buffer, last))
            except OSError as error:
                print(f"cannot write {where}: {error}", flush=True)
        if self.in_a_row >= self.limit:
            raise FloatingPointError(
                f"{self.in_a_row} {self.name} steps in a row had gradients that are not finite; the last batches are"
                f" in {self.folder} (--orz.max_skipped_steps)"
            )
        return False
