"""TRL's GRPO trainer on a model and prompts of ours; runs in its own environment (setup_trl.sh).

One step for each line that comes in; for each, a JSON line with its seconds goes out.
"""

import argparse
import json
import sys
import time

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Paced(TrainerCallback):
    """Waits before a step until it is told to go, and reports the step's seconds."""

    def on_step_begin(self, args, state, control, **kwargs):
        if not sys.stdin.readline():
            control.should_training_stop = True
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        print("STEP " + json.dumps({"seconds": time.perf_counter() - self.start}), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True, help="a JSON list of texts")
    parser.add_argument("--group", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True, help="of each response")
    parser.add_argument("--micro-batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prompts = json.loads(options.prompts)
    rollouts = len(prompts) * options.group
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    calls = []

    def reward(prompts, completions, **kwargs):
        calls.append(len(completions))
        return [float((i + len(calls)) % 2) for i in range(len(completions))]

    config = GRPOConfig(
        output_dir=options.model + "-trl", use_cpu=True, bf16=False, fp16=False, report_to="none", save_strategy="no",
        per_device_train_batch_size=options.micro_batch, gradient_accumulation_steps=rollouts // options.micro_batch,
        num_generations=options.group, max_completion_length=options.tokens, temperature=1.0, beta=0.0,
        learning_rate=1e-6, lr_scheduler_type="constant", max_steps=options.steps, logging_strategy="no",
        gradient_checkpointing=False, disable_tqdm=True, generation_kwargs={"min_new_tokens": options.tokens},
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=AutoTokenizer.from_pretrained(options.model), callbacks=[Paced()],
    )  # fmt: skip
    trainer.train()
    print("DONE " + json.dumps({"rollouts_generated": sum(calls)}), flush=True)


if __name__ == "__main__":
    main()
