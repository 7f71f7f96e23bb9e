"""Actor and critic training steps on packs of 16k tokens, packed and fused, against the naive padded path.

    python benchmarks/gpu_train_step.py [--sizes qwen2.5-0.5b qwen2.5-1.5b] [--tokens 16384] [--repeats 5]
    python benchmarks/gpu_train_step.py --device cpu --tiny       # the same code in seconds

Needs torch and transformers only; weights are random. Ours: ``orz_packed`` attention and log-probs of action tokens in
chunks. Naive: padded batches, SDPA, full logits in float32. A step is forward, backward and AdamW on one pack. MFU is
useful model FLOPs (no recomputation, no padding) over the rate of a matrix product measured in the same run.
"""

import argparse
import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import common


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short sequences")
    parser.add_argument("--sizes", nargs="+", choices=tuple(common.SHAPES), default=["qwen2.5-0.5b", "qwen2.5-1.5b"])
    parser.add_argument("--tokens", type=int, default=16384, help="of a pack")
    parser.add_argument("--lengths", choices=("short", "long", "heavy"), default="heavy")
    parser.add_argument("--naive-batch", type=int, default=4, help="sequences of a padded micro-batch")
    parser.add_argument("--checkpointing", choices=("auto", "on", "off"), default="auto", help="auto: on for 1.5b")
    parser.add_argument("--dtype", choices=tuple(common.DTYPES))
    parser.add_argument("--models", nargs="+", choices=("actor", "critic"), default=["actor", "critic"])
    parser.add_argument("--paths", nargs="+", choices=("ours", "naive"), default=["ours", "naive"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print where one step of ours spends its time")
    options = parser.parse_args(argv)
    import torch

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.dtype = options.dtype or ("bf16" if options.device == "cuda" else common.cpu_dtype())
    if options.tiny:
        options.sizes, options.tokens = ["tiny"], min(options.tokens, 512)
    return options


def fill_pack(kind: str, tokens: int) -> list[tuple[int, int]]:
    """(prompt, response) lengths whose sum is at most ``tokens``; the last one is cut to fit."""
    scale = min(1.0, tokens / 2048)
    pairs, left = [], tokens
    for prompt, response in common.draw_lengths(kind, tokens // 8, scale=scale):
        response = min(response, left - prompt)
        if response < 4:
            break
        pairs.append((prompt, response))
        left -= prompt + response
    return pairs


def policy_loss(log_probs_T, advantages_T):
    """Eq. 1, negated, on the policy's own samples: the ratio is 1, its gradient that of the log-probs."""
    ratio_T = (log_probs_T - log_probs_T.detach()).exp()
    return -(ratio_T * advantages_T).minimum(ratio_T.clamp(0.8, 1.2) * advantages_T).mean()


def value_loss(values_T, returns_T):
    """Eq. 2."""
    return 0.5 * (values_T - returns_T).square().mean()


class Step:
    """One model, its optimizer and one way of training it on a list of (token ids, prompt length)."""

    def __init__(self, role, path, size, options):
        import torch
        from transformers import AutoModel, AutoModelForCausalLM

        from openrlhf_orz.models.cpu_ops import install_rms_norm
        from openrlhf_orz.models.log_prob_head import install_log_prob_head
        from openrlhf_orz.models.packed_attention import PACKED_ATTENTION

        self.torch, self.role, self.path, self.options = torch, role, path, options
        dtype, device = getattr(torch, common.DTYPES[options.dtype]), torch.device(options.device)
        torch.manual_seed(0)
        config = common.model_config(size)
        attention = PACKED_ATTENTION if path == "ours" else "sdpa"
        maker = AutoModelForCausalLM if role == "actor" else AutoModel
        with device:
            self.model = maker.from_config(config, dtype=dtype, attn_implementation=attention)
            self.value = torch.nn.Linear(config.hidden_size, 1, bias=False, dtype=dtype) if role == "critic" else None
        self.model.train()
        if options.checkpointing == "on" or (options.checkpointing == "auto" and size == "qwen2.5-1.5b"):
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.head = install_log_prob_head(self.model) if role == "actor" and path == "ours" else None
        if path == "ours" and options.device == "cpu":
            install_rms_norm(self.model)
        parameters = [*self.model.parameters(), *(self.value.parameters() if self.value else ())]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def batches(self, rows):
        """Yield the forward's inputs. Ours: one pack. Naive: padded batches of a few sequences."""
        torch, device = self.torch, self.options.device
        if self.path == "ours":
            ids = torch.cat([row for row, _ in rows])[None]
            positions = torch.cat([torch.arange(len(row)) for row, _ in rows])[None]
            needed = torch.cat([torch.arange(1, len(row) + 1) >= prompt for row, prompt in rows])
            ends = torch.cat([torch.arange(1, len(row) + 1) == len(row) for row, _ in rows])
            yield tuple(x.to(device) for x in (ids, positions, (needed & ~ends)[None])), None
            return
        for start in range(0, len(rows), self.options.naive_batch):
            part = rows[start : start + self.options.naive_batch]
            longest = max(len(row) for row, _ in part)
            ids = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row, _ in part])
            mask = torch.stack([(torch.arange(longest) < len(row)).long() for row, _ in part])
            at = torch.arange(1, longest + 1)
            needed = torch.stack([(at >= prompt) & (at < len(row)) for row, prompt in part])
            yield tuple(x.to(device) for x in (ids, (mask.cumsum(-1) - 1).clamp(min=0), needed)), mask.to(device)

    def log_probs(self, ids, positions, needed, mask):
        """Log-probs of the next tokens at the M needed positions, (M,)."""
        labels = self.torch.roll(ids, -1, 1)
        if self.head is not None:
            columns = needed[0].nonzero()[:, 0]
            self.head.labels = labels[:, columns]
            output = self.model(input_ids=ids, position_ids=positions, logits_to_keep=columns).logits
            self.head.labels = None
            return output[0, :, 0]
        logits = self.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits.float()
        taken = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
        return taken[needed]

    def values(self, ids, positions, needed, mask):
        hidden = self.model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
        return self.value(hidden)[..., 0].float()[needed]

    def run(self, rows, targets) -> float:
        """One optimizer step; ``targets`` (advantages or returns) one per needed token. Returns the loss."""
        total, start = 0.0, 0
        for (ids, positions, needed), mask in self.batches(rows):
            outputs = (self.log_probs if self.role == "actor" else self.values)(ids, positions, needed, mask)
            wanted = targets[start : start + len(outputs)]
            start += len(outputs)
            loss_of = policy_loss if self.role == "actor" else value_loss
            loss = loss_of(outputs, wanted) * (len(wanted) / len(targets))
            loss.backward()
            total += loss.detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(total)


def measure(role, path, size, options, rate) -> dict:
    import torch

    cuda = options.device == "cuda"
    pairs = fill_pack(options.lengths, options.tokens)
    lengths, responses = [p + r for p, r in pairs], [r for _, r in pairs]
    generator = torch.Generator().manual_seed(0)
    vocabulary = common.SHAPES[size][6]
    rows = [(torch.randint(1, vocabulary, (p + r,), generator=generator), p) for p, r in pairs]
    targets = torch.randn(sum(responses), generator=generator).to(options.device)
    one = common.flops(size, lengths, responses)
    useful = 3 * (one["body"] + (one["head"] if role == "actor" else 0))
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        common.reset_peak()
    try:
        step = Step(role, path, size, options)
        first = step.run(rows, targets)
        sync = torch.cuda.synchronize if cuda else lambda: None
        taken = common.seconds(
            lambda: step.run(rows, targets), options.repeats, warm=1 if cuda else 0, synchronize=sync
        )
        if options.profile and path == "ours":
            profile(step, rows, targets)
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else common.peak_rss_mib()
    return {
        "seconds": taken, "tokens_per_s": sum(lengths) / taken, "mfu": useful / taken / rate,
        "peak_memory_mib": peak, "useful_tflop": useful / 1e12, "first_loss": first,
    }  # fmt: skip


def profile(step, rows, targets):
    from torch.profiler import profile as record

    with record() as recorded:
        step.run(rows, targets)
    key = "self_cuda_time_total" if step.options.device == "cuda" else "self_cpu_time_total"
    print(recorded.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=48), flush=True)


