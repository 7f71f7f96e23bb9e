"""Log-probs of tokens from hidden states, in chunks, against full logits: time and peak memory, forward and backward.

    python benchmarks/logprobs.py [--tokens 256 1024 4096] [--vocabulary 151936] [--hidden 896] [--dtype fp32]

Full logits: the output head, float32, stock OpenRLHF's log_probs_from_logits, autograd. Each case runs in a process
of its own, for its peak memory (VmHWM over the inputs). Ratios are ours over full logits.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import common


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--dtype", choices=tuple(common.DTYPES), default=common.cpu_dtype())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", choices=("ours", "full"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def case(options) -> dict:
    """One case, in this process."""
    import torch
    import torch.nn.functional as F
    from openrlhf.models.utils import log_probs_from_logits

    from openrlhf_orz.models.log_prob_head import log_probs_and_entropy

    (tokens,), dtype = options.tokens, getattr(torch, common.DTYPES[options.dtype])
    torch.manual_seed(0)
    hidden = torch.randn(tokens, options.hidden).to(dtype).requires_grad_()
    weight = (torch.randn(options.vocabulary, options.hidden) / options.hidden**0.5).to(dtype).requires_grad_()
    labels = torch.randint(options.vocabulary, (tokens,))

    def run():
        hidden.grad = weight.grad = None
        if options.case == "ours":
            log_probs, _ = log_probs_and_entropy(hidden, weight, labels, with_entropy=False)
        else:
            log_probs = log_probs_from_logits(F.linear(hidden, weight).float()[None], labels[None])[0]
        log_probs.sum().backward()
        return log_probs.detach()

    # both sides hold the weight's gradient: it counts as an input
    (weight * 0).sum().backward()
    common.reset_peak()
    before = common.peak_rss_mib()
    total = run().double().sum().item()
    peak = common.peak_rss_mib() - before
    return {"seconds": common.seconds(run, options.repeats, warm=0), "peak_mib": peak, "sum": total}


def main(argv=None) -> dict:
    options = parse(argv)
    if options.case:
        print(json.dumps(case(options)))
        return {}
    result = common.Result("logprobs", options.dtype)
    rows = []
    for tokens in options.tokens:
        row = {"tokens": tokens}
        for name in ("ours", "full"):
            command = [sys.executable, __file__, "--case", name, "--tokens", str(tokens), "--dtype", options.dtype,
                       "--vocabulary", str(options.vocabulary), "--hidden", str(options.hidden),
                       "--repeats", str(options.repeats)]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                row[name] = {"failed": (done.stderr.strip().splitlines() or [str(done.returncode)])[-1]}
            else:
                row[name] = json.loads(done.stdout.splitlines()[-1])
            print(f"{tokens} tokens, {name}: {row[name]}", flush=True)
        if "seconds" in row["ours"] and "seconds" in row["full"]:
            row["ratio_time"] = row["ours"]["seconds"] / row["full"]["seconds"]
            row["ratio_peak_memory"] = row["ours"]["peak_mib"] / row["full"]["peak_mib"]
        rows.append(row)
    last = [row for row in rows if "ratio_time" in row][-1]
    growth = {}
    for name in ("ours", "full"):
        found = [(row["tokens"], max(1.0, row[name]["peak_mib"])) for row in rows if "peak_mib" in row[name]]
        growth[f"memory_exponent_{name}"] = common.slope(*zip(*found)) if len(found) > 1 else None
    return result.finish(
        ratio_time=last["ratio_time"], ratio_peak_memory=last["ratio_peak_memory"], at_tokens=last["tokens"],
        **growth, vocabulary=options.vocabulary, hidden=options.hidden, cases=rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
