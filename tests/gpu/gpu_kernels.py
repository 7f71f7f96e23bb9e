"""Part (a) of run.sh: each kernel that training takes on a GPU against a plain one. Each check says what it expects.

    python tests/gpu/gpu_kernels.py FILE.json

Needs torch, transformers and triton alone. Without CUDA the same code runs on tiny shapes.
"""

import contextlib
import io
import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from openrlhf_orz.models import log_prob_head, packed_attention, packs
from openrlhf_orz.models.shared_prefixes import share_prefixes

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
if not CUDA:
    torch.set_num_threads(1)  # the shapes are tiny
CLOSE = 0.02 if CUDA else 1e-4  # relative; bfloat16's own error is below 0.01


def measured(function):
    """(result, milliseconds of the second call, MiB above what was there)."""
    function()
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    result = function()
    if CUDA:
        torch.cuda.synchronize()
    taken = 1000 * (time.perf_counter() - start)
    return result, taken, (torch.cuda.max_memory_allocated() - before) / 2**20 if CUDA else None


def gap(ours, theirs):
    """Largest relative difference between the tensors of two lists."""
    return max(float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-9)) for a, b in zip(ours, theirs))


def with_gradients(function, *inputs):
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), inputs)]


def lengths():
    return [4000, 900, 2500, 300, 4000, 700, 1800, 1200] if CUDA else [40, 9, 25, 3]


def attention(prompt):
    """Queries, keys and values of a pack, and its sequences; each shares ``prompt`` tokens with the one before it."""
    ids = torch.cat([torch.cat([torch.zeros(prompt), torch.arange(1, n - prompt + 1) + 1e5 * i]) for i, n in
                     enumerate(lengths())]).long()  # fmt: skip
    positions = torch.cat([torch.arange(n) for n in lengths()])
    kept = share_prefixes(ids, positions)[0] if prompt else torch.arange(len(ids))
    sequences = packs.find_sequences(positions[kept])
    heads, keys, size = (28, 4, 128) if CUDA else (4, 2, 8)
    torch.manual_seed(0)
    shapes = [(len(kept), n, size) for n in (heads, keys, keys)]
    given = [torch.randn(shape, device=DEVICE, dtype=DTYPE, requires_grad=True) for shape in shapes]
    return given, sequences


def varlen(prompt):
    """Attention over a pack: what training takes against SDPA by groups, forward and backward."""
    given, sequences = attention(prompt)
    groups = packed_attention.make_groups(sequences, DEVICE)
    plain = measured(lambda: with_gradients(lambda *x: packed_attention.grouped_attention(*x, groups, None), *given))
    found = {"tokens": len(given[0]), "sdpa_ms": plain[1], "sdpa_mib": plain[2]}
    if not CUDA:
        again = packed_attention.make_groups(sequences, DEVICE, blocks=True)
        ours = measured(lambda: with_gradients(lambda *x: packed_attention.grouped_attention(*x, again, None), *given))
    else:
        bounds = packs.make_bounds(sequences, DEVICE)
        ours = measured(lambda: with_gradients(lambda *x: packs.varlen_attention(*x, bounds, None), *given))
        found["is_right"] = packs.by_varlen(given[0], given[1].shape[1])
    found |= {"gap": gap(ours[0], plain[0]), "ms": ours[1], "mib": ours[2]}
    return found, found["gap"] < CLOSE and found.get("is_right", True)


def flash():
    """flash-attn's own kernel, where it is installed, against ours."""
    if not CUDA:
        return {"skipped": "no CUDA"}, True
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return {"skipped": "flash-attn is not installed, and not needed"}, True
    given, sequences = attention(0)
    b = packs.make_bounds(sequences, DEVICE)

    def theirs(q, k, v):
        return flash_attn_varlen_func(q, k, v, b.queries, b.keys, b.longest_queries, b.longest_keys, causal=True)

    ours = measured(lambda: with_gradients(lambda *x: packs.varlen_attention(*x, b, None), *given))
    other = measured(lambda: with_gradients(theirs, *given))
    found = {"gap": gap(ours[0], other[0]), "ms": ours[1], "flash_ms": other[1]}
    return found, found["gap"] < CLOSE and ours[1] < 1.2 * other[1]


def no_waiting():
    """A layer's attention neither reads from the GPU nor sends to it, once the pack is known."""
    (q, k, v), _ = attention(0)
    positions = torch.cat([torch.arange(n) for n in lengths()])[None].to(DEVICE)
    heads = [x.detach().transpose(0, 1)[None] for x in (q, k, v)]
    packed_attention.packed_attention(torch.nn.Identity(), *heads, None, position_ids=positions)
    if CUDA:
        torch.cuda.set_sync_debug_mode("error")
    try:
        packed_attention.packed_attention(torch.nn.Identity(), *heads, None, position_ids=positions)
    finally:
        if CUDA:
            torch.cuda.set_sync_debug_mode("default")
    return {}, True


