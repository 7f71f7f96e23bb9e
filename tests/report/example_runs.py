"""Run directories made up for tests: long, hostile, damaged, old."""

import json
import math
import random
import re
from pathlib import Path

HOSTILE = {
    "html": '</think><img src=x onerror="window.pwned=1"><b>bold</b><answer>\\boxed{1}</answer>',
    "script": "</script><script>window.pwned=1</script><!-- <script> ]]> </style><answer>\\boxed{2}</answer>",
    "template": "@@SCRIPTS@@ {{constructor.constructor('window.pwned=1')()}} ${window.pwned=1} `x`",
    "emoji": "\U0001f9e0\U0001f468\u200d\U0001f469\u200d\U0001f467 thinking é́̂ </think> <answer>\\boxed{3}</answer>",
    "right_to_left": "\u202eمرحبا \u200fשלום\u202c world </think> <answer>\\boxed{4}</answer>",
    "separators": "line\u2028para\u2029nul\x00bell\x07 lone\ud800 </think><answer>x</answer>",
    "long": "Wait, again. " * 7693 + "END-OF-LONG",  # 100,009 characters
}
WORDS = "so we add carry one digit wait, then the sum is".split()


def write_run(
    path: Path, steps: int, prompts: int = 2, samples: int = 4, hostile: bool = False, seed: int = 0
) -> Path:
    """A run whose reward and length rise; ``hostile``: its first step's responses are those above."""
    rng = random.Random(seed)
    (path / "rollouts").mkdir(parents=True)
    config = {
        "flags": {"actor": {"adam": {"lr": 1e-6 * (seed + 1)}}, "orz": {"critic_updates": 12, "run_dir": str(path)}},
        "explicit": ["actor.adam.lr"], "versions": {"torch": "2.13.0"}, "git_commit": "abc<b>",
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    with open(path / "metrics.jsonl", "w") as metrics:
        for step in range(1, steps + 1):
            noise = rng.gauss(0, 0.02)
            row = {
                "step": step, "reward": min(1, max(0, 0.3 + 0.5 * step / steps + noise)), "format": 0.9,
                "response_length": 400 + 3 * step + 500 * noise, "truncated": 0.01, "pass_at_n": 0.8, "all_right": 0.1,
                "all_wrong": 0.1, "reflection": 0.2 + 0.3 * step / steps, "reflection_length_right": 500 + 4 * step,
                "repetition": 0.1, "seconds_generation": 20 + rng.random(), "seconds_experience": 3.0,
                "seconds_training": 30 + rng.random(), "seconds_sync": 1.0, "seconds_step": 54.0, "tokens": 1e6,
                "tokens_per_second": 2e4, "actor_grad_norm": 1 + noise, "critic_grad_norm": 2 + noise,
                "explained_variance": None if step == 1 else 0.5 + noise, "entropy": math.exp(-step / steps),
                "actor_memory_mib": 2000.0, "policy_loss": noise, "critic_loss": 0.1, "value_mean": 0.5, "ppo_kl": 0.0,
                "return_mean": 0.5, "logprob_gap_mean": 0.01, "skipped_steps": 0, "time": 1.7e9 + 60 * step,
                "response_length_right": 390.0 + step, "response_length_wrong": 420.0, "verdict_no_answer": 3,
                **{f"explained_variance_minibatch_{i:02}": 0.4 + i / 50 for i in range(1, 13)},
                **{f"other_metric_{i}": rng.random() for i in range(40)},
            }  # fmt: skip
            metrics.write(json.dumps(row) + "\n")
            rows = []
            texts = HOSTILE if hostile and step == 1 else {}
            for name, text in texts.items():
                rows.append({"prompt": f"{name}: <i>2+2</i>?", "response": text, "extracted": None, "reference": "4",
                             "reward": 0.0, "tokens": len(text) // 4, "verdict": "no_answer",
                             "stop_reason": "length"})  # fmt: skip
            for prompt in range(prompts):
                for _ in range(samples):
                    right = rng.random() < row["reward"]
                    words = " ".join(rng.choice(WORDS)
                                     for _ in range(rng.randrange(10, 200)))  # fmt: skip
                    answer = "4" if right else str(rng.randrange(5, 99))
                    rows.append({
                        "prompt": f"What is {prompt}+{4 - prompt}?", "reference": "4", "extracted": answer,
                        "response": f"{words} </think> <answer> \\boxed{{{answer}}} </answer>",
                        "reward": float(right), "verdict": "right" if right else "wrong", "rule": "identical",
                        "tokens": len(words) // 4, "stop_reason": "</answer>",
                    })  # fmt: skip
            for row in rows[len(texts) :: 3]:  # values that come nearer to the reward
                pieces = re.findall(r"\s*\S+", row["response"])
                errors = [rng.gauss(0, 0.3) * (1 - i / len(pieces)) for i in range(len(pieces))]
                row["token_texts"] = pieces
                row["values"] = [
                    round(0.5 + (row["reward"] - 0.5) * i / len(pieces) + e, 4) for i, e in enumerate(errors)
                ]
                row["advantages"] = [round(row["reward"] - value, 4) for value in row["values"]]
            with open(path / "rollouts" / f"step_{step}.jsonl", "w") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    with open(path / "eval.jsonl", "w") as file:
        for step in range(0, steps + 1, max(1, steps // 10)):
            row = {"step": step}
            for bench, ceiling in (("aime2024", 0.2), ("math500", 0.8)):
                row[f"eval_{bench}_pass1"] = ceiling * step / steps
                row[f"eval_{bench}_response_length_mean"] = 500 + step
                row[f"eval_{bench}_truncated_rate"] = 0.02
            file.write(json.dumps(row) + "\n")
    return path
