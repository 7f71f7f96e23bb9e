"""What a critic's checkpoint thinks of the responses: its value at their first and last tokens, and its fit."""

from __future__ import annotations

import torch

from openrlhf_orz.algo.masked import explained_variances, fit_sums


def load_critic(path: str, device: str, dtype: torch.dtype):
    """A critic as training saves it (--critic.save_value_network), for values of action tokens."""
    from openrlhf.models import get_llm_for_sequence_regression

    critic = get_llm_for_sequence_regression(path, "critic", attn_implementation="sdpa", param_dtype="fp32")
    return critic.to(device=device, dtype=dtype).eval()


@torch.no_grad()
def values_of(critic, prompt: list[int], response: list[int], device: str) -> torch.Tensor:
    """V before each response token: (A,) float32."""
    sequences = torch.tensor([prompt + response], device=device)
    mask = torch.zeros(1, sequences.shape[1] - 1, dtype=torch.long, device=device)
    mask[:, len(prompt) - 1 :] = 1
    values = critic(sequences, action_mask=mask, attention_mask=torch.ones_like(sequences))
    return values[0][-len(response) :].float().cpu()


def judge(critic, rows: list[dict], encode, device: str, log=print) -> dict[str, float | None]:
    """Add ``value_first`` and ``value_last`` to each of ``rows`` (responses); the fit over all their tokens.

    The return at every token is the response's reward (gamma = lambda = 1).
    """
    total = torch.zeros(5, dtype=torch.float64)
    for number, row in enumerate(rows, 1):
        values = values_of(critic, encode(row["prompt"]), row["token_ids"], device)
        row["value_first"], row["value_last"] = values[0].item(), values[-1].item()
        returns = torch.full_like(values, row["reward"])
        total += fit_sums(values, returns, torch.ones_like(values))
        if number % 200 == 0:
            log(f"values of {number} of {len(rows)} responses")
    (fit,) = explained_variances(total[None])
    return {"explained_variance": None if fit != fit else fit}
