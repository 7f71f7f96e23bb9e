import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from openrlhf_orz.data.arithmetic import addition_question, generate_additions, main


def terms(row):
    return tuple(map(int, re.findall(r"\d+", row["question"])))


def test_question_wording():
    assert addition_question(37, 85) == "What is 37+85?"
    assert addition_question(1, 2, 3) == "What is 1+2+3?"


def test_rows_are_distinct_right_and_repeatable():
    rows = generate_additions(2000, (1, 3), seed=3)
    assert rows == generate_additions(2000, (1, 3), seed=3) != generate_additions(2000, (1, 3), seed=4)
    assert len({row["question"] for row in rows}) == 2000
    assert all(int(row["answer"]) == sum(terms(row)) for row in rows)
    assert set(rows[0]) == {"question", "answer", "source"}


def test_digit_lengths_share_equally_as_far_as_they_can():
    lengths = Counter(tuple(len(str(term)) for term in terms(row)) for row in generate_additions(1300, (1, 2), seed=0))
    # 1+1 digits: just 100 sums; the other three shapes share the 1200 left.
    assert lengths == {(1, 1): 100, (1, 2): 400, (2, 1): 400, (2, 2): 400}


def test_the_whole_space_and_beyond():
    rows = generate_additions(100, 1, seed=0)
    assert {terms(row) for row in rows} == {(a, b) for a in range(10) for b in range(10)}
    with pytest.raises(ValueError, match="--rows 101: --digits 1 1 allow only 100 sums"):
        generate_additions(101, 1, seed=0)


def test_long_numbers_and_more_terms():
    rows = generate_additions(50, 30, seed=0, terms=3)
    assert all(len(str(term)) == 30 for row in rows for term in terms(row)) and len(terms(rows[0])) == 3


@pytest.mark.parametrize("digits, n, count", [((2, 1), 5, 2), (0, 5, 2), (1, 0, 2), (1, 5, 1)])
def test_numbers_out_of_range(digits, n, count):
    with pytest.raises(ValueError, match="--"):
        generate_additions(n, digits, 0, count)


def test_command_line(tmp_path, capsys):
    output = tmp_path / "new" / "sums.jsonl"
    command = [sys.executable, "-m", "openrlhf_orz.data.arithmetic", "--rows", "7", "--digits", "1", "2"]
    subprocess.run([*command, "--seed", "5", "--output", str(output)], check=True, capture_output=True)
    assert [json.loads(line) for line in output.read_text().splitlines()] == generate_additions(7, (1, 2), 5)
    with pytest.raises(SystemExit):
        main(["--rows", "1000", "--digits", "1", "1", "--output", str(output)])
    assert "--rows 1000" in capsys.readouterr().err
