"""The classes of a run: ours, or subclasses of one's own, named by flags or handed to ``main`` (docs/extending.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from openrlhf.utils.agent import AgentExecutorBase

from openrlhf_orz.rollout.agent import AgentExecutor
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.own_code import load_class, own_class, reward_class
from openrlhf_orz.trainer.actor import OrzPolicyModelActor
from openrlhf_orz.trainer.critic import OrzCriticModelActor
from openrlhf_orz.trainer.experience_maker import OrzExperienceMaker
from openrlhf_orz.trainer.ppo_trainer import OrzPPOTrainer, OrzTrainer
from openrlhf_orz.trainer.ppo_trainer_async import OrzPPOTrainerAsync


@dataclass(frozen=True)
class RunClasses:
    """``agent`` and ``reward`` are None where the run has ours."""

    trainer: type
    actor: type
    critic: type
    agent: type | None
    reward: type | None

    @property
    def own_rewards(self) -> bool:
        """Whether a class of the user's gives the rewards, and no verifier."""
        return self.reward is not None or not (self.agent is None or issubclass(self.agent, AgentExecutor))


def run_classes(args: SimpleNamespace, given: Mapping[str, type]) -> RunClasses:
    """The classes of ``--orz.trainer_cls`` and its like; ``given`` has classes by these names, which win.

    Raises ConfigError, which names the flag, for what is no such class.
    """
    chosen = {
        name: given.get(name) or getattr(args.orz, name)
        for name in ("trainer_cls", "actor_cls", "critic_cls", "agent_cls", "reward_cls")
    }
    base = OrzPPOTrainerAsync if args.train.async_enable else OrzPPOTrainer
    agent = load_class("agent_cls", chosen["agent_cls"])
    trainer = own_class("trainer_cls", chosen["trainer_cls"], base)
    if ignored := _ignored(trainer, args):
        raise ConfigError(f"--orz.trainer_cls {trainer.__module__}:{trainer.__qualname__}: {ignored}")
    return RunClasses(
        trainer=trainer,
        actor=own_class("actor_cls", chosen["actor_cls"], OrzPolicyModelActor),
        critic=own_class("critic_cls", chosen["critic_cls"], OrzCriticModelActor),
        agent=None if agent is None else own_class("agent_cls", agent, AgentExecutorBase),
        reward=reward_class(chosen["reward_cls"]),
    )


def _ignored(trainer: type, args: SimpleNamespace) -> str | None:
    """What of the trainer nobody would ask for, with the remedy; None where all of it acts."""
    if args.train.async_enable:
        names = [name for name in vars(OrzTrainer) if hasattr(trainer, name) and not hasattr(OrzPPOTrainerAsync, name)]
        if names:
            return (
                f"asynchronous training does not ask it for {', '.join(names)}: put that on a subclass of"
                " OrzTrainingActor, and name it as training_actor_cls"
            )
    maker = getattr(getattr(trainer, "training_actor_cls", trainer), "experience_maker_cls", OrzExperienceMaker)
    makes = ("compute_advantages_and_returns", "get_advantages_and_returns")
    if args.orz.cross_fit_values and any(
        getattr(maker, each) is not getattr(OrzExperienceMaker, each) for each in makes
    ):
        return "--orz.cross_fit_values makes the advantages in its place: leave that flag out"
    return None
