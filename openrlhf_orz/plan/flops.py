"""Useful floating-point operations: the one count that plans and benchmarks share.

A product of a token with a weight is 2; nothing that is computed twice counts twice unless it is asked for.
"""

from openrlhf_orz.plan.shapes import Shape


def forward(shape: Shape, lengths: list[int], responses: list[int]) -> dict[str, int]:
    """One forward: ``body``, the layers over sequences of ``lengths`` tokens (causal attention: scores and values,
    half of the square), and ``head``, the output head on the ``responses`` tokens alone. The embedding is a look-up.
    """
    weights = shape.layer_products()
    body = sum(2 * weights * n + 2 * shape.layers * shape.queries * n * n for n in lengths)
    return {"body": body, "head": 2 * shape.hidden * shape.vocabulary * sum(responses)}


def decode(shape: Shape, tokens: float, context: float) -> float:
    """Generating ``tokens`` tokens, each attending to ``context`` tokens on average, head included."""
    return tokens * (
        2 * (shape.layer_products() + shape.hidden * shape.vocabulary) + 4 * shape.layers * shape.queries * context
    )
