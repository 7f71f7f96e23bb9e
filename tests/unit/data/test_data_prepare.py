import json

import datasets
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from openrlhf_orz.data.prepare import PromptRules, prepare_prompts
from openrlhf_orz.data.rows import AnswerRules
from openrlhf_orz.data.sources import DataError


@pytest.fixture(scope="module")
def tokenizer():
    """One token a word, so that lengths are counted by eye."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "x": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


class Checker:
    """A set of one verifier, which cannot use "junk", and notes what it is asked."""

    def __init__(self):
        self.asked = []

    def named(self, name=None):
        return self

    def check_reference(self, gold):
        self.asked.append(gold)
        return gold != "junk"


def jsonl(path, *rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def prepare(specs, out_dir, tokenizer, **kwargs):
    calling = {"split": "train", "log": lambda line: None}
    calling |= {name: kwargs.pop(name) for name in ("split", "log", "max_rows") if name in kwargs}
    name = kwargs.pop("name", "train")
    rules = dict(tokenizer=tokenizer, template="Q: {}", input_key="q", label_key="a", max_prompt_len=5) | kwargs
    return prepare_prompts(specs, out_dir, name, PromptRules(**rules), **calling)


def test_good_rows_are_written_and_bad_ones_reported(tmp_path, tokenizer):
    file = jsonl(
        tmp_path / "some.jsonl",
        {"q": "one two three four", "a": "1"},  # 5 tokens with "Q:", which is still allowed
        {"q": "one two three four five", "a": "1"},
        {"q": "x", "a": "junk"},
        {"q": "y", "a": "junk"},
        "{\n",
        {"q": "z", "a": "2", "datasource": "own"},
    )
    checker, log = Checker(), []
    done = prepare(file, tmp_path / "out", tokenizer, answers=AnswerRules(checker), log=log.append)
    assert done.paths == [tmp_path / "out" / "prompts_train.jsonl"]
    assert (done.counts, done.n_bad) == ([2], 4)
    assert done.bad_by_reason == {"reference_unparsable": 2, "prompt_too_long": 1, "broken_json": 1}
    assert checker.asked == ["1", "junk", "2"]
    first = {"prompt": "Q: one two three four", "label": "1", "datasource": "some", "question": "one two three four"}
    assert lines(done.paths[0]) == [
        first | {"file": file, "row": 1},
        {"prompt": "Q: z", "label": "2", "datasource": "own", "question": "z", "file": file, "row": 6},
    ]
    bad = lines(tmp_path / "out" / "bad_rows_train.jsonl")
    assert [(row["row"], row["reason"]) for row in bad] == [
        (2, "prompt_too_long"),
        (3, "reference_unparsable"),
        (4, "reference_unparsable"),
        (5, "broken_json"),
    ]
    assert bad[0]["detail"] == "6 tokens > 5 (--orz.max_prompt_len, --data.max_len)" and bad[0]["file"] == file
    assert log[0] == (
        f"train data: {file}: 2 rows kept, 4 bad (reference_unparsable 2, prompt_too_long 1, broken_json 1)"
    )
    assert log[1] == f"  {file}:2: prompt_too_long: 6 tokens > 5 (--orz.max_prompt_len, --data.max_len)"


def test_several_datasets_keep_their_order_and_a_clean_run_removes_old_reports(tmp_path, tokenizer):
    a = jsonl(tmp_path / "a.jsonl", {"q": "x", "a": "1"}, "{\n")
    b = jsonl(tmp_path / "b.jsonl", {"q": "y", "a": "1"})
    done = prepare(f"{a}, {b}", tmp_path, tokenizer, name="eval")
    assert [path.name for path in done.paths] == ["prompts_eval_0.jsonl", "prompts_eval_1.jsonl"]
    assert [lines(path)[0]["datasource"] for path in done.paths] == ["a", "b"]
    assert (tmp_path / "bad_rows_eval.jsonl").exists()
    done = prepare(b, tmp_path, tokenizer, name="eval")
    assert (done.n_bad, done.bad_by_reason) == (0, {}) and not (tmp_path / "bad_rows_eval.jsonl").exists()


def test_at_most_five_bad_rows_are_shown(tmp_path, tokenizer):
    log = []
    prepare(jsonl(tmp_path / "f.jsonl", {"q": "x", "a": "1"}, *["{\n"] * 9), tmp_path, tokenizer, log=log.append)
    assert sum(line.startswith("  ") for line in log) == 5


def test_nothing_left_is_an_error(tmp_path, tokenizer):
    good = jsonl(tmp_path / "good.jsonl", {"q": "x", "a": "1"})
    bad = jsonl(tmp_path / "bad.jsonl", {"q": "x", "a": ""}, {"q": "", "a": "1"})
    with pytest.raises(DataError, match=r"--data.prompt_dataset: no row of .*bad.jsonl .*no_answer 1.*bad_rows_train"):
        prepare(f"{good},{bad}", tmp_path, tokenizer)
    assert len(lines(tmp_path / "bad_rows_train.jsonl")) == 2
    with pytest.raises(DataError, match=r"--eval.dataset: no row of .*\(no rows\)"):
        prepare(jsonl(tmp_path / "empty.jsonl"), tmp_path, tokenizer, name="eval")


def test_chat_template_renders_the_prompt(tmp_path, tokenizer):
    file = jsonl(tmp_path / "f.jsonl", {"q": "one two", "a": "1"}, {"q": "one two three", "a": "1"})
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="--data.apply_chat_template"):
        prepare(file, tmp_path, tokenizer, apply_chat_template=True)
    tokenizer.chat_template = "three more words {{ messages[0]['content'] }}"
    done = prepare(file, tmp_path, tokenizer, apply_chat_template=True)
    (row,) = lines(done.paths[0])
    assert (row["prompt"], row["question"]) == ("three more words one two", "one two")
    assert done.bad_by_reason == {"prompt_too_long": 1}


def test_output_folder_that_openrlhf_would_split_is_refused(tmp_path, tokenizer):
    file = jsonl(tmp_path / "f.jsonl", {"q": "x", "a": "1"})
    with pytest.raises(DataError, match="--ckpt.output_dir"):
        prepare(file, tmp_path / "lr1,2", tokenizer)


def test_datasets_loads_what_was_written_with_text_as_text(tmp_path, tokenizer):
    """As OpenRLHF loads it; its JSON reader would make timestamps of a column of dates."""
    rows = [{"q": f"day {i}?", "a": f"2024-01-0{i}", "datasource": "2024-01-01"} for i in (1, 2)]
    done = prepare(jsonl(tmp_path / "f.jsonl", *rows), tmp_path, tokenizer)
    loaded = datasets.load_dataset("json", data_files=str(done.paths[0]), cache_dir=str(tmp_path / "cache"))["train"]
    assert [(row["prompt"], row["label"].strip()) for row in loaded] == [
        ("Q: day 1?", "2024-01-01"),
        ("Q: day 2?", "2024-01-02"),
    ]
    assert loaded[0]["datasource"].strip() == "2024-01-01"


def test_the_limit_is_exact_for_long_and_for_non_ascii_prompts(tmp_path):
    """A byte-level tokenizer without merges: one token a byte, where counting characters decides nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level)
    questions = ["1234567", "12345678", "123456789", "ééé", "éééé", "é" * 5]  # 7, 8, 9, 6, 8, 10 bytes
    file = jsonl(tmp_path / "f.jsonl", *[{"q": question, "a": "1"} for question in questions])
    done = prepare(file, tmp_path, fast, template="none", max_prompt_len=8)
    assert [row["row"] for row in lines(done.paths[0])] == [1, 2, 4, 5]
    assert [row["detail"][:10] for row in lines(tmp_path / "bad_rows_train.jsonl")] == ["9 tokens >", "10 tokens "]


