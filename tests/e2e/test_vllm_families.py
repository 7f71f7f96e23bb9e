"""Families of docs/models.md in vLLM itself: a sync of the same weights changes nothing, one of others brings them.

By name alone, as each takes a vLLM of its own: ``pytest -m slow -s tests/e2e/test_vllm_families.py``.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny_models import write_model
from transformers import AutoConfig, AutoModelForCausalLM

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
EXPERTS = dict(num_experts=8, num_local_experts=8, num_experts_per_tok=2, moe_intermediate_size=32)
MAMBA = dict(mamba_n_heads=8, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=16, mamba_chunk_size=16)
WINDOWED = dict(sliding_window=16, layer_types=["sliding_attention", "full_attention"])
CAPPED = dict(**WINDOWED, attn_logit_softcapping=1.0, final_logit_softcapping=3.0, query_pre_attn_scalar=32)
TIED = dict(tied=True)
FAMILIES = {
    "cohere": TIED, "cohere2": TIED | WINDOWED, "ernie4_5": {}, "exaone4": WINDOWED,
    "falcon": dict(new_decoder_architecture=True, head_dim=None), "gemma": TIED, "gemma2": TIED | CAPPED,
    "gemma3_text": dict(**TIED, **WINDOWED, query_pre_attn_scalar=32), "glm": {}, "glm4": {},
    "granite": dict(logits_scaling=2.0),
    "granitemoehybrid": dict(**MAMBA, **EXPERTS, layer_types=["mamba", "attention"], shared_intermediate_size=32),
    "jamba": dict(**EXPERTS, mamba_d_state=16, attn_layer_offset=1, attn_layer_period=2), "llama": {},
    "mistral": dict(sliding_window=16), "mixtral": EXPERTS, "nemotron": {}, "olmoe": EXPERTS,
    "phi3": dict(sliding_window=16), "qwen2": {}, "qwen2_moe": dict(**EXPERTS, shared_expert_intermediate_size=32),
    "qwen3": {}, "qwen3_5_text": dict(
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=32, linear_value_head_dim=32,
        layer_types=["linear_attention", "full_attention"],
    ),
    "qwen3_moe": EXPERTS, "seed_oss": {}, "stablelm": {},
}  # fmt: skip
# what vLLM's CPU build says of those that it cannot compute
NOT_ON_CPU = {"jamba": "has no attribute 'selective_scan_fwd'", "qwen3_5_text": "No module named 'torchvision'"}
DTYPE = torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_family(tmp_path, family):
    write(tmp_path / "model", family)
    env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_HOST_IP": "127.0.0.1"}
    done = subprocess.run([sys.executable, __file__, tmp_path], env=env, capture_output=True, text=True, timeout=600)
    said = done.stdout + done.stderr
    if done.returncode and family in NOT_ON_CPU and NOT_ON_CPU[family] in said:
        pytest.skip(f"vLLM's CPU build: {NOT_ON_CPU[family]}")
    assert done.returncode == 0, said[-6000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(family, found)
    assert found["same"] < 1e-4 and found["missing"] == []  # what vLLM keeps in float32 was rounded on its way
    assert max(found["gap"], found["synced"]) < 0.01 and found["synced"] < 0.2 * found["moved"]


def write(path: Path, family: str) -> None:
    options = dict(tied=False, head_dim=32) | FAMILIES[family]
    write_model(path, family=family, **{key: x for key, x in options.items() if x is not None})


def main(folder: Path) -> None:
    from vllm import LLM, SamplingParams

    import openrlhf_orz.models.packed_attention  # noqa: F401  registers orz_packed
    from openrlhf_orz.rollout.sync.send import Weights, verify_sync
    from openrlhf_orz.rollout.sync.transport import FileTransport
    from openrlhf_orz.settings.families import family_of

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
    path = folder / "model"
    llm = LLM(
        str(path), dtype="bfloat16", enforce_eager=True, max_model_len=128, kv_cache_memory_bytes=2**26,
        worker_extension_cls="openrlhf_orz.rollout.worker.OrzWorkerExtension", distributed_executor_backend="uni",
    )  # fmt: skip
    attention = family_of(AutoConfig.from_pretrained(path)).attention
    model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPE, attn_implementation=attention)
    texts = [torch.randint(5, 280, (60,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(3)]
    missing, rearranged = [], {}

    def trainer():
        ids = torch.tensor(texts)
        with torch.no_grad():
            logits = model(ids, attention_mask=torch.ones_like(ids)).logits[:, :-1].float()
        return logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]

    def engine():
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0.0)
        outputs = llm.generate([{"prompt_token_ids": text} for text in texts], params, use_tqdm=False)
        return torch.tensor([
            [step[token].logprob for token, step in zip(text[1:], output.prompt_logprobs[1:])]
            for text, output in zip(texts, outputs)
        ])  # fmt: skip

    def load(source, places, last, meanwhile):
        found = llm.collective_rpc("load_synced_weights", args=(source, places, last, True))
        missing.extend(name for _, names in found for name in names)
        return [device for device, _ in found]

    def sync():
        weights = Weights(model, DTYPE, limit=50_000)
        weights.send(FileTransport(str(folder / "weights"), DTYPE, load))
        llm.reset_prefix_cache()
        verify_sync(weights, lambda *which: [llm.collective_rpc("weight_report", args=which)], rearranged)

    def distance(a, b):
        return (a - b).abs().mean().item()

    loaded = engine()
    found = {"gap": distance(loaded, trainer())}
    sync()
    found["same"] = distance(engine(), loaded)
    with torch.no_grad():
        for weight in model.state_dict().values():
            std = weight.float().std().nan_to_num()
            weight += (0.1 * std if std > 0 else 0.2) * torch.randn_like(weight)  # norms and biases, too
    found["moved"] = distance(engine(), trainer())
    sync()
    found |= {"synced": distance(engine(), trainer()), "missing": missing}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
