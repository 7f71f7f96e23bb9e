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

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
EXPERTS = dict(num_experts=8, num_local_experts=8, num_experts_per_tok=2, moe_intermediate_size=32)
FAMILIES = {"qwen3_moe": EXPERTS, "mixtral": EXPERTS}
DTYPE = torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_family(tmp_path, family):
    write_model(tmp_path / "model", tied=False, family=family, **FAMILIES[family])
    env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_HOST_IP": "127.0.0.1"}
    done = subprocess.run([sys.executable, __file__, tmp_path], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(family, found)
    assert found["same"] == 0 and found["missing"] == []
    assert found["gap"] < 0.03 and found["synced"] < 0.03 < found["moved"]


def main(folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM
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
        for param in model.parameters():
            param += 0.1 * param.float().std().nan_to_num() * torch.randn_like(param)
    found["moved"] = distance(engine(), trainer())
    sync()
    found |= {"synced": distance(engine(), trainer()), "missing": missing}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
