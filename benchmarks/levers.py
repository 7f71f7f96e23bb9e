"""The gain of each lever: our training step without one of them, or with a further one, on the same rollouts.

    python benchmarks/levers.py [--size tiny] [--lengths heavy] [--rollouts 128] [--repeats 3]

Variants come one after the other, the plain one first and last, so that a drift of the machine shows. Ratios are the
variant's over the plain one's (the mean of its two medians): above 1 is what the lever saves. Levers
without a flag are measured elsewhere: the head in chunks by logprobs.py, the cores by step_time.py, advantages by
advantages.py, sync by weight_sync.py.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import common

PADDED = ("--ds.attn_implementation", "sdpa", "--train.micro_batch_size", "{n}", "--rollout.micro_batch_size", "{n}")
VARIANTS = {
    "plain": (),
    "old_log_probs_computed": ("--orz.old_log_probs", "always"),
    "prompts_not_shared": ("--orz.share_prefixes", "never"),
    "padded_micro_batches": PADDED,  # and so no shared prompts
    "one_critic_step": ("--orz.critic_updates", "1"),
    "cross_fit_values": ("--orz.cross_fit_values",),
    "plain_again": (),
}


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_workload(parser)
    parser.add_argument("--rollouts", type=int, default=128, help="samples in a step; a multiple of 8")
    parser.add_argument("--micro-batch", type=int, default=4, help="samples of a padded micro-batch")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=tuple(VARIANTS))
    return parser.parse_args(argv)


def main(argv=None) -> dict:
    options = parse(argv)
    logging.disable(logging.INFO)
    result = common.Result(f"levers_{options.size}_{options.lengths}", options.dtype)
    import sides

    pairs, vocabulary = common.draw_lengths(options.lengths, options.rollouts), common.SHAPES[options.size][6]
    phases = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch_dir:
        model = common.write_model(Path(scratch_dir) / "model", options.size)
        flags = sides.common_flags(model, options.rollouts, options.dtype)

        def arguments(name):
            extra = [flag.format(n=options.micro_batch) for flag in VARIANTS[name]]
            return sides.our_args([*flags, *extra], Path(scratch_dir) / name)

        with sides.session(arguments("plain")) as (pg, scratch):
            for name in options.variants:
                side, rows = sides.Side("ours", arguments(name), pg, scratch), []
                for i in range(options.repeats + 1):
                    row = side.step(pairs, vocabulary)
                    print(f"{i} {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in row.items()), flush=True)
                    if i:
                        rows.append(row)
                    else:
                        side.call("reset_memory")
                phases[name] = common.medians(rows)
                side.close()
    plain = [row["training"] for name, row in phases.items() if name.startswith("plain")]
    mean = sum(plain) / len(plain)
    return result.finish(
        ratios={name: row["training"] / mean for name, row in phases.items()}, seconds_by_phase=phases,
        size=options.size, lengths={"kind": options.lengths, **common.describe_lengths(pairs)},
        repeats=options.repeats, micro_batch=options.micro_batch,
    )  # fmt: skip


if __name__ == "__main__":
    main()
