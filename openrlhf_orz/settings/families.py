"""Which model families train in packs, which in padded micro-batches, which not at all; docs/models.md says it, too.

A family is packed only if tests/unit/models/test_families.py has it: there a pack, with and without shared prefixes,
has the log-probs and gradients of each sequence alone. All others are padded, by the attention that does theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.finished import Settings, changed
from openrlhf_orz.settings.models import load_config

PACKED = frozenset(
    """cohere cohere2 deepseek_v3 ernie4_5 exaone4 gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2 gpt_neox gpt_oss
    granite llama minimax_m2 mistral mixtral nemotron olmo olmo2 olmo3 olmoe phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe
    seed_oss smollm3 stablelm starcoder2""".split()
)
ATTENDING = {"full_attention", "sliding_attention"}  # layers that keep no state, and whose masks a pack can have
# their layers scale by the position in the row, and not by that in the sequence
BY_ROW = ("llama4_text", "ministral3")
NO_CRITIC = ("llama4_text", "falcon_h1")  # transformers cannot build their bodies, or leaves numbers in them unset
NOT_ON_A_CPU = ("gpt_oss",)  # vLLM's code for them loses experts that are loaded again there
STRETCHED = ("dynamic", "longrope")  # rotary embeddings that change for all tokens once one is beyond a length


@dataclass(frozen=True)
class Family:
    """How a model is computed.

    Args:
        name: its ``model_type``.
        padded: why it is not packed; None if it is.
        attention: ``--ds.attn_implementation`` that computes all that its attention has.
    """

    name: str
    padded: str | None
    attention: str


def family_of(config: Any) -> Family:
    """The family of a transformers text configuration."""
    name: str = config.model_type
    padded = None
    others = sorted(set(getattr(config, "layer_types", None) or ()) - ATTENDING)
    if others:
        padded = f"its layers ({', '.join(others)}) would run on from one sequence of a pack into the next"
    elif name in BY_ROW:
        padded = "its attention scales by the place in the row"
    elif name not in PACKED:
        padded = "nobody has measured that its packs are right"
    return Family(name, padded, "orz_packed" if padded is None else _attention(config))


def _attention(config: Any) -> str:
    """An attention that does all that the model's own code does, for a padded batch."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:  # code of the repository's own
        return "eager"
    if model._supports_attention_backend:  # it asks by transformers' interface, and orz_packed refuses what it lacks
        return "orz_packed"
    capped = any("cap" in key and value for key, value in config.to_dict().items())
    return "sdpa" if model._supports_sdpa and not capped else "eager"


def fit_to_models(
    args: SimpleNamespace, explicit: set[str], config_of: Callable[[str, str, bool], Any | None] = load_config
) -> tuple[Settings | SimpleNamespace, list[str]]:
    """Choose packing and attention for the policy and the critic; returns the settings and lines for the console.

    ``explicit``: names of the flags that the user gave, which stay as they are.
    ``config_of``: as ``load_config``; None for a model that is known to be packed.
    Raises ConfigError, naming flag and remedy, if a model cannot be computed rightly with them.
    """
    lines: list[str] = []
    changes: dict[str, Any] = {}
    for flag in ("actor.model_name_or_path", "critic.model_name_or_path"):
        role, _, field = flag.partition(".")
        path = getattr(getattr(args, role), field)
        if not path:
            continue
        config = config_of(f"--{flag}", path, args.orz.trust_remote_code)
        if config is None:
            continue
        family = family_of(config.get_text_config())
        if role == "critic" and family.name in NO_CRITIC:
            raise ConfigError(
                f"--{flag}: {family.name} cannot be a critic here: choose an --algo.advantage.estimator without one"
                " (reinforce_baseline, group_norm), or another model for it"
            )
        if role == "critic" and path == args.actor.model_name_or_path:
            continue
        _refuse(args, f"--{flag}", config)
        _check_parallel(args, f"--{flag}", config.get_text_config(), family)
        _check_explicit(args, explicit, f"--{flag}", config.get_text_config(), family)
        if family.padded and args.ds.packing_samples:
            changes["ds.packing_samples"] = False
            lines.append(f"{family.name} trains in padded micro-batches: {family.padded}")
        if args.ds.attn_implementation == "orz_packed" != family.attention:
            changes["ds.attn_implementation"] = family.attention
    return (changed(args, changes) if changes else args), lines