def main(argv=None) -> dict:
    options = parse(argv)
    result = common.Result("gpu_train_step" + ("" if options.device == "cuda" else "_cpu"), options.dtype)
    side = 512 if options.tiny else 8192 if options.device == "cuda" else 2048
    rate = common.matmul_rate(side, options.dtype, device=options.device)
    sizes = {}
    for size in options.sizes:
        sizes[size] = {}
        for role in options.models:
            found = {}
            for path in options.paths:
                found[path] = measure(role, path, size, options, rate)
                print(f"{size} {role} {path}: {found[path]}", flush=True)
                gc.collect()
                if options.device == "cuda":
                    import torch

                    torch.cuda.empty_cache()
            if all("seconds" in found.get(path, {}) for path in ("ours", "naive")):
                found["ratio_time"] = found["ours"]["seconds"] / found["naive"]["seconds"]
                found["ratio_peak_memory"] = found["ours"]["peak_memory_mib"] / found["naive"]["peak_memory_mib"]
            sizes[size][role] = found
    pairs = fill_pack(options.lengths, options.tokens)
    return result.finish(
        sizes=sizes, lengths={"kind": options.lengths, **common.describe_lengths(pairs)},
        matmul_tflops={f"{options.dtype}_{side}": rate / 1e12}, device=options.device,
        checkpointing=options.checkpointing, naive_batch=options.naive_batch, repeats=options.repeats,
    )  # fmt: skip


if __name__ == "__main__":
    main()
