"""Open-Reasoner-Zero in one file: the paper's PPO from the prompt to the optimizer step, in reading order.

    OMP_NUM_THREADS=1 python examples/orz_in_one_file.py --steps 40 --seed 0

One process, Hugging Face's generate, float32. The defaults are the quickstart's: a tiny base learns additions.
Measured with this command: mean reward 0.34 in the first five steps and 0.94 in the last ten, 20.5 and 30.2 tokens, in
5.4 minutes of CPU time. The package does the same with vLLM, DeepSpeed and Ray; tests/contracts/test_one_file.py holds
this file to it. Citations are of the paper, arXiv 2503.24290.

Names end in their dimensions: B sequences (a prompt with one response), S tokens of a sequence, A = S - 1 predictions
(number t is of token t + 1; those of response tokens are the actions), V vocabulary.
"""

import argparse
import itertools
import random
import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, get_constant_schedule_with_warmup

from openrlhf_orz.algo.advantages import gae
from openrlhf_orz.algo.minibatch import cut_mini_batches
from openrlhf_orz.algo.token_stats import masked_mean
from openrlhf_orz.data import arithmetic
from openrlhf_orz.data.prompts import render
from openrlhf_orz.data.rows import read_dataset
from openrlhf_orz.models.value_head import init_value_head
from openrlhf_orz.reward.grader import Grader
from openrlhf_orz.settings.flags import STOP_STRINGS


@dataclass(frozen=True)
class Settings:
    """Every field is a flag. The comments give the paper's value (Sec. 3.1) where it is another one."""

    steps: int = 40
    seed: int = 0
    model: str = str(Path(__file__).parent / "tiny_base")
    prompts: str = ""  # a file or data set of questions and answers; default: additions of three-digit numbers
    prompts_per_step: int = 16  # 128
    samples_per_prompt: int = 8  # 64
    max_new_tokens: int = 48  # 8,000 (released code)
    gamma: float = 1.0
    lambd: float = 1.0
    clip: float = 0.2  # the paper's epsilon
    critic_updates: int = 12
    policy_lr: float = 2e-4  # 1e-6; a network this small learns at far higher rates
    critic_lr: float = 1e-3  # 5e-6
    warmup_steps: int = 0  # 50 optimizer steps, the critic's own for the critic


@dataclass
class Rollout:
    """B responses with their prompts in front, padded on the right: causal attention never sees the padding."""

    sequences_BS: Tensor  # token ids
    mask_BA: Tensor  # 1.0 where the prediction is an action, that is, where token t + 1 is of the response
    rewards_B: Tensor  # 0.0 or 1.0


# ---- Prompts (Sec. 2.1.1, Table 1)


def load_questions(settings: Settings) -> list[tuple[str, str]]:
    """Questions with reference answers, shuffled by the seed."""
    if not settings.prompts:
        rows = arithmetic.generate_additions(settings.steps * settings.prompts_per_step, (3, 3), settings.seed)
        return [(row["question"], row["answer"]) for row in rows]
    found, _ = read_dataset(settings.prompts, "question", "answer")
    random.Random(settings.seed).shuffle(found)
    return [(row.question, row.answer) for row in found]


# ---- Responses and rewards (Sec. 2.1.2)


