"""The prompt templates: what text surrounds a question before a base model continues it."""

from __future__ import annotations

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
    """The literal texts between which the question stands, two or more of them."""
    text = TEMPLATES.get(template, template)
    if PLACEHOLDER in text:
        return text.split(PLACEHOLDER)
    parts = text.split("{}")
    if len(parts) == 1:
        raise DataError(
            f"--orz.prompt_template {template!r} is neither one of {', '.join(TEMPLATES)} nor text with {PLACEHOLDER} "
            "(or {}) where the question goes"
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
