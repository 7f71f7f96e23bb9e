"""Our training step's time against tokens (x1 to x16) and against ranks.

    python benchmarks/scaling.py [--size tiny] [--lengths heavy] [--samples 16] [--factors 1 2 4 8 16] [--ranks 1 2]

Tokens grow by the number of rollouts; exponent: least squares on logarithms. More ranks share the same cores, so on
one machine the best that they can do is the same time.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import common


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_workload(parser)
    parser.add_argument("--samples", type=int, default=32, help="at x1")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rank-factor", type=int, default=4, help="the factor at which ranks are compared")
    parser.add_argument("--max-tokens", type=int, default=2048, help="--train.max_tokens_per_gpu")
    return parser.parse_args(argv)


def main(argv=None) -> dict:
    options = parse(argv)
    logging.disable(logging.INFO)
    result = common.Result("scaling", options.dtype)
    import sides

    vocabulary = common.SHAPES[options.size][6]
    most = common.draw_lengths(options.lengths, options.samples * max(options.factors))
    by_tokens, by_ranks = [], []
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch_dir:
        model = common.write_model(Path(scratch_dir) / "model", options.size)
        for ranks in options.ranks:
            flags = sides.common_flags(model, options.samples, options.dtype, ranks)
            flags += ["--train.max_tokens_per_gpu", str(options.max_tokens), "--orz.critic_updates",
                      str(min(12, options.samples // max(options.ranks)))]  # fmt: skip
            args = sides.our_args(flags, Path(scratch_dir) / f"run{ranks}")
            factors = options.factors if ranks == options.ranks[0] else [options.rank_factor]
            with sides.session(args, ranks) as (pg, scratch):
                side = sides.Side("ours", args, pg, scratch)
                for i in range(options.repeats + 1):
                    for factor in factors:
                        pairs = most[: options.samples * factor]
                        row = side.step(pairs, vocabulary)
                        tokens = sum(map(sum, pairs))
                        print(f"{i} ranks {ranks}, x{factor}, {tokens} tokens: {row['training']:.2f} s", flush=True)
                        if i:
                            target = by_tokens if ranks == options.ranks[0] else by_ranks
                            target.append({"ranks": ranks, "factor": factor, "tokens": tokens, **row})
                side.close()

    def summarise(rows):
        groups = {(row["ranks"], row["factor"]): [] for row in rows}
        for row in rows:
            groups[row["ranks"], row["factor"]].append(row)
        return [common.medians(group) for group in groups.values()]

    tokens = summarise(by_tokens)
    exponents = {
        key: common.slope([row["tokens"] for row in tokens], [row[key] for row in tokens])
        for key in ("training", "make_experience", "train")
    }
    same = [row for row in tokens if row["factor"] == options.rank_factor]
    ranks = same + summarise(by_ranks)
    return result.finish(
        exponent=exponents["training"], exponents=exponents, by_tokens=tokens, by_ranks=ranks,
        ratio_two_ranks=ranks[1]["training"] / ranks[0]["training"] if len(ranks) > 1 else None,
        size=options.size, kind=options.lengths, samples=options.samples, max_tokens=options.max_tokens,
        repeats=options.repeats,
    )  # fmt: skip


if __name__ == "__main__":
    main()
