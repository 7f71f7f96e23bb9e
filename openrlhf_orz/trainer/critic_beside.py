"""The critic works while the next rollout is generated (``--orz.critic_beside``), which needs the new policy alone.

It ends its training, then takes the values of responses that are there while others are still generated. Exact all the
same: Ray runs an actor's calls in turn, so that values and checkpoints are those of the trained critic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ray
import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from torch.nn.utils.rnn import pad_sequence

from openrlhf_orz.settings.derive import data_parallel_ranks
from openrlhf_orz.trainer.batches import regroup

if TYPE_CHECKING:
    from openrlhf_orz.trainer.experience_maker import OrzExperienceMaker

FORWARD = ("sequences", "action_mask", "attention_mask")  # what the critic is given


class CriticBeside:
    """The critic's training of the last step, and what is to be done when it has ended."""

    def __init__(self):
        self.refs: list = []
        self.status: dict = {}
        self.write: Callable[[], None] | None = None

    @property
    def lasts(self) -> bool:
        """Whether nobody has waited for the critic yet."""
        return bool(self.refs)

    @property
    def due(self) -> bool:
        """Whether ``finish`` has something to do."""
        return self.lasts or self.write is not None

    @contextmanager
    def fit(self, trainer) -> Iterator[None]:
        """Start the critic's training; in the body OpenRLHF's ``ppo_train`` finds no critic, and trains the policy."""
        critic = trainer.critic_model_group
        self.refs = critic.async_run_method(method_name="fit")
        trainer.critic_model_group = None
        try:
            yield
        finally:
            trainer.critic_model_group = critic

    def then(self, status: dict, write: Callable[[], None]) -> None:
        """Call ``write`` in ``finish``, once the critic's metrics are in the step's ``status``."""
        self.status, self.write = status, write

    def finish(self, wait: bool = True) -> None:
        """Wait for the critic and write its step's line; nothing where this has been done.

        Without ``wait`` the line of a critic that still trains goes without its metrics. Raises what the critic's
        training has raised.
        """
        refs, self.refs = self.refs, []
        if refs and (wait or len(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) == len(refs)):
            start = time.monotonic()
            for status in ray.get(refs):
                self.status.update(status)
            waited = self.status["timing/critic_wait"] = time.monotonic() - start
            self.status["timing/step_total"] = self.status.get("timing/step_total", 0.0) + waited
        write, self.write = self.write, None
        if write is not None:
            write()


class EarlyValues:
    """Values of responses, taken while others are still generated.

    Args:
        maker: cuts batches, and knows the critic.
    """

    share = 0.0  # of the last rollout's responses, whose values were asked for before its end

    def __init__(self, maker: OrzExperienceMaker):
        self.maker, args = maker, maker.args
        self.together = args.ds.ring_attn_size * args.ds.tensor_parallel_size  # GPUs that compute one batch
        self.ranks = data_parallel_ranks(args)
        # two packs for each rank, as the second is never quite full
        self.enough = 2 * self.ranks * self.together * args.rollout.max_tokens_per_gpu
        self.in_turn = args.train.full_determinism_enable  # rounding depends on what is computed together
        self._begin()

    def _begin(self) -> None:
        self.early: dict[int, list[Experience]] = {}  # by number of the prompt, where those before it are awaited
        self.next: int | None = None
        self.waiting: list[Experience] = []
        self.asked: list[tuple[list[Experience], list[list[int]], list]] = []

    def add(self, first: int, number: int, samples: list[Experience]) -> None:
        """Take the responses to prompt ``number``; the rollout's prompts begin with ``first``."""
        if not self.in_turn:
            self._wait_or_ask(samples)
            return
        self.early[number] = samples
        self.next = first if self.next is None else self.next
        while self.next in self.early:
            self._wait_or_ask(self.early.pop(self.next))
            self.next += 1

    def _wait_or_ask(self, samples: list[Experience]) -> None:
        self.waiting += samples
        if sum(int(sample.total_length) for sample in self.waiting) >= self.enough:
            self._ask(self.waiting)
            self.waiting = []

    def _ask(self, samples: list[Experience]) -> None:
        shortest = min(samples, key=lambda sample: int(sample.total_length))
        samples = samples + [shortest] * (-len(samples) % self.ranks)  # the same number on each rank
        parts = self.maker.cut(samples)
        bare = [Experience(**{name: getattr(sample, name) for name in FORWARD}) for sample in samples]
        batches = regroup(bare, parts, self.maker.tokenizer.pad_token_id)
        refs = self.maker.critic_model_group.async_run_method_batch(
            method_name="forward", **{name: [getattr(batch, name) for batch in batches] for name in FORWARD}
        )
        self.asked.append((samples, parts, refs))

    def ask_rest(self, rollout: list[Experience]) -> None:
        """Ask for the values of a whole rollout that have not been asked for."""
        known = {id(sample) for samples, _, _ in self.asked for sample in samples}
        missing = [sample for sample in rollout if id(sample) not in known]
        self.share = (len(rollout) - len(missing)) / len(rollout)
        if missing:
            self._ask(missing)

    def take(self, rollout: list[Experience], batches: list[Experience]) -> list[torch.Tensor]:
        """Values of ``batches``, (B, A) each, whose ``index`` are places in ``rollout``; all have been asked for."""
        rows = {}
        for samples, parts, refs in self.asked:
            for part, values in zip(parts, self.maker._flatten_results(refs, self.together), strict=True):
                rows |= {id(samples[place]): row for place, row in zip(part, values, strict=True)}
        self._begin()
        # without the padding that each has had among others
        longest = [rollout_sample.action_mask.shape[-1] for rollout_sample in rollout]
        return [
            pad_sequence([rows[id(rollout[i])][: longest[i]] for i in batch.index], batch_first=True)
            for batch in batches
        ]
