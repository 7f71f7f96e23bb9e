"""The critic's value head, a linear layer (1, H) without bias (Sec. 3.1), or one of several outputs; its body."""

import math
from collections.abc import Callable

import torch

ATTENTION = {"self_attn", "attn", "attention", "self_attention", "linear_attn"}  # modules, by their families' names
LAYERS = {"layers", "h", "blocks"}  # lists of layers
SET_ANYWHERE = ("inv_freq", "embed_scale")  # buffers that transformers sets in a critic, too


@torch.no_grad()
def init_value_head(weight_1H: torch.Tensor, how: str, generator: torch.Generator | None = None) -> None:
    """Fill the weight in place. Raises ValueError for an unknown ``how``.

    released: N(0, 1/(H+1)), 1/(H+1) being the standard deviation: the paper's released code, and OpenRLHF.
    kaiming:  kaiming_uniform(a=sqrt(5)), which is U(-1/sqrt(H), 1/sqrt(H)): torch's default for a linear layer, and
              probably what the paper means.
    paper:    U(-sqrt(5), sqrt(5)): the text of Sec. 3.1 to the letter.
    """
    hidden = weight_1H.shape[-1]
    if how == "released":
        weight_1H.normal_(0.0, 1 / (hidden + 1), generator=generator)
    elif how in ("kaiming", "paper"):
        bound = 1 / math.sqrt(hidden) if how == "kaiming" else math.sqrt(5)
        weight_1H.uniform_(-bound, bound, generator=generator)
    else:
        raise ValueError(f"unknown value head initialisation {how!r}: released, kaiming or paper")


class OutputsHead(torch.nn.Module):
    """A head that gives K numbers for a token, of which ``install_values`` makes a value; a linear layer with bias.

    Its weights have names of their own in a checkpoint, so that no such head is taken for a plain one.
    """

    def __init__(self, hidden: int, outputs: int, like: torch.Tensor):
        super().__init__()
        self.outputs = torch.nn.Linear(hidden, outputs, device=like.device, dtype=like.dtype)
        self.of_actions: torch.Tensor | None = None  # the last outputs that can be trained on, of action tokens

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.outputs(hidden_states)


def install_values(critic: torch.nn.Module, model: torch.nn.Module, values_of: Callable) -> None:
    """Have ``critic`` return ``values_of`` its head's outputs, and keep these for the loss in the head.

    OpenRLHF's critic multiplies what the head gives by the action mask (B, A), which therefore gets the dimensions of
    the outputs; packed, they are (B, A, 1, K).

    Args:
        critic: what is called: ``model``, or peft's wrapper of it.
        model: OpenRLHF's critic.
        values_of: of outputs (B, A), or (B, A, K), values (B, A).
    """
    ours: OutputsHead = model.get_submodule(model.value_head_prefix)
    many = ours.outputs.out_features > 1

    def widen(module, args, kwargs):
        if not many:
            return None
        args, kwargs = list(args), dict(kwargs)
        place = kwargs if "action_mask" in kwargs else args
        key = "action_mask" if place is kwargs else 1
        place[key] = place[key][..., None, None] if model.packing_samples else place[key][..., None]
        return tuple(args), kwargs

    def convert(module, args, kwargs, found):
        mask = kwargs["action_mask"] if "action_mask" in kwargs else args[1]
        outputs = found[0] if isinstance(found, tuple) else found
        if many:
            mask, outputs = mask.flatten(1), outputs.flatten(2)
        values = values_of(outputs) * mask
        if torch.is_grad_enabled():
            ours.of_actions = outputs
        return (values, *found[1:]) if isinstance(found, tuple) else values

    critic.register_forward_pre_hook(widen, with_kwargs=True)
    critic.register_forward_hook(convert, with_kwargs=True)


def replace_head(
    critic: torch.nn.Module, model: torch.nn.Module, outputs: int, values_of: Callable
) -> torch.nn.Linear:
    """Put a head of so many ``outputs`` in the plain one's place; ``critic`` then returns values (``install_values``).

    Returns the head's linear layer, which is to be filled.
    """
    plain = model.get_submodule(model.value_head_prefix).weight
    head = OutputsHead(model.config.get_text_config().hidden_size, outputs, like=plain)
    model.set_submodule(model.value_head_prefix, head)
    install_values(critic, model, values_of)
    return head.outputs


def freeze_parts(critic: torch.nn.Module, what: str) -> list[str]:
    """Leave parts of the critic as they are: their parameters get no gradient, and no optimizer state.

    Args:
        what: none; attention: that of all layers; embeddings; layers:N: the embeddings and the first N layers.

    Returns:
        names of the frozen parameters. Raises ValueError if there are none of that kind, or fewer than N layers.
    """
    if what == "none":
        return []
    embeddings = {id(p) for p in critic.get_input_embeddings().parameters()}
    _, _, first = what.partition("layers:")
    frozen, layers = [], set()
    for name, parameter in critic.named_parameters():
        path = name.split(".")
        numbers = (int(number) for part, number in zip(path, path[1:]) if part in LAYERS and number.isdigit())
        layer = next(numbers, None)
        layers.add(layer)
        if what == "attention":
            found = bool(ATTENTION & set(path))
        elif id(parameter) in embeddings:
            found = True
        else:
            found = bool(first) and layer is not None and layer < int(first)
        if found:
            parameter.requires_grad_(False)
            frozen.append(name)
    if not frozen or (first and not set(range(int(first))) <= layers):
        raise ValueError(
            f"--orz.freeze_critic {what}: the critic has no such parameters, but layers {len(layers) - 1}"
        )
    return frozen


def unset_buffers(critic: torch.nn.Module) -> list[str]:
    """Names of buffers that no checkpoint holds and transformers sets for its own classes alone (Falcon-H1's scales).

    OpenRLHF's critic is a class of its own, and such a buffer holds whatever was in memory.
    """
    own = {"mean", "std"}  # OpenRLHF's
    buffers = {name for name, _ in critic.named_buffers()} - set(critic.state_dict()) - own
    return sorted(name for name in buffers if not name.endswith(SET_ANYWHERE))
