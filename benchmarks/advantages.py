"""Advantages on whole batches against stock OpenRLHF's loop over tokens.

    python benchmarks/advantages.py [--batch 64] [--lengths 8192 32768] [--repeats 5]

The loop is OpenRLHF's own RemoteExperienceMaker.get_advantages_and_returns. Ratios are ours over the loop's.
"""

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import common


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)
    result = common.Result("advantages", "fp32")

    import torch
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    from openrlhf_orz.algo.advantages import gae

    rows = []
    for length in options.lengths:
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(options.batch, length, generator=generator)
        ends = torch.randint(length // 8, length, (options.batch,), generator=generator)
        mask = (torch.arange(length) < ends[:, None]).float()
        rewards = torch.zeros_like(values)
        rewards[torch.arange(options.batch), ends - 1] = 1.0
        for gamma, lambd in ((1.0, 1.0), (0.99, 0.95)):
            batch = (values, rewards, mask, gamma, lambd)
            ours = functools.partial(gae, *batch)
            loop = functools.partial(RemoteExperienceMaker.get_advantages_and_returns, None, *batch)
            gap = ((ours()[0] - loop()[0]) * mask).abs().max().item()
            times = [(common.seconds(ours, 1), common.seconds(loop, 1, warm=0)) for _ in range(options.repeats)]
            fast, slow = (common.median(side) for side in zip(*times))
            rows.append(
                {"tokens": length, "gamma": gamma, "lambda": lambd, "seconds": fast, "seconds_loop": slow,
                 "ratio": fast / slow, "speedup": slow / fast, "largest_difference": gap}
            )  # fmt: skip
            print(f"{options.batch} x {length}, gamma {gamma}, lambda {lambd}: {slow / fast:.0f} times", flush=True)
    first = [row for row in rows if row["tokens"] == options.lengths[0]]
    return result.finish(
        ratio=max(row["ratio"] for row in first), speedup_smallest=min(row["speedup"] for row in first),
        batch=options.batch, threads=torch.get_num_threads(), cases=rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
