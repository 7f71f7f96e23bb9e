"""How well values fit returns, by place in the response and by value. NumPy alone, for the report."""

from __future__ import annotations

import math

import numpy as np

PARTS = 10  # tenths of a response, and of the range of returns


class FitTable:
    """Sums over tokens, which add up over responses, by tenth of the response and by tenth of the range of values.

    Args:
        low, high: the range of returns; values outside of it are counted in the nearest tenth.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0):
        self.low, self.high = low, high
        # tokens, returns, squared returns, errors (return - value), squared errors
        self.sums = np.zeros((PARTS, PARTS, 5))

    def add(self, values_A: np.ndarray, returns_A: np.ndarray) -> None:
        """Count one response: the value before each of its tokens, and the return from there on, (A,) both."""
        values, returns = np.asarray(values_A, np.float64), np.asarray(returns_A, np.float64)
        tenths_A = np.arange(len(values)) * PARTS // max(1, len(values))
        scaled = (values - self.low) / max(self.high - self.low, 1e-12) * PARTS
        levels_A = np.clip(np.floor(scaled), 0, PARTS - 1).astype(int)
        errors = returns - values
        rows_A5 = np.stack([np.ones_like(values), returns, returns**2, errors, errors**2], -1)
        np.add.at(self.sums, (tenths_A, levels_A), rows_A5)

    def summary(self) -> dict:
        """Explained variance and calibration, over all tokens, by tenth of the response, and by value.

        ``calibration_error`` is the mean distance between mean value and mean return of a tenth of the values,
        weighted by tokens (the expected calibration error). What no token tells is None.
        """
        return {
            **self._fit(self.sums),
            "by_position": [
                {"from": i / PARTS, "to": (i + 1) / PARTS, **self._fit(part)} for i, part in enumerate(self.sums)
            ],
            "by_value": [self._means(level) for level in self.sums.sum(0) if level[0]],
        }

    def _fit(self, sums: np.ndarray) -> dict:
        """Of sums (..., PARTS, 5), whose last axes are levels of value and what ``FitTable`` sums."""
        by_level = sums.reshape(-1, PARTS, 5).sum(0)
        total = by_level.sum(0)
        tokens = max(total[0], 1.0)
        variance = total[2] / tokens - (total[1] / tokens) ** 2
        residual = total[4] / tokens - (total[3] / tokens) ** 2
        varies = variance > 1e-12 * total[2] / tokens
        return {
            **self._means(total),
            "explained_variance": float(1 - residual / variance) if varies else None,
            "squared_error": float(total[4] / tokens) if total[0] else None,
            "calibration_error": float(np.abs(by_level[:, 3]).sum() / tokens) if total[0] else None,
        }

    @staticmethod
    def _means(total: np.ndarray) -> dict:
        tokens, returns, errors = float(total[0]), float(total[1]), float(total[3])
        means = {"value_mean": (returns - errors) / tokens, "return_mean": returns / tokens} if tokens else {}
        return {"tokens": math.floor(tokens), **({"value_mean": None, "return_mean": None} | means)}
