"""Evaluation during training, by the statistics of ``openrlhf_orz.evaluate``, under OpenRLHF's names of metrics."""

import os

import torch

from openrlhf_orz.evaluate.statistics import powers, summarise
from openrlhf_orz.reward.extract import extract_answer, has_format
from openrlhf_orz.reward.grader import Grader
from openrlhf_orz.reward.verdict import Verdict


def response_row(number: int, sample, text: str) -> dict:
    """What the statistics need of one sample (OpenRLHF's experience of one response) to question ``number``."""
    return {
        "id": number,
        "reward": float(sample.rewards),
        "tokens": int(sample.action_mask.sum()),
        "stop_reason": "length" if bool(sample.truncated) else "stop",
        "format": has_format(text),
        "extracted": extract_answer(text),
    }


def evaluation_logs(sets: list[str], rows: list[dict], n: int, same=None) -> dict[str, float]:
    """``eval_SET_...`` of each data set; docs/metrics.md defines the keys.

    Args:
        sets: the data set of each question.
        rows: of ``response_row``, n for each question.
        same: whether two answers are equal, for the majority; None leaves it out.
    """
    logs: dict[str, float] = {}
    for name in dict.fromkeys(sets):
        result = summarise([row for row in rows if sets[row["id"]] == name], same if n > 1 else None)
        logs[f"eval_{name}_pass1"] = result["avg_at_n"]
        logs |= {f"eval_{name}_pass{k}": result[f"pass_at_{k}"] for k in powers(n) if k > 1}
        logs |= {f"eval_{name}_low": result["low"], f"eval_{name}_high": result["high"]}
        if "maj_at_n" in result:
            logs[f"eval_{name}_maj{n}"] = result["maj_at_n"]
        logs[f"eval_{name}_response_length_mean"] = result["response_length"]
        logs[f"eval_{name}_truncated_rate"] = result["truncated"]
        logs[f"eval_{name}_format_rate"] = result["format"]
    if rows:
        logs["eval_response_length_mean"] = sum(row["tokens"] for row in rows) / len(rows)
        logs["eval_truncated_rate"] = sum(row["stop_reason"] == "length" for row in rows) / len(rows)
    logs["eval_num_samples"] = float(len(rows))
    return logs


def evaluate_samples(eval_dataloader, samples: list, n: int, tokenizer, args) -> dict[str, float]:
    """The logs of an evaluation from its samples, those of one prompt next to each other."""
    set_of = {prompt: name for names, prompts, *_ in eval_dataloader for prompt, name in zip(prompts, names)}
    sets = [str(set_of.get(sample.prompts[0], "unknown")) for sample in samples[::n]]
    masks = [torch.nn.functional.pad(sample.action_mask[0], (1, 0)).bool() for sample in samples]
    texts = tokenizer.batch_decode([sample.sequences[0][mask] for sample, mask in zip(samples, masks)])
    rows = [response_row(i // n, sample, text) for i, (sample, text) in enumerate(zip(samples, texts))]
    if n == 1 or not args.orz.own_agent:
        return evaluation_logs(sets, rows, n)
    workers = args.orz.grader_workers or min(8, len(os.sched_getaffinity(0)))  # the engines' own, if they are here
    with Grader(workers=workers, plain=args.orz.plain_math_verify, shared=True) as grader:
        return evaluation_logs(sets, rows, n, lambda a, b: grader.compare(b, a)[0] is Verdict.RIGHT)