def _cut_by_plan(config: Any) -> bool:
    """Whether DeepSpeed cuts a model in tensor parallel by transformers' plan. Without one it guesses by names."""
    try:
        from deepspeed.module_inject.tp_plan_converter import TPPlanConverter
    except ImportError:  # a plan is made where nothing is installed
        return True
    try:
        return bool(TPPlanConverter.convert(getattr(config, "base_model_tp_plan", None)))
    except ValueError:  # styles that it does not know
        return False


def _check_parallel(args, flag: str, config: Any, family: Family) -> None:
    tensor, ring = args.ds.tensor_parallel_size, args.ds.ring_attn_size
    if tensor > 1 and not _cut_by_plan(config):
        raise ConfigError(
            f"--ds.tensor_parallel_size {tensor}: DeepSpeed cannot cut {family.name} ({flag}) by transformers' plan:"
            " leave it out; --ds.zero_stage 3 shares a model among GPUs, too"
        )
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    window = getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None
    lacking = None
    if family.padded:
        lacking = f"it needs packs, and of {family.name} {family.padded}"
    elif window and window < args.data.max_len:
        lacking = f"it counts {family.name}'s windows of {window} tokens from each GPU's part (--data.max_len)"
    elif getattr(config, "attn_logit_softcapping", None):
        lacking = f"it has no soft cap, which {family.name}'s attention has"
    if ring > 1 and lacking:
        raise ConfigError(f"--ds.ring_attn_size {ring}: {lacking} ({flag}). Leave it out")


def _check_explicit(args, explicit, flag: str, config: Any, family: Family) -> None:
    attention = args.ds.attn_implementation
    if family.padded and "ds.packing_samples" in explicit:
        raise ConfigError(
            f"--ds.packing_samples: {family.name} ({flag}) cannot be packed, {family.padded}: leave the flag out"
        )
    if "ds.attn_implementation" not in explicit:
        return
    if attention == "orz_packed" != family.attention:
        raise ConfigError(
            f"--ds.attn_implementation orz_packed: {family.name} ({flag}) does not ask for attention by transformers'"
            f" interface: leave the flag out, which takes {family.attention}"
        )
    if attention == "sdpa" and getattr(config, "attn_logit_softcapping", None):
        raise ConfigError(
            f"--ds.attn_implementation sdpa drops the soft cap of {family.name}'s attention ({flag}): leave the flag"
            " out, or say orz_packed or eager"
        )


def _refuse(args, flag: str, config: Any) -> None:
    text = config.get_text_config()
    if args.orz.device == "cpu" and text.model_type in NOT_ON_A_CPU:
        raise ConfigError(
            f"{flag}: {text.model_type} cannot be synced into vLLM on a CPU, whose code for it loses experts that are"
            " loaded again: train it on GPUs"
        )
    rope = getattr(text, "rope_parameters", None) or {}
    for each in (rope, *(value for value in rope.values() if isinstance(value, dict))):  # one for all layers, or more
        kind, first = each.get("rope_type"), each.get("original_max_position_embeddings")
        if kind not in STRETCHED:
            continue
        first = first or getattr(text, "original_max_position_embeddings", None) or text.max_position_embeddings
        if args.data.max_len > first:
            raise ConfigError(
                f"--data.max_len {args.data.max_len}: {text.model_type} ({flag}) stretches its rotary embedding"
                f" ({kind}) for all sequences of a batch once one is longer than {first}, and vLLM does not: give at"
                f" most {first}"
            )
