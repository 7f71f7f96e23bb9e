"""Which weights of a run go out, and a checkpoint's policy as files for transformers or peft.

A checkpoint of ZeRO-3 holds the weights in float32, a part a rank. DeepSpeed's own reader joins them; in the dtype of
the run they are the policy's, bit by bit. Checkpoints are read as data: no code in them runs.
"""

import contextlib
import json
import os
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import LoraConfig, TaskType, get_peft_model

from openrlhf_orz.data.prompts import chat_template
from openrlhf_orz.models.adapters import merged_state, without_adapters
from openrlhf_orz.runtime import checkpoints
from openrlhf_orz.runtime.resume import read_trainer
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.models import load_config
from openrlhf_orz.settings.redact import printable
from openrlhf_orz.trainer.saving import each_once

SAVED = {"hf": "of the run's end", "hf_ema": "the average of the run's weights, at its end (--train.enable_ema)"}
REMEDY = "resume it with --ckpt.load_enable and let it end, or train with --ckpt.save_hf"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Source:
    """Weights of a run.

    ``folder``: of files for transformers, or a checkpoint of DeepSpeed's. ``words``: what they are. ``step``: after
    which step they were written; None at the run's end. ``adapters``: a folder of files for peft, beside those of
    ``folder``; or the checkpoint, whose adapters alone go out; None where whole weights do.
    """

    folder: Path
    words: str
    step: int | None = None
    adapters: Path | None = None

    @property
    def from_deepspeed(self) -> bool:
        return (self.folder / checkpoints.TRAINER).exists()


def whole_model(folder: Path) -> bool:
    """Whether a folder has all that loads by itself: configuration, tokenizer, each weights file to its end."""
    index = folder / "model.safetensors.index.json"
    try:
        json.loads((folder / "config.json").read_text())
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    except (OSError, ValueError, KeyError):
        return False
    return (folder / "tokenizer_config.json").exists() and all(_whole_file(folder / name) for name in names)