def head(liger):
    """Log-probs of labels in tiles (or by Liger's kernel) against full logits, with gradients."""
    tokens, hidden, vocabulary = (12000, 896, 151936) if CUDA else (64, 16, 512)
    if liger and (not CUDA or log_prob_head.liger() is None):
        return {"skipped": "no CUDA, or liger-kernel is not installed, and not needed"}, True
    torch.manual_seed(0)
    x = torch.randn(tokens, hidden, device=DEVICE, dtype=DTYPE, requires_grad=True)
    w = (torch.randn(vocabulary, hidden, device=DEVICE, dtype=DTYPE) * 0.05).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,), device=DEVICE)

    def ours(x, w):
        if liger:
            return log_prob_head.liger_log_probs(x, w, labels)
        elements = log_prob_head.TILE_LOGITS[DEVICE.type] if CUDA else 2**10
        return log_prob_head.log_probs_and_entropy(x, w, labels, elements=elements, with_entropy=False)[0]

    def full(x, w):
        return (x @ w.T).float().log_softmax(-1).gather(-1, labels[:, None])[:, 0]

    a, b = measured(lambda: with_gradients(ours, x, w)), measured(lambda: with_gradients(full, x, w))
    found = {"gap": gap(a[0], b[0]), "ms": a[1], "full_ms": b[1], "mib": a[2], "full_mib": b[2]}
    return found, found["gap"] < CLOSE and (not CUDA or a[2] < 0.5 * b[2])


def _receive(queue, answers):
    answers.put(float(queue.get().double().sum()))


def ipc():
    """A tensor reaches another process by its handle, as weights reach the engines."""
    context = torch.multiprocessing.get_context("spawn" if CUDA else "fork")
    queue, answers = context.Queue(), context.Queue()
    tensor = torch.arange(2**20 if CUDA else 2**10, device=DEVICE, dtype=torch.float32)
    child = context.Process(target=_receive, args=(queue, answers))
    child.start()
    queue.put(tensor)
    found = answers.get(timeout=120)
    child.join(60)
    return {"sum": found}, found == float(tensor.double().sum()) and child.exitcode == 0


def steps():
    """Training steps of actor and critic, packed and fused, against padded batches: time, memory, MFU."""
    os.environ.setdefault("BENCHMARK_RESULTS", str(Path(sys.argv[1]).resolve().parent))
    import gpu_train_step

    tiny = [] if CUDA else ["--tiny", "--tokens", "96", "--repeats", "1", "--device", "cpu"]
    with contextlib.redirect_stdout(io.StringIO()):
        result = gpu_train_step.main([*tiny, "--repeats", "3"] if CUDA else tiny)
    found = {size: {role: {name: roles[name] for name in ("ours", "ratio_time", "ratio_peak_memory") if name in roles}
                    for role, roles in by_role.items()} for size, by_role in result["sizes"].items()}  # fmt: skip
    fine = all("seconds" in roles["ours"] for by_role in found.values() for roles in by_role.values())
    quick = all(roles.get("ratio_time", 0) < 1 and roles["ours"]["mfu"] > 0.25
                for by_role in found.values() for roles in by_role.values()) if fine and CUDA else True  # fmt: skip
    return found, fine and quick


CHECKS = (
    ("attention", "varlen attention is SDPA's, in output and gradients", lambda: varlen(0)),
    ("shared_prefixes", "the same where sequences share a prompt", lambda: varlen(200 if CUDA else 3)),
    ("flash_attn", "as right as flash-attn's kernel, and at most 1.2 times its time", flash),
    ("no_waiting", "a layer does not wait for the host", no_waiting),
    ("head", "log-probs of full logits at vocabulary 151,936, with half of the memory", lambda: head(False)),
    ("liger", "the same by Liger's kernel", lambda: head(True)),
    ("ipc", "a tensor crosses to another process by its handle", ipc),
    ("steps", "0.5B and 1.5B above 25 % MFU of the measured product, and quicker than padded", steps),
)


def main(path):
    results, failed = {}, []
    for name, expects, check in CHECKS:
        start = time.monotonic()
        try:
            found, fine = check()
        except Exception:  # the next check may tell more
            found, fine = {"error": traceback.format_exc()[-2000:]}, False
        results[name] = {"expects": expects, "ok": bool(fine), "seconds": time.monotonic() - start, "found": found}
        failed += [] if fine else [name]
        words = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())
        print(f"{'ok  ' if fine else 'FAIL'} {name:<16} {expects}: {words[:400]}", flush=True)
    device = torch.cuda.get_device_name(0) if CUDA else "cpu, tiny shapes"
    Path(path).write_text(json.dumps({"device": device, "torch": torch.__version__, "checks": results}, indent=1))
    print(f"{len(CHECKS) - len(failed)} of {len(CHECKS)} as expected on {device}; {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
