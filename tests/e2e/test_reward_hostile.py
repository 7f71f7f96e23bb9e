"""Training with hostile answers planted among the policy's own: the run ends, the rest keeps its rewards."""

import json
from pathlib import Path

import pytest
from runs import read_jsonl, succeed

from openrlhf_orz.data.arithmetic import generate_additions
from openrlhf_orz.reward import Grader

pytestmark = pytest.mark.e2e
BASE = Path(__file__).parents[2] / "examples" / "tiny_base"

# Loaded by path as OpenRLHF loads an agent: ours, with every fourth response replaced before it is graded.
PLANTING_AGENT = """
import json, threading
from openrlhf_orz.rollout.agent import AgentExecutor as Ours

HOSTILE = [
    "9^{{9^{{9}}}}", "(10^9)!", "e^{{e^{{e^{{e}}}}}}", "(x+y+z)^{{999}}",
    "{{" * 400 + "1" + "}}" * 400, "7" * 1_000_000, "\\x00",
    "\\ud800", "\\\\lfloor 10^{{999}} \\\\pi \\\\rfloor", "\\\\sum_{{n=1}}^{{10^9}} \\\\frac{{1}}{{n}}",
    "3 or 4", "x=x",
]

class Planting:
    def __init__(self, verifiers):
        self.grader, self.lock, self.count = verifiers.named(), threading.Lock(), 0

    def named(self, name):
        return self

    def grade(self, response, gold, stopped=True):
        with self.lock:
            self.count += 1
            number = self.count
        planted = number % 4 == 0
        if planted:
            hostile = HOSTILE[number // 4 % len(HOSTILE)]
            response, stopped = "</think><answer>\\\\boxed{{" + hostile + "}}</answer>", True
        grade = self.grader.grade(response, gold, stopped)
        row = dict(response=response, gold=gold, stopped=stopped, planted=planted)
        row |= dict(reward=grade.reward, verdict=grade.verdict.label)
        with self.lock, open({log!r}, "a") as log:
            log.write(json.dumps(row) + "\\n")
        return grade

class AgentExecutor(Ours):
    def __init__(self):
        super().__init__()
        self.verifiers = Planting(self.verifiers)
"""


def test_hostile_answers_in_a_training_run(tmp_path):
    log, agent = tmp_path / "graded.jsonl", tmp_path / "planting_agent.py"
    agent.write_text(PLANTING_AGENT.format(log=str(log)))
    sums = tmp_path / "sums.jsonl"
    rows = [{"question": row["question"], "answer": row["answer"]} for row in generate_additions(12, (3, 3), seed=1)]
    sums.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = succeed(
        tmp_path / "run", BASE, sums, "--orz.prompt_template", "paper",
        "--data.max_len", "160", "--rollout.max_new_tokens", "64", "--train.agent_func_path", agent,
    )  # fmt: skip
    assert len(metrics) == 3
    rows = read_jsonl(log)
    planted = [row for row in rows if row["planted"]]
    assert len(rows) == sum(m["samples"] for m in metrics) and len(planted) == len(rows) // 4
    assert [row["response"][:60] for row in planted if row["reward"]] == []
    assert {"refused", "wrong"} <= {row["verdict"] for row in planted}
    with Grader(workers=2) as grader:
        for row in rows:
            if not row["planted"]:
                assert grader.grade(row["response"], row["gold"], row["stopped"]).reward == row["reward"], json.dumps(
                    row
                )
    assert any(row["reward"] for row in rows)
