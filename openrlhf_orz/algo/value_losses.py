"""What a critic's head computes and how it is trained: a value, the logit of a probability, or a histogram of returns.

Notation: B sequences, A action tokens, K outputs of the head for a token.
"""

import math
from dataclasses import dataclass

import torch

SMOOTHING = 0.75  # deviation of a target, in widths of a bin (Farebrother et al., arXiv 2403.03950)
MARGIN = 3  # deviations that the bins reach beyond the returns: else the mean of a target at the edge is another one


@dataclass(frozen=True)
class ValueForm:
    """How a head's outputs mean a value in units of return, and their loss.

    mse: the value itself; OpenRLHF's loss, Eq. 2 of the paper, trains it, and not this class.
    bce: the logit of a probability, for returns in [0, 1] (with a 0/1 reward and gamma = 1 a value is one); the loss
    is the cross-entropy to the return.
    hl_gauss: logits of K bins; the loss is the cross-entropy to a Gaussian around the return, cut into the bins.

    Args:
        bins: K of hl_gauss, at least 8.
        low, high: the returns' range; the bins reach ``MARGIN`` deviations beyond it.
    """

    loss: str = "mse"
    bins: int = 51
    low: float = 0.0
    high: float = 1.0

    @property
    def outputs(self) -> int:
        """K, the numbers that the head gives for a token."""
        return self.bins if self.loss == "hl_gauss" else 1

    @property
    def width(self) -> float:
        """Width of a bin."""
        return (self.high - self.low) / (self.bins - 2 * MARGIN * SMOOTHING)

    def edges(self) -> torch.Tensor:
        """The bins' edges, (K + 1,) float64."""
        start = self.low - MARGIN * SMOOTHING * self.width
        return start + self.width * torch.arange(self.bins + 1, dtype=torch.float64)

    def values(self, outputs: torch.Tensor) -> torch.Tensor:
        """Values (B, A), float32, from outputs: (B, A), of hl_gauss (B, A, K)."""
        if self.loss == "mse":
            return outputs.float()
        if self.loss == "bce":
            return outputs.float().sigmoid()
        edges = self.edges()
        centers_K = ((edges[1:] + edges[:-1]) / 2).to(outputs.device, torch.float32)
        return outputs.float().softmax(-1) @ centers_K

    def targets(self, returns_BA: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, A, K) of the bins, float32: a Gaussian around each return, whose mean is the return."""
        scaled = (self.edges().to(returns_BA.device) - returns_BA.double()[..., None]) / (
            SMOOTHING * self.width * math.sqrt(2)
        )
        mass = torch.erf(scaled).diff(dim=-1)
        return (mass / mass.sum(-1, keepdim=True)).float()

    def losses(self, outputs: torch.Tensor, returns_BA: torch.Tensor) -> torch.Tensor:
        """The loss of each token, (B, A) float32, in nats. Raises ValueError for mse."""
        if self.loss == "bce":
            return torch.nn.functional.binary_cross_entropy_with_logits(
                outputs.float(), returns_BA.float(), reduction="none"
            )
        if self.loss == "hl_gauss":
            return -(self.targets(returns_BA) * outputs.float().log_softmax(-1)).sum(-1)
        raise ValueError(f"{self.loss} is OpenRLHF's own loss")
