"""Forks the ranks of real DeepSpeed groups, which run one of these cases each. Rank 0 prints one JSON line.

``zero``: one optimizer step from several micro-batches, against torch's own AdamW on the whole batch.
``single_step``: the policy gradient of ORZ's single step, skipped or not, packed or not, against stock OpenRLHF's.
``cross_fit``: the values that the critic's training takes, against those before it.
``nonfinite``: a NaN in one sample of one rank, by ZeRO stage.
``lone_rank``: what a lone bfloat16 rank is spared changes nothing, nor do gradients that a step before has left.
``values``: the critic's packs by a thread each, by ZeRO stage.
``heads``: a critic with a head of a probability or of a histogram, frozen in parts, by ZeRO stage.
``one_file``: advantages, losses and gradients of the trainers, against examples/orz_in_one_file.py.
``tensor_parallel``: policies with tied and untied heads and a critic, cut by two, against whole ones.
``universal``: a policy and a critic whose ranks and ZeRO stage change from step to step.
``exported``: checkpoints of policies, and what the run itself would save.
``groups``: the critic's mini-batches of whole groups, whose responses lie on several ranks.
``degenerate``: a step of policy and critic on batches with nothing to learn, or hardly anything in them.
"""

import json
import os
import sys
import traceback

import torch
import torch.distributed as dist
from ds_lone_rank import lone_rank
from ds_one_file import one_file
from ds_setup import make_actor, make_args, make_batch, make_critic, make_model, make_strategy, stage_flags
from ds_tensor_parallel import tensor_parallel
from ds_universal import exported, universal
from ds_values import heads, values

from openrlhf_orz.trainer.live_objects import skip_reduction


def zero(*cases):
    """A result for each STAGE:BOUNDARY; boundary 0 leaves the fix of upstream unused."""
    return {case: zero_case(*case.split(":")) for case in cases}


def zero_case(stage, boundary):
    """Every rank trains its half in micro-batches of 2 samples."""
    args = make_args(*stage_flags(stage))
    strategy = make_strategy(args)
    actor, optim, scheduler = make_actor(strategy, args)
    skip_reduction(actor.model)
    sequences, attention, action = make_batch()
    tokens, world, rank = action.sum(), dist.get_world_size(), dist.get_rank()

    def loss(model, rows):
        log_probs = model(sequences[rows], action[rows], attention_mask=attention[rows])
        return -(log_probs * action[rows]).sum() / tokens

    mine = list(range(rank, 8, world))
    micro = [mine[i : i + 2] for i in range(0, len(mine), 2)]
    for i, rows in enumerate(micro):
        last = i == len(micro) - 1
        strategy.backward(loss(actor, rows) * world, actor, optim, is_boundary=last if boundary == "1" else None)
    strategy.optimizer_step(optim, actor, scheduler)

    from openrlhf.models import Actor

    reference = Actor(make_model())
    reference.packing_samples = False
    if stage == "sums":
        reference.bfloat16().float()
    before = [p.detach().clone() for p in reference.parameters()]
    torch_optim = torch.optim.AdamW(reference.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.0)
    loss(reference, list(range(8))).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in reference.parameters()]).item()
    torch_optim.step()
    from deepspeed.utils import safe_get_full_fp32_param

    gap, apart, moved = 0.0, 0.0, 0.0
    for ours, theirs, was in zip(actor.model.module.parameters(), reference.model.parameters(), before):
        full = safe_get_full_fp32_param(ours)
        difference = (full if full is not None else ours.data) - theirs.data
        gap = max(gap, difference.abs().max().item())
        apart, moved = apart + difference.square().sum().item(), moved + (theirs - was).square().sum().item()
    reduces = actor.model.enable_backward_allreduce
    return {
        "gap": gap,
        "relative": (apart / moved) ** 0.5,
        "grad_norm": strategy.get_grad_norm(actor),
        "reference_norm": norm,
        "reduces": reduces,
    }


