"""The shape of a decoder from its transformers configuration, and its parameters counted as transformers counts them.

Families in KINDS are counted by formula, without torch; of others cli/plan.py builds the model, without memory.

Notation: H hidden, L layers, Q = heads x head size, K = key-value heads x head size, I intermediate, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from openrlhf_orz.settings.derive import heads_cut
from openrlhf_orz.settings.models import DENSE

MOE = ("mixtral", "qwen2_moe", "qwen3_moe")
KINDS = (*sorted(DENSE), *MOE)


class UnknownShape(ValueError):
    """A configuration that cannot be counted; the message names what is missing."""


@dataclass(frozen=True)
class Shape:
    """A dense decoder; with ``experts``, ``moe_layers`` of its layers are a mixture of experts."""

    kind: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    moe_layers: int = 0
    experts: int = 0
    active_experts: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0  # width of the expert that every token passes (Qwen2-MoE)
    # (parameters of the body, weights that a token is multiplied with in all layers); None: by formula
    counted: tuple[int, int] | None = None
    value_outputs: int = 0  # of a critic's head with biases (--orz.value_loss bce, hl_gauss); 0: one without

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

    def serves(self, tensor_parallel: int) -> bool:
        """Whether engines of so many GPUs can cut the attention (``settings.derive.heads_cut``)."""
        return self.heads % tensor_parallel == 0 and heads_cut(self.kv_heads, tensor_parallel)

    def _attention(self) -> int:
        """Weights of the four projections of one layer."""
        return 2 * self.hidden * self.queries + 2 * self.hidden * self.keys

    def _mlp(self, width: int) -> int:
        return 3 * self.hidden * width

    def _small(self) -> int:
        """Parameters of one layer's norms and biases."""
        count = 2 * self.hidden + 2 * self.head_dim * self.qk_norm
        count += self.qkv_bias * (self.queries + 2 * self.keys) + self.output_bias * self.hidden
        return count

    def layer_products(self) -> int:
        """Weights that one token is multiplied with in all layers; only the experts that it is sent to count."""
        if self.counted:
            return self.counted[1]
        routed = self.active_experts * self._mlp(self.expert_intermediate) + self.hidden * self.experts
        shared = self._mlp(self.shared_intermediate) + self.hidden * bool(self.shared_intermediate)
        dense = (self.layers - self.moe_layers) * self._mlp(self.intermediate)
        return self.layers * self._attention() + dense + self.moe_layers * (routed + shared)

    def products_read(self, tokens: float) -> float:
        """Weights of all layers that are read for so many tokens together: the experts that any of them is sent to.

        Each token's are taken as drawn at random, as a router's loss has them.
        """
        if not self.experts:
            return self.layer_products()
        hit = self.experts * (1 - (1 - self.active_experts / self.experts) ** tokens)
        more = (hit - self.active_experts) * self._mlp(self.expert_intermediate) * self.moe_layers
        return self.layer_products() + max(0.0, more)

    def body_parameters(self) -> int:
        """Embedding, layers and last norm: the decoder without its output head."""
        if self.counted:
            return self.counted[0]
        inactive = (self.experts - self.active_experts) * self._mlp(self.expert_intermediate) * self.moe_layers
        biases = self.mlp_bias * (2 * self.intermediate + self.hidden) * (self.layers - self.moe_layers)
        layers = self.layer_products() + inactive + self.layers * self._small() + biases
        return self.vocabulary * self.hidden + layers + self.hidden

    def policy_parameters(self) -> int:
        """As ``AutoModelForCausalLM``: a tied head is the embedding and counts once."""
        return self.body_parameters() + (0 if self.tied else self.vocabulary * self.hidden)

    def critic_parameters(self) -> int:
        """The decoder with a value head: (1, H) without bias, or (K, H) with K biases; no output head."""
        return self.body_parameters() + (self.value_outputs * (self.hidden + 1) or self.hidden)

    def frozen_parameters(self, what: str) -> int:
        """Parameters that ``--orz.freeze_critic`` leaves as they are."""
        embeddings = self.vocabulary * self.hidden
        if what == "attention":
            small = 2 * self.head_dim * self.qk_norm + self.qkv_bias * (self.queries + 2 * self.keys)
            return self.layers * (self._attention() + small + self.output_bias * self.hidden)
        if what == "none":
            return 0
        below = int(what.partition("layers:")[2] or 0) / self.layers
        return embeddings + round(below * (self.body_parameters() - embeddings - self.hidden))

    def backward_forwards(self, what: str) -> float:
        """What the backward of a critic costs, in forwards: one for inputs, one for weights, of frozen ones none.

        Below the first layer that trains there is no backward.
        """
        if what == "attention":
            return 2 - self.layers * self._attention() / self.layer_products()
        return 2 * (1 - int(what.partition("layers:")[2] or 0) / self.layers)

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.keys * itemsize


