"""Rebuild the tiny base model of the quickstart: `python examples/tiny_base/build.py [--out DIR]`.

Writes a 0.85M-parameter Qwen2 "base model" that knows the prompt template and two styles of answer
to a three-digit addition, as a real base model knows good and bad ways to solve a problem:

- a guess (most of the corpus): the sum plus noise, so that it can't be learned, and nearly always wrong;
- a worked solution (the rest): column by column with the carry, which even a tiny network gets right.

Reinforcement learning then has something to find: reasoning, which takes more tokens, pays.

`--task counting` and `forms` make the bases of the miniature instead: additions by counting on
(examples/miniature/task.py, forms.py).
"""

import argparse
import json
import math
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from miniature import forms
from miniature import task as counting

from openrlhf_orz.data import arithmetic, prompts

VOCAB, EOS, PAD = 512, "<|endoftext|>", "<|pad|>"
# A tag, or text up to a punctuation mark, the end of a line, a digit or a tag.
PHRASES = r" ?</?\w+>| ?\\boxed\{|[^\d<\\]+?(?:[.,:?] |\n|(?=\d| ?<| ?\\|$))"
ENGLISH = """Wait, let me check this again. However, there is another way to think about it: first we find
the number of units, then the tens and the hundreds, and write the sum. So the answer should be correct, because
each step follows from the one before. Let us solve the question with care; now what do we have? We can see that
it equals the other, which must be the result. Therefore the final value will be more than these two together."""


def guess(a, b, rng):
    """A short answer: the sum give or take 50."""
    n = a + b + rng.randint(-50, 50)
    return f" It is about {n}, I guess. </think> <answer> \\boxed{{{n}}} </answer>"


def worked(a, b):
    """Column by column from the right, with the carry: right, and more than twice as long."""
    columns, carry = [], 0
    for x, y in zip(str(a)[::-1], str(b)[::-1], strict=True):
        total = int(x) + int(y) + carry
        columns.append(f"{x}+{y}" + "+1" * carry + f"={total}")
        carry = total // 10
    return f" By columns: {', '.join(columns)}. </think> <answer> \\boxed{{{a + b}}} </answer>"


@dataclass(frozen=True)
class Task:
    """What a base model is made to know.

    draw: a fresh question's terms; styles: how to answer one; beginnings: how a response of each style begins.
    question: its text; answers: what is right, in the box.
    early: shares of the styles in the first part of the training, which has no long template before the question.
    question_tokens: how many tokens of a prompt, its last ones, are the question and "Assistant: <think>".
    size, steps: examples in a batch; batches.
    mixed: in the first part every fourth batch has the template, which makes the change less of a shock.
    """

    draw: Callable
    styles: dict[str, Callable]
    beginnings: dict[str, str]
    shares: dict[str, float]
    early: dict[str, float]
    question_tokens: int
    size: int = 64
    steps: int = 1000
    mixed: bool = False
    question: Callable = lambda terms: arithmetic.addition_question(*terms)
    answers: Callable = lambda terms: [str(sum(terms))]

    def example(self, rng, shares):
        """One (prompt, response) of the corpus."""
        terms = self.draw(rng)
        at = rng.random()
        for style, share in shares.items():  # noqa: B007 - the last one, if rounding leaves a rest
            at -= share
            if at < 0:
                break
        return prompts.render("paper", self.question(terms)), self.styles[style](terms, rng)


TASKS = {
    "columns": Task(
        draw=lambda rng: (rng.randint(100, 999), rng.randint(100, 999)),
        styles={"worked": lambda terms, rng: worked(*terms), "guess": lambda terms, rng: guess(*terms, rng)},
        beginnings={"guess": " It is about", "worked": " By columns"},
        shares={"worked": 0.3, "guess": 0.7},
        early={"worked": 0.9, "guess": 0.1},
        question_tokens=11,
    ),
    "counting": Task(
        draw=counting.draw,
        styles=counting.STYLES,
        beginnings=counting.BEGINNINGS,
        shares=counting.SHARES,
        early={"countdown": 0.6, "weary": 0.25, "guess": 0.15},
        question_tokens=11,
        size=16,
        steps=700,
        mixed=True,
    ),
    "forms": Task(
        draw=forms.draw,
        styles=forms.STYLES,
        beginnings=forms.BEGINNINGS,
        shares=forms.STYLE_SHARES,
        early={"tally": 0.7, "count": 0.2, "guess": 0.1},
        question_tokens=32,
        size=16,
        steps=1000,
        mixed=True,
        question=forms.question,
        answers=forms.answers,
    ),
}


