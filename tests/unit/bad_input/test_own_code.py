"""Rewards, agents, classes, verifiers and labels of the user's: what starts, and what is refused before Ray does."""

import json
import sys
from types import SimpleNamespace

import pytest
from command_line import check

from openrlhf_orz.cli import train_ppo_ray
from openrlhf_orz.reward.verifiers import VERIFIERS, unpack_label
from openrlhf_orz.settings.openrlhf_flags import RECORDS

REWARD = "def reward_func(queries, prompts, labels):\n    return {'rewards': [0.5]}\n"
AGENT = (
    "from openrlhf.utils.agent import AgentExecutorBase\nclass AgentExecutor(AgentExecutorBase):\n    execute = None\n"
)


def prompts(tmp_path):
    return [json.loads(line) for line in (tmp_path / "run/data/prompts_train.jsonl").read_text().splitlines()]


def bad_rows(tmp_path):
    return [
        (row["row"], row["reason"], row["detail"])
        for row in map(json.loads, (tmp_path / "run/data/bad_rows_train.jsonl").read_text().splitlines())
    ]


def rows(tmp_path, *given):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))


@pytest.mark.parametrize(
    "flag, good, name",
    [("--reward.remote_url", REWARD, "reward_func"), ("--train.agent_func_path", AGENT, "AgentExecutor")],
)
def test_files_are_imported_before_ray(run, tmp_path, flag, good, name):
    file = tmp_path / "own.py"
    for text, words in (
        ("x = 1\n", [f"own.py: it has no {name}"]),
        ("\n\nimport no_such_module\n", ["own.py: line 3: ModuleNotFoundError: No module named 'no_such_module'"]),
        ("def (\n", ["SyntaxError"]),
    ):
        file.write_text(text)
        check(run(flag, str(file)), 2, [flag, *words, "Mend the file"])
    check(run(flag, str(file), "--dry_run"), 2, [flag, *words, "Mend the file"])
    assert not (tmp_path / "run" / "data").exists()
    file.write_text(good)
    check(run(flag, str(file)), "starts", ["1 prompts, 1 steps", "the last rollout of an episode has 1 of 4 prompts"])
    check(run(flag, str(file), "--dry_run"), 0, ["1 rows, 0 bad"])


def test_with_an_own_reward_labels_are_what_it_takes(run, tmp_path):
    (tmp_path / "own.py").write_text(REWARD)
    own = ("--reward.remote_url", str(tmp_path / "own.py"))
    labels = ["73", 73, ["a", 1], {"tests": [1]}, True, None]
    rows(tmp_path, *({"question": "q", "answer": label} for label in labels), {"question": "q"})
    check(run(*own), "starts", ["7 prompts"])
    found = [unpack_label(row["label"])[0] for row in prompts(tmp_path)]
    assert found == ["73", "73", ["a", 1], {"tests": [1]}, True, None, None]
    check(run(*own, "--data.label_key", "truth"), 2, ["--data.label_key truth", "Keys seen", "answer, question"])
    check(run(), "starts", ["2 rows kept, 5 bad (answer_not_text 3, no_answer 2)"])


def test_rows_name_their_verifiers(run, tmp_path):
    entry = {"question": "q", "answer": "4", "metadata": {"source_dataset": "gcd"}}
    unsafe = json.dumps({**entry, "metadata": {"source_dataset": "countdown"}})
    rows(
        tmp_path,
        {"question": "one", "answer": "B", "verifier": "letter"},
        {
            "question": "two",
            "answer": json.dumps(entry),
            "meta": {"verifier": "reasoning_gym"},
        },  # as curation writes it
        {"question": "three", "answer": entry, "verifier": "reasoning_gym"},
        {"question": "four", "answer": "4"},
        {"question": "five", "answer": unsafe, "verifier": "reasoning_gym"},
        {"question": "six", "answer": "4", "verifier": "lettre"},
        {"question": "seven", "answer": "12", "verifier": "letter"},
        {"question": "eight", "answer": {"a": 1}},
    )
    check(run(), "starts", ["4 rows kept, 4 bad"])
    found = [unpack_label(row["label"]) for row in prompts(tmp_path)]
    assert found[0] == ("B", "letter") and found[3] == ("4", None)
    assert [(json.loads(label)["answer"], name) for label, name in found[1:3]] == [("4", "reasoning_gym")] * 2
    bad = bad_rows(tmp_path)
    assert [row[:2] for row in bad] == [
        (5, "reference_unparsable"), (6, "unknown_verifier"), (7, "reference_unparsable"), (8, "answer_not_text")
    ]  # fmt: skip
    assert "'countdown' may run an answer as code" in bad[0][2] and "'lettre'; there are exact" in bad[1][2]
    assert set(RECORDS["orz.verifier"].choices) == set(VERIFIERS)


