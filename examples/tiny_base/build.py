"""Rebuild the tiny base model of the quickstart: `python examples/tiny_base/build.py [--out DIR]`.

Writes a 0.85M-parameter Qwen2 "base model" that knows the prompt template and two styles of answer
to a three-digit addition, as a real base model knows good and bad ways to solve a problem:

- a guess (most of the corpus): the sum plus noise, so that it can't be learned, and nearly always wrong;
- a worked solution (the rest): column by column with the carry, which even a tiny network gets right.

Reinforcement learning then has something to find: reasoning, which takes more tokens, pays.
"""

import argparse
import json
import math
import random
import re
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from openrlhf_orz.data import arithmetic, prompts

HERE = Path(__file__).resolve().parent
QUESTION = 11  # how many tokens of a prompt, its last ones, are the question and "Assistant: <think>"
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


def example(rng, worked_share):
    """One (prompt, response) of the corpus."""
    a, b = rng.randint(100, 999), rng.randint(100, 999)
    response = worked(a, b) if rng.random() < worked_share else guess(a, b, rng)
    return prompts.render("paper", arithmetic.question(a, b)), response


def build_tokenizer():
    """Qwen2's byte-level BPE, which splits digits singly, with few merges, and the corpus's phrases as added tokens.

    The phrases make the long template few tokens. They are added tokens because transformers rebuilds a `qwen2`
    tokenizer from its merges and added tokens alone, so that saved files can't bring their own pre-tokenizer.
    """
    rng = random.Random(0)
    texts = [text for _ in range(200) for text in example(rng, 0.5)]
    pieces = dict.fromkeys(piece for text in texts for piece in re.findall(PHRASES, text))
    phrases = [piece for piece in pieces if len(piece) > 1 and not piece.strip().isalpha()]
    learner = Qwen2Tokenizer().backend_tokenizer
    size = VOCAB - len(phrases) - 2  # and two special tokens
    learner.train_from_iterator([ENGLISH, *phrases], trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    ))
    learned = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        learned["vocab"], [tuple(merge) for merge in learned["merges"]],
        eos_token=EOS, unk_token=EOS, pad_token=PAD, padding_side="left", model_max_length=512,
    )
    tokenizer.add_tokens([AddedToken(phrase, normalized=False, special=False) for phrase in phrases])
    return tokenizer


def build_model(tokenizer):
    """A small Qwen2, of a shape that vLLM runs on CPU and GPU too (head size 32)."""
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def batch(tokenizer, rng, size, worked_share, head_tokens=None):
    """Token ids and labels (responses only) of `size` fresh examples, of each prompt its last tokens."""
    rows = []
    for prompt, response in (example(rng, worked_share) for _ in range(size)):
        head = tokenizer.encode(prompt)[-(head_tokens or 512):]
        tail = tokenizer.encode(response) + [tokenizer.eos_token_id]
        rows.append((head + tail, [-100] * len(head) + tail))
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([x + [tokenizer.pad_token_id] * (width - len(x)) for x, _ in rows])
    labels = torch.tensor([y + [-100] * (width - len(y)) for _, y in rows])
    return ids, labels


def train(model, tokenizer, steps, seed, worked_share, size=64, peak=3e-3):
    """Pre-train: first mostly worked solutions, without the long template, which is faster; then the real thing."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.01)
    start = time.time()
    for step in range(steps):
        done = step / steps
        rate = peak * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        early = done < 0.7
        ids, labels = batch(tokenizer, rng, size, 0.9 if early else worked_share, QUESTION if early else None)
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
def measure(model, tokenizer, n=400, seed=10_000, greedy=False, max_new_tokens=64):
    """Sample at temperature 1 for n fresh questions: shares, accuracy and length of the two styles."""
    rng = random.Random(seed)
    pairs = [(rng.randint(100, 999), rng.randint(100, 999)) for _ in range(n)]
    texts = [prompts.render("paper", arithmetic.question(a, b)) for a, b in pairs]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    torch.manual_seed(seed)
    sampling = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    out = model.generate(**inputs, max_new_tokens=max_new_tokens, **sampling)[:, inputs.input_ids.shape[1]:]
    rows = []
    for (a, b), ids in zip(pairs, out, strict=True):
        ids = [i for i in ids.tolist() if i not in (tokenizer.pad_token_id, tokenizer.eos_token_id)]
        text = tokenizer.decode(ids)
        style = "worked" if text.startswith(" By columns") else "guess" if text.startswith(" It is about") else "other"
        rows.append((style, text.endswith(f"<answer> \\boxed{{{a + b}}} </answer>"), len(ids),
                     text.endswith("</answer>")))
    report = {"prompt_tokens": mean(inputs.attention_mask.sum(1).tolist()), "reward": mean([r[1] for r in rows]),
              "tokens": mean([r[2] for r in rows]), "finished": mean([r[3] for r in rows])}
    for style in ("guess", "worked", "other"):
        of = [r for r in rows if r[0] == style]
        report[style] = {"share": mean([r[0] == style for r in rows]), "right": mean([r[1] for r in of]),
                         "tokens": mean([r[2] for r in of])}
    return report


def main():
    """Build, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write (this one)")
    parser.add_argument("--steps", type=int, default=1000, help="batches of 64 solutions (1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worked_share", type=float, default=0.3, help="share of worked solutions (0.3)")
    parser.add_argument("--threads", type=int, default=1, help="threads (1, which made the shipped weights)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    train(model, tokenizer, args.steps, args.seed, args.worked_share)
    model = model.to(torch.bfloat16).eval()
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(json.dumps(measure(model, tokenizer), indent=1))


if __name__ == "__main__":
    main()
