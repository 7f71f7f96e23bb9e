"""Cutting a rollout into optimizer steps and micro-batches (Sec. 3.1), on lengths in tokens."""

import random

import torch


def cut_mini_batches(num_samples: int, num_updates: int, rng: random.Random | None = None) -> list[list[int]]:
    """Cut the indices 0..num_samples-1, each exactly once, into ``num_updates`` parts; sizes differ by at most 1.

    With ``rng`` they are shuffled first, so that no mini-batch is chosen by length.
    Raises ValueError if a part would be empty.
    """
    if not 1 <= num_updates <= num_samples:
        raise ValueError(f"cannot cut {num_samples} samples into {num_updates} non-empty mini-batches")
    order = list(range(num_samples))
    if rng is not None:
        rng.shuffle(order)
    size, extra = divmod(num_samples, num_updates)
    parts, start = [], 0
    for i in range(num_updates):
        end = start + size + (i < extra)
        parts.append(order[start:end])
        start = end
    return parts


def cut_group_batches(
    keys: list[bytes], num_updates: int, rng: random.Random | None = None, groups: list[bytes] | None = None
) -> list[list[int]]:
    """As ``cut_mini_batches``, but samples with equal ``keys`` (a prompt's responses) stay in one mini-batch.

    Groups are shuffled and cut, so numbers of groups differ by at most 1. Raises ValueError if there are fewer groups
    than mini-batches. ``groups``: the keys of all ranks, each once, where a group's samples lie on several; parts may
    be empty then.
    """
    groups = list(dict.fromkeys(keys)) if groups is None else groups
    members: dict[bytes, list[int]] = {key: [] for key in groups}
    for index, key in enumerate(keys):
        members[key].append(index)
    return [[i for g in part for i in members[groups[g]]] for part in cut_mini_batches(len(groups), num_updates, rng)]


def balance_ranks(lengths: list[int], ranks: int, hidden_size: int) -> list[list[int]]:
    """Share samples among ranks: counts differ by at most 1, and work is as equal as a longest-first greedy makes it.

    Work grows as L + L^2 / 12 D for a sample of L tokens and hidden size D: a causal layer's products with its weights
    cost about 24 D^2 a token, its attention 2 L D.

    Returns:
        indices into ``lengths`` (tokens) for each rank. Raises ValueError if a rank would have none.
    """
    if not 1 <= ranks <= len(lengths):
        raise ValueError(f"cannot share {len(lengths)} samples among {ranks} ranks")
    work = [length + length**2 / (12 * hidden_size) for length in lengths]
    size, extra = divmod(len(lengths), ranks)
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = [0.0] * ranks
    for index in sorted(range(len(lengths)), key=lambda i: (-work[i], i)):
        larger = sum(len(share) > size for share in shares)
        open_ranks = [r for r in range(ranks) if len(shares[r]) < size or (len(shares[r]) == size and larger < extra)]
        rank = min(open_ranks, key=lambda r: (load[r], r))
        shares[rank].append(index)
        load[rank] += work[index]
    return shares


def sharing_key(tokens_T: torch.Tensor, response_length: int, look: int = 32) -> bytes:
    """A sort key that makes responses to one prompt neighbours, and among them those with equal first tokens.

    Args:
        tokens_T: (T,) integers, prompt and response.
        response_length: tokens of the response.
        look: tokens of the response that the key includes.
    """
    return tokens_T[: len(tokens_T) - response_length + look].numpy(force=True).tobytes()


def _greedy(lengths: list[int], budget: int, padded: bool) -> list[int]:
    """Sizes of runs of ``lengths`` (longest first if padded), each run as long as ``budget`` tokens allow."""
    sizes: list[int] = []
    longest = tokens = 0
    for length in lengths:
        cost = longest * (sizes[-1] + 1) if padded and sizes else tokens + length
        if sizes and cost <= budget:
            sizes[-1] += 1
            tokens += length
        else:
            sizes.append(1)
            longest = tokens = length
    return sizes


def _order(lengths: list[int], keys: list[bytes] | None) -> list[int]:
    """Indices of the samples in the order in which micro-batches are cut: by ``keys``, else longest first."""
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i] if keys is None else keys[i], i))


def count_micro_batches(lengths: list[int], budget: int, keys: list[bytes] | None = None) -> int:
    """The number of micro-batches of at most ``budget`` tokens; a sample longer than that is alone in its micro-batch.

    With ``keys`` samples are packed, without padding. Without ``keys`` each sample counts as the longest one.
    """
    return len(_greedy([lengths[i] for i in _order(lengths, keys)], budget, keys is None))


def cut_micro_batches(lengths: list[int], count: int, keys: list[bytes] | None = None) -> list[list[int]]:
    """Cut the samples into exactly ``count`` non-empty micro-batches, as equal in tokens as possible.

    With ``keys`` samples are packed and neighbours are those with similar keys (see ``sharing_key``). Without ``keys``
    neighbours have similar lengths, and padding counts as tokens.

    Returns:
        lists of indices into ``lengths`` (tokens). Raises ValueError if there are fewer samples than ``count``.
    """
    if not 1 <= count <= len(lengths):
        raise ValueError(f"cannot cut {len(lengths)} samples into {count} non-empty micro-batches")
    order = _order(lengths, keys)
    ordered = [lengths[i] for i in order]
    low, high = 1, max(ordered[0] * len(ordered), sum(ordered))
    while low < high:
        middle = (low + high) // 2
        if len(_greedy(ordered, middle, keys is None)) <= count:
            high = middle
        else:
            low = middle + 1
    sizes = _greedy(ordered, low, keys is None)
    while len(sizes) < count:
        widest = max(range(len(sizes)), key=lambda i: sizes[i])
        sizes[widest : widest + 1] = [sizes[widest] - sizes[widest] // 2, sizes[widest] // 2]
    parts, start = [], 0
    for size in sizes:
        parts.append(order[start : start + size])
        start += size
    return parts
