"""Arguments, tiny models and batches for ds_worker.py."""

import os

import torch

from openrlhf_orz.models.packed_attention import PACKED_ATTENTION

FLAGS = [
    "--actor.model_name_or_path",
    "none",
    "--data.prompt_dataset",
    "none",
    "--rollout.batch_size",
    "4",
    "--rollout.n_samples_per_prompt",
    "2",
    "--orz.critic_updates",
    "2",
    "--ds.param_dtype",
    "fp32",
    "--orz.device",
    "cpu",
]


def make_args(*extra, changes=None):
    """Settings of a run on a CPU; ``changes`` by dotted name."""
    from openrlhf_orz.settings.command_line import parse
    from openrlhf_orz.settings.finished import RunFacts, changed, for_openrlhf

    args, _ = parse([*FLAGS, "--actor.num_gpus_per_node", os.environ["WORLD_SIZE"],
                     "--critic.num_gpus_per_node", os.environ["WORLD_SIZE"], *extra])  # fmt: skip
    run = RunFacts(checkpoints="/tmp/orz-ds-worker", scratch=f"/tmp/orz-ds-worker-{os.getpid()}-")
    return changed(for_openrlhf(args, run), changes or {})


def stage_flags(stage):
    """``sums``: bfloat16 at ZeRO-1 with gradients summed in float32. ``bf16``: at ZeRO-3."""
    if stage == "bf16":
        return ["--ds.param_dtype", "bf16", "--ds.zero_stage", "3"]
    if stage != "sums":
        return ["--ds.zero_stage", stage]
    return ["--ds.param_dtype", "bf16", "--ds.zero_stage", "1", "--ds.grad_accum_dtype", "fp32"]


def make_strategy(args):
    from openrlhf.utils import get_strategy

    strategy = get_strategy(args)
    strategy.setup_distributed()
    return strategy


def model_config(attention="sdpa", **changes):
    from transformers import Qwen2Config

    given = dict(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.1, tie_word_embeddings=True, attn_implementation=attention,
    )  # fmt: skip
    return Qwen2Config(**given | changes)


def make_model(attention="sdpa"):
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(model_config(attention))


def make_actor(
    strategy, args, lr=1e-2, packed=False, max_norm=1e6, decay=0.0, schedule="constant", before=lambda model: model
):
    """Stock's model, padded; or ours, packed, with log-probs of action tokens alone. ``before`` may wrap it."""
    if packed:
        from openrlhf_orz.trainer.actor import OrzActor as Actor
    else:
        from openrlhf.models import Actor

    actor = Actor(before(make_model(PACKED_ATTENTION if packed else "sdpa")))
    actor.packing_samples = packed
    adam = dict(lr=lr, betas=(0.9, 0.95), eps=1e-3, weight_decay=decay)  # eps: no sign of rounding
    cfg = dict(optim="adam", muon={}, adam=adam, lr_scheduler=schedule, lr_warmup_ratio=0.0, min_lr_ratio=0.1,
               max_norm=max_norm, scheduler_steps=10)  # fmt: skip
    return strategy.prepare((actor, cfg))


def make_batch(size=8, length=12, seed=1):
    """Sequences of different lengths, padded on the right; two prompt tokens each, two responses to a prompt."""
    generator = torch.Generator().manual_seed(seed)
    sequences = torch.randint(1, 64, (size, length), generator=generator)
    sequences[1::2, :2] = sequences[::2, :2]
    lengths = torch.tensor([length - i % 5 for i in range(size)])
    attention = (torch.arange(length) < lengths[:, None]).long()
    action = attention[:, 1:].clone()
    action[:, :1] = 0  # the second prompt token
    return sequences, attention, action


def make_critic(strategy, lr, eps=1e-8, before=lambda critic: None, **changes):
    """``before``: what is done to the critic before DeepSpeed has it."""
    from openrlhf.models.model import _get_critic_model
    from transformers.models.qwen2 import Qwen2Model

    config = model_config(PACKED_ATTENTION, **changes)
    config.normalize_reward = False
    torch.manual_seed(0)
    critic = _get_critic_model(Qwen2Model.__base__, Qwen2Model, "score", packing_samples=True)(config)
    before(critic)
    adam = dict(lr=lr, betas=(0.9, 0.95), eps=eps, weight_decay=0.0)
    cfg = dict(optim="adam", muon={}, adam=adam, lr_scheduler="constant", lr_warmup_ratio=0.0, min_lr_ratio=0.1,
               max_norm=1.0, scheduler_steps=10)  # fmt: skip
    return strategy.prepare((critic, cfg))
