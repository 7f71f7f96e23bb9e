"""Initialisation of the critic's value head: a linear layer (1, H) without bias (Sec. 3.1)."""

import math

import torch


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
