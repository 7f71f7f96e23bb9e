"""The named benchmarks: where each comes from, its licence, its size, and which fields hold what.

Sizes are checked on load. Revisions are branch names of the hub: what they pointed to is in results.json.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    ``question`` and ``answer`` are fields; ``wrong`` the fields of a multiple-choice question's other options, whose
    ``answer`` is then the right option's text.
    """

    name: str
    hub: str
    config: str | None
    revision: str
    split: str
    rows: int
    licence: str
    question: str
    answer: str
    wrong: tuple[str, ...] = ()


MAA = "problems (c) Mathematical Association of America; see the dataset's own page"

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("aime2024", "HuggingFaceH4/aime_2024", None, "main", "train", 30, MAA, "problem", "answer"),
        Benchmark("aime2025", "yentinglin/aime_2025", None, "main", "train", 30, MAA, "problem", "answer"),
        Benchmark("amc", "math-ai/amc23", None, "main", "test", 40, MAA, "question", "answer"),
        Benchmark("math500", "HuggingFaceH4/MATH-500", None, "main", "test", 500, "MIT (MATH)", "problem", "answer"),
        Benchmark("gpqa_diamond", "Idavidrein/gpqa", "gpqa_diamond", "main", "train", 198,
                  "CC-BY-4.0; gated: accept its terms on the hub, and do not publish its questions",
                  "Question", "Correct Answer", ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")),
    )
}  # fmt: skip

# Benchmarks that the harness (lighteval) loads, prompts and grades itself: its tasks, and whether they run code.
HARNESS = {
    "livecodebench": ("lcb:codegeneration_v6", True, "CC-BY-4.0"),
    "mmlu": ("mmlu", False, "MIT"),
    "mmlu_pro": ("mmlu_pro", False, "MIT"),
    "ifeval": ("ifeval", False, "Apache-2.0"),
}