def test_the_default_verifier_is_a_flag(run, tmp_path):
    rows(tmp_path, {"question": "one", "answer": "(C)"}, {"question": "two", "answer": "\\frac{1}{2}"})
    check(run("--orz.verifier", "letter"), "starts", ["1 rows kept, 1 bad (reference_unparsable 1)"])
    check(run("--orz.verifier", "lettre"), 2, ["--orz.verifier", "lettre", "letter"])


def test_choices_are_asked_and_graded_by_letter(run, tmp_path):
    """As evaluation asks them; a reward of one's own gets the rows as they are, and the run says so."""
    choice = {"question": "Which gas?", "choices": ["N2", "O2", "H2"], "answer": "B"}
    rows(
        tmp_path, choice, {**choice, "answer": 1, "verifier": "math"}, {**choice, "answer": "D"},
        {"question": "1+1?", "answer": "2"}, {**choice, "choices": ["N2"]}, {**choice, "choices": []},
    )  # fmt: skip
    check(run(), "starts", ["4 rows kept, 2 bad (bad_choices 2)"])
    first, again, plain, _ = prompts(tmp_path)
    letter, name = unpack_label(first["label"])
    assert name == "letter" and f"\n{letter}. O2\n" in first["prompt"] and plain["label"] == "2"
    assert (again["prompt"], again["label"]) == (first["prompt"], first["label"])
    assert "names none" in bad_rows(tmp_path)[0][2] and "2 to 26 options" in bad_rows(tmp_path)[1][2]
    (tmp_path / "own.py").write_text(REWARD)
    said = "4 rows have a verifier or choices of their own, which are not used"
    check(run("--reward.remote_url", str(tmp_path / "own.py")), "starts", ["6 rows kept, 0 bad", said])
    assert (prompts(tmp_path)[0]["question"], prompts(tmp_path)[0]["label"]) == ("Which gas?", "B")


def test_steps_are_counted_of_the_blend(run, tmp_path):
    """--data.prompt_probs repeats the smaller set until the larger one is exhausted, as OpenRLHF does it."""
    from openrlhf.datasets.utils import blending_datasets

    rows(tmp_path, *({"question": f"a{i}", "answer": "1"} for i in range(3)))
    (tmp_path / "b.jsonl").write_text("".join(f'{{"question": "b{i}", "answer": "1"}}\n' for i in range(40)))
    both = f"{tmp_path}/rows.jsonl,{tmp_path}/b.jsonl"
    flags = ("--data.prompt_dataset", both, "--data.prompt_probs", "0.5,0.5", "--train.seed", "7")
    strategy = SimpleNamespace(print=print, is_rank_0=lambda: False, args=None)
    count = len(blending_datasets(both, "0.5,0.5", strategy, 7))
    assert count > 43
    check(run(*flags), "starts", [f"{count} prompts, "])


USER = {"role": "user", "content": "What is 1+1?"}