def single_step():
    """Gradients of the policy's step: ours with the old log-probs skipped and with them, stock OpenRLHF's."""
    from deepspeed.utils import safe_get_full_grad
    from openrlhf.trainer.ppo_utils.experience import Experience
    from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer

    from openrlhf_orz.trainer.actor import OrzActorPPOTrainer

    sequences, attention, action = make_batch()
    advantages = torch.randn(action.shape, generator=torch.Generator().manual_seed(2)) * action
    grads, norms = {}, {}
    for name in ("packed", "skipped", "always", "stock"):
        changes = {"train.max_tokens_per_gpu": 30, "ds.packing_samples": name == "packed"}  # several micro-batches
        if name == "stock":
            changes |= {"train.dynamic_batch_enable": False, "train.micro_batch_size": 8}
        args = make_args(*(("--orz.old_log_probs", "always") if name == "always" else ()), changes=changes)
        strategy = make_strategy(args)
        actor, optim, scheduler = make_actor(strategy, args, packed=name == "packed")
        trainer = (ActorPPOTrainer if name == "stock" else OrzActorPPOTrainer)(
            strategy, actor, None, optim, scheduler, micro_train_batch_size=args.train.micro_batch_size
        )
        with torch.no_grad():
            old = actor(sequences, action, attention_mask=attention)
        trainer.replay_buffer.append(
            Experience(
                sequences=sequences.clone(), attention_mask=attention.clone(), action_mask=action.clone(),
                action_log_probs=torch.zeros_like(old) if name in ("packed", "skipped") else old,
                advantages=advantages.clone(),
                total_length=attention.sum(-1), response_length=action.sum(-1), info={"reward": torch.zeros(8)},
            )
        )  # fmt: skip
        found = {}

        def keep(optimizer, model, scheduler, name="model", found=found):
            found.update({n: safe_get_full_grad(p).clone() for n, p in model.model.module.named_parameters()})

        strategy.optimizer_step = keep
        status = trainer.ppo_train(0.0)
        grads[name], norms[name] = found, status
    result = {"micro_batches": len(trainer.replay_buffer), "clip_ratio": norms["skipped"]["ppo_clip_ratio"]}
    for a, b in (("skipped", "always"), ("skipped", "stock"), ("packed", "stock")):
        result[f"{a}_{b}"] = max((grads[a][n] - grads[b][n]).abs().max().item() for n in grads[a])
    result["largest"] = max(g.abs().max().item() for g in grads["stock"].values())
    result["policy_loss"] = norms["skipped"]["policy_loss"]
    result["stock_policy_loss"] = norms["stock"]["policy_loss"]
    return result


def cross_fit():
    """Values before the critic's training and those that it takes, by critic learning rate; 4 updates of 2 samples."""
    from openrlhf.trainer.ppo_utils.experience import Experience

    from openrlhf_orz.trainer.critic import OrzCriticPPOTrainer

    sequences, attention, action = make_batch()
    returns = torch.randint(0, 2, (8, 1), generator=torch.Generator().manual_seed(3)) * action.float()
    result = {}
    for lr in (0.0, 1e-2):
        args = make_args("--orz.cross_fit_values", "--orz.critic_updates", "4")
        strategy = make_strategy(args)
        critic, optim, scheduler = make_critic(strategy, lr)
        trainer = OrzCriticPPOTrainer(strategy, critic, optim, scheduler, value_clip=None)
        with torch.no_grad():
            before = critic(sequences, action_mask=action, attention_mask=attention)
        trainer.replay_buffer.append(
            Experience(
                sequences=sequences.clone(), attention_mask=attention.clone(), action_mask=action.clone(),
                returns=returns.clone(), total_length=attention.sum(-1), response_length=action.sum(-1),
                info={"reward": torch.zeros(8)},
            )
        )  # fmt: skip
        status = trainer.ppo_train()
        first = [i for indices in trainer.replay_buffer.dynamic_indices[:1] for i in indices]
        gaps = [(taken - value[: len(taken)]).abs().max().item() for taken, value in zip(trainer.values, before)]
        result[str(lr)] = {
            "first": max(gaps[i] for i in first), "rest": min(gap for i, gap in enumerate(gaps) if i not in first),
            "largest": max(gaps), "updates": status["critic_updates"],
        }  # fmt: skip
    return result


