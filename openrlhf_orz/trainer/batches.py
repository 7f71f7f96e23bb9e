"""Samples on their way into batches: for the forwards, and for each rank's training. All GPUs wait for it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import chain
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.utils.logging_utils import init_logger
from torch.nn.utils.rnn import pad_sequence

from openrlhf_orz.runtime.cores import cores

logger = init_logger(__name__)

COPIES = 8  # threads that copy; more would wait for memory


def in_rollout_order(batches: list[Experience], values_B: torch.Tensor) -> torch.Tensor:
    """The values (B,) of all samples, batch after batch, by the samples' places in the rollout."""
    order_B = torch.tensor([place for batch in batches for place in batch.index])
    return torch.empty_like(values_B).index_copy(0, order_B, values_B)


def numbers(values: list | torch.Tensor) -> list | torch.Tensor:
    """Numbers as one tensor of torch's default type; 0-d tensors of each sample would be pickled one by one."""
    plain = values.tolist() if torch.is_tensor(values) else values
    return torch.tensor(plain) if all(isinstance(each, (int, float)) for each in plain) else values


def column(values: list) -> Any:
    """The values of all samples in a field, from those of batches: rows of tokens in a list, numbers in a tensor."""
    first = values[0]
    if isinstance(first, dict):
        keys = dict.fromkeys(chain.from_iterable(values))
        return {key: numbers(column([each[key] for each in values if key in each])) for key in keys}
    if not torch.is_tensor(first):
        return None if first is None else list(chain.from_iterable(values))
    return torch.cat(values) if first.dim() == 1 else [row for rows in values for row in rows.unbind(0)]


def dealt(values: Any, parts: list[list[int]]) -> list:
    """For each part its values of a column that is not of tokens."""
    if isinstance(values, dict):
        by_key = [dealt(each, parts) for each in values.values()]
        return [dict(zip(values, each)) for each in zip(*by_key)] if values else [{} for _ in parts]
    if torch.is_tensor(values):
        sizes = [len(part) for part in parts]
        return [each.clone() for each in values[list(chain.from_iterable(parts))].split(sizes)]
    return [[values[place] for place in part] if values else values for part in parts]


def regroup(batches: list[Experience], parts: list[list[int]], pad: int = 0) -> list[Experience]:
    """For each of ``parts`` a batch of the samples at these places, counted through all ``batches``.

    The same, to the last bit, as OpenRLHF makes by one experience for each sample. But each row of tokens is copied
    once, in threads, which do nothing else: they would wait for each other's hold on Python.

    Args:
        pad: what follows a shorter sequence; other rows of tokens are followed by 0.

    Raises ValueError for a field that some of the samples lack.
    """
    size = sum(len(batch.sequences) for batch in batches)
    columns = {each.name: column([getattr(batch, each.name) for batch in batches]) for each in fields(Experience)}
    for name, values in (columns | columns["info"]).items():
        if values is not None and name != "info" and len(values) not in (0, size):
            raise ValueError(f"{len(values)} of {size} samples have {name}")
    rows = {name: values for name, values in columns.items() if Experience.is_step_tensor_field(name) and values}
    found = [Experience() for _ in parts]
    for name in columns.keys() - rows.keys():
        for batch, values in zip(found, dealt(columns[name], parts)):
            setattr(batch, name, values)

    def copy(batch: Experience, part: list[int]) -> None:
        for name, values in rows.items():
            padding = pad if name == "sequences" else 0
            setattr(batch, name, pad_sequence([values[i] for i in part], batch_first=True, padding_value=padding))

    with ThreadPoolExecutor(min(COPIES, cores())) as pool:
        list(pool.map(copy, found, parts))
    return found


def with_tokens(batches: list[Experience]) -> list[int]:
    """The places, counted through all ``batches``, of the samples that have a token to train on.

    Logs how many have none. The rewards of empty responses count in their groups. But the loss of a micro-batch of
    empty responses would be a mean over no tokens: not a number, or an error upstream.
    """
    trained = torch.cat([batch.action_mask.any(-1) for batch in batches])
    kept = trained.nonzero().flatten().tolist()
    if len(kept) < len(trained):
        lost = len(trained) - len(kept)
        logger.warning(f"{lost} of {len(trained)} responses are empty: nothing to train on in them")
    return kept
