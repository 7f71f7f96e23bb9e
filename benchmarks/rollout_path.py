"""What the trainer's process does with a rollout between the last response and the forwards, in which all GPUs wait.

    python benchmarks/rollout_path.py [--responses 8192] [--tokens 4000] [--ranks 32] [--repeats 3]

Synthetic responses, 64 to a prompt, travel by pickle as through Ray. Before: tokens and log-probs are lists, and are
converted one after the other when all are there, as stock OpenRLHF does it. Now: they are arrays, converted when they
come, so that only the last prompt's are left. Then both put them into the same packs, and those into the same shares
of the ranks, in turns: before by OpenRLHF's functions, in one thread and an experience for each sample. Seconds are
the best of the repeats, of wall-clock time, peaks are resident memory; the ratio is now over before.
"""

import argparse
import math
import pickle
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))
import common

SAMPLES, PROMPT = 64, 160  # responses to a prompt, its tokens


def answered(tokens: int, seed: int) -> list[dict]:
    """What our agent returns for a prompt: lists, of which one in sixteen has log-probs."""
    import numpy as np

    numbers = np.random.default_rng(seed)
    return [
        {
            "prompt": "x" * 4 * PROMPT, "label": "1", "images": None, "mm_train_inputs": None, "reward": 1.0,
            "scores": 1.0, "observation_tokens": numbers.integers(0, 150_000, tokens).tolist(),
            "action_ranges": [(PROMPT, tokens)], "truncated": False,
            "rollout_log_probs": numbers.normal(size=tokens).tolist() if i % 16 == 0 else None,
            "extra_logs": {"verdict": 1.0, "rule": 0.0, "format": 1.0, "ended": -1.0, "grade_ms": 3.0},
        }
        for i in range(SAMPLES)
    ]  # fmt: skip


def as_before(response: dict) -> dict:
    """As the agent filled in log-probs that nobody had asked for."""
    unknown = [math.nan] * len(response["observation_tokens"])
    return {**response, "rollout_log_probs": response["rollout_log_probs"] or unknown}


def settings(ranks: int) -> SimpleNamespace:
    return SimpleNamespace(
        orz=SimpleNamespace(fixed_micro_batches=False, device="cuda", verifier_grades=True, logprob_gap_every=16),
        ds=SimpleNamespace(packing_samples=True, ring_attn_size=1, tensor_parallel_size=1),
        actor=SimpleNamespace(num_nodes=1, num_gpus_per_node=ranks),
        rollout=SimpleNamespace(max_tokens_per_gpu=32768),
    )


def one_by_one(batches: list, parts: list[list[int]], pad: int = 0) -> list:
    """``regroup`` by OpenRLHF's functions; a sample's numbers become plain ones, as 0-d tensors travel slowly."""
    from openrlhf.trainer.ppo_utils import experience

    if len(batches) == sum(map(len, parts)):  # single samples
        return [experience.Experience.concat_experiences([batches[i] for i in part], pad) for part in parts]
    items = [item for batch in batches for item in experience.split_experience_batch(batch)]
    for item in items:
        item.info = {key: value.item() for key, value in item.info.items()}
    return [experience.make_experience_batch([items[i] for i in part]) for part in parts]


def to_the_ranks(now: bool, samples: list, args: SimpleNamespace) -> list:
    """Packs for the forwards, then a share for each rank, with the tensors that the forwards add."""
    import torch

    from openrlhf_orz.trainer import batches, experience_maker, ppo_trainer

    maker = object.__new__(experience_maker.OrzExperienceMaker)
    trainer = object.__new__(ppo_trainer.OrzTrainer)
    maker.args, maker.tokenizer = args, SimpleNamespace(pad_token_id=0)
    trainer.actor_model_group = SimpleNamespace(
        _actor_handlers=[None] * args.actor.num_gpus_per_node, duplicate_actors=1
    )
    trainer.metrics, trainer.hidden_size = SimpleNamespace(add=lambda metrics: None), 3584
    for module in (experience_maker, ppo_trainer):
        module.regroup = batches.regroup if now else one_by_one
    try:
        packs = maker.split_rollout_samples(samples)
        for pack in packs:
            for name in ("action_log_probs", "values", "returns", "advantages"):
                setattr(pack, name, torch.zeros(pack.action_mask.shape))
        return trainer.balance_experiences(packs, args)
    finally:
        for module in (experience_maker, ppo_trainer):
            module.regroup = batches.regroup


def convert(now: bool, options) -> tuple[list, dict]:
    """The samples, and seconds of converting all of them (``converting``) and the last prompt's (``last``)."""
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    from openrlhf_orz.rollout.engine import as_arrays
    from openrlhf_orz.rollout.generation import OrzSamplesGenerator
    from openrlhf_orz.rollout.sync.check import fill_log_probs

    generator = object.__new__(OrzSamplesGenerator if now else SamplesGenerator)
    generator.args = settings(options.ranks)
    samples, converting, last, size = [], 0.0, 0.0, 0
    for prompt in range(options.responses // SAMPLES):
        responses = [(as_arrays if now else as_before)(each) for each in answered(options.tokens, prompt)]
        message = pickle.dumps(responses, protocol=5)
        size += len(message)
        start = time.perf_counter()
        responses = pickle.loads(message)
        if not now:  # unpickled on arrival, and converted at the end
            start = time.perf_counter()
        samples += [
            generator._process_response_into_experience(each, max_len=2 * options.tokens) for each in responses
        ]
        last = time.perf_counter() - start
        converting += last
    start = time.perf_counter()
    fill_log_probs(samples)
    last += time.perf_counter() - start
    return samples, {"last": last, "converting": converting, "pickled_mib": size / 2**20}


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--ranks", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(argv)
    result = common.Result("rollout_path", "fp32")
    _, before = convert(False, options)
    samples, now = convert(True, options)
    sides, args = {"before": before, "now": now}, settings(options.ranks)
    best = dict.fromkeys(sides, math.inf)
    for _ in range(options.repeats):
        for side in sides:
            common.reset_peak()
            start = time.perf_counter()
            shares = to_the_ranks(side == "now", samples, args)
            best[side] = min(best[side], time.perf_counter() - start)
            sides[side]["peak_mib"] = common.peak_rss_mib()
            assert sum(len(share.sequences) for share in shares) == options.responses
            del shares
    for side, seconds in sides.items():
        seconds["batching"] = best[side]
        seconds["seconds"] = best[side] + seconds["last" if side == "now" else "converting"]
    print(f"after the last response: {now['seconds']:.2f} s, before {before['seconds']:.2f} s", flush=True)
    return result.finish(
        ratio=now["seconds"] / before["seconds"], ratio_batching=best["now"] / best["before"],
        responses=options.responses, tokens=options.tokens, ranks=options.ranks, now=now, before=before,
    )  # fmt: skip


if __name__ == "__main__":
    main()
