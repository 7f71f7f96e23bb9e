"""A critic's checkpoint on the responses of an evaluation: its values, and how well they fit the rewards."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

import torch

from openrlhf_orz.algo.token_stats import explained_variances, fit_sums
from openrlhf_orz.algo.value_fit import FitTable
from openrlhf_orz.algo.value_losses import ValueForm
from openrlhf_orz.evaluate.results import Responses
from openrlhf_orz.settings.models import stored_tensor


def load_critic(path: str, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """A critic as training saves it (--critic.save_value_network); it returns values of action tokens."""
    from openrlhf.models import get_llm_for_sequence_regression

    from openrlhf_orz.models.routers import ask_router_loss
    from openrlhf_orz.models.value_head import replace_head

    critic = get_llm_for_sequence_regression(path, "critic", attn_implementation="sdpa", param_dtype="fp32")
    ask_router_loss(critic, False)
    form = getattr(critic.config, "orz_values", None)
    if form is not None:  # a head of several outputs, or of a probability
        saved = ValueForm(**form)
        linear = replace_head(critic, critic, saved.outputs, saved.values)
        name = f"{critic.value_head_prefix}.outputs"
        linear.load_state_dict({key: stored_tensor(path, f"{name}.{key}") for key in ("weight", "bias")})
    return critic.to(device=device, dtype=dtype).eval()


@torch.no_grad()
def response_values(critic: torch.nn.Module, prompt: list[int], response: list[int], device: str) -> torch.Tensor:
    """The value before each response token: values_A, float32, on the CPU."""
    sequences_1T = torch.tensor([prompt + response], device=device)
    mask_1S = torch.zeros(1, sequences_1T.shape[1] - 1, dtype=torch.long, device=device)
    mask_1S[:, len(prompt) - 1 :] = 1
    values_1S = critic(sequences_1T, action_mask=mask_1S, attention_mask=torch.ones_like(sequences_1T))
    return values_1S[0][-len(response) :].float().cpu()


def add_values(
    critic: torch.nn.Module,
    rows: list[dict],
    encode: Callable[[str], list[int]],
    device: str,
    log: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Add ``values``, ``value_first`` and ``value_last`` to each of ``rows`` (responses).

    Returns ``explained_variance`` over all response tokens, and ``value_fit``, by place in the response. The return at
    each token is the response's reward (gamma = lambda = 1).
    """
    total = torch.zeros(5, dtype=torch.float64)
    rewards = [row["reward"] for row in rows]
    table = FitTable(min([0.0, *rewards]), max([1.0, *rewards]))
    for number, row in enumerate(rows, 1):
        values_A = response_values(critic, encode(row["prompt"]), row["token_ids"], device)
        row["value_first"], row["value_last"] = values_A[0].item(), values_A[-1].item()
        row["values"] = [float(f"{value:.5g}") for value in values_A.tolist()]
        returns_A = torch.full_like(values_A, row["reward"])
        table.add(values_A.numpy(), returns_A.numpy())
        total += fit_sums(values_A, returns_A, torch.ones_like(values_A))
        if number % 200 == 0:
            log(f"values of {number} of {len(rows)} responses")
    (fit,) = explained_variances(total[None])
    return {"explained_variance": None if fit != fit else fit, "value_fit": table.summary()["by_position"]}


def critic_numbers(
    path: str,
    responses: Responses,
    asked: Collection[tuple[str, str, int]],
    results: dict[str, dict],
    encode: Callable[[str], list[int]],
    device: str,
) -> None:
    """Add the critic's values to responses.jsonl, which is rewritten, and its fit to each benchmark's results.

    ``asked``: the keys (benchmark, question, sample) of the responses that the results are of; the file may hold more.
    """
    critic = load_critic(path, device, torch.float32 if device == "cpu" else torch.bfloat16)
    for bench, result in results.items():
        rows = [row for key, row in responses.done.items() if key[0] == bench and key in asked]
        result |= add_values(critic, rows, encode, device) | {"critic": path}
    for key, row in responses.done.items():
        if key not in asked:  # its values may be another critic's
            for name in ("values", "value_first", "value_last"):
                row.pop(name, None)
    partial = responses.path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in responses.done.values()))
    partial.replace(responses.path)