def nonfinite(folder, *stages):
    return {stage: nonfinite_case(folder, stage) for stage in stages}


def nonfinite_case(folder, stage):
    """Steps: good, a NaN in rank 0's first sample, good, zero gradients, then NaNs until the run gives up."""
    from deepspeed.utils import safe_get_full_fp32_param
    from openrlhf.trainer.ppo_utils.experience import Experience

    from openrlhf_orz.trainer.actor import OrzActorPPOTrainer

    args = make_args(*stage_flags(stage), "--ckpt.output_dir", f"{folder}/{stage}")
    strategy = make_strategy(args)
    actor, optim, scheduler = make_actor(strategy, args)
    trainer = OrzActorPPOTrainer(strategy, actor, None, optim, scheduler, micro_train_batch_size=1)
    sequences, attention, action = make_batch(size=4, seed=dist.get_rank())

    def weights():
        params = actor.model.module.parameters()
        return torch.cat([(w if (w := safe_get_full_fp32_param(p)) is not None else p.data).flatten() for p in params])

    def step(kind):
        advantages = torch.randn(action.shape, generator=torch.Generator().manual_seed(2)) * action
        if kind == "zero":
            advantages.zero_()
        if kind == "nan" and dist.get_rank() == 0:
            advantages[0, 4] = float("nan")
        trainer.replay_buffer.append(
            Experience(
                sequences=sequences.clone(), attention_mask=attention.clone(), action_mask=action.clone(),
                action_log_probs=torch.zeros(action.shape), advantages=advantages, total_length=attention.sum(-1),
                response_length=action.sum(-1), info={"reward": torch.zeros(4)},
            )
        )  # fmt: skip
        before = weights().clone()
        try:
            status = trainer.ppo_train(0.0)
        finally:
            trainer.replay_buffer.clear()
        return (weights() - before).abs().max().item(), status

    result = {"steps": [], "ended": None}
    for kind in ("good", "nan", "good", "zero"):
        moved, status = step(kind)
        result["steps"].append([moved, status["policy_updates"], status["policy_steps_skipped"]])
    for number in range(1, 6):
        try:
            step("nan")
        except FloatingPointError as error:
            result["ended"] = [number, str(error)]
            break
    result["finite"] = bool(weights().isfinite().all())
    return result


def degenerate():
    """By kind of batch and by model: the samples that each rank trained on, how many it has, the loss and gradient
    norm, the number of updates, the largest change of a weight, and whether all weights are finite.
    """
    from openrlhf.trainer.ppo_utils.experience import Experience

    from openrlhf_orz.trainer.actor import OrzActorPPOTrainer
    from openrlhf_orz.trainer.critic import OrzCriticPPOTrainer

    args = make_args("--orz.critic_updates", "3", changes={"train.max_tokens_per_gpu": 30})
    strategy = make_strategy(args)
    world, rank, result = dist.get_world_size(), dist.get_rank(), {}
    for kind, size in {"equal": 7, "single": world, "one_token": 7, "usual": 7}.items():
        sequences, attention, action = (x[:size] for x in make_batch())
        if kind == "one_token":
            action = action * (action.cumsum(-1) == 1)
        advantages = torch.randn(action.shape, generator=torch.Generator().manual_seed(2)) * action
        if kind == "equal":
            advantages = torch.zeros_like(advantages)
        rows = list(range(rank, size, world))
        result[kind] = {}
        for name in ("policy", "critic"):
            if name == "policy":
                model, optim, scheduler = make_actor(strategy, args, packed=True)
                trainer = OrzActorPPOTrainer(strategy, model, None, optim, scheduler, micro_train_batch_size=1)
                engine = model.model
            else:
                model, optim, scheduler = make_critic(strategy, 1e-2)
                trainer = OrzCriticPPOTrainer(strategy, model, optim, scheduler, value_clip=None)
                engine = model
            trainer.replay_buffer.append(
                Experience(
                    sequences=sequences[rows].clone(), attention_mask=attention[rows].clone(),
                    action_mask=action[rows].clone(), action_log_probs=torch.zeros(action[rows].shape),
                    advantages=advantages[rows].clone(), returns=action[rows].float(),
                    total_length=attention[rows].sum(-1), response_length=action[rows].sum(-1),
                    info={"reward": torch.ones(len(rows))},
                )
            )  # fmt: skip
            before = [parameter.detach().clone() for parameter in engine.module.parameters()]
            status = trainer.ppo_train(0.0) if name == "policy" else trainer.ppo_train()
            after = list(engine.module.parameters())
            trained = sorted(i for indices in trainer.replay_buffer.dynamic_indices for i in indices)
            everywhere: list = [None] * world
            dist.all_gather_object(everywhere, (trained, len(rows)))
            role = "actor" if name == "policy" else "critic"
            result[kind][name] = {
                "ranks": everywhere, "loss": status[f"{name}_loss"], "grad_norm": status[f"{role}_grad_norm"],
                "updates": status[f"{name}_updates"],
                "change": max((a - b).abs().max().item() for a, b in zip(after, before)),
                "finite": all(a.isfinite().all().item() for a in after),
            }  # fmt: skip
    return result


