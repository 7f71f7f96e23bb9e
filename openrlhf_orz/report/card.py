"""The model card of a published run: a README.md with the hub's metadata, and nothing of the machine in it."""

import re
import shlex
from collections import Counter
from dataclasses import dataclass, field

from openrlhf_orz.report.run_data import Run, flatten_flags, open_file

PICTURE = "reward_and_length"
# flags that say where a run writes and to whom it tells, and not what it computes
NOT_SHOWN = ("logger.", "ckpt.output_dir", "ckpt.path", "orz.run_dir", "orz.put_aside", "ckpt.load_enable")
_LOCAL = re.compile(r"file://[^\s'\"`,;|)(]+|(?<![\w.:/~<-])(?:~|\.\.)?/[^\s'\"`,;|)(<>]+")


@dataclass
class Published:
    """What the card says beside the run's own files.

    ``source``: where the weights are from, in words. ``base``: the base model's name, of a local folder the last part.
    ``licence``: the hub's identifier; None where the base's is not known. ``tables``: further evaluation, in Markdown.
    ``adapter_rank``: of adapters (LoRA), which go out without the base; 0 of a whole model.
    """

    source: str
    base: str
    base_is_local: bool
    licence: str | None
    critic: bool = False
    tables: dict[str, str] = field(default_factory=dict)
    curation: bool = False
    adapter_rank: int = 0


def without_places(text: str) -> str:
    """``text`` with each absolute path, and each that leaves the folder, cut to its last part."""
    return _LOCAL.sub(lambda found: found[0].rstrip("/").rpartition("/")[2] or "/", text)


def shown(value: str) -> str:
    """A flag's value: paths, in lists by comma too, by their last part; servers of one's own not at all."""
    parts = value.split(",")
    if any(part.startswith(("/", "~", "../", "file:")) for part in parts):
        return ",".join(part.rstrip("/").rpartition("/")[2] if "/" in part else part for part in parts)
    return without_places(re.sub(r"https?://\S+", "(a server)", value))


def settings_of(run: Run) -> dict[str, str]:
    """The flags that were given, with their values as the card shows them."""
    flags, given = flatten_flags(run.config.get("flags")), run.config.get("explicit")
    names = [str(name) for name in given] if isinstance(given, list) else []
    return {n: shown(flags[n]) for n in sorted(names) if n in flags and not n.startswith(NOT_SHOWN)}


def command_of(run: Run) -> list[str]:
    """The words of the command that started the run, as config.json has them; without, made of the flags given."""
    words = run.config.get("command")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words) or not words:
        flags, given = run.config.get("flags"), run.config.get("explicit")
        words = ["python", "-m", "openrlhf_orz.cli.train_ppo_ray"]
        for name in given if isinstance(given, list) else []:
            node = flags
            for part in str(name).split("."):
                node = node.get(part) if isinstance(node, dict) else None
            if node is not None and node is not False:
                words += [f"--{name}", *([] if node is True else map(str, node if isinstance(node, list) else [node]))]
    kept, leave_out = [], False
    for word in words:
        if word.startswith("--"):
            leave_out = word[2:].startswith(NOT_SHOWN)
        if leave_out:
            continue
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        kept.append(flag + equals + shown(value))
    return kept


