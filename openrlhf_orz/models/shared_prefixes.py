"""Common beginnings of a pack's sequences are computed once: a group's prompt, and equal starts of its responses.

In a causal model a token's hidden state depends only on the tokens up to it. Where a sequence begins like the one
before it, those tokens are left out of the pack, and their hidden states are read from the sequence before. This is
exact, and autograd adds up the gradients (as in Prefix Grouper, arXiv 2506.05433, here for any common beginning).
Notation: T tokens of the given pack, U kept tokens, D hidden size.
"""

import threading

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from openrlhf_orz.models.dropout import chance_in_training
from openrlhf_orz.models.packed_attention import PACKED_ATTENTION


def share_prefixes(ids_T: torch.Tensor, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the tokens of a pack to keep, and find where each token's hidden state then is.

    A sequence is kept from the first token in which it differs from the sequence kept before it. Attention
    (``packs.find_sequences``) recovers that from the positions.

    Args:
        ids_T, positions_T: (T,) long on CPU; positions begin with 0 at each sequence.

    Returns:
        kept_U: (U,) indices into the pack; source_T: (T,) indices into the kept tokens.
    """
    starts = (positions_T == 0).nonzero()[:, 0].tolist()
    kept, source, count = [], [], 0
    before = rows_before = ids_T[:0]  # tokens of the sequence kept before, and their indices into the kept tokens
    for start, end in zip(starts, [*starts[1:], len(ids_T)]):
        ids = ids_T[start:end]
        common = min(len(ids), len(before))
        differs = (ids[:common] != before[:common]).nonzero()
        if len(differs):
            common = int(differs[0])
        own = torch.arange(count, count + len(ids) - common)
        where = torch.cat([rows_before[:common], own])
        source.append(where)
        if len(own):
            kept.append(torch.arange(start + common, end))
            count += len(own)
            before, rows_before = ids, where
    return torch.cat(kept), torch.cat(source)


class PrefixSharing:
    """Forward hooks of a decoder (the model without its head) that share the prefixes of packs.

    Other inputs (padded batches, several rows, generation) pass unchanged.
    """

    def __init__(self, decoder: PreTrainedModel):
        self.pack = threading.local()  # threads may compute values of several packs at once
        decoder.register_forward_pre_hook(self.before, with_kwargs=True)
        decoder.register_forward_hook(self.after)

    def before(self, decoder: PreTrainedModel, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Replace a pack by its kept tokens."""
        ids = args[0] if args else kwargs.get("input_ids")
        positions = kwargs.get("position_ids")
        self.pack.source = None
        if ids is None or positions is None or ids.shape[0] != 1 or kwargs.get("attention_mask") is not None:
            return None
        if decoder.config._attn_implementation != PACKED_ATTENTION:
            return None
        kept_U, source_T = share_prefixes(ids[0].cpu(), positions[0].cpu())
        if len(kept_U) == len(source_T):
            return None
        self.pack.source, kept_U = source_T.to(ids.device), kept_U.to(ids.device)
        kwargs = {**kwargs, "position_ids": positions[:, kept_U]}
        if args:
            return (ids[:, kept_U], *args[1:]), kwargs
        return args, {**kwargs, "input_ids": ids[:, kept_U]}

    def after(self, decoder: PreTrainedModel, args: tuple, output: ModelOutput) -> ModelOutput:
        """Give each token of the pack its hidden state."""
        if self.pack.source is not None:
            hidden_UD = output["last_hidden_state"][0]
            output["last_hidden_state"] = hidden_UD.index_select(0, self.pack.source)[None]
        return output


def install_prefix_sharing(model: PreTrainedModel) -> PrefixSharing | None:
    """Share prefixes in a transformers model.

    Returns None, and changes nothing, if equal tokens can have different hidden states (dropout), or if the loss
    counts tokens (a router's loss).
    """
    config = model.config.get_text_config()
    if chance_in_training(config) or getattr(config, "output_router_logits", False):
        return None
    decoder = getattr(model, model.base_model_prefix, None)
    return PrefixSharing(decoder) if isinstance(decoder, PreTrainedModel) and decoder is not model else None
