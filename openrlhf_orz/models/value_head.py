"""The critic's value head, a linear layer (1, H) without bias (Sec. 3.1), and what a body without its own lacks."""

import math

import torch

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


def unset_buffers(critic: torch.nn.Module) -> list[str]:
    """Names of buffers that no checkpoint holds and transformers sets for its own classes alone (Falcon-H1's scales).

    OpenRLHF's critic is a class of its own, and such a buffer holds whatever was in memory.
    """
    own = {"mean", "std"}  # OpenRLHF's
    buffers = {name for name, _ in critic.named_buffers()} - set(critic.state_dict()) - own
    return sorted(name for name in buffers if not name.endswith(SET_ANYWHERE))