def write_turns(folder, all_turns):
    """As verl has it."""
    rows = ({"prompt": turns, "reward_model": {"ground_truth": "2"}, "extra": 1} for turns in all_turns)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_messages_are_questions(run, tmp_path):
    system = {"role": "system", "content": "Be brief."}
    config = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}[assistant]"
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps(config))
    all_turns = [[USER], [system, USER], [USER, {"role": "assistant", "content": "2"}], [{"content": "x"}], []]
    write_turns(tmp_path, all_turns)
    keys = ("--data.input_key", "prompt", "--data.label_key", "reward_model.ground_truth")
    check(run(*keys, "--data.apply_chat_template"), "starts", ["2 rows kept, 3 bad (bad_messages 3)"])
    assert [row["prompt"] for row in prompts(tmp_path)] == [
        "[user] What is 1+1? [assistant]", "[system] Be brief. [user] What is 1+1? [assistant]"
    ]  # fmt: skip
    assert [row["label"] for row in prompts(tmp_path)] == ["2", "2"]
    assert [detail for _, _, detail in bad_rows(tmp_path)] == [
        "key 'prompt': the last message is of 'assistant', and a question is the user's",
        "key 'prompt': message 0 has no role",
        "key 'prompt': there is no message, and a question is the user's",
    ]
    # as a CSV file has them: JSON in a text
    with (tmp_path / "rows.jsonl").open("w") as file:
        for text in (json.dumps([system, USER]), "[{1, 2}, {3}] has how many sets?", '[{"x": 1}]'):
            file.write(json.dumps({"prompt": text, "reward_model": {"ground_truth": "2"}}) + "\n")
    check(run(*keys, "--data.apply_chat_template"), "starts", ["3 rows kept, 0 bad"])
    assert [row["prompt"] for row in prompts(tmp_path)] == [
        "[system] Be brief. [user] What is 1+1? [assistant]", "[user] [{1, 2}, {3}] has how many sets? [assistant]",
        '[user] [{"x": 1}] [assistant]',
    ]  # fmt: skip
    write_turns(tmp_path, all_turns)
    # without the tokenizer's template, a user's message alone is a question like any other
    check(run(*keys, "--orz.prompt_template", "none"), "starts", ["1 rows kept, 4 bad", "several_turns 1"])
    assert [row["prompt"] for row in prompts(tmp_path)] == ["What is 1+1?"]
    assert "--data.apply_chat_template" in bad_rows(tmp_path)[0][2]


GRADER = "--reward.remote_url {tmp}/own.py"


@pytest.mark.parametrize(
    "flags, words",
    [
        (f"{GRADER} --orz.verifier exact", ["--orz.verifier would not be used", "--reward.remote_url"]),
        (f"{GRADER} --orz.plain_math_verify", ["--orz.plain_math_verify would not be used"]),
        ("--orz.verifier letter --orz.plain_math_verify", ["--orz.plain_math_verify is about the verifier math"]),
        (f"{GRADER} --orz.reward_cls json:JSONDecoder", ["--orz.reward_cls both name a reward"]),
        (f"{GRADER} --orz.agent_cls json:JSONDecoder", ["--orz.agent_cls gives the rewards itself"]),
        ("--orz.reward_cls json:JSONDecoder --orz.grader_workers 2", ["--orz.grader_workers would not be used"]),
        ("--orz.reward_cls json", ["--orz.reward_cls json: MODULE:CLASS is expected"]),
        ("--orz.reward_cls json:Nothing", ["the module json has no class Nothing"]),
        ("--orz.reward_cls json:loads", ["it must be a class"]),
        ("--orz.reward_cls json:JSONDecoder", ["JSONDecoder has no method grade"]),
        ("--orz.critic_cls no_such_module:X", ["--orz.critic_cls", "No module named 'no_such_module'", "PYTHONPATH"]),
        ("--orz.trainer_cls json:JSONDecoder", ["no subclass of", "OrzPPOTrainer: inherit from it"]),
        ("--orz.actor_cls json:JSONDecoder", ["no subclass of", "OrzPolicyModelActor"]),
        ("--orz.agent_cls json:JSONDecoder", ["no subclass of", "AgentExecutorBase"]),
    ],
)
def test_refused(run, tmp_path, flags, words):
    (tmp_path / "own.py").write_text(REWARD)
    check(run(*flags.replace("{tmp}", str(tmp_path)).split()), 2, words)


def test_classes_of_ones_own_start(run, tmp_path, monkeypatch):
    (tmp_path / "my_code.py").write_text(
        "from openrlhf_orz.trainer.ppo_trainer import OrzPPOTrainer\n"
        "class Trainer(OrzPPOTrainer):\n    pass\n"
        "class Reward:\n    def grade(self, response, label, stopped):\n        return 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rows(tmp_path, {"question": "q"})
    check(run("--orz.trainer_cls", "my_code:Trainer", "--orz.reward_cls", "my_code:Reward"), "starts", ["1 prompts"])
    assert sys.modules["ray._private.ray_constants"].ENABLE_RAY_CLUSTER is False


def test_classes_are_arguments_too(capsys):
    with pytest.raises(TypeError, match="no actor; there are trainer_cls, actor_cls"):
        train_ppo_ray.main([], actor=dict)
    base = ["--actor.model_name_or_path", "m/m", "--data.prompt_dataset", "d", "--orz.device", "cpu"]
    assert train_ppo_ray.main([*base, "--orz.max_restarts", "1"], actor_cls=dict) == 2
    assert "name your classes by flags" in capsys.readouterr().err