def groups():
    """The critic's mini-batches of whole groups: the prompts of each, by rank, for 3 and for 10 steps asked for.

    Ten prompts of four responses, of which each rank has some, but for one, whose responses are all on rank 0.
    """
    from types import SimpleNamespace

    from openrlhf_orz.trainer.mini_batches import CriticReplayBuffer

    result, mesh = {}, make_strategy(make_args()).ds_device_mesh
    for updates in (3, 10):
        args = make_args("--orz.critic_minibatch", "groups", changes={"orz.critic_updates": updates})
        rank, buffer = dist.get_rank(), CriticReplayBuffer(1, dynamic_batch=True)
        mine = [p for i in range(4) for p in range(10) if (i + p) % 2 == rank and p or not p and not rank]
        buffer.items = [
            SimpleNamespace(sequences=torch.tensor([p] * 5 + [9]), response_length=torch.tensor(1),
                            total_length=torch.tensor(6)) for p in mine
        ]  # fmt: skip
        steps = buffer.partition_micro_batches(SimpleNamespace(args=args, ds_device_mesh=mesh))
        prompts = [sorted({mine[i] for micro in step for i in micro}) for step in steps]
        trained = sorted(i for step in steps for micro in step for i in micro)
        everywhere: list = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, (prompts, trained == list(range(len(mine))), [len(step) for step in steps]))
        result[updates] = everywhere
    return result


def run_rank(environment, log, case):
    """A rank, in a process of its own, which ends here; what it prints goes to the file ``log``."""
    status = 1
    try:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(environment)
        cases = [
            zero,
            single_step,
            cross_fit,
            nonfinite,
            lone_rank,
            degenerate,
            groups,
            values,
            heads,
            one_file,
            tensor_parallel,
            universal,
            exported,
        ]
        result = {case.__name__: case for case in cases}[case[0]](*case[1:])
        if dist.get_rank() == 0:
            print("RESULT " + json.dumps(result))
        dist.barrier()
        dist.destroy_process_group()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve():
    """For each line, a list of ``run_rank``'s arguments, a line with the ranks' exit statuses.

    What the cases use is imported once: that takes far longer than most cases. Nothing may be computed here, as
    threads do not survive a fork.
    """
    import openrlhf.utils  # noqa: F401  DeepSpeed is imported with it

    import openrlhf_orz.trainer.actor
    import openrlhf_orz.trainer.critic  # noqa: F401

    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    for line in sys.stdin:
        ranks = []
        for rank in json.loads(line):
            ranks.append(os.fork())
            if not ranks[-1]:
                sys.stdout = answers
                run_rank(*rank)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
        print(json.dumps(statuses), file=answers, flush=True)


if __name__ == "__main__":
    serve()
