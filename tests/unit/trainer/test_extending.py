"""The code of docs/extending.md does what the page says."""

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("openrlhf")
from openrlhf.trainer.ppo_trainer import BasePPOTrainer
from test_ppo_trainer import rollouts, trainer_of

from openrlhf_orz.rollout.agent import AgentExecutor
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.trainer.classes import run_classes
from openrlhf_orz.trainer.critic import OrzCriticModelActor
from openrlhf_orz.trainer.ppo_trainer import OrzPPOTrainer, OrzPPOTrainerAsync

PAGE = (Path(__file__).parents[3] / "docs" / "extending.md").read_text()
TRAINER, REWARD, AGENT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def made_by(code, name):
    space = {"__name__": "own"}
    exec(code, space)
    return space[name]


def test_a_metric_in_15_lines(monkeypatch, tmp_path):
    assert len(TRAINER.strip().splitlines()) <= 15
    trainer = trainer_of(tmp_path, cls=made_by(TRAINER, "Trainer"))
    monkeypatch.setattr(BasePPOTrainer, "train_step", lambda self, samples, step: ({}, step + 1))
    samples = rollouts()
    samples[0].action_mask = samples[0].action_mask.new_ones(1, 31)
    samples[0].sequences = samples[0].sequences.new_ones(1, 32)
    status, step = trainer.train_step(samples, 0)
    assert trainer.metrics.record(step, status)["short_responses"] == 0.75


def test_a_reward():
    reward = made_by(REWARD, "Shorter")()
    assert [reward.grade("so 4.", 4, stopped) for stopped in (True, False)] == [0.5, 0.0]


def test_an_agent(monkeypatch):
    agent = made_by(AGENT, "Twice")
    rewards = iter([0.0, 1.0])

    async def once(self, *args, **kwargs):
        return {"reward": next(rewards)}

    monkeypatch.setattr(AgentExecutor, "execute", once)
    assert asyncio.run(agent(stop=()).execute())["reward"] == 1.0


def arguments(asynchronous=False, **given):
    names = ("trainer_cls", "actor_cls", "critic_cls", "agent_cls", "reward_cls")
    orz = SimpleNamespace(**{name: given.get(name) for name in names})
    return SimpleNamespace(orz=orz, train=SimpleNamespace(async_enable=asynchronous))


def test_classes_of_a_run():
    ours = run_classes(arguments(), {})
    assert (ours.trainer, ours.critic, ours.agent) == (
        OrzPPOTrainer,
        OrzCriticModelActor,
        None,
    ) and not ours.own_rewards
    assert run_classes(arguments(asynchronous=True), {}).trainer is OrzPPOTrainerAsync

    class Critic(OrzCriticModelActor):
        pass

    class Agent(AgentExecutor):
        pass

    found = run_classes(arguments(critic_cls="named:ButNotRead"), {"critic_cls": Critic, "agent_cls": Agent})
    assert found.critic is Critic and found.agent is Agent and not found.own_rewards  # the agent keeps our verifiers
    assert run_classes(arguments(), {"reward_cls": made_by(REWARD, "Shorter")}).own_rewards
    with pytest.raises(ConfigError, match="--orz.trainer_cls .*OrzPPOTrainerAsync: inherit from it"):
        run_classes(arguments(asynchronous=True), {"trainer_cls": OrzPPOTrainer})