def test_split_and_number_of_rows_reach_the_reader(tmp_path, tokenizer):
    folder = tmp_path / "d"
    folder.mkdir()
    jsonl(folder / "train.jsonl", {"q": "seen", "a": "1"})
    jsonl(folder / "test.jsonl", *[{"q": f"q{i}", "a": "1"} for i in range(3)])
    done = prepare(str(folder), tmp_path / "out", tokenizer, split="test", max_rows=2)
    assert [row["question"] for row in lines(done.paths[0])] == ["q0", "q1"]


def test_bad_rows_of_all_kinds_are_in_the_order_of_the_file(tmp_path, tokenizer):
    file = jsonl(
        tmp_path / "f.jsonl", {"q": "a b c d e f", "a": "1"}, "{\n", {"q": "x", "a": "junk"}, {"q": "x", "a": "1"}
    )
    prepare(file, tmp_path, tokenizer, answers=AnswerRules(Checker()))
    assert [row["row"] for row in lines(tmp_path / "bad_rows_train.jsonl")] == [1, 2, 3]


def test_a_huge_prompt_is_too_long_without_being_counted(tmp_path, tokenizer):
    """The longest token has five characters."""
    file = jsonl(tmp_path / "f.jsonl", {"q": "x " * 100_000, "a": "1"}, {"q": "y" * 200_001, "a": "1"})
    with pytest.raises(DataError):
        prepare(file, tmp_path, tokenizer)
    assert lines(tmp_path / "bad_rows_train.jsonl")[0]["detail"].startswith("over 40000 tokens > 5")
    done = prepare(file, tmp_path, tokenizer, max_prompt_len=40_001)  # few tokens may have so many characters
    assert [row["row"] for row in lines(done.paths[0])] == [2]