def command_text(words: list[str]) -> str:
    """The command for a shell, a flag on each line."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n   ".join(shlex.join(line) for line in lines)


def training_table(run: Run) -> list[str]:
    """Reward, format and length over the first five and the last ten steps; of a short run over its two halves."""
    steps = len(run.metrics)
    first = min(5, (steps + 1) // 2)
    last = min(10, max(steps - first, 1))
    lines = [f"| | first {first} of {steps} steps | last {last} |", "|---|---|---|"]
    for key, label in (("reward", "reward"), ("format", "in the format"), ("response_length", "tokens a response")):
        parts = []
        for rows in (run.metrics[:first], run.metrics[-last:]):
            numbers = [row[key] for row in rows if isinstance(row.get(key), (int, float))]
            parts.append(f"{sum(numbers) / len(numbers):.3g}" if numbers else "-")
        lines.append(f"| {label} | {' | '.join(parts)} |")
    return lines


def changed_flags(run: Run) -> list[str]:
    """What a resumption has changed: the table of flags holds for the steps after it alone."""
    parts = run.config.get("changed")
    lines = []
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict) and isinstance(part.get("flags"), list):
            told = "; ".join(without_places(str(line)) for line in part["flags"])
            lines += [f"**Resumed after step {part.get('after_step')} with other flags**: {told}.", ""]
    return lines


def evaluation_table(run: Run) -> list[str]:
    """The benchmarks of the last evaluation during training; nothing where there was none."""
    if not run.evals:
        return []
    last, first = run.evals[-1], run.evals[0]
    lines = [f"During training, after step {last['step']} (before: step {first['step']}):", ""]
    lines += ["| benchmark | accuracy % | 95 % interval | before % |", "|---|---|---|---|"]
    for key in last:
        if not (name := re.fullmatch(r"eval_(.+)_pass1", key)):
            continue

        def percent(row: dict, suffix: str, bench: str = name[1]) -> str:
            value = row.get(f"eval_{bench}_{suffix}")
            return f"{100 * value:.1f}" if isinstance(value, (int, float)) else "-"

        interval = " to ".join(percent(last, part) for part in ("low", "high"))
        before = percent(first, "pass1") if first is not last else "-"
        lines.append(f"| {name[1]} | {percent(last, 'pass1')} | {interval} | {before} |")
    return lines if len(lines) > 4 else []


def data_lines(run: Run, curation: bool) -> list[str]:
    """What the run trained on: names, prompts, and rows left out by their reasons."""
    flags = flatten_flags(run.config.get("flags"))
    lines = [f"- trained on: `{shown(flags.get('data.prompt_dataset', 'not recorded'))}`"]
    for kind, what in (("train", "prompts"), ("eval", "held-out prompts")):
        counted = 0
        for file in sorted((run.path / "data").glob(f"prompts_{kind}*.jsonl")):
            with open_file(file) as rows:
                counted += sum(1 for _ in rows)
        reasons: Counter[str] = Counter()
        for file in sorted((run.path / "data").glob(f"bad_rows_{kind}*.jsonl")):
            with open_file(file) as rows:
                reasons.update(
                    re.findall(rb'"reason": "(\w+)"', line)[0].decode() for line in rows if b'"reason"' in line
                )
        if counted:
            out = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
            lines.append(f"- {counted} {what}" + (f"; rows left out: {out}" if out else ""))
    if curation:
        lines.append("- how the data set was made: [data.md](data.md)")
    return lines


_ADAPTERS = """
These are adapters (LoRA) without the base model. In `transformers`:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "{name}")
```

In vLLM:"""
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320)  # vLLM's --max-lora-rank, up to 512


def _engine(about: Published, name: str) -> list[str]:
    """Lines of Python that start vLLM with the weights."""
    if not about.adapter_rank:
        return ["from vllm import LLM, SamplingParams", "", f'llm = LLM("{name}")']
    rank = next((rank for rank in _LORA_RANKS if rank >= about.adapter_rank), 512)
    return [
        "from vllm import LLM, SamplingParams", "from vllm.lora.request import LoRARequest", "",
        f'llm = LLM("{about.base}", tokenizer="{name}", enable_lora=True, max_lora_rank={rank})',
        f'lora = LoRARequest("orz", 1, "{name}")',
    ]  # fmt: skip


def write_card(run: Run, about: Published, stop: list[str], name: str) -> str:
    """The text of README.md. ``stop``: the strings at which the run's responses ended."""
    meta = [
        "---",
        f"library_name: {'peft' if about.adapter_rank else 'transformers'}",
        "pipeline_tag: text-generation",
    ]
    meta += [f"license: {about.licence or 'unknown'}"]
    meta += [] if about.base_is_local else [f"base_model: {about.base}"]
    meta += ["base_model_relation: adapter"] if about.adapter_rank and not about.base_is_local else []
    meta += ["tags:", "- reinforcement-learning", "- reasoning", "- openrlhf_orz", "---"]
    licence = (
        f"`{about.licence}`, the base model's"
        if about.licence
        else "**not known**: the base model's holds. Its folder names none; look it up before you hand this on"
    )
    steps = run.metrics[-1]["step"] if run.metrics else 0
    longest = flatten_flags(run.config.get("flags")).get("rollout.max_new_tokens", "null")
    longest = "None" if longest == "null" else longest  # as long as the context allows
    lines = [
        *meta, f"# {name}", "",
        f"`{about.base}`, trained by [openrlhf_orz](https://arxiv.org/abs/2503.24290) (Open-Reasoner-Zero) to reason: "
        f"{steps} steps of reinforcement learning with a checkable reward. Weights: {about.source}.", "",
        f"- base model: `{about.base}`" + (" (a local folder)" if about.base_is_local else ""),
        f"- licence: {licence}", *(["- its critic is in [critic/](critic)"] if about.critic else []), "",
        "## Use", "", "The chat template asks a question as in training: one turn, no system message.",
        *(_ADAPTERS.format(base=about.base, name=name).splitlines() if about.adapter_rank else []), "",
        "```python", *_engine(about, name),
        f"params = SamplingParams(max_tokens={longest}, stop={stop!r}, include_stop_str_in_output=True)",
        'question = [{"role": "user", "content": "What is 123+456?"}]',
        f"print(llm.chat(question, params{', lora_request=lora' if about.adapter_rank else ''})[0].outputs[0].text)",
        "```", "",
        "## Training", "", *(["![Reward and response length](" + PICTURE + ".png)", ""] if run.metrics else []),
        *training_table(run), "", "The command:", "", "```bash", command_text(command_of(run)), "```", "",
        "| flag given | value |", "|---|---|",
        *(f"| `{flag}` | {cell(value)} |" for flag, value in settings_of(run).items()), "",
        *changed_flags(run), "Every other flag has the value in [training.json](training.json).", "",
        "## Data", "", *data_lines(run, about.curation), "",
    ]  # fmt: skip
    tables = [*evaluation_table(run)]
    for title, table in about.tables.items():
        tables += ["", title, "", table]
    if tables:
        lines += ["## Evaluation", "", *tables, ""]
    return "\n".join(lines)


def cell(text: str) -> str:
    """``text`` as code in a Markdown table."""
    return "`" + text.replace("|", "\\|").replace("\n", " ").replace("`", "'") + "`"
