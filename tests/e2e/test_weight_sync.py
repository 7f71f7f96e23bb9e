"""Two real steps through Ray, DeepSpeed and vLLM: after each sync the engines compute what the trainer computes."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from runs import read_jsonl, succeed, write_sums
from tiny_models import write_model
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from openrlhf_orz.rollout.sync.checksums import SyncError
from openrlhf_orz.rollout.sync.send import Weights, verify_sync
from openrlhf_orz.rollout.sync.transport import IpcTransport
from openrlhf_orz.settings.derive import cpu_dtype

pytestmark = pytest.mark.e2e
# in memory the experts of a layer are one tensor, in a checkpoint and for vLLM one each
EXPERTS = dict(
    family="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1,
    head_dim=32,
)  # fmt: skip


@pytest.mark.parametrize(
    "ranks, stage, tied, model, flags",
    [
        pytest.param(1, 2, True, {}, (), id="1-2-tied", marks=pytest.mark.slow),
        pytest.param(1, 3, False, EXPERTS, (), id="1-3-untied-experts", marks=pytest.mark.slow),
        pytest.param(2, 2, False, EXPERTS, ("--orz.cross_fit_values",), id="2-2-untied-experts-cross_fit"),
        pytest.param(2, 3, True, {}, (), id="2-3-tied"),
    ],
)
def test_engines_follow_the_trainer(tmp_path, ranks, stage, tied, model, flags):
    model = write_model(tmp_path / "model", tied=tied, **model)
    run = tmp_path / "run"
    metrics = succeed(
        run, model, write_sums(tmp_path / "data.jsonl", 8),
        "--actor.num_gpus_per_node", ranks, "--critic.num_gpus_per_node", ranks, "--ds.zero_stage", stage,
        "--orz.check_sync", "--actor.adam.lr", "3e-3", *flags,
    )  # fmt: skip
    assert [m["step"] for m in metrics] == [1, 2]
    elements = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(model).parameters())
    nbytes = elements * (2 if cpu_dtype() == "bf16" else 4)
    assert metrics[0]["logprob_gap_start_mean"] < 0.01  # weights that both had loaded, brought once more
    for m in metrics:
        assert m["logprob_gap_mean"] < 0.02 and m["logprob_gap_tokens"] == m["response_tokens"]
        # bfloat16 keeps 8 bits: log-probs of about 6 differ by a few hundredths at the most
        assert m["sync_logprob_gap_mean"] < 0.01 and m["sync_logprob_gap_max"] < 0.06, m
        # every checksum was right, or the run had ended; on CPU only packed linear layers are not in the model itself
        assert m["sync_bytes"] == nbytes and 0.1 < m["sync_verified"] <= 1, m
        assert m["policy_updates"] == 1 and m["critic_updates"] == 3
        assert m["ppo_kl"] == 0 and m["ppo_clip_ratio"] == 0  # strictly on-policy
        # cross-fitted, the advantages are 0 until the critic's training has given the values
        assert m["samples"] == 16 and m["actor_grad_norm"] > 0 and m["critic_grad_norm"] > 0
        assert "explained_variance" in m
    # a missed sync would have shown: the weights moved the log-probs by far more than the gap
    assert metrics[1]["sync_logprob_moved_mean"] > 5 * metrics[1]["sync_logprob_gap_mean"]
    rows = read_jsonl(run / "rollouts" / "step_2.jsonl")
    assert len(rows) == 16 and all(row["prompt"].startswith("Question: ") for row in rows)


def test_buckets_into_a_model_in_use(tmp_path, monkeypatch):
    """The route of CUDA on shared memory: buckets through IPC handles into vLLM's own parameters, fused ones too."""
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}")
    from vllm import LLM, SamplingParams

    path = write_model(tmp_path / "model", tied=True)
    llm = LLM(
        str(path), dtype="float32", enforce_eager=True, max_model_len=128, kv_cache_memory_bytes=2**26,
        worker_extension_cls="unpacked_worker.UnpackedWorker",
    )  # fmt: skip
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        model = Qwen2ForCausalLM.from_pretrained(path, dtype=torch.float32)
        weights = Weights(model, torch.float32, limit=50_000)
        assert len(weights.buckets()) > 5
        tokens, rearranged = list(range(5, 45)), {}

        def gap():
            with torch.no_grad():
                ours = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
            prompt = {"prompt_token_ids": tokens}
            (output,) = llm.generate([prompt], SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
            theirs = [step[token].logprob for token, step in zip(tokens[1:], output.prompt_logprobs[1:])]
            return (ours[torch.arange(39), torch.tensor(tokens[1:])] - torch.tensor(theirs)).abs().max().item()

        def send():
            def load(source, places, last, meanwhile):
                meanwhile()
                ((device, missing),) = llm.collective_rpc("load_synced_weights", args=(source, places, last, True))
                assert missing == []
                return [device]

            weights.send(IpcTransport(torch.device("cpu"), torch.float32, load))
            llm.reset_prefix_cache()

        def check():
            return verify_sync(weights, lambda *which: [llm.collective_rpc("weight_report", args=which)], rearranged)

        def step():
            with torch.no_grad():
                for param in model.parameters():
                    param += 0.1 * param.std() * torch.randn_like(param)

        assert gap() < 1e-3 and check() == 1.0 and rearranged and not any(rearranged.values())
        step()
        assert gap() > 0.05
        with pytest.raises(SyncError, match="self_attn.qkv_proj.weight .made of .*q_proj"):
            check()
        send()
        assert gap() < 1e-3 and check() == 1.0
        llm.collective_rpc("skip_weight", args=("model.layers.1.mlp.up_proj.weight",))
        step()
        send()
        with pytest.raises(SyncError) as error:
            check()
        assert len(str(error.value).splitlines()) == 2 and "model.layers.1.mlp.gate_up_proj" in str(error.value)
    finally:
        dist.destroy_process_group()
        llm.llm_engine.engine_core.shutdown()
