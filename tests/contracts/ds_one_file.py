"""ds_worker.py's case of the one-file example: a fixed rollout through the real trainers and through the example."""

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from ds_setup import make_actor, make_args, make_critic, make_model, make_strategy, model_config

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

PAD, PROMPTS, SAMPLES, UPDATES = 0, 4, 4, 12
LR, EPS = 1e-2, 1e-3  # Adam's eps is large, so that its step is not the sign of a rounding error


def fixed_samples():
    """4 prompts of 2 to 5 tokens with 4 responses of 1 to 9 tokens each; the last is cut by length: reward 0."""
    rng = random.Random(0)
    samples = []
    for i in range(PROMPTS):
        prompt = [rng.randrange(1, 64) for _ in range(2 + i)]
        for j in range(SAMPLES):
            cut = j == SAMPLES - 1
            response = [rng.randrange(1, 64) for _ in range(9 if cut else 1 + (3 * i + 2 * j) % 8)]
            samples.append((prompt, response, 0.0 if cut else float((i + j) % 2)))
    return samples


def real_rollout(args, strategy, rollout, critic):
    """One experience in the order of the rollout, with the experience maker's advantages; made in two packs."""
    from openrlhf.trainer.ppo_utils.experience import Experience, make_experience_batch, split_experience_batch

    from openrlhf_orz.trainer.experience_maker import OrzExperienceMaker

    maker = object.__new__(OrzExperienceMaker)  # without Ray
    maker.args, maker.strategy, maker.advantage_estimator = args, strategy, args.algo.advantage.estimator
    maker.kl_ctl = SimpleNamespace(value=args.algo.kl.init_coef)
    packs = []
    for rows in (list(range(0, 16, 2)), list(range(1, 16, 2))):
        sequences, action = rollout.sequences_BS[rows], rollout.mask_BA[rows].long()
        attention = (sequences != PAD).long()
        with torch.no_grad():
            values = critic(sequences, action_mask=action, attention_mask=attention)
        packs.append(
            Experience(
                index=rows, sequences=sequences, attention_mask=attention, action_mask=action, values=values,
                rewards=rollout.rewards_B[rows], kl=torch.zeros(action.shape), info={},
                action_log_probs=torch.zeros(action.shape), total_length=attention.sum(-1),
                response_length=action.sum(-1), truncated=torch.tensor([i % SAMPLES == SAMPLES - 1 for i in rows]),
            )
        )  # fmt: skip
    order = [i for pack in packs for i in pack.index]
    items = [item for pack in maker.compute_advantages_and_returns(packs) for item in split_experience_batch(pack)]
    return make_experience_batch([items[order.index(i)] for i in range(len(items))])


def train_real(trainer, engine, strategy, experience, *arguments):
    """Loss and gradients of each optimizer step, and the parameters after all."""
    from deepspeed.utils import safe_get_full_grad

    trainer.replay_buffer.append(experience)
    parameters = dict(engine.module.named_parameters())
    gradients, losses, take_step, train_micro_batch = [], [0.0], strategy.optimizer_step, trainer.training_step

    def keep_gradients(*args, **kwargs):
        gradients.append({name: safe_get_full_grad(p).clone() for name, p in parameters.items()})
        take_step(*args, **kwargs)

    def keep_loss(*args, **kwargs):  # each micro-batch's is its share
        steps = len(gradients)
        result = train_micro_batch(*args, **kwargs)
        metrics = result.get("metrics", result)
        losses[-1] += float(metrics["policy_loss"] if "policy_loss" in metrics else metrics["critic_loss"])
        losses.extend([0.0] * (len(gradients) - steps))
        return result

    strategy.optimizer_step, trainer.training_step = keep_gradients, keep_loss
    try:
        trainer.ppo_train(*arguments)
    finally:
        strategy.optimizer_step = take_step
    return losses[:-1], gradients, {name: p.detach().clone() for name, p in parameters.items()}


