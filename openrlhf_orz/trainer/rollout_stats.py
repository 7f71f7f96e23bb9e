"""The paper's metrics that need texts and tokens, off the critical path; docs/metrics.md defines each key."""

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from openrlhf_orz.algo.text_stats import reflects, repetition
from openrlhf_orz.trainer.metrics import mean

QUANTILES = (10, 50, 90)  # per cent


def spread(name: str, values: torch.Tensor) -> dict[str, float]:
    """Standard deviation and quantiles (linear between neighbours) of ``values`` (N,); nan of nothing."""
    values = values.double()
    result = {f"{name}_std": values.std(unbiased=False).item() if len(values) else float("nan")}
    for percent in QUANTILES:
        # torch.quantile takes at most 16 million values; a rollout has fewer responses
        result[f"{name}_p{percent}"] = values.quantile(percent / 100).item() if len(values) else float("nan")
    return result


def length_metrics(lengths: torch.Tensor, right: torch.Tensor) -> dict[str, float]:
    """Spread of response lengths: of all, of right and of wrong responses.

    Args:
        lengths: (B,) response tokens.
        right: (B,) bool, reward above 0.
    """
    return {
        **spread("response_length", lengths),
        **spread("response_length_right", lengths[right]),
        **spread("response_length_wrong", lengths[~right]),
    }


def reflection_metrics(reflecting: torch.Tensor, lengths: torch.Tensor, right: torch.Tensor) -> dict[str, float]:
    """Fig. 7. ``reflecting`` and ``right`` (B,) bool, ``lengths`` (B,) tokens."""
    return {
        "reflection": mean(reflecting),
        "reflection_reward": mean(right[reflecting]),
        "reflection_length": mean(lengths[reflecting]),
        "reflection_length_right": mean(lengths[reflecting & right]),
    }


def text_metrics(texts: list[str], token_ids: list, right: torch.Tensor) -> dict[str, float]:
    """Reflection and repetition of B responses: their texts, their token ids, and which are right (B,) bool."""
    lengths = torch.tensor([len(ids) for ids in token_ids])
    repeated = torch.tensor([repetition(ids) for ids in token_ids], dtype=torch.float64)
    return {
        **reflection_metrics(torch.tensor([reflects(text) for text in texts]), lengths, right),
        "repetition": mean(repeated),
        "repetition_p90": repeated.quantile(0.9).item(),
    }


class RolloutStats:
    """Decodes and measures the responses of a step in a thread, while the models train on them."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="rollout-stats")
        self.pending: Future | None = None

    def start(self, samples) -> None:
        """Begin with ``samples``: OpenRLHF's single-sample experiences, which are read only."""
        self.pending = self.executor.submit(self._measure, list(samples))

    def _measure(self, samples) -> dict[str, float]:
        token_ids = [sample.sequences[0][1:][sample.action_mask[0].bool()].tolist() for sample in samples]
        texts = self.tokenizer.batch_decode(token_ids, skip_special_tokens=False)
        return text_metrics(texts, token_ids, torch.tensor([float(sample.rewards) > 0 for sample in samples]))

    def result(self) -> dict[str, float]:
        """The metrics of the samples that were started last; raises what went wrong."""
        return self.pending.result()
