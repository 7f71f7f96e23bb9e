"""Files that somebody may have made to exhaust, to hang or to steer a terminal: each command ends with a line.

One table for each command. A name is a file, a text its content, None a pipe that nobody writes to.
"""

import json
import os
import resource

import pytest
from command_line import check

from openrlhf_orz.cli.curate import main as curate
from openrlhf_orz.cli.distill import main as distill
from openrlhf_orz.cli.grade import main as grade
from openrlhf_orz.cli.plan import main as plan
from openrlhf_orz.cli.report import main as report
from openrlhf_orz.cli.warm_start import main as warm_start
from openrlhf_orz.data.sources import DataError, records
from openrlhf_orz.evaluate import results
from openrlhf_orz.report.page import describe_run
from openrlhf_orz.report.rollout_sample import sample_rollouts
from openrlhf_orz.report.run_data import load_run
from openrlhf_orz.rollout.replay_rows import read_rollout
from openrlhf_orz.runtime import checkpoints, resume
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.redact import printable

STEP = '{"step": 1, "reward": 0.5}\n'
DEEP = "[" * 100_000
DIGITS = "9" * 401  # beyond any float


def make(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            os.mkfifo(folder / name)
        else:
            (folder / name).write_text(content)


REPORT = [
    ({"metrics.jsonl": '{"step": 1e400, "reward": 1}\n' + STEP}, 0, "1 line is damaged"),
    ({"metrics.jsonl": f'{{"step": {DIGITS}, "reward": 1}}\n' + STEP}, 0, "1 rows without a step"),
    ({"metrics.jsonl": f'{{"step": 1, "reward": {DIGITS}}}\n'}, 0, "report.html"),
    ({"metrics.jsonl": DEEP + "\n" + STEP}, 0, "1 line is damaged"),
    ({"metrics.jsonl": STEP, "config.json": '{"flags": [1], "explicit": 3, "versions": "x"}'}, 0, "report.html"),
    ({"metrics.jsonl": STEP, "config.json": DEEP}, 0, "config.json cannot be read"),
    ({"metrics.jsonl": STEP, "config.json": None}, 2, "not a regular file"),
    ({"metrics.jsonl": None}, 2, "not a regular file"),
    ({"metrics.jsonl": STEP, "rollouts/step_1.jsonl": None}, 0, "step_1.jsonl cannot be read"),
    ({"metrics.jsonl": STEP, "rollouts/step_².jsonl": "{}\n", "rollouts/step_.jsonl": "{}\n"}, 0, "report.html"),
    ({"metrics.jsonl": STEP, "rollouts/step_1.jsonl": '{"prompt": [[1]], "reward": 1e999}\n'}, 0, "is damaged"),
    ({"metrics.jsonl": STEP, "rollouts/step_1.jsonl": f'{{"reward": {DIGITS}, "tokens": {DIGITS}}}\n'}, 0, ".html"),
]


@pytest.mark.parametrize("files, status, told", REPORT)
def test_report(tmp_path, capsys, files, status, told):
    make(tmp_path / "run", files)
    assert report([str(tmp_path / "run")]) == status
    captured = capsys.readouterr()
    assert told in captured.out + captured.err
    if status == 0:  # what the page holds is JSON for a browser, too
        run = load_run(tmp_path / "run")
        json.dumps([describe_run(run, 1), sample_rollouts(run, 10**6).rows], allow_nan=False)


def test_names_do_not_steer_the_terminal(tmp_path, capsys):
    folder = tmp_path / "run\x1b[2J"
    folder.mkdir()
    assert report([str(folder)]) == 2
    told = capsys.readouterr().err
    assert "\x1b" not in told and "run\\x1b[2J" in told
    assert printable("a\tb\nü\x07\u202e\ud800") == "a\tb\nü\\x07\\u202e\\ud800"


LINES = {"lines.jsonl": DEEP + '\n\0\n[1]\n{"a\\u001b[2J": 1}\n'}
NO_FILE = [{"lines.jsonl": None}, {"lines.jsonl/x": ""}, {}]
COMMANDS = {
    grade: ["--input", "{tmp}/lines.jsonl", "--output", "{tmp}/out.jsonl"],
    distill: ["--responses", "{tmp}/lines.jsonl", "--output", "{tmp}/out.jsonl"],
    warm_start: ["bare", "--data", "{tmp}/lines.jsonl", "--output", "{tmp}/out"],
    curate: ["--input", "{tmp}/lines.jsonl", "--output", "{tmp}/out"],
    plan: ["--actor.model_name_or_path", "x/y", "--data.prompt_dataset", "d", "--orz.device", "cpu", "--model_config",
           "{tmp}/lines.jsonl"],
}  # fmt: skip


@pytest.mark.parametrize("files", [LINES, *NO_FILE], ids=["lines", "pipe", "folder", "nothing"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__module__.rpartition(".")[2])
def test_other_commands(tmp_path, capsys, command, files):
    make(tmp_path, files)
    status = command([word.replace("{tmp}", str(tmp_path)) for word in COMMANDS[command]])
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    if status:
        assert "error: " in told.err and str(tmp_path) in told.err
    else:  # bad lines are counted
        assert files is LINES and command in (grade, curate)


CONFIGURATION = [
    ("a: [" * 20_000, "more than 50 levels"),
    ("- " * 20_000, "recursion"),
    ("inputs: !!python/object/apply:os.system ['exit']\n", "could not determine a constructor"),
    (None, "not a regular file"),
]


@pytest.mark.parametrize("content, told", CONFIGURATION)
def test_curations_configuration(tmp_path, capsys, content, told):
    make(tmp_path, {"curate.yaml": content})
    assert curate(["--config", str(tmp_path / "curate.yaml")]) == 1
    said = capsys.readouterr().err
    assert told in said and f"--config {tmp_path}" in said


@pytest.mark.parametrize("content", ["", DEEP, "{}", '{"prompt": "a", "response": "b", "reward": NaN}{', "\0"])
def test_replaying(tmp_path, content):
    make(tmp_path, {"rollouts/step_1.jsonl": content})
    with pytest.raises(ConfigError, match="step_1.jsonl(:1 is no response| holds no response)"):
        read_rollout(tmp_path, 1)


EVALUATION = ["", "[]", "3", '"text"', DEEP, "{"]


@pytest.mark.parametrize("content", EVALUATION)
def test_evaluation(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(results.EvaluationError, match="settings.json is damaged: remove"):
        results.check_settings(tmp_path, {"a": 1})
    (tmp_path / "responses.jsonl").write_text(f"{content or '{}'}\n")
    with pytest.raises(results.EvaluationError, match="responses.jsonl:1 is damaged"):
        results.Responses(tmp_path / "responses.jsonl")


TRAINER = [
    *EVALUATION,
    '{"flags": {}}',
    '{"flags": [], "prompts_sha256": "", "global_step": 1}',
    '{"flags": {}, "prompts_sha256": "", "global_step": 1, "versions": 3}',
]


@pytest.mark.parametrize("content", TRAINER)
def test_resuming(tmp_path, content):
    (tmp_path / checkpoints.TRAINER).write_text(content)
    with pytest.raises(ConfigError, match="trainer.json cannot be used"):
        resume.read_trainer(tmp_path)


@pytest.mark.parametrize("manifest", ['{"format": 99, "files": {}}', "[]", DEEP, '{"format": 1, "files": [1]}'])
def test_a_manifest_of_another_kind_is_damage(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(checkpoints.Damaged, match="manifest.json (is of format 99, not 1|cannot be read)"):
        checkpoints.verify(tmp_path)


@pytest.mark.parametrize("key", ["num_hidden_layers", "decoder_layers"])
def test_training_models(run, tmp_path, key):
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: 10**9}))
    check(run(), 2, ["--actor.model_name_or_path", f"1e+09 as {key}"])
    config.write_text('{"a": ' * 100_000)
    check(run(), 2, ["config.json cannot be read"])


def test_training_data_of_many_digits(run, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1", "answer": ' + "9" * 4000 + "}\n")
    check(run(), "starts", ["1 rows kept"])


def test_training_data_keys_do_not_steer_the_terminal(run, tmp_path):
    (tmp_path / "rows.json").write_text('{\n"a\\u001b[2J": 1,\n"b": 2}')
    status, told = run("--data.prompt_dataset", "{tmp}/rows.json")
    assert status == 2 and "\x1b" not in told


def test_a_small_table_stays_small(tmp_path):
    """One text of 1 MiB in 1,024 rows is stored once: the first rows come without a GiB of copies."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.array(["x" * 2**20]).dictionary_encode()
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1024, pa.int32()), text.dictionary)
    pq.write_table(pa.table({"question": column, "answer": ["2"] * 1024}), tmp_path / "rows.parquet")
    assert (tmp_path / "rows.parquet").stat().st_size < 200_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = records(str(tmp_path / "rows.parquet"), "train", {"question", "answer"})
    first = [next(rows) for _ in range(3)]
    assert [len(record["question"]) for _, _, record in first] == [2**20] * 3
    assert sum(1 for _ in rows) == 1021
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024, "KiB"


def test_a_pipe_is_no_data(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        list(records(str(tmp_path / "rows.jsonl"), "train", {"question"}))
