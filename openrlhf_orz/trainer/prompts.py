"""The prompts of a run, in their order."""

import math

from openrlhf.trainer.ppo_trainer import prepare_datasets

from openrlhf_orz.data.prompt_loader import PromptLoader


def load_prompts(strategy, tokenizer):
    """OpenRLHF's data sets, in an order fixed by seed and episode; a partial last rollout counts as steps, too.

    Returns the prompts, the evaluation prompts (or None) and the number of policy steps of the run.
    """
    args = strategy.args
    prompts, evaluation, _ = prepare_datasets(strategy, tokenizer)
    prompts = PromptLoader(prompts.dataset, prompts.dataset.collate_fn, args.train.seed)
    rollouts = math.ceil(len(prompts.dataset) / args.rollout.batch_size) * args.train.num_episodes
    return prompts, evaluation, rollouts * args.train.max_epochs * args.orz.policy_updates
