"""Checks of the models that flags name, before Ray starts. Of weights only the headers are read; no code is run.

Of a name on the hub the configuration and the tokenizer are checked, which have to be loaded here in any case.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.critic_checks import returns_range
from openrlhf_orz.settings.derive import heads_cut

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
REMOTE_CODE = "read the code, then allow it by --orz.trust_remote_code, or choose another model"
# a pattern of tensors' names -> their shape by keys of the configuration; other tensors are not checked
SHAPES = {
    r"(model\.)?embed_tokens\.weight": ("vocab_size", "hidden_size"),
    r"lm_head\.weight": ("vocab_size", "hidden_size"),
    r"(model\.)?norm\.weight": ("hidden_size",),
    r"(model\.)?layers\.\d+\.input_layernorm\.weight": ("hidden_size",),
    r"(model\.)?layers\.\d+\.mlp\.(gate|up)_proj\.weight": ("intermediate_size", "hidden_size"),
    r"(model\.)?layers\.\d+\.mlp\.down_proj\.weight": ("hidden_size", "intermediate_size"),
}
DENSE = ("llama", "mistral", "qwen2", "qwen3")  # model types whose layers are all alike

MOST_LAYERS = 10_000


def check_models(args: SimpleNamespace) -> Any:
    """Check the policy, the critic and that they fit together; returns the policy's tokenizer.

    Raises ConfigError, naming flag, file and remedy.
    """
    flag, name, trust = "--actor.model_name_or_path", args.actor.model_name_or_path, args.orz.trust_remote_code
    whole = load_config(flag, name, trust)
    _check_architecture(flag, name, whole, trust)
    config = whole.get_text_config()
    tokenizer = _load_tokenizer(flag, name, trust)
    _check_fit(flag, config, tokenizer, args)
    check_weights(flag, name, config)
    _check_parts(flag, name, config, args)
    critic = args.critic.model_name_or_path
    if critic and critic != name:
        flag = "--critic.model_name_or_path"
        config = load_config(flag, critic, trust).get_text_config()
        _check_vocabulary(flag, config, tokenizer)
        check_weights(flag, critic, config)
    if critic and args.orz.freeze_critic.startswith("layers:"):
        wanted, layers = int(args.orz.freeze_critic.partition(":")[2]), getattr(config, "num_hidden_layers", None)
        if layers is not None and wanted > layers:
            raise ConfigError(f"--orz.freeze_critic layers:{wanted}: {critic} has {layers} layers: give at most that")
    if critic and Path(critic).is_dir():
        _check_head(flag, Path(critic), args, config)
    return tokenizer


def load_config(flag: str, name: str, trust: bool) -> Any:
    """transformers' configuration of a model, by directory or name. Raises ConfigError if it does not load."""
    from transformers import AutoConfig

    path = Path(name) / "config.json"
    if path.exists():
        _check_size(flag, path, _read_json(flag, path))
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust)
    except Exception as error:  # whatever transformers, the hub and a broken file raise
        if "trust_remote_code" in str(error):
            raise ConfigError(f"{flag}: {name} wants to run code of its own: {REMOTE_CODE}") from None
        where = "" if Path(name).is_dir() else f" (there is no directory {name} here)"
        raise ConfigError(f"{flag}: the configuration of {name}{where} did not load: {_short(error)}") from None


def _check_size(flag: str, path: Path, config: dict) -> None:
    """Refuse numbers for which transformers, or a check here, would work for hours: they make lists of layers."""
    for key, value in config.items():
        if isinstance(value, dict):
            _check_size(flag, path, value)
        elif "layers" in key and isinstance(value, (int, float)) and value > MOST_LAYERS:
            raise ConfigError(f"{flag}: {path} has {value:g} as {key}: no model has more than {MOST_LAYERS} layers")


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:300] + ' ...'}"


def _read_json(flag: str, path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{flag}: {path} cannot be read: {error}: save the model anew") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{flag}: {path} holds no object: save the model anew")
    return content


def _check_architecture(flag: str, name: str, config, trust: bool) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as known

    if not {config.model_type, config.get_text_config().model_type} & set(known) and not trust:
        raise ConfigError(f"{flag}: {name} ({config.model_type}) does not generate text: name a causal language model")
    remote = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    architectures = config.architectures or []
    if remote and not trust and not any(a in str(known.get(config.model_type)) for a in architectures):
        raise ConfigError(f"{flag}: {name} wants to run code of its own ({remote}): {REMOTE_CODE}")
    kinds = [a for a in architectures if a.endswith(("ForMaskedLM", "ForSequenceClassification", "EncoderModel"))]
    if kinds:
        raise ConfigError(f"{flag}: {name} is a {kinds[0]}: name a causal language model")