def train_example(example, model, step):
    """The same of the example's ``step(model, optimizer, scheduler)``, which returns its losses."""
    optimizer, scheduler = example.make_optimizer(model, LR, 0)
    optimizer.param_groups[0]["eps"] = EPS
    gradients, clip = [], example.clip_grad_norm_

    def keep_gradients(*args):
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        return clip(*args)

    example.clip_grad_norm_ = keep_gradients
    try:
        losses = step(model, optimizer, scheduler)
    finally:
        example.clip_grad_norm_ = clip
    return losses, gradients, {name: p.detach().clone() for name, p in model.named_parameters()}


def critic_names(tensors):
    """OpenRLHF's names of a critic's parameters as the example's."""
    return {name.replace("model.", "base.", 1).replace("score.", "head.", 1): t for name, t in tensors.items()}


def gap(ours, theirs):
    """The largest difference of any two tensors, relative to their largest number."""
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    smallest = 1e-3 * max(t.abs().max() for t in theirs.values())
    return max(((ours[n] - theirs[n]).abs().max() / theirs[n].abs().max().clamp(min=smallest)).item() for n in ours)


def one_file():
    """Differences between the example and the real trainers, and the losses of both."""
    import orz_in_one_file as example
    from transformers import AutoModel

    from openrlhf_orz.trainer.actor import OrzActorPPOTrainer
    from openrlhf_orz.trainer.critic import OrzCriticPPOTrainer

    sizes = {"rollout.batch_size": PROMPTS, "rollout.n_samples_per_prompt": SAMPLES, "orz.critic_updates": UPDATES}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    # several micro-batches in the policy's step
    args = make_args(*flags, changes={"train.max_tokens_per_gpu": 40, "ds.packing_samples": True})
    strategy = make_strategy(args)
    actor, *actor_optimizer = make_actor(strategy, args, LR, packed=True, max_norm=1.0)
    real_critic, *critic_optimizer = make_critic(strategy, LR, EPS)

    prompts, responses, rewards = map(list, zip(*fixed_samples()))
    rollout = example.make_rollout(prompts, responses, rewards, PAD)
    policy = make_model()
    critic = example.Critic(AutoModel.from_config(model_config()), seed=0)
    critic.load_state_dict(critic_names(real_critic.module.state_dict()))

    experience = real_rollout(args, strategy, rollout, real_critic)
    with torch.no_grad():
        values_BA = critic(rollout.sequences_BS)
    advantages_BA, returns_BA = example.advantages_and_returns(rollout, values_BA)
    result = {
        name: ((x_BA - getattr(experience, name)) * rollout.mask_BA).abs().max().item()
        for name, x_BA in (("values", values_BA), ("advantages", advantages_BA), ("returns", returns_BA))
    }

    trainer = OrzActorPPOTrainer(strategy, actor, None, *actor_optimizer, micro_train_batch_size=1)
    real = train_real(trainer, actor.model, strategy, experience, 0.0)
    ours = train_example(
        example, policy, lambda *optimizer: [example.train_policy(*optimizer, rollout, advantages_BA)]
    )
    result["policy"] = {
        "micro_batches": len(trainer.replay_buffer), "losses": [ours[0], real[0]],
        "gradients": [gap(mine, theirs) for mine, theirs in zip(ours[1], real[1], strict=True)],
        "parameters": gap(ours[2], real[2]),
    }  # fmt: skip

    trainer = OrzCriticPPOTrainer(strategy, real_critic, *critic_optimizer, value_clip=None)
    real = train_real(trainer, real_critic, strategy, experience)
    rng = random.Random(f"{args.train.seed}-0-critic_updates-0")  # as the replay buffer of rank 0 shuffles
    ours = train_example(
        example, critic, lambda *optimizer: example.train_critic(*optimizer, rollout, returns_BA, UPDATES, rng)
    )
    result["critic"] = {
        "losses": [ours[0], real[0]],
        "gradients": [gap(mine, critic_names(theirs)) for mine, theirs in zip(ours[1], real[1], strict=True)],
        "parameters": gap(ours[2], critic_names(real[2])),
    }  # fmt: skip
    return result
