"""What the tests of the trainer's glue share: settings, samples as OpenRLHF makes them, groups that record calls."""

from types import SimpleNamespace

import ray
import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_orz.settings.command_line import parse
from openrlhf_orz.settings.finished import RunFacts, changed, for_openrlhf

BASE = [
    "--actor.model_name_or_path", "none/none", "--data.prompt_dataset", "none", "--orz.device", "cpu",
    "--rollout.batch_size", "4", "--rollout.n_samples_per_prompt", "2", "--orz.critic_updates", "2",
]  # fmt: skip


def make_args(folder, *flags, changes=None, **run):
    """Settings as a trainer gets them, with files below ``folder``; ``run`` are fields of its ``RunFacts``."""
    args, _ = parse([*BASE, "--ckpt.output_dir", str(folder), *flags])
    known = {"checkpoints": f"{folder}/checkpoints", "scratch": f"{folder}/scratch/", **run}
    return changed(for_openrlhf(args, RunFacts(**known)), changes or {})


def make_sample(prompt=3, response=4, reward=1.0, truncated=False, **info):
    """One response as OpenRLHF's samples generator hands it on: (1, S) tokens, (1, S - 1) action mask."""
    tokens = prompt + response
    mask = torch.zeros(1, tokens - 1)
    mask[0, prompt - 1 :] = 1
    return Experience(
        sequences=torch.arange(1, tokens + 1)[None], attention_mask=torch.ones(1, tokens).long(), action_mask=mask,
        rewards=torch.tensor([reward]), truncated=torch.tensor([float(truncated)]), prompts=["What is 1+1?"],
        labels=["2"], total_length=torch.tensor([tokens]), response_length=torch.tensor([response]),
        info={name: torch.tensor([float(value)]) for name, value in info.items()},
    )  # fmt: skip


def bare(cls, args, skipped=()):
    """A policy's or critic's trainer without a model, on one rank; its guard leaves out the ``skipped`` steps."""
    trainer, guard = object.__new__(cls), SimpleNamespace(total=3)  # three of the rollouts before

    def after_step(buffer, step):
        guard.total += step in skipped
        return step not in skipped

    guard.after_step = after_step
    trainer.args, trainer.guard = args, guard
    trainer.strategy = SimpleNamespace(all_reduce=lambda x, op="mean": x)
    return trainer


class Tokenizer:
    """Decodes a token to its number."""

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(str(int(i)) for i in ids)

    def batch_decode(self, rows, skip_special_tokens=True):
        return [self.decode(row) for row in rows]


class Group:
    """Stands where OpenRLHF has a RayActorGroup: notes the calls and answers with ``results`` by method."""

    duplicate_actors = 1

    def __init__(self, ranks=1, calls=None, name="", **results):
        self._actor_handlers = [SimpleNamespace()] * ranks
        self.calls, self.name, self.results = [] if calls is None else calls, name, results

    def async_run_method(self, method_name, **kwargs):
        self.calls.append((self.name, method_name, kwargs))
        return [self.results.get(method_name)] * len(self._actor_handlers)

    def async_run_method_batch(self, method_name, **kwargs):
        return self.async_run_method(method_name, **kwargs)


def no_ray(monkeypatch):
    """``ray.get`` of what a Group returns is that itself."""
    monkeypatch.setattr(ray, "get", lambda refs, **_: refs)