@torch.no_grad()
def sample(policy, tokenizer, prompts: list[str], max_new_tokens: int) -> list[list[int]]:
    """One response to each prompt, as token ids, with the end-of-text token or stop string that ended it."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    output_BS = policy.generate(
        **inputs, max_new_tokens=max_new_tokens, stop_strings=list(STOP_STRINGS), tokenizer=tokenizer,
        do_sample=True, temperature=1.0, top_p=1.0, top_k=0,  # the plain policy (Sec. 3.1); top_k 0: no limit
    )  # fmt: skip
    responses_BA = output_BS[:, inputs["input_ids"].shape[1] :]
    ends_A = torch.arange(1, responses_BA.shape[1] + 1)
    lengths_B = ((responses_BA != tokenizer.pad_token_id) * ends_A).amax(1)  # padding follows what ended early
    return [ids[:length].tolist() for ids, length in zip(responses_BA, lengths_B)]


def grade(grader: Grader, tokenizer, response: list[int], answer: str) -> float:
    """1.0 if the box in the answer block is right and the response has ended by itself, else 0.0. No format reward."""
    text = tokenizer.decode(response)
    ended = response[-1] == tokenizer.eos_token_id or any(stop in text for stop in STOP_STRINGS)
    return grader.grade(text, answer, stopped=ended).reward


def make_rollout(prompts: list[list[int]], responses: list[list[int]], rewards: list[float], pad: int) -> Rollout:
    """One batch of B prompts and responses (token ids); ``pad`` is the padding token."""
    sequences_BS = pad_sequence([torch.tensor(p + r) for p, r in zip(prompts, responses)], True, pad)
    is_response = [torch.tensor([0.0] * len(p) + [1.0] * len(r)) for p, r in zip(prompts, responses)]
    return Rollout(sequences_BS, pad_sequence(is_response, True)[:, 1:], torch.tensor(rewards))


# ---- The two models: same base, no shared weights (Sec. 3.1)


class Critic(torch.nn.Module):
    """The base model with a linear value head, (1, H) and without bias, in place of the vocabulary's."""

    def __init__(self, base, seed: int):
        super().__init__()
        self.base = base
        self.head = torch.nn.Linear(base.config.hidden_size, 1, bias=False)
        init_value_head(self.head.weight, "released", torch.Generator().manual_seed(seed))

    def forward(self, sequences_BS: Tensor) -> Tensor:
        """V(s_t) for the state before each prediction: values_BA."""
        return self.head(self.base(sequences_BS).last_hidden_state)[:, :-1, 0]


def action_log_probs(policy, sequences_BS: Tensor) -> Tensor:
    """log pi(a_t | s_t) of every token that stands there: log_probs_BA."""
    log_probs_BAV = policy(sequences_BS).logits[:, :-1].log_softmax(-1)
    return log_probs_BAV.gather(-1, sequences_BS[:, 1:, None])[..., 0]