def _load_tokenizer(flag: str, name: str, trust: bool):
    from transformers import AutoTokenizer

    for file in ("tokenizer_config.json", "tokenizer.json"):
        if (Path(name) / file).exists():
            _read_json(flag, Path(name) / file)
    remedy = "save the tokenizer into the model's directory (tokenizer.save_pretrained)"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(f"{flag}: the tokenizer of {name} wants to run code of its own: {REMOTE_CODE}") from None
        raise ConfigError(f"{flag}: the tokenizer of {name} did not load: {_short(error)}: {remedy}") from None
    if len(tokenizer) < 2 or not tokenizer("1 + 1")["input_ids"]:
        raise ConfigError(f"{flag}: {name} holds no tokenizer: {remedy}")
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"{flag}: the tokenizer of {name} has no eos token, so that no response could end or be padded: name it in"
            f" {Path(name) / 'tokenizer_config.json'} (eos_token)"
        )
    first = tokenizer("1 + 1")["input_ids"][0]
    if tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id:
        print(
            f"[orz] the tokenizer puts {tokenizer.bos_token} in front of a text, and prompts go without it: write it"
            " into --orz.prompt_template if the model was trained with it",
            flush=True,
        )
    return tokenizer


def _check_vocabulary(flag: str, config, tokenizer) -> None:
    size = getattr(config, "vocab_size", None)
    largest = max(tokenizer.get_vocab().values())
    if size is not None and largest >= size:
        raise ConfigError(
            f"{flag}: the policy's tokenizer has token {largest}, and the model only {size} (vocab_size): name a model"
            " and a tokenizer that belong together"
        )


def _check_fit(flag: str, config, tokenizer, args) -> None:
    _check_vocabulary(flag, config, tokenizer)
    positions = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    plain = rope.get("rope_type", rope.get("type", "default")) == "default" if isinstance(rope, dict) else False
    if plain and positions is not None and args.data.max_len > positions:
        raise ConfigError(
            f"--data.max_len {args.data.max_len} is beyond the {positions} positions of"
            f" {args.actor.model_name_or_path} (max_position_embeddings): lower it"
        )
    keys, tensor = getattr(config, "num_key_value_heads", None), args.ds.tensor_parallel_size
    if keys and keys % tensor:
        raise ConfigError(
            f"--ds.tensor_parallel_size {tensor} does not divide the model's {keys} key-value heads: lower it"
        )
    heads, parallel = getattr(config, "num_attention_heads", None), args.vllm.tensor_parallel_size
    if heads and heads % parallel:
        raise ConfigError(
            f"--vllm.tensor_parallel_size {parallel} does not divide the model's {heads} attention heads"
        )
    if keys and not heads_cut(keys, parallel):
        raise ConfigError(
            f"--vllm.tensor_parallel_size {parallel} neither divides the model's {keys} key-value heads nor is a"
            " multiple of them"
        )


def _check_parts(flag: str, name: str, config: Any, args) -> None:
    """Flags that speak of a part of the model: adapted layers, a router."""
    targets = args.ds.lora.target_modules
    if args.ds.lora.rank > 0 and isinstance(targets, list) and Path(name).is_dir():
        linear = {
            tensor.split(".")[-2] for tensor, shape in tensor_shapes(flag, Path(name)).items() if len(shape) == 2
        }
        lacking = sorted(set(targets) - linear)
        if lacking:
            raise ConfigError(
                f"--ds.lora.target_modules {lacking[0]}: {name} has no such linear layer, but"
                f" {', '.join(sorted(linear - {'embed_tokens', 'lm_head'}))}"
            )
    if args.actor.aux_loss_coef > 0 and not hasattr(config, "output_router_logits"):
        raise ConfigError(f"--actor.aux_loss_coef: {name} has no router, whose loss it weighs: leave it out")


def check_weights(flag: str, name: str, config: Any) -> None:
    """Check that the directory ``name`` holds whole safetensors of the configuration's shapes. Not on hub names."""
    folder = Path(name)
    if not folder.is_dir():
        return
    shapes = tensor_shapes(flag, folder)
    for tensor, shape in shapes.items():
        for pattern, dimensions in SHAPES.items():
            wanted = tuple(getattr(config, dimension, None) for dimension in dimensions)
            if re.fullmatch(pattern, tensor) and None not in wanted and shape != wanted:
                raise ConfigError(
                    f"{flag}: {tensor} in {folder} is {list(shape)}, and by its config.json"
                    f" ({', '.join(dimensions)}) {list(wanted)}: weights and configuration are of different models"
                )
    if config.model_type in DENSE:
        _check_layers(flag, folder, list(shapes), config.num_hidden_layers)


def _check_layers(flag: str, folder: Path, tensors: list[str], count: int) -> None:
    """Every layer of a dense model holds the same tensors, and there are ``count`` layers."""
    layers: dict[int, set[str]] = {i: set() for i in range(count)}
    for tensor in tensors:
        if found := re.match(r"(?:model\.)?layers\.(\d+)\.(.*)", tensor):
            layers.setdefault(int(found[1]), set()).add(found[2])
    most = set.union(*layers.values()) if layers else set()
    gaps = [f"layers.{i}.{sorted(most - there)[0]}" for i, there in sorted(layers.items()) if most - there]
    if len(layers) != count or gaps or not most:
        missing = f"no {gaps[0]}" if gaps else f"{len(layers) if most else 0} layers"
        raise ConfigError(
            f"{flag}: the weights in {folder} have {missing}, and config.json says {count} layers (num_hidden_layers):"
            " download or save the model anew"
        )


