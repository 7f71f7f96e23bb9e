"""Packed attention against a padded batch and against SDPA with a mask over the pack: forward and backward.

    python benchmarks/packing.py [--lengths short long heavy] [--samples 16] [--hidden 256] [--layers 4] [--repeats 3]

A whole small model with a mean over its real tokens' logits as loss. Ratios are ours over the other's.
"""

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import common


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", default=["short", "long", "heavy"])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--scale", type=float, default=1.0, help="of all lengths")
    parser.add_argument("--dtype", choices=tuple(common.DTYPES), default=common.cpu_dtype())
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args(argv)


def main(argv=None) -> dict:
    options = parse(argv)
    result = common.Result("packing", options.dtype)
    import torch
    from transformers import AutoModelForCausalLM

    from openrlhf_orz.models.packed_attention import PACKED_ATTENTION

    def build(attention):
        torch.manual_seed(0)
        config = common.model_config(
            "tiny", hidden_size=options.hidden, intermediate_size=3 * options.hidden, num_hidden_layers=options.layers,
            num_attention_heads=8, num_key_value_heads=4,
            initializer_range=0.1,  # large enough for attention to show in the loss
        )  # fmt: skip
        dtype = getattr(torch, common.DTYPES[options.dtype])
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)

    models = {"ours": build(PACKED_ATTENTION), "padded": build("sdpa")}
    models["dense_mask"] = models["padded"]

    def inputs(how, rows):
        if how == "padded":
            longest = max(map(len, rows))
            ids = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in rows])
            mask = torch.stack([(torch.arange(longest) < len(row)).long() for row in rows])
            return dict(
                input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)
            ), mask.bool()
        ids = torch.cat(rows)[None]
        positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
        return dict(input_ids=ids, attention_mask=None, position_ids=positions), torch.ones_like(ids, dtype=torch.bool)

    def run(how, batch, losses):
        kwargs, keep = batch
        models[how].zero_grad()
        logits = models[how](**kwargs).logits
        loss = torch.logsumexp(logits[keep].float(), -1).mean()
        loss.backward()
        losses[how] = loss.item()

    cases = []
    for kind in options.lengths:
        pairs = common.draw_lengths(kind, options.samples, scale=options.scale)
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randint(1, 512, (p + r,), generator=generator) for p, r in pairs]
        prepared = {how: inputs(how, rows) for how in models}
        losses = {}
        times = {how: [] for how in models}
        for i in range(options.repeats + 1):
            for how in models:
                seconds = common.seconds(functools.partial(run, how, prepared[how], losses), 1, warm=0)
                if i:
                    times[how].append(seconds)
        times = {how: common.median(found) for how, found in times.items()}
        described = common.describe_lengths(pairs)
        cases.append(
            {
                "kind": kind, **described, "seconds": times,
                "padding": 1 - described["tokens"] / (described["longest"] * len(pairs)),
                "tokens_per_s": {how: described["tokens"] / s for how, s in times.items()},
                "ratio_to_padded": times["ours"] / times["padded"],
                "ratio_to_dense_mask": times["ours"] / times["dense_mask"],
                "largest_loss_difference": max(losses.values()) - min(losses.values()),
            }
        )  # fmt: skip
        print(f"{kind}: " + ", ".join(f"{how} {s:.2f} s" for how, s in times.items()), flush=True)
    return result.finish(
        cases=cases, hidden=options.hidden, layers=options.layers, threads=torch.get_num_threads(),
        **{f"ratio_to_padded_{case['kind']}": case["ratio_to_padded"] for case in cases},
        **{f"ratio_to_dense_mask_{case['kind']}": case["ratio_to_dense_mask"] for case in cases},
    )  # fmt: skip


if __name__ == "__main__":
    main()