def _whole_file(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def find_source(run: Path, flags: dict[str, str], wanted: str | None = None, merged: bool = False) -> Source:
    """The weights that ``wanted`` names: hf, hf_ema, a checkpoint, or best, the newest of the best checkpoints.

    None: the newest, RUN/hf or a later checkpoint that is not damaged.

    Args:
        flags: the run's, by dotted name.
        merged: of a run that trained adapters, the whole weights with the adapters in them.

    Raises ConfigError, which says what is there.
    """
    saved = run / "checkpoints"
    if not saved.is_dir() and Path(flags.get("ckpt.path", saved)).is_dir():
        saved = Path(flags["ckpt.path"])
    there = {path.name: path for path in checkpoints.all_checkpoints(saved)}
    if wanted == "best":
        wanted = next((name for name in there if name.startswith("best_")), wanted)
    if wanted is None:
        found = _newest(run, saved)
    elif wanted in there:
        try:
            checkpoints.verify(found := there[wanted])
        except checkpoints.Damaged as error:
            raise ConfigError(f"--checkpoint: {there[wanted]} is damaged: {error}. Name another") from None
    elif wanted in SAVED and whole_model(run / wanted):
        found = run / wanted
    else:
        names = ", ".join([*(name for name in SAVED if whole_model(run / name)), *there]) or "none"
        raise ConfigError(f"--checkpoint: {run} holds no {wanted} that is whole. It holds: {names}")
    if found.parent == run and found.name in SAVED:
        adapters = run / f"{found.name}_adapter" if int(flags.get("ds.lora.rank", 0)) and not merged else None
        if adapters and not all([(adapters / ADAPTER[0]).exists(), _whole_file(adapters / ADAPTER[1])]):
            raise ConfigError(f"{run} trained adapters, and {adapters} is not there: give --merged for whole weights")
        source = Source(found, SAVED[found.name], adapters=adapters)
    else:
        inside, step = found / f"{found.name}_hf", checkpoints.step_of(found)
        adapters = found if read_trainer(found)["flags"].get("ds.lora.rank") and not merged else None
        words = f"of the checkpoint {found.name}"
        source = Source(inside if whole_model(inside) and not adapters else found, words, step, adapters)
    if merged and not int(flags.get("ds.lora.rank", 0)):
        raise ConfigError(f"--merged: {run} trained whole weights, no adapters (--ds.lora.rank): leave it out")
    return source


def _newest(run: Path, saved: Path) -> Path:
    hf = run / "hf"
    newest, damaged = checkpoints.newest_valid(saved)
    for line in damaged.values():
        print(printable(f"note: {line}"))
    if whole_model(hf):
        if newest is None or _age(newest / checkpoints.TRAINER) <= _age(hf / "config.json"):
            return hf
        print(printable(f"note: {hf} is older than {newest}, which is taken"))
    elif hf.exists():
        print(printable(f"note: {hf} is not whole, and is left out"))
    if newest is None:
        raise ConfigError(f"{run} holds no model that is whole: neither hf nor a checkpoint. {REMEDY}")
    return newest


def _age(file: Path) -> float:
    return file.stat().st_mtime if file.exists() else 0.0


def policy_state(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The whole weights in ``folder``, the policy's of a checkpoint by DeepSpeed, by the names in training.

    Args:
        folder: CHECKPOINT/_actor/TAG.
        dtype: the run's (``--ds.param_dtype``).

    Raises ConfigError where DeepSpeed has not written it, or each rank its part of each matrix.
    """
    whole = folder / "mp_rank_00_model_states.pt"
    parts = {file.name for file in folder.glob("*_model_states.pt")}
    if not parts:
        raise ConfigError(f"{folder} holds no weights (--ckpt.disable_ds): {REMEDY}")
    if any("mp_rank_00" not in name for name in parts):
        raise ConfigError(f"{folder} holds each matrix in parts (--ds.tensor_parallel_size): {REMEDY}")
    try:
        if parts == {whole.name}:
            return torch.load(whole, weights_only=True, map_location="cpu", mmap=True)["module"]
        joined = _join_parts(folder)
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{folder} holds more than data, which is not run: {error}. {REMEDY}") from None
    copies: dict[int, torch.Tensor] = {}  # a tied matrix stays one
    for tensor in joined.values():
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.contiguous().to(dtype)
    return {name: copies[id(tensor)] for name, tensor in joined.items()}


def _join_parts(folder: Path) -> dict[str, Any]:
    """DeepSpeed's reader: by name what gives a tensor in float32; one object for tied names.

    It would unpickle anything. Here it gets tensors, plain data, and the two classes that DeepSpeed puts there.
    """
    with patch.dict(os.environ, DS_ACCELERATOR="cpu", TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"):
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        allowed = torch.serialization.safe_globals([ZeroStageEnum, LossScaler, DynamicLossScaler])
        with allowed, contextlib.redirect_stdout(sys.stderr):
            return get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), folder.name, lazy_mode=True)


def convert_checkpoint(checkpoint: Path, output: Path, adapters: bool) -> None:
    """Write a checkpoint's policy for transformers, or its ``adapters`` alone for peft; and its tokenizer.

    Raises ConfigError for what only the run can write.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    flags: dict[str, Any] = read_trainer(checkpoint)["flags"]
    base, trust = flags["actor.model_name_or_path"], flags["orz.trust_remote_code"]
    dtype = DTYPES[flags["ds.param_dtype"]]
    state = policy_state(checkpoint / "_actor" / checkpoint.name, dtype)
    config = load_config("--actor.model_name_or_path", base, trust)
    kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(config, trust_remote_code=trust, dtype=dtype)
        if flags["ds.lora.rank"]:
            lora = LoraConfig(
                task_type=TaskType.CAUSAL_LM, r=flags["ds.lora.rank"], lora_alpha=flags["ds.lora.alpha"],
                target_modules=flags["ds.lora.target_modules"], lora_dropout=flags["ds.lora.dropout"], bias="none",
            )  # fmt: skip
            model = get_peft_model(model, lora)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ConfigError(f"{checkpoint} is not of the model {base}: {error}. {REMEDY}") from None
    if adapters:
        model.save_pretrained(output, state_dict=state)
    else:
        without_adapters(model).save_pretrained(output, state_dict=merged_state(model, each_once(state)))
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=trust)
    if not flags["data.apply_chat_template"]:
        given = flags.get("data.input_template")
        tokenizer.chat_template = chat_template(flags["orz.prompt_template"] if given is None else given)
    tokenizer.save_pretrained(output)
