"""A training step of ours against a peer's, on the same recorded rollouts and the same random model.

    python benchmarks/step_time.py --peer openrlhf [--size smollm2-135m] [--lengths heavy] [--rollouts 32] ...
    python benchmarks/step_time.py --peer trl

Peer openrlhf: the stock trainer classes of the patched build. Its flags are the best of a trial of padded and packed
micro-batches on a part of the rollouts. Both sides' processes live side by side and take turns (--one-at-a-time: one
after the other, where memory does not hold both); medians of repeats.
Ratios are ours over the peer's. Nothing else should run on the machine; its load stands in the result.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import common

TRIALS = {
    "tiny": ("padded:4", "padded:8", "padded:16", "packed:2048", "packed:8192", "packed:2048:zero2"),
    "smollm2-135m": ("padded:1", "packed:512", "packed:512:zero2", "packed:1024"),
    "wide-vocab": ("padded:1", "padded:4", "packed:512", "packed:2048"),
}
ROLLOUTS = {"tiny": 128, "smollm2-135m": 32, "wide-vocab": 32}
CRITIC_UPDATES = 12
NOTE = (
    "Both train critic and policy once on every rollout token. Ours takes 12 critic steps and 1 policy step; stock "
    "takes 1 of each, all that it can with --train.batch_size equal to the rollout. The weight sync counted for stock "
    "is ours: its own routes need NCCL or CUDA IPC."
)


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=("openrlhf", "trl"), default="openrlhf")
    parser.add_argument("--size", choices=tuple(TRIALS), default="tiny")
    parser.add_argument("--lengths", choices=("short", "long", "heavy"), default="heavy")
    parser.add_argument("--rollouts", type=int, help="samples in a step; a multiple of 8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--stock", default="auto", help="padded:N samples, packed:N tokens, or auto: the best by trial"
    )
    parser.add_argument(
        "--stock-memory", choices=("own", "ours"), default="own",
        help="ours: stock's processes, too, keep memory that they have freed, as only our command has it",
    )  # fmt: skip
    parser.add_argument("--max-tokens", type=int, help="our --train.max_tokens_per_gpu (default: our default)")
    parser.add_argument("--dtype", choices=tuple(common.DTYPES), default=common.cpu_dtype())
    parser.add_argument("--with-generation", action="store_true", help="vLLM engines too: the whole step")
    parser.add_argument(
        "--one-at-a-time", action="store_true", help="no turns: one side ends before the other starts, for its memory"
    )
    parser.add_argument("--profile", action="store_true", help="one more step: where our training spends its time")
    args = parser.parse_args(argv)
    args.rollouts = args.rollouts or ROLLOUTS[args.size]
    return args


def modes(cores: int) -> dict:
    """Stock's threads in (forward, training): both models train at the same time."""
    return {"same_cores": (cores, max(1, cores // 2)), "same_cores_each": (cores, cores), "as_shipped": (1, 1)}


def choose_stock(options, model, pairs, pg, scratch, cores) -> tuple[str, dict]:
    """Stock's fastest flags for these rollouts: one step of each, after one of warm-up, on a quarter of them."""
    import sides

    if options.stock != "auto":
        return options.stock, {}
    count = max(common.GROUP * 2, len(pairs) // 4 // common.GROUP * common.GROUP)
    step = len(pairs) // common.GROUP / (count // common.GROUP)
    part = [pairs[int(i * step) * common.GROUP + j] for i in range(count // common.GROUP) for j in range(common.GROUP)]
    vocabulary, seconds = common.SHAPES[options.size][6], {}
    for how in TRIALS[options.size]:
        args = sides.stock_args(sides.common_flags(model, count, options.dtype), how, count)
        side = sides.Side("stock", args, pg, scratch, keep_memory=options.stock_memory == "ours")
        side.step(part, vocabulary, modes(cores)["same_cores"])
        seconds[how] = side.step(part, vocabulary, modes(cores)["same_cores"])["training"]
        side.close()
        print(f"stock {how}: {seconds[how]:.2f} s for {sum(map(sum, part))} tokens", flush=True)
    return min(seconds, key=seconds.get), seconds


def time_generation(options, args, stock_args, pg):
    """Seconds of generating a rollout by each side's engine, and our engine, which stays for the weight sync."""
    import ray
    import sides

    from openrlhf_orz.rollout.engine import engine_args

    extra = engine_args(args)
    shared = {key: extra[key] for key in ("dtype", "kv_cache_memory_bytes")}
    both = {"stock": (stock_args, sides.start_engine("stock", stock_args, pg, shared)),
            "ours": (args, sides.start_engine("ours", args, pg, extra))}  # fmt: skip
    times = {name: [] for name in both}
    for i in range(options.repeats + 1):
        for name, (side_args, engines) in both.items():
            seconds = sides.generate(side_args, engines)
            if i:
                times[name].append(seconds)
    ray.get(both["stock"][1][0].shutdown.remote())
    engines, seconds = both["ours"][1], {name: common.median(found) for name, found in times.items()}
    print(f"generation: {seconds}", flush=True)
    return engines, seconds


def take_turns(options, both: dict, pairs, rows: dict, cores: int) -> None:
    """Append steps of the sides, in turn, to ``rows``; then end the sides."""
    vocabulary = common.SHAPES[options.size][6]
    for i in range(options.repeats + 1):  # the first warms up
        for name in rows:
            side = both.get("ours" if name == "ours" else "stock")
            if not side or i == 0 and name in ("same_cores_each", "as_shipped"):
                continue
            row = side.step(pairs, vocabulary, None if name == "ours" else modes(cores)[name])
            print(f"{i} {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in row.items()), flush=True)
            if i:
                rows[name].append(row)
        if i == 0:
            for side in both.values():
                side.call("reset_memory")
    if options.profile and "ours" in both:
        both["ours"].call("profile", True)
        both["ours"].step(pairs, vocabulary)
        for role, tables in zip(("policy", "critic"), both["ours"].call("profiled")):
            print(f"{role}'s training:\n{tables[0]}", flush=True)
    for side in both.values():
        side.close()


def against_openrlhf(options) -> dict:
    import sides

    cores = len(os.sched_getaffinity(0))
    pairs = common.draw_lengths(options.lengths, options.rollouts)
    lengths, responses = [p + r for p, r in pairs], [r for _, r in pairs]
    rates = common.matmul_rates(options.dtype, cores)
    rows = {"ours": [], **{name: [] for name in modes(cores)}}
    generation = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch_dir:
        model = common.write_model(Path(scratch_dir) / "model", options.size)
        flags = sides.common_flags(model, options.rollouts, options.dtype)
        ours_only = ["--train.max_tokens_per_gpu", str(options.max_tokens)] if options.max_tokens else []
        if options.with_generation:
            flags += ["--rollout.max_new_tokens", str(round(sum(responses) / len(responses)))]
        args = sides.our_args([*flags, *ours_only], Path(scratch_dir) / "run", prompt="1" * pairs[0][0])
        with sides.session(args) as (pg, scratch):
            how, trial = choose_stock(options, model, pairs, pg, scratch, cores)
            engines = None
            if options.with_generation:
                stock_args = sides.stock_args(flags, how, options.rollouts, args.bench_prompt)
                engines, generation = time_generation(options, args, stock_args, pg)
            arguments = {"ours": (args, engines), "stock": (sides.stock_args(flags, how, options.rollouts), None)}
            for kinds in (("ours",), ("stock",)) if options.one_at_a_time else (("ours", "stock"),):
                both = {kind: sides.Side(kind, kind_args, pg, scratch, kind_engines,
                                         options.stock_memory == "ours")
                        for kind, (kind_args, kind_engines) in arguments.items() if kind in kinds}  # fmt: skip
                take_turns(options, both, pairs, rows, cores)
            if engines:
                import ray

                ray.get(engines[0].shutdown.remote())
    rates_after = common.matmul_rates(options.dtype, cores)
    phases = {name: common.medians(found) for name, found in rows.items()}
    return summary(options, phases, rates, rates_after, pairs, lengths, responses, how, trial, generation)


def summary(options, phases, rates, rates_after, pairs, lengths, responses, how, trial, generation) -> dict:
    ours = phases["ours"]
    same = min(("same_cores", "same_cores_each"), key=lambda name: phases[name]["training"])
    useful = common.training_flops(options.size, pairs, shared=True)
    of_sequences = common.training_flops(options.size, pairs, shared=False)
    rate = f"{options.dtype}_2048"
    machine = max(rates[rate], rates_after[rate]) * 1e12
    memory = {name: phases[name]["policy_memory_mib"] + phases[name]["critic_memory_mib"] for name in ("ours", same)}
    result = {
        "ratio_training_same_cores": ours["training"] / phases[same]["training"],
        "ratio_training_as_shipped": ours["training"] / phases["as_shipped"]["training"],
        "ratio_step_same_cores": None,
        "ratio_peak_memory": memory["ours"] / memory[same],
        "mfu": useful / ours["training"] / machine,
        "mfu_whole_sequences": {
            name: of_sequences / phases[name]["training"] / machine for name in ("ours", same, "as_shipped")
        },
        "useful_tflop": {"prompts_once": useful / 1e12, "whole_sequences": of_sequences / 1e12},
        "matmul_tflops": {"before": rates, "after": rates_after},
        "tokens_per_s": {name: sum(lengths) / row["training"] for name, row in phases.items()},
        "peak_memory_mib": {"ours": memory["ours"], "stock": memory[same]},
        "seconds_by_phase": phases,
        "stock_flags": how,
        "stock_trial_seconds": trial,
        "stock_same_cores_is": same,
        "lengths": {"kind": options.lengths, **common.describe_lengths(pairs)},
        "size": options.size,
        "repeats": options.repeats,
        "alternating": not options.one_at_a_time,
        "stock_memory": options.stock_memory,
        "our_max_tokens": options.max_tokens or "default",
        "critic_updates": CRITIC_UPDATES,
        "note": NOTE,
    }
    if generation:
        whole = {name: generation[side] + phases[name]["training"] + ours["sync"] for name, side in
                 (("ours", "ours"), (same, "stock"))}  # fmt: skip
        result.update(ratio_step_same_cores=whole["ours"] / whole[same], seconds_generation=generation,
                      seconds_sync=ours["sync"], seconds_step=whole)  # fmt: skip
    return result


def main(argv=None) -> dict:
    options = parse(argv)
    logging.disable(logging.INFO)
    if options.peer == "trl":
        from trl_peer import against_trl as run
    else:
        run = against_openrlhf
    name = f"step_time_{options.peer}_{options.size}_{options.lengths}"
    if options.stock_memory == "ours":
        name += "_stock_keeps_memory"
    if options.one_at_a_time:
        name += "_one_at_a_time"
    result = common.Result(name, options.dtype)
    return result.finish(**run(options))


if __name__ == "__main__":
    main()
