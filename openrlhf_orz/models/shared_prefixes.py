"""What sequences of a pack have in common is computed once: a group's prompt, and equal beginnings of responses.

In a causal model the hidden state of a token depends on the tokens before it alone, so where a sequence begins like
the one before it, those tokens are left out of the pack and their hidden states are read from that one: exact, and
gradients add up by themselves (as in Prefix Grouper, arXiv 2506.05433, here for any common beginning).
Notation: T tokens of the pack as given, U of them kept, D hidden size.
"""

import threading

import torch
from torch import nn

from openrlhf_orz.models.packed_attention import NAME


def share_prefixes(ids_T: torch.Tensor, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens of a pack to keep, and where each token's hidden state then is.

    A kept sequence begins at the position from which on it differs from the sequence kept before it; attention
    (``packed_attention.paths``) reads that back from the positions.

    Args:
        ids_T, positions_T: (T,) long on CPU; positions begin with 0 at each sequence.

    Returns:
        kept_U: (U,) indices into the pack; source_T: (T,) indices into the kept tokens.
    """
    starts = (positions_T == 0).nonzero()[:, 0].tolist()
    kept, source, count = [], [], 0
    before = path = ids_T[:0]  # tokens of the sequence kept before, and where they are among the kept
    for start, end in zip(starts, [*starts[1:], len(ids_T)]):
        ids = ids_T[start:end]
        common = min(len(ids), len(before))
        differs = (ids[:common] != before[:common]).nonzero()
        if len(differs):
            common = int(differs[0])
        own = torch.arange(count, count + len(ids) - common)
        where = torch.cat([path[:common], own])
        source.append(where)
        if len(own):
            kept.append(torch.arange(start + common, end))
            count += len(own)
            before, path = ids, where
    return torch.cat(kept), torch.cat(source)


class PrefixSharing:
    """Hooks around a decoder (the model without its head) that share prefixes of packs, and of nothing else."""

    def __init__(self, decoder: nn.Module):
        self.pack = threading.local()  # of a thread: values are taken by several at once
        decoder.register_forward_pre_hook(self.before, with_kwargs=True)
        decoder.register_forward_hook(self.after)

    def before(self, decoder, args, kwargs):
        ids = args[0] if args else kwargs.get("input_ids")
        positions = kwargs.get("position_ids")
        self.pack.source = None
        packed = (
            ids is not None and positions is not None and ids.shape[0] == 1 and kwargs.get("attention_mask") is None
        )
        if not packed or decoder.config._attn_implementation != NAME:
            return None
        kept, source = share_prefixes(ids[0].cpu(), positions[0].cpu())
        if len(kept) == len(source):
            return None
        self.pack.source, kept = source.to(ids.device), kept.to(ids.device)
        kwargs = {**kwargs, "position_ids": positions[:, kept]}
        if args:
            return (ids[:, kept], *args[1:]), kwargs
        return args, {**kwargs, "input_ids": ids[:, kept]}

    def after(self, decoder, args, output):
        if self.pack.source is not None:
            output.last_hidden_state = output.last_hidden_state[0].index_select(0, self.pack.source)[None]
        return output


def install(model: nn.Module) -> PrefixSharing | None:
    """Share prefixes in a transformers model; None, and nothing changed, where equal tokens may not be equal states.

    That is with dropout, and where all tokens of a batch count towards a router's loss.
    """
    config = model.config.get_text_config()
    dropout = any(value for name, value in config.to_dict().items() if "dropout" in name or "pdrop" in name)
    if dropout or getattr(config, "output_router_logits", False):
        return None
    decoder = getattr(model, model.base_model_prefix, None)
    return PrefixSharing(decoder) if isinstance(decoder, nn.Module) and decoder is not model else None
