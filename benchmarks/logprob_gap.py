"""The gap between vLLM's log-probs and the trainer's on the same tokens, with and without a float32 output head.

    python benchmarks/logprob_gap.py [--model examples/tiny_base] [--dtype bf16] [--sequences 64]  # 5 minutes

vLLM samples the sequences once, at temperature 1. Then both sides compute the log-probs of these tokens: vLLM as
log-probs of a prompt, through the engine arguments that a run would use, the trainer through its own attention and
head. All in one process, one after the other; numbers are nats a token.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
sys.path.insert(0, str(Path(__file__).parent))
import common

PROMPTS = ("User: What is 3 + 4?\nAssistant:", "User: Compute 12 times 11.\nAssistant:")


def engine(options, fp32_head: bool):
    """vLLM with what the flag adds to an engine's arguments."""
    from vllm import LLM

    extra = {"hf_overrides": {"head_dtype": "float32"}} if fp32_head else {}
    return LLM(str(options.model), dtype=common.DTYPES[options.dtype], max_model_len=options.tokens + 64,
               logprobs_mode="processed_logprobs", enforce_eager=True, enable_prefix_caching=False, seed=0,
               **extra)  # fmt: skip


def sampled(vllm, options) -> list[list[int]]:
    from vllm import SamplingParams

    asked = [PROMPTS[i % len(PROMPTS)] for i in range(options.sequences)]
    params = [
        SamplingParams(temperature=1.0, max_tokens=options.tokens, ignore_eos=True, seed=i)
        for i, _ in enumerate(asked)
    ]
    return [[*out.prompt_token_ids, *out.outputs[0].token_ids] for out in vllm.generate(asked, params, use_tqdm=False)]


def by_vllm(vllm, sequences: list[list[int]]):
    import torch
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    found = vllm.generate([{"prompt_token_ids": ids} for ids in sequences], params, use_tqdm=False)
    return torch.tensor(
        [each[token].logprob for out, ids in zip(found, sequences)
         for token, each in zip(ids[1:], out.prompt_logprobs[1:])], dtype=torch.float64,
    )  # fmt: skip


def by_trainer(options, sequences: list[list[int]], fp32_head: bool):
    import torch
    from transformers import AutoModelForCausalLM

    import openrlhf_orz.models.packed_attention  # noqa: F401  registers orz_packed
    from openrlhf_orz.models.log_prob_head import install_log_prob_head

    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=common.DTYPES[options.dtype], attn_implementation="orz_packed"
    ).eval()
    head = install_log_prob_head(model, fp32_head)
    found = []
    with torch.no_grad():
        for ids in sequences:
            head.labels = torch.tensor([ids[1:]])
            found.append(model(torch.tensor([ids[:-1]])).logits[0, :, 0].double())
    return torch.cat(found)


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(__file__).parents[1] / "examples" / "tiny_base")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=192, help="of each response")
    options = parser.parse_args(argv)
    result = common.Result("logprob_gap", options.dtype)
    sequences, gaps = None, {}
    for fp32_head in (False, True):
        vllm = engine(options, fp32_head)
        sequences = sequences or sampled(vllm, options)
        engines = by_vllm(vllm, sequences)
        del vllm
        gap = engines - by_trainer(options, sequences, fp32_head)
        name = "fp32_head" if fp32_head else "as_shipped"
        gaps[name] = {"mean": gap.abs().mean().item(), "max": gap.abs().max().item(), "kl": gap.mean().item()}
        print(name, gaps[name], flush=True)
    return result.finish(
        ratio=gaps["fp32_head"]["mean"] / gaps["as_shipped"]["mean"], tokens=sum(map(len, sequences)) - len(sequences),
        model=options.model.name, **gaps,
    )  # fmt: skip


if __name__ == "__main__":
    main()