def make_optimizer(
    model: torch.nn.Module, lr: float, warmup_steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW without weight decay, and a constant learning rate after a linear warm-up (Sec. 3.1)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    return optimizer, get_constant_schedule_with_warmup(optimizer, warmup_steps)


def optimizer_step(loss: Tensor, model: torch.nn.Module, optimizer, scheduler) -> None:
    """One step down the gradient, clipped to norm 1 (the paper does not say; this is OpenRLHF's default)."""
    loss.backward()
    clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()


# ---- PPO (Sec. 2.1.3)


def advantages_and_returns(rollout: Rollout, values_BA: Tensor, gamma=1.0, lambd=1.0) -> tuple[Tensor, Tensor]:
    """GAE with the reward on the last action token. At gamma = lambda = 1: R_t is the reward, A_t = R_t - V(s_t).

    The advantages are then normalised over all action tokens of the batch (Sec. 3.1).
    """
    mask_BA = rollout.mask_BA
    last_action_B = (mask_BA * torch.arange(mask_BA.shape[1])).argmax(1)
    rewards_BA = torch.zeros_like(mask_BA)
    rewards_BA[torch.arange(len(mask_BA)), last_action_B] = rollout.rewards_B
    advantages_BA, returns_BA = gae(values_BA, rewards_BA, mask_BA, gamma, lambd)
    mean = masked_mean(advantages_BA, mask_BA)
    variance = masked_mean((advantages_BA - mean) ** 2, mask_BA)
    return (advantages_BA - mean) / variance.clamp(min=1e-8).sqrt() * mask_BA, returns_BA


def policy_loss(
    log_probs_BA: Tensor, old_log_probs_BA: Tensor, advantages_BA: Tensor, mask_BA: Tensor, clip: float = 0.2
) -> Tensor:
    """Eq. 1, negated: the mean over all action tokens."""
    ratio_BA = (log_probs_BA - old_log_probs_BA).exp()
    clipped_BA = ratio_BA.clamp(1 - clip, 1 + clip)
    return -masked_mean(torch.minimum(ratio_BA * advantages_BA, clipped_BA * advantages_BA), mask_BA)


def value_loss(values_BA: Tensor, returns_BA: Tensor, mask_BA: Tensor) -> Tensor:
    """Eq. 2: 1/2 (V - R)^2, the mean over all action tokens; not clipped."""
    return 0.5 * masked_mean((values_BA - returns_BA) ** 2, mask_BA)


def train_policy(policy, optimizer, scheduler, rollout: Rollout, advantages_BA: Tensor, clip: float = 0.2) -> float:
    """One step on the whole rollout (strict on-policy, Sec. 3.1), without KL or entropy bonus. Returns the loss.

    The old policy is the policy itself: the ratio is 1, and its gradient is that of the log-probs.
    """
    log_probs_BA = action_log_probs(policy, rollout.sequences_BS)
    loss = policy_loss(log_probs_BA, log_probs_BA.detach(), advantages_BA, rollout.mask_BA, clip)
    optimizer_step(loss, policy, optimizer, scheduler)
    return loss.item()


def train_critic(critic, optimizer, scheduler, rollout: Rollout, returns_BA: Tensor, updates: int, rng) -> list[float]:
    """One step on each of ``updates`` shuffled mini-batches of the rollout (Sec. 3.1). Returns their losses."""
    losses = []
    for rows in cut_mini_batches(len(returns_BA), updates, rng):
        loss = value_loss(critic(rollout.sequences_BS[rows]), returns_BA[rows], rollout.mask_BA[rows])
        optimizer_step(loss, critic, optimizer, scheduler)
        losses.append(loss.item())
    return losses


# ---- Training


def train(settings: Settings) -> list[float]:
    """The training loop; prints a line for each step. Returns the mean reward of each step."""
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise SystemExit(f"--model {settings.model}: its tokenizer needs a padding token that does not end a text")
    policy = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32)
    critic = Critic(AutoModel.from_pretrained(settings.model, dtype=torch.float32), settings.seed)
    policy_optimizer = make_optimizer(policy, settings.policy_lr, settings.warmup_steps)
    critic_optimizer = make_optimizer(critic, settings.critic_lr, settings.warmup_steps)
    questions = itertools.cycle(load_questions(settings))
    mean_rewards = []
    with Grader() as grader:
        for step in range(1, settings.steps + 1):
            begin = time.monotonic()
            asked = list(itertools.islice(questions, settings.prompts_per_step))
            asked_B = [pair for pair in asked for _ in range(settings.samples_per_prompt)]
            prompts = [render("paper", question) for question, _ in asked_B]
            responses = sample(policy, tokenizer, prompts, settings.max_new_tokens)
            rewards = [grade(grader, tokenizer, ids, answer) for ids, (_, answer) in zip(responses, asked_B)]
            rollout = make_rollout(tokenizer(prompts)["input_ids"], responses, rewards, tokenizer.pad_token_id)

            with torch.no_grad():  # values of the critic that has not yet seen this rollout
                values_BA = critic(rollout.sequences_BS)
            advantages_BA, returns_BA = advantages_and_returns(rollout, values_BA, settings.gamma, settings.lambd)
            train_critic(critic, *critic_optimizer, rollout, returns_BA, settings.critic_updates, rng)
            train_policy(policy, *policy_optimizer, rollout, advantages_BA, settings.clip)

            mean_rewards.append(rollout.rewards_B.mean().item())
            tokens, seconds = rollout.mask_BA.sum(1).mean(), time.monotonic() - begin
            print(f"step {step}: reward {mean_rewards[-1]:.3f}, {tokens:.1f} tokens, {seconds:.1f} s", flush=True)
    return mean_rewards


def main(argv: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Settings):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default, help=f"({field.default})")
    return train(Settings(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