def build_tokenizer(task=TASKS["columns"]):
    """Qwen2's byte-level BPE, which splits digits singly, with few merges, and the corpus's phrases as added tokens.

    The phrases make the long template few tokens. They are added tokens because transformers rebuilds a `qwen2`
    tokenizer from its merges and added tokens alone, so that saved files can't bring their own pre-tokenizer.
    """
    rng = random.Random(0)
    even = {style: 1 / len(task.styles) for style in task.styles}
    texts = [text for _ in range(200) for text in task.example(rng, even)]
    pieces = dict.fromkeys(piece for text in texts for piece in re.findall(PHRASES, text))
    phrases = [piece for piece in pieces if len(piece) > 1 and not piece.strip().isalpha()]
    learner = Qwen2Tokenizer().backend_tokenizer
    size = VOCAB - len(phrases) - 2  # and two special tokens
    learner.train_from_iterator(
        [ENGLISH, *phrases],
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())),
    )
    learned = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        learned["vocab"],
        [tuple(merge) for merge in learned["merges"]],
        eos_token=EOS,
        unk_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=512,
    )
    tokenizer.add_tokens([AddedToken(phrase, normalized=False, special=False) for phrase in phrases])
    return tokenizer


def build_model(tokenizer, hidden=128):
    """A small Qwen2, of a shape that vLLM runs on CPU and GPU too (head size 32)."""
    heads = hidden // 32
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=4,
        num_attention_heads=heads,
        num_key_value_heads=2 if heads % 2 == 0 else 1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def batch(tokenizer, rng, size, task, shares, head_tokens=None):
    """Token ids and labels (responses only) of `size` fresh examples, of each prompt its last tokens."""
    rows = []
    for prompt, response in (task.example(rng, shares) for _ in range(size)):
        head = tokenizer.encode(prompt)[-(head_tokens or 512) :]
        tail = tokenizer.encode(response) + [tokenizer.eos_token_id]
        rows.append((head + tail, [-100] * len(head) + tail))
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([x + [tokenizer.pad_token_id] * (width - len(x)) for x, _ in rows])
    labels = torch.tensor([y + [-100] * (width - len(y)) for _, y in rows])
    return ids, labels


def train(model, tokenizer, steps, seed, task, peak=3e-3):
    """Pre-train: first mostly worked solutions, without the long template, which is faster; then the real thing."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.01)
    start = time.time()
    for step in range(steps):
        done = step / steps
        rate = peak * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        early = done < 0.7 and not (task.mixed and step % 4 == 0)
        if early:
            ids, labels = batch(tokenizer, rng, task.size, task, task.early, task.question_tokens)
        else:
            ids, labels = batch(tokenizer, rng, task.size, task, task.shares)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.3f} {time.time() - start:.0f} s", flush=True)


def mean(values):
    """The mean, to three digits; 0 of nothing."""
    return round(sum(values) / max(1, len(values)), 3)


@torch.no_grad()
def measure(model, tokenizer, n=400, seed=10_000, greedy=False, max_new_tokens=64, task=TASKS["columns"]):
    """Sample at temperature 1 for n fresh questions: shares, accuracy and length of the styles."""
    rng = random.Random(seed)
    asked = [task.draw(rng) for _ in range(n)]
    texts = [prompts.render("paper", task.question(terms)) for terms in asked]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    torch.manual_seed(seed)
    sampling = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    out = model.generate(**inputs, max_new_tokens=max_new_tokens, **sampling)[:, inputs.input_ids.shape[1] :]
    rows = []
    for terms, ids in zip(asked, out, strict=True):
        ids = [i for i in ids.tolist() if i not in (tokenizer.pad_token_id, tokenizer.eos_token_id)]
        text = tokenizer.decode(ids)
        style = next((name for name, begins in task.beginnings.items() if text.startswith(begins)), "other")
        right = any(text.endswith(f"<answer> \\boxed{{{answer}}} </answer>") for answer in task.answers(terms))
        rows.append((style, right, len(ids), text.endswith("</answer>")))
    report = {
        "prompt_tokens": mean(inputs.attention_mask.sum(1).tolist()),
        "reward": mean([r[1] for r in rows]),
        "tokens": mean([r[2] for r in rows]),
        "finished": mean([r[3] for r in rows]),
    }
    for style in (*task.beginnings, "other"):
        of = [r for r in rows if r[0] == style]
        report[style] = {
            "share": mean([r[0] == style for r in rows]),
            "right": mean([r[1] for r in of]),
            "tokens": mean([r[2] for r in of]),
        }
    return report


def main():
    """Build, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write (this one)")
    parser.add_argument("--steps", type=int, help="batches of 64 (columns) or 16 solutions (1000, 700)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", choices=TASKS, default="columns", help="the quickstart's or the miniature's base")
    parser.add_argument("--hidden", type=int, default=128, help="hidden size, a multiple of 32 (128)")
    parser.add_argument("--threads", type=int, default=1, help="threads (1, which made the shipped weights)")
    args = parser.parse_args()
    task = TASKS[args.task]
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer(task)
    model = build_model(tokenizer, args.hidden)
    train(model, tokenizer, args.steps or task.steps, args.seed, task)
    model = model.to(torch.bfloat16).eval()
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(
        json.dumps(
            measure(model, tokenizer, max_new_tokens=352 if args.task == "counting" else 128, task=task), indent=1
        )
    )


if __name__ == "__main__":
    main()
