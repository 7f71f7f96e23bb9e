"""Prompts in an order that is fixed by seed and episode, from any place in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence


class PromptLoader:
    """One prompt at a time, shuffled anew in each episode; its state is two numbers.

    Drop-in for the data loader of OpenRLHF's trainer: ``len``, ``iter`` (which goes on where the last one ended, and
    begins the next episode after the last prompt), ``state_dict``, ``load_state_dict``, ``dataset``.

    Args:
        dataset: the prompts.
        collate: makes a batch of a list of items.
        seed: of the order.
    """

    def __init__(self, dataset: Sequence, collate: Callable[[list], object], seed: int):
        self.dataset, self.collate, self.seed = dataset, collate, seed
        self.episode = self.position = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def order(self, episode: int) -> list[int]:
        """Indices of the prompts in the order of ``episode``."""
        indices = list(range(len(self.dataset)))
        random.Random(f"prompts-{self.seed}-{episode}").shuffle(indices)
        return indices

    def __iter__(self) -> Iterator:
        if self.exhausted:
            self.episode, self.position = self.episode + 1, 0
        order = self.order(self.episode)
        while self.position < len(order):
            item = self.dataset[order[self.position]]
            self.position += 1
            yield self.collate([item])

    @property
    def exhausted(self) -> bool:
        """Whether the episode has no prompts left."""
        return self.position >= len(self.dataset)

    @property
    def drawn(self) -> int:
        """Prompts drawn since the first episode began."""
        return self.episode * len(self.dataset) + self.position

    def state_dict(self) -> dict[str, int]:
        return {"episode": self.episode, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.episode, self.position = state["episode"], state["position"]
