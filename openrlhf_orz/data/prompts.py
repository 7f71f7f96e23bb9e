"""The prompts of a run: the text around a question that a base model continues, and the order of the questions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from openrlhf_orz.data.sources import DataError

PLACEHOLDER = "{{prompt}}"

TEMPLATES: dict[str, str] = {
    # arXiv 2503.24290, Table 1, word for word.
    "paper": (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
        "The assistant first thinks about the reasoning process in the mind and then provides the user with the "
        "answer. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: You must "
        "put your answer inside <answer> </answer> tags, i.e., <answer> answer here </answer>. And your final answer "
        "will be extracted automatically by the \\boxed{} tag. {{prompt}}\n"
        "Assistant: <think>"
    ),
    # github.com/Open-Reasoner-Zero/Open-Reasoner-Zero at 3fdd9a0, playground/zero_setting_base.py: the two strings
    # there rendered into one (Jinja drops the inner one's last newline). The release also puts the tokenizer's
    # bos token in front; Qwen2.5, the paper's base, has none.
    "released": (
        "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. "
        "The Assistant first thinks about the reasoning process in the mind and then provides the User with the "
        "answer. The reasoning process is enclosed within <think> </think> and answer is enclosed within <answer> "
        "</answer> tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>. "
        "User: You must put your answer inside <answer> </answer> tags, i.e., <answer> answer here </answer>. And "
        "your final answer will be extracted automatically by the \\boxed{} tag.\n"
        "This is the problem:\n"
        "{{prompt}}\n"
        "Assistant: <think>"
    ),
    "none": "{{prompt}}",
}


def _parts(template: str) -> list[str]:
    """The two or more literal texts between which the question stands."""
    text = TEMPLATES.get(template, template)
    if PLACEHOLDER in text:
        return text.split(PLACEHOLDER)
    parts = text.split("{}")
    if len(parts) == 1:
        raise DataError(
            f"--orz.prompt_template {template!r} is neither one of {', '.join(TEMPLATES)} nor text with {PLACEHOLDER} "
            "(or {}) where the question goes; the tokenizer's own is --data.apply_chat_template"
        )
    if len(parts) > 2:
        raise DataError(f"--orz.prompt_template {template!r} has several {{}}: mark the question's by {PLACEHOLDER}")
    return parts


def render(template: str, question: str) -> str:
    """The prompt for `question`, which is put in as it is: its own braces mean nothing.

    `template` is a name in `TEMPLATES` or literal text with `{{prompt}}`, or else with one `{}`, in it.
    Raises DataError for any other text.
    """
    return question.join(_parts(template))


def _literal(text: str) -> str:
    """`text` as a Jinja string literal; Jinja decodes Python's escapes in it."""
    return "'" + text.encode("unicode_escape").decode("ascii").replace("'", "\\'") + "'"


def chat_template(template: str) -> str:
    """A Jinja chat template (for `tokenizer.chat_template`) that renders the last user message as `render` does.

    An assistant message at the end is appended as it is, so that supervised training on (question, response)
    pairs sees the same text. Earlier turns and system messages are not rendered: the format has one turn.
    A conversation without a user message, or content that is not text, is an error in Jinja.
    `template` and errors are those of `render`.
    """
    text = " + question + ".join(_literal(part) for part in _parts(template))
    return (
        "{% set question = (messages | selectattr('role', 'equalto', 'user') | list | last)['content'] %}"
        "{{ " + text + " }}"
        "{% if messages[-1]['role'] == 'assistant' %}{{ messages[-1]['content'] }}{% endif %}"
    )


class PromptLoader:
    """One prompt at a time, shuffled anew in each episode. Its state is two numbers: episode and position.

    It takes the place of the data loader in OpenRLHF's trainer, with ``len``, ``iter``, ``state_dict``,
    ``load_state_dict`` and ``dataset``. ``iter`` goes on where the last one ended, and begins the next episode after
    the last prompt.

    Args:
        dataset: the prompts.
        collate: makes a batch of a list of items.
        seed: fixes the order, together with the number of the episode.
    """

    def __init__(self, dataset: Sequence, collate: Callable[[list], object], seed: int):
        self.dataset, self.collate, self.seed = dataset, collate, seed
        self.episode = self.position = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def order(self, episode: int) -> list[int]:
        """The indices of the prompts, in the order of ``episode``."""
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
