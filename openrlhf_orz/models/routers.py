"""The loss of a mixture of experts' router, which OpenRLHF asks its models for whether it is weighed or not."""

from transformers import PreTrainedModel


def ask_router_loss(model: PreTrainedModel, wanted: bool) -> None:
    """Whether forwards return that loss. It takes 12 bytes for each token, layer, expert and expert chosen, and counts
    tokens, so that no prefix can be shared.
    """
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "output_router_logits"):
            config.output_router_logits = wanted