def tensor_shapes(flag: str, folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of a checkpoint, from the headers of its safetensors files.

    Raises ConfigError if there are none, one is missing or damaged.
    """
    from safetensors import SafetensorError

    index = folder / INDEX
    where = _weight_map(flag, index) if index.exists() else {}  # tensor -> file
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(set(where.values())) or [WEIGHTS]:
        path = folder / file
        if not path.is_file():
            raise _no_weights(flag, folder, path, listed=bool(where))
        try:
            shapes |= _read_shapes(path)
        except OSError:  # safetensors says of any that there is no such file
            raise ConfigError(f"{flag}: {path} cannot be read: change its permissions") from None
        except SafetensorError as error:
            remedy = "the file is damaged, download or save the model anew"
            raise ConfigError(f"{flag}: {path} did not load: {error}: {remedy}") from None
    lost = sorted(set(where) - set(shapes))
    if lost:
        raise ConfigError(
            f"{flag}: {folder / where[lost[0]]} lacks {lost[0]}, which {INDEX} puts there: download or save the model"
            " anew"
        )
    return shapes


def _weight_map(flag: str, index: Path) -> dict[str, str]:
    found = _read_json(flag, index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{flag}: {index} has no weight_map: download or save the model anew")
    return {tensor: str(file) for tensor, file in found.items()}


def _no_weights(flag: str, folder: Path, path: Path, listed: bool) -> ConfigError:
    pickled = sorted(file.name for suffix in ("*.bin", "*.pt", "*.pth") for file in folder.glob(suffix))
    if listed:
        return ConfigError(f"{flag}: {path} is missing: download or save the model anew")
    if pickled:
        return ConfigError(
            f"{flag}: {folder} holds pickled weights alone ({pickled[0]}), which could run code and are not read."
            " If you trust them, load them with transformers and save_pretrained them, which writes model.safetensors"
        )
    return ConfigError(f"{flag}: {folder} holds no weights ({WEIGHTS}): download or save the model anew")


def _read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor in one safetensors file. Raises SafetensorError if it is damaged or cut."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)


def has_weight(model: str, name: str) -> bool:
    """Whether the safetensors checkpoint ``model``, a directory or a name on the hub, holds a tensor of that name."""
    from transformers.utils import cached_file

    index = cached_file(model, INDEX, _raise_exceptions_for_missing_entries=False)
    if index is not None:
        return name in json.loads(Path(index).read_text())["weight_map"]
    single = cached_file(model, WEIGHTS, _raise_exceptions_for_missing_entries=False)
    return single is not None and name in _read_shapes(single)


def stored_tensor(model: str, name: str) -> Any:
    """A tensor of the safetensors checkpoint ``model``, a directory or a name on the hub, on the CPU."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    index = cached_file(model, INDEX, _raise_exceptions_for_missing_entries=False)
    file = WEIGHTS if index is None else json.loads(Path(index).read_text())["weight_map"][name]
    with safe_open(cached_file(model, file), framework="pt") as weights:
        return weights.get_tensor(name)


def is_folded(shape: tuple[int, ...], hidden: int) -> bool:
    """Whether a value head (1, H) was saved in several rows, as that of the released 32B critic, [8, 640]."""
    return len(shape) == 2 and shape[0] > 1 and shape[0] * shape[1] == hidden


def _check_head(flag: str, folder: Path, args, config) -> None:
    # OpenRLHF takes the configuration's name before the flag's
    prefix, loss = getattr(config, "value_head_prefix", args.ds.value_head_prefix), args.orz.value_loss
    shapes, hidden = tensor_shapes(flag, folder), config.hidden_size
    shape, saved = shapes.get(f"{prefix}.weight"), getattr(config, "orz_values", None)
    if saved or shape is not None:
        saved = saved or {"loss": "mse"}
        low, high = returns_range(args)
        wanted: dict = {"loss": loss}
        if loss == "hl_gauss":
            wanted |= {"bins": args.orz.value_bins, "low": low, "high": high}
        for name, value in wanted.items():
            if saved.get(name) != value:
                raise ConfigError(
                    f"{flag}: the value head in {folder} was trained with {name} {saved.get(name)}, and this run has"
                    f" {value} (--orz.value_loss, --orz.value_bins, --reward.clip_range): give what it was"
                    " trained with"
                )
    if shape is not None and is_folded(shape, hidden) and not hasattr(config, "value_head_prefix"):
        print(
            f"[orz] the value head {prefix}.weight in {folder} is {list(shape)}: it is read as [1, {hidden}]",
            flush=True,
        )
    elif shape is not None and shape != (1, hidden):
        raise ConfigError(
            f"{flag}: the value head {prefix}.weight in {folder} is {list(shape)} instead of [1, {hidden}]: reshape"
            " it, or name another one by --ds.value_head_prefix"
        )
