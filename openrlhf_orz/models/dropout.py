"""A base model's own dropout, off: vLLM samples without it, and a log-prob with it would be of no policy."""

import re

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

CHANCE = re.compile("dropout|pdrop|layerdrop|jitter")  # in names of configurations and modules


def chance_in_training(config: PretrainedConfig) -> dict[str, float]:
    """What a text configuration leaves to chance in training, as far as it is not 0: GPT-2's resid_pdrop 0.1."""
    return {
        name: value
        for name, value in config.to_dict().items()
        if CHANCE.search(name) and isinstance(value, (int, float)) and not isinstance(value, bool) and value
    }


def turn_off_dropout(model: PreTrainedModel) -> None:
    """Set it to 0 in a model and its configuration, but for that of adapters (``--ds.lora.dropout``)."""
    config = model.config.get_text_config()
    for name in chance_in_training(config):
        setattr(config, name, 0.0)
    for path, module in model.named_modules():
        if "lora_dropout" in path:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if CHANCE.search(name) and isinstance(value, float):
                setattr(module, name, 0.0)
