"""The code of docs/extending.md does what the page says."""

import asyncio
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("openrlhf")
from glue import make_args
from openrlhf.trainer.ppo_trainer import BasePPOTrainer
from openrlhf.trainer.ppo_utils.experience import Experience
from test_ppo_trainer import rollouts, trainer_of

from openrlhf_orz.evaluate import questions
from openrlhf_orz.reward import verifiers
from openrlhf_orz.rollout.agent import AgentExecutor
from openrlhf_orz.settings import command_line, flags
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.trainer.classes import run_classes
from openrlhf_orz.trainer.critic import OrzCriticModelActor
from openrlhf_orz.trainer.ppo_trainer import OrzPPOTrainer
from openrlhf_orz.trainer.ppo_trainer_async import OrzPPOTrainerAsync, OrzTrainingActor

PAGE = (Path(__file__).parents[3] / "docs" / "extending.md").read_text()
TRAINER, REWARD, AGENT, TURNS, ESTIMATOR, VERIFIER, FLAG, BENCHMARK = re.findall(
    r"```python\n(.*?)```", PAGE, re.DOTALL
)


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
    reward = made_by(REWARD, "Contains")()
    assert [reward.grade("so 4.", 4, stopped) for stopped in (True, False)] == [0.5, 0.0]


def test_an_agent(monkeypatch):
    agent = made_by(AGENT, "Twice")
    rewards = iter([0.0, 1.0])

    async def once(self, *args, **kwargs):
        return {"reward": next(rewards)}

    monkeypatch.setattr(AgentExecutor, "execute", once)
    assert asyncio.run(agent(stop=()).execute())["reward"] == 1.0


def test_an_agent_of_turns():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[3] / "examples" / "tiny_base")
    answers = iter(["It is 3.", "It is 4."])

    class Engine:
        async def generate(self, tokens, params, multi_modal_data):
            ids = tokenizer(text=(text := next(answers)))["input_ids"]
            return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, text=text, finish_reason="stop")])

    params = SimpleNamespace(max_tokens=40, logprobs=None)
    agent = made_by(TURNS, "AgentExecutor")()
    found = asyncio.run(agent.execute("2+2?", "4", params, 200, tokenizer, Engine()))
    said = [tokenizer.decode(found["observation_tokens"][start:end]) for start, end in found["action_ranges"]]
    assert found["reward"] == 1.0 and said == ["It is 3.", "It is 4."]
    assert "That is wrong." in tokenizer.decode(found["observation_tokens"])


def test_a_verifier_by_row(monkeypatch):
    monkeypatch.setattr(verifiers, "VERIFIERS", dict(verifiers.VERIFIERS))
    exec(VERIFIER, vars(verifiers))
    row = json.loads(re.search(r"\{\"question.*?\}", PAGE)[0])
    with verifiers.VerifierSet() as found:
        verifier = found.named(row["verifier"])
        grades = [
            verifier.grade(f"</think> <answer> \\boxed{{{x}}} </answer>", row["answer"]) for x in ("paris", "Rome")
        ]
    assert [grade.reward for grade in grades] == [1.0, 0.0]


def test_an_estimator(tmp_path):
    trainer = made_by(ESTIMATOR, "Trainer")
    maker = object.__new__(trainer.experience_maker_cls)
    maker.args = make_args(tmp_path, "--rollout.n_samples_per_prompt", "1")
    maker.strategy, maker.kl_ctl = SimpleNamespace(args=maker.args), SimpleNamespace(value=0.0)
    maker.advantage_estimator = "gae"
    mask = torch.ones(3, 1)
    experience = Experience(
        rewards=torch.tensor([1.0, 0.0, 0.0]), values=torch.tensor([[0.25], [0.75], [0.0]]), action_mask=mask,
        kl=torch.zeros(3, 1), index=[0, 1, 2], response_length=torch.ones(3), info={},
    )  # fmt: skip
    (found,) = maker.compute_advantages_and_returns([experience])
    assert found.advantages.tolist() == [[pytest.approx(1.225, abs=1e-3)], [0.0], [0.0]], "what reaches the loss"
    assert found.returns.tolist() == [[1.0], [0.0], [0.0]]


def test_a_flag(monkeypatch):
    monkeypatch.setattr(command_line, "ORZ_FLAGS", (*command_line.ORZ_FLAGS, eval(FLAG, vars(flags))))
    assert vars(command_line.training_parser().parse_args(["--orz.mine", "3"]))["orz.mine"] == 3


def test_a_benchmark():
    bench = eval(BENCHMARK, vars(questions))
    (question,) = questions.questions_of([{"problem": "1+1?", "answer": "2"}], "mine", 0, "here", bench)
    assert (question.text, question.reference) == ("1+1?", "2")


def arguments(asynchronous=False, **given):
    names = ("trainer_cls", "actor_cls", "critic_cls", "agent_cls", "reward_cls")
    orz = SimpleNamespace(**{name: given.get(name) for name in names}, cross_fit_values=given.get("cross_fit", False))
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
    assert run_classes(arguments(), {"reward_cls": made_by(REWARD, "Contains")}).own_rewards
    with pytest.raises(ConfigError, match="--orz.trainer_cls .*OrzPPOTrainerAsync: inherit from it"):
        run_classes(arguments(asynchronous=True), {"trainer_cls": OrzPPOTrainer})


def test_what_would_be_ignored_is_refused():
    """Advantages that --orz.cross_fit_values would replace, and what another process does asynchronously."""
    OnlyBetter = made_by(ESTIMATOR, "Trainer")
    assert run_classes(arguments(), {"trainer_cls": OnlyBetter}).trainer is OnlyBetter
    with pytest.raises(ConfigError, match="Trainer: --orz.cross_fit_values makes the advantages in its place: leave"):
        run_classes(arguments(cross_fit=True), {"trainer_cls": OnlyBetter})

    class Plain(OrzPPOTrainer):
        pass

    assert run_classes(arguments(cross_fit=True), {"trainer_cls": Plain}).trainer is Plain

    class Late(OrzPPOTrainerAsync):
        experience_maker_cls = OnlyBetter.experience_maker_cls

    with pytest.raises(ConfigError, match="does not ask it for experience_maker_cls: put that on a subclass of Orz"):
        run_classes(arguments(asynchronous=True), {"trainer_cls": Late})

    class Actor(OrzTrainingActor):
        experience_maker_cls = OnlyBetter.experience_maker_cls

    class There(OrzPPOTrainerAsync):
        training_actor_cls = Actor

    assert run_classes(arguments(asynchronous=True), {"trainer_cls": There}).trainer is There