# From the config.json of Qwen/Qwen2.5-* on the Hugging Face hub: these models need no network
_QWEN = Shape("qwen2", 896, 24, 14, 2, 64, 4864, 151936, True, qkv_bias=True)
KNOWN = {
    "Qwen/Qwen2.5-0.5B": _QWEN,
    "Qwen/Qwen2.5-1.5B": replace(_QWEN, hidden=1536, layers=28, heads=12, head_dim=128, intermediate=8960),
    "Qwen/Qwen2.5-7B": replace(
        _QWEN, hidden=3584, layers=28, heads=28, kv_heads=4, head_dim=128, intermediate=18944, vocabulary=152064,
        tied=False,
    ),
    "Qwen/Qwen2.5-14B": replace(
        _QWEN, hidden=5120, layers=48, heads=40, kv_heads=8, head_dim=128, intermediate=13824, vocabulary=152064,
        tied=False,
    ),
    "Qwen/Qwen2.5-32B": replace(
        _QWEN, hidden=5120, layers=64, heads=40, kv_heads=8, head_dim=128, intermediate=27648, vocabulary=152064,
        tied=False,
    ),
}  # fmt: skip


def shape_of(config: Any) -> Shape:
    """The shape from a configuration: the dict of a config.json, or a transformers object.

    Raises UnknownShape if its ``model_type`` is not in KINDS or an entry is missing.
    """
    values: Mapping[str, Any] = config if isinstance(config, dict) else config.to_dict()
    kind = values.get("model_type")
    if kind not in KINDS:
        raise UnknownShape(f"model_type {kind!r} is none of those that can be counted: {', '.join(KINDS)}")
    try:
        heads = values["num_attention_heads"]
        shape = Shape(
            kind=kind,
            hidden=values["hidden_size"],
            layers=values["num_hidden_layers"],
            heads=heads,
            kv_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            intermediate=values["intermediate_size"],
            vocabulary=values["vocab_size"],
            tied=bool(values.get("tie_word_embeddings", False)),
            qk_norm=kind.startswith("qwen3"),
        )
        if kind.startswith("qwen2"):  # transformers always has these biases unless the entry says otherwise
            shape = replace(shape, qkv_bias=values.get("qkv_bias", True))
        else:
            bias = bool(values.get("attention_bias", False))
            shape = replace(shape, qkv_bias=bias, output_bias=bias, mlp_bias=bool(values.get("mlp_bias", False)))
        return _with_experts(shape, values) if kind in MOE else shape
    except KeyError as error:
        raise UnknownShape(f"the configuration of this {kind} model lacks {error}") from None


def _with_experts(shape: Shape, values: Mapping[str, Any]) -> Shape:
    if shape.kind == "mixtral":
        return replace(
            shape, moe_layers=shape.layers, experts=values["num_local_experts"],
            active_experts=values["num_experts_per_tok"], expert_intermediate=shape.intermediate,
        )  # fmt: skip
    step, dense = values.get("decoder_sparse_step", 1), set(values.get("mlp_only_layers") or ())
    moe = sum(i not in dense and (i + 1) % step == 0 for i in range(shape.layers))
    return replace(
        shape,
        moe_layers=moe,
        # transformers saves it under the second name
        experts=values["num_experts"] if "num_experts" in values else values["num_local_experts"],
        active_experts=values["num_experts_per_tok"],
        expert_intermediate=values["moe_intermediate_size"],
        shared_intermediate=values.get("shared_expert_intermediate_size", 0) if shape.kind == "qwen2_moe" else 0,
    )
