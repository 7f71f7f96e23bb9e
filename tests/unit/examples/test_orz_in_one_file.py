"""The one-file example: its formulas by hand, its rewards, and two steps of it."""

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

import orz_in_one_file as example
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf_orz.data.arithmetic import addition_question
from openrlhf_orz.data.prompts import render
from openrlhf_orz.reward.grader import Grader
from openrlhf_orz.settings.flags import STOP_STRINGS

WORKED = " By columns: 7+5=12, 6+8+1=15, 3+2+1=6. </think> <answer> \\boxed{652} </answer>"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(example.Settings.model)


def test_it_stays_short():
    assert len(Path(example.__file__).read_text().splitlines()) <= 250


def test_policy_loss_by_hand():
    # ratios 1.5 and 0.5, advantage +1 and -1: min(1.5, 1.2) = 1.2 and min(-0.5, -0.8) = -0.8; mean 0.2, negated
    log_probs = torch.log(torch.tensor([[0.6, 0.2]]))
    old = torch.log(torch.tensor([[0.4, 0.4]]))
    loss = example.policy_loss(log_probs, old, torch.tensor([[1.0, -1.0]]), torch.ones(1, 2))
    torch.testing.assert_close(loss, torch.tensor(-0.2))


def test_on_policy_gradient_is_that_of_the_log_probs():
    log_probs = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    example.policy_loss(log_probs, log_probs.detach(), torch.tensor([[2.0, -4.0, 9.0]]), mask).backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([[-1.0, 2.0, 0.0]]))


def test_value_loss_by_hand():
    values, returns = torch.tensor([[1.0, 0.0, 5.0]]), torch.tensor([[0.0, 2.0, 0.0]])
    torch.testing.assert_close(example.value_loss(values, returns, torch.tensor([[1.0, 1.0, 0]])), torch.tensor(1.25))


def test_rollout_and_advantages_by_hand():
    """Prompts of two tokens and one, responses of one token and three; V = 0.5 at every action."""
    rollout = example.make_rollout([[5, 6], [7]], [[8], [9, 10, 11]], [1.0, 0.0], pad=0)
    assert rollout.sequences_BS.tolist() == [[5, 6, 8, 0], [7, 9, 10, 11]]
    assert rollout.mask_BA.tolist() == [[0, 1, 0], [1, 1, 1]]
    advantages, returns = example.advantages_and_returns(rollout, torch.full((2, 3), 0.5))
    assert returns.tolist() == [[1, 1, 0], [0, 0, 0]]  # what stands before the first action is masked
    # A = 0.5, -0.5, -0.5, -0.5: mean -0.25, biased standard deviation sqrt(0.1875)
    high, low = 0.75 / math.sqrt(0.1875), -0.25 / math.sqrt(0.1875)
    torch.testing.assert_close(advantages, torch.tensor([[0, high, 0], [low, low, low]]))


def test_only_a_right_answer_that_has_ended_pays(tokenizer):
    right = tokenizer.encode(WORKED)
    with Grader(workers=1) as grader:
        for text, answer, reward in (
            (WORKED, "652", 1.0),
            (WORKED, "653", 0.0),
            (WORKED.replace("</answer>", ""), "652", 0.0),  # cut by length, or no block
            (" 652", "652", 0.0),
        ):
            assert example.grade(grader, tokenizer, tokenizer.encode(text), answer) == reward, text
        assert example.grade(grader, tokenizer, [*right, tokenizer.eos_token_id], "652") == 1.0


def test_responses_end_at_a_stop_string_and_keep_it(tokenizer):
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_pretrained(example.Settings.model, dtype=torch.float32)
    prompts = [render("paper", addition_question(367, 285))] * 8
    texts = tokenizer.batch_decode(example.sample(policy, tokenizer, prompts, 48))
    assert all(text.endswith("</answer>") for text in texts), texts
    short = example.sample(policy, tokenizer, prompts, 4)
    assert [len(ids) for ids in short] == [4] * 8
    assert not any(stop in text for text in tokenizer.batch_decode(short) for stop in STOP_STRINGS)


def test_two_steps(tmp_path, capsys):
    (tmp_path / "sums.jsonl").write_text(
        "".join(
            json.dumps({"question": addition_question(i, i), "answer": str(2 * i)}) + "\n" for i in (123, 456, 321)
        )
    )
    rewards = example.main(
        ["--steps", "2", "--prompts", str(tmp_path / "sums.jsonl"), "--prompts_per_step", "2",
         "--samples_per_prompt", "3", "--critic_updates", "3", "--max_new_tokens", "8"]
    )  # fmt: skip
    assert rewards == [0, 0]  # too short for an answer
    assert "step 2: reward 0.000, 8.0 tokens" in capsys.readouterr().out


def test_without_a_file_the_questions_are_additions():
    asked = example.load_questions(example.Settings(steps=2, prompts_per_step=3))
    assert len(set(asked)) == 6
    assert all(answer == str(sum(map(int, text[8:-1].split("+")))) for text, answer in asked)
