"""What a run cannot start with is refused before Ray starts: the status, and a message with flag or file and remedy.

Each case goes through the real command line, in this process; a case that would start Ray fails.
"""

import gzip
import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from openrlhf_orz.cli.flags import build_parser
from openrlhf_orz.cli.train_ppo_ray import main
from openrlhf_orz.flag_checks import MAY_BE_INFINITE, RANGES, SCHEDULERS

BASE = Path(__file__).parents[2] / "examples" / "tiny_base"
GOOD = '{"question": "1+1=?", "answer": "2"}\n'
AS_ROOT = os.geteuid() == 0


class RayStarted(BaseException):
    """Raised in place of starting Ray."""


@pytest.fixture(autouse=True)
def no_ray_and_no_network(monkeypatch):
    import datasets
    import huggingface_hub
    import ray

    def start(*args, **kwargs):
        raise RayStarted

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("OPENRLHF_TRUST_REMOTE_CODE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command on a small model and one good row, in ``tmp_path``; returns (status, output)."""
    shutil.copytree(BASE, tmp_path / "model", ignore=shutil.ignore_patterns("*.py", "*.md"))
    (tmp_path / "rows.jsonl").write_text(GOOD)

    def command(*flags):
        argv = [
            "--actor.model_name_or_path", "{tmp}/model", "--data.prompt_dataset", "{tmp}/rows.jsonl",
            "--ckpt.output_dir", "{tmp}/run", "--orz.device", "cpu", "--data.max_len", "480",
            "--rollout.batch_size", "4", "--rollout.n_samples_per_prompt", "4", "--orz.critic_updates", "3", *flags,
        ]  # fmt: skip
        try:
            status = main([flag.replace("{tmp}", str(tmp_path)) for flag in argv])
        except SystemExit as exit:
            status = exit.code
        except RayStarted:
            status = "starts"
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return command


def check(result, status, named):
    assert result[0] == status, result[1]
    assert "Traceback" not in result[1]
    for text in named:
        assert text in result[1], f"{text!r} is not in: {result[1][-3000:]}"


# ---- flags: (flags, what the message must hold) ----

FLAGS = [
    # misspelt, cut short, old names, wrong kinds
    ("--rolout.batch_size 4", ["--rolout.batch_size is not a flag", "do you mean --rollout.batch_size"]),
    ("--rollout.batch 4", ["--rollout.batch is not a flag", "--rollout.batch_size"]),
    ("--rollout_batch_size=4", ["--rollout_batch_size is not a flag", "--rollout.batch_size"]),
    ("--lambd 1", ["--lambd is not a flag", "--algo.advantage.lambd"]),
    ("--zzz 1", ["--zzz is not a flag", "--help"]),
    ("stray", ["'stray' belongs to no flag", "quotation marks"]),
    ("--train.seed abc", ["--train.seed", "invalid int value: 'abc'"]),
    ("--rollout.batch_size 4.5", ["--rollout.batch_size", "invalid int value: '4.5'"]),
    ("--train.seed", ["--train.seed", "expected one argument"]),
    ("--orz.value_head_init zeros", ["--orz.value_head_init", "released"]),
    ("--ds.param_dtype int8", ["--ds.param_dtype", "bf16"]),
    ("--algo.advantage.estimator ppo", ["--algo.advantage.estimator", "group_norm"]),
    ("--actor.lr_scheduler flat", ["--actor.lr_scheduler flat", "constant_with_warmup"]),
    ("--ds.attn_implementation flash", ["--ds.attn_implementation flash", "orz_packed", "sdpa"]),
    ("--vllm.sync_backend mpi", ["--vllm.sync_backend mpi", "nccl"]),
    # batch sizes and updates
    ("--train.batch_size 8", ["--train.batch_size 8", "16 samples", "--orz.policy_updates"]),
    ("--train.max_epochs 2", ["--train.max_epochs 2", "--orz.policy_updates"]),
    ("--orz.policy_updates 3", ["--orz.policy_updates 3", "does not divide", "16 samples"]),
    ("--orz.policy_updates 2 --train.batch_size 4", ["--train.batch_size 4", "leave --train.batch_size out"]),
    ("--orz.critic_updates 17", ["--orz.critic_updates 17", "lower it"]),
    ("--rollout.vllm_generate_batch_size 8", ["--rollout.vllm_generate_batch_size 8", "--train.async_enable"]),
    ("--rollout.micro_batch_size 16 --actor.num_gpus_per_node 2 --critic.num_gpus_per_node 2",
     ["--rollout.micro_batch_size 16", "fewer than the 2 ranks"]),
    # ranks, engines, parallelism
    ("--actor.num_gpus_per_node 2", ["--train.colocate_all", "--critic.num_gpus_per_node"]),
    ("--vllm.num_engines 3", ["--vllm.num_engines", "--actor.num_gpus_per_node"]),
    ("--ds.tensor_parallel_size 3", ["--ds.tensor_parallel_size 3", "does not divide the 1 ranks"]),
    ("--ds.ring_attn_size 2 --actor.num_gpus_per_node 2 --critic.num_gpus_per_node 2",
     ["--ds.ring_attn_size 2", "--ds.attn_implementation flash_attention_2"]),
    ("--ds.ring_attn_size 2 --actor.num_gpus_per_node 3", ["--ds.ring_attn_size 2", "3 ranks"]),
    ("--ds.tensor_parallel_size 2 --actor.num_gpus_per_node 2 --critic.num_gpus_per_node 2 --ds.param_dtype fp32",
     ["--ds.tensor_parallel_size 2", "--ds.param_dtype bf16"]),
    ("--vllm.tensor_parallel_size 3 --actor.num_gpus_per_node 3 --critic.num_gpus_per_node 3",
     ["--vllm.tensor_parallel_size 3", "4 attention heads"]),
    # what cannot be together
    ("--train.async_enable --orz.check_sync", ["--orz.check_sync", "--train.async_enable"]),
    ("--train.partial_rollout_enable", ["--train.partial_rollout_enable", "--train.async_enable"]),
    ("--orz.cross_fit_values --algo.advantage.lambd 0.9", ["--orz.cross_fit_values", "--algo.advantage.lambd 1"]),
    ("--orz.cross_fit_values --critic.value_clip 0.2", ["--orz.cross_fit_values", "--critic.value_clip"]),
    ("--algo.advantage.estimator group_norm --rollout.n_samples_per_prompt 1",
     ["--algo.advantage.estimator group_norm", "--rollout.n_samples_per_prompt 1", "2 or more"]),
    ("--algo.dynamic_filtering_enable --rollout.n_samples_per_prompt 1",
     ["--algo.dynamic_filtering_enable", "--rollout.n_samples_per_prompt 2"]),
    ("--algo.dynamic_filtering_range 1 0", ["--algo.dynamic_filtering_range 1 0", "lower number first"]),
    ("--reward.clip_range 1 -1", ["--reward.clip_range 1 -1", "lower number first"]),
    ("--algo.advantage.is_correction_threshold 1 2 3", ["--algo.advantage.is_correction_threshold", "LOW and HIGH"]),
    ("--eval.steps 5", ["--eval.steps 5", "--eval.dataset"]),
    ("--eval.dataset {tmp}/rows.jsonl", ["--eval.dataset", "--eval.steps"]),
    ("--reward.overlong_buffer_len 9", ["--reward.overlong_buffer_len", "--rollout.max_new_tokens"]),
    ("--data.input_template Q", ["--data.input_template 'Q'", "{}"]),
    ("--data.input_template Q{} --orz.prompt_template none", ["--data.input_template", "leave one out"]),
    ("--orz.prompt_template Q", ["--orz.prompt_template 'Q'", "{{prompt}}", "paper, released, none"]),
    ("--data.apply_chat_template --orz.prompt_template none", ["--data.apply_chat_template", "--orz.prompt_template"]),
    ("--data.prompt_probs 0.5,0.5", ["--data.prompt_probs 0.5,0.5", "1 data sets"]),
    ("--data.prompt_probs half", ["--data.prompt_probs half", "commas"]),
    ("--reward.model_name_or_path {tmp}/model", ["--reward.model_name_or_path", "--reward.remote_url"]),
    ("--reward.remote_url ftp://host", ["--reward.remote_url ftp://host", "http://"]),
    ("--reward.remote_url {tmp}/gone.py", ["--reward.remote_url", "gone.py"]),
    ("--train.agent_func_path {tmp}/gone.py", ["--train.agent_func_path", "gone.py"]),
    ("--data.max_images_per_prompt 2", ["--data.max_images_per_prompt 2", "Leave it out"]),
    ("--use_ms", ["--use_ms", "modelscope"]),
    # lengths
    ("--rollout.max_new_tokens 480", ["--rollout.max_new_tokens 480", "--data.max_len 480"]),
    ("--data.max_len 600", ["--data.max_len 600", "512 positions", "lower it"]),
    ("--data.max_len 40", ["prompt_too_long", "tokens > 39", "--data.max_len", "rows.jsonl:1"]),
    ("--orz.max_prompt_len 9", ["prompt_too_long", "tokens > 9 (--orz.max_prompt_len", "rows.jsonl:1"]),
    # folders
    ("--ckpt.output_dir {tmp}/rows.jsonl", ["--ckpt.output_dir", "rows.jsonl is not a folder", "choose another"]),
    ("--ckpt.output_dir {tmp}/rows.jsonl/run", ["--ckpt.output_dir", "rows.jsonl is not a folder"]),
    ("--ckpt.output_dir /proc/no/run", ["--ckpt.output_dir", "cannot be written", "hoose another"]),
    ("--ckpt.output_dir {tmp}/" + "x" * 300, ["--ckpt.output_dir", "too long", "choose another"]),
    ("--ckpt.output_dir {tmp}/a,b", ["--ckpt.output_dir", "',' and '@'", "Choose another"]),
    ("--ckpt.path {tmp}/rows.jsonl/c", ["--ckpt.path", "is not a folder", "choose another"]),
    ("--logger.tensorboard_dir {tmp}/rows.jsonl", ["--logger.tensorboard_dir", "is not a folder"]),
    # data sets by name
    ("--data.prompt_dataset {tmp}/gone.jsonl", ["--data.prompt_dataset", "there is no file or folder", "gone.jsonl"]),
    ("--data.prompt_dataset {tmp}/rows.jsonl/x.jsonl", ["--data.prompt_dataset", "there is no file or folder"]),
    ("--data.prompt_dataset {tmp}/" + "x" * 300, ["--data.prompt_dataset", "too long", "Check the path"]),
    ("--data.prompt_dataset no-such/data-set", ["--data.prompt_dataset no-such/data-set", "Check the name"]),
    ("--data.prompt_split test --data.prompt_dataset {tmp}/model", ["--data.prompt_split test", "model"]),
    ("--data.input_key q", ["--data.input_key q", "Keys seen: answer, question", "Name one of them"]),
    ("--data.label_key a", ["--data.label_key a", "Keys seen", "reference answers"]),
    # models by name
    ("--actor.model_name_or_path {tmp}/gone", ["--actor.model_name_or_path", "there is no directory", "check the path"]),
    ("--actor.model_name_or_path ./gone", ["--actor.model_name_or_path", "there is no directory ./gone"]),
    ("--actor.model_name_or_path {tmp}/rows.jsonl", ["--actor.model_name_or_path", "no config.json"]),
    ("--actor.model_name_or_path no-such/model", ["--actor.model_name_or_path", "no-such/model did not load"]),
    ("--critic.model_name_or_path {tmp}/gone", ["--critic.model_name_or_path", "there is no directory"]),
    ("--critic.model_name_or_path {tmp}", ["--critic.model_name_or_path", "no config.json"]),
]  # fmt: skip


@pytest.mark.parametrize("flags, named", FLAGS, ids=[case[0][:80] for case in FLAGS])
def test_flags(run, flags, named):
    check(run(*flags.split()), 2, named)


def test_empty_stop_string(run):
    check(run("--orz.stop", "User:", ""), 2, ["--orz.stop", "leave it out"])


def test_everything_wrong_is_said_at_once(run):
    check(run("--rollout.top_p", "2", "--train.seed", "-1"), 2, ["--rollout.top_p is 2.0", "--train.seed is -1"])


NUMBERS = {action.option_strings[0][2:]: action for action in build_parser()._actions if action.type in (int, float)}
RANGE_OF = {name: (allowed, words) for words, (allowed, names) in RANGES.items() for name in names.split()}


def test_every_numeric_flag_has_a_range():
    assert set(NUMBERS) == set(RANGE_OF), "name new flags in flag_checks.RANGES"


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_make_no_sense(name, capsys):
    from openrlhf_orz.cli.flags import parse

    action, (allowed, words) = NUMBERS[name], RANGE_OF[name]
    wrong = [str(x) for x in (-7, -0.5, 0, 1, 2, 2**33) if not allowed(x) and action.type(x) == x]
    assert wrong or words == "a finite number"
    if action.type is float:
        wrong += ["nan"] if name in MAY_BE_INFINITE else ["nan", "inf", "-inf"]
    for value in wrong:
        # a list of two: the wrong number beside a right one
        given = [f"--{name}", value, "0.5"] if action.nargs == 2 else [f"--{name}", value]
        with pytest.raises(SystemExit) as exit:
            parse(["--actor.model_name_or_path", "m", "--data.prompt_dataset", "d", *given])
        message = capsys.readouterr().err
        assert exit.value.code == 2 and f"--{name} is " in message and "it must be " in message, message


def test_schedulers_are_those_of_transformers():
    from transformers import SchedulerType

    assert set(SCHEDULERS) <= {kind.value for kind in SchedulerType}


# ---- rows: a file of one row that cannot be used, and why ----

ROWS = [
    (b'{"question": "1+1=?"}', ["--data.label_key answer: no row", "Keys seen", "question"]),
    (b'{"answer": "2"}', ["--data.input_key question: no row", "Keys seen"]),
    (b'{"question": "", "answer": "2"}', ["no_question: key 'question' is empty"]),
    (b'{"question": " \\n ", "answer": "2"}', ["no_question: key 'question' is empty"]),
    (b'{"question": null, "answer": "2"}', ["no_question: key 'question' is null"]),
    (b'{"question": 7, "answer": "2"}', ["question_not_text: key 'question' is a number"]),
    (b'{"question": {"text": "1+1"}, "answer": "2"}', ["question_not_text: key 'question' is an object"]),
    (b'{"question": "1+1", "answer": null}', ["no_answer: key 'answer' is null"]),
    (b'{"question": "1+1", "answer": "  "}', ["no_answer: key 'answer' is empty"]),
    (b'{"question": "1+1", "answer": ["2"]}', ["answer_not_text: key 'answer' is a list"]),
    (b'{"question": "1+1", "answer": {"value": 2}}', ["answer_not_text: key 'answer' is an object"]),
    (b'{"question": "1+1", "answer": true}', ["answer_not_text: key 'answer' is a boolean"]),
    (b'{"question": "1+1", "answer": NaN}', ["answer_not_text: key 'answer' is nan, not a finite number"]),
    (b'{"question": "1+1", "answer": -Infinity}', ["answer_not_text: key 'answer' is -inf, not a finite number"]),
    (b'{"question": "1+1", "answer": ' + b"1" * 5000 + b"}", ["broken_json: Exceeds the limit"]),
    (b'{"question": "a", "question": "b", "answer": "2"}', ["duplicate_key: key 'question' stands twice"]),
    (b'{"question": "\\ud800", "answer": "2"}', ["not_utf8: key 'question'"]),
    (b'{"question": "caf\xe9", "answer": "2"}', ["not_utf8: 'utf-8' codec can't decode byte 0xe9"]),
    (b'["1+1", "2"]', ["not_an_object: a list"]),
    (b'"1+1"', ["not_an_object: a string"]),
    (b"null", ["not_an_object: null"]),
    (b'[{"from": "human", "value": "1+1"}]', ["bad_dialogue: 1 turns"]),
    (b'{"question": "1+1", "answer": "2"', ["broken_json: Expecting ',' delimiter"]),
    (b"question,answer", ["broken_json: Expecting value"]),
    (b'{"question": "1\x00", "answer": "2"}', ["broken_json: Invalid control character"]),
    (b"\x00" * 4096, ["broken_json: Expecting value"]),
    (b"[" * 100_000, ["broken_json"]),
    (b'{"question": "' + b"12 + " * 2_000_000 + b'", "answer": "2"}', ["prompt_too_long: over ", "--data.max_len"]),
    (b'{"question": "1+1", "answer": "the the, of ((("}', ["reference_unparsable: reference 'the the, of ((('"]),
]  # fmt: skip


@pytest.mark.parametrize(
    "row, named", ROWS, ids=[f"{number}-{str(row[:50])[2:-1]}" for number, (row, _) in enumerate(ROWS)]
)
def test_rows(run, tmp_path, row, named):
    (tmp_path / "rows.jsonl").write_bytes(row + b"\n")
    result = run()
    check(result, 2, ["error: ", "--data."])
    if "--data." not in named[0]:  # a reason of this row, where it is, and where all are
        named = [
            f"rows.jsonl:1: {named[0]}",
            *named[1:],
            "--data.prompt_dataset: no row of",
            "Mend the rows listed in",
        ]
        (bad,) = map(json.loads, (tmp_path / "run" / "data" / "bad_rows_train.jsonl").read_text().splitlines())
        assert (bad["row"], bad["file"]) == (1, str(tmp_path / "rows.jsonl"))
    check(result, 2, named)


def test_bad_rows_among_good_ones_are_counted_and_left_out(run, tmp_path):
    """With a byte order mark and Windows line ends; the run goes on."""
    bad = [row for row, named in ROWS if len(row) < 5000 and "--data." not in named[0]]
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([GOOD.strip().encode(), *bad]) + b"\r\n")
    named = [
        f"rows.jsonl: 1 rows kept, {len(bad)} bad (",
        "answer_not_text 5",
        "every bad row is in",
        "1 prompts, 1 steps",
    ]
    check(run(), "starts", named)
    assert len((tmp_path / "run" / "data" / "bad_rows_train.jsonl").read_text().splitlines()) == len(bad)


def test_line_number_of_a_broken_row(run, tmp_path):
    (tmp_path / "rows.jsonl").write_text(GOOD + "\n\n" + '{"question": "1+' + "\n")
    check(run(), "starts", ["rows.jsonl:4: broken_json: Unterminated string"])


# ---- files ----


def parquet(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"question": ["1+1=?"] * 100, "answer": ["2"] * 100}), path)
    return path.read_bytes()


FILES = {
    "empty": ("rows.jsonl", lambda path: b"", ["--data.prompt_dataset", "no rows", "Give a dataset with rows"]),
    "blank lines": ("rows.jsonl", lambda path: b"\n \n\r\n", ["--data.prompt_dataset", "no rows"]),
    "utf-16": ("rows.jsonl", lambda path: GOOD.encode("utf-16"), ["rows.jsonl is in UTF-16", "iconv"]),
    "utf-16 json": ("rows.json", lambda path: f"[{GOOD}]".encode("utf-16"), ["rows.json is in UTF-16", "iconv"]),
    "utf-32": ("rows.jsonl", lambda path: GOOD.encode("utf-32"), ["rows.jsonl is in UTF-16", "iconv"]),
    "csv": ("rows.csv", lambda path: b"question,answer\n", ["rows.csv is not a kind of file", "Convert it to JSONL"]),
    "cut gzip": ("rows.jsonl.gz", lambda path: gzip.compress(GOOD.encode())[:20], ["rows.jsonl.gz", "Convert"]),
    "gzip under a wrong name": ("r.jsonl", lambda path: gzip.compress(GOOD.encode()), ["r.jsonl:1: not_utf8"]),
    "cut parquet": ("rows.parquet", lambda path: parquet(path)[:-20], ["rows.parquet can't be read", "Replace the file"]),
    "no parquet": ("rows.parquet", lambda path: b"PAR1" + b"\0" * 99 + b"PAR1", ["rows.parquet can't be read", "Replace"]),
    "broken json": ("rows.json", lambda path: b'[{"question": "1+1",\n"answer" "2"}]', ["rows.json", "line 2 column 10", "Mend"]),
    "json object": ("rows.json", lambda path: b'{"data":\n[]}', ["rows.json holds an object with the keys data", "JSONL"]),
    "json number": ("rows.json", lambda path: b"7", ["rows.json holds int, not a list of rows"]),
    "python script": ("rows.py", lambda path: b"raise SystemExit(99)", ["rows.py is not a kind of file", "Convert"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files(run, tmp_path, name):
    file, content, named = FILES[name]
    (tmp_path / file).write_bytes(content(tmp_path / file))
    check(run("--data.prompt_dataset", f"{{tmp}}/{file}"), 2, ["--data.prompt_dataset", *named])


def test_folder_without_data(run, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").write_text("x")
    check(run("--data.prompt_dataset", "{tmp}/d"), 2, ["--data.prompt_dataset", "has no .json", "Check the path"])


def test_damaged_saved_data_set(run, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "state.json").write_text("{}")
    check(run("--data.prompt_dataset", "{tmp}/d"), 2, ["--data.prompt_dataset", "did not load", "Save it anew"])


def test_evaluation_data_are_checked_under_their_own_flag(run, tmp_path):
    (tmp_path / "eval.jsonl").write_text('{"question": "1+1", "answer": ""}\n')
    result = run("--eval.dataset", "{tmp}/eval.jsonl", "--eval.steps", "1")
    check(result, 2, ["--eval.dataset: no row of", "eval.jsonl:1: no_answer", "bad_rows_eval.jsonl"])


@pytest.mark.skipif(AS_ROOT, reason="root may read and write everything")
@pytest.mark.parametrize(
    "what, named", [("rows.jsonl", "--data.prompt_dataset"), ("model/model.safetensors", "--actor")]
)
def test_no_permission_to_read(run, tmp_path, what, named):
    (tmp_path / what).chmod(0)
    check(run(), 2, [named, "ermission"])


@pytest.mark.skipif(AS_ROOT, reason="root may read and write everything")
def test_no_permission_to_write(run, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    check(run("--ckpt.output_dir", "{tmp}/locked/run"), 2, ["--ckpt.output_dir", "locked cannot be written"])


# ---- models: an edit of the tiny base ----


def edit(name, **changes):
    def apply(model):
        path = model / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return apply


def write(name, content):
    return lambda model: (model / name).write_bytes(content)


def remove(*names):
    def apply(model):
        for name in names:
            (model / name).unlink()

    return apply


def weights(change):
    """Rewrites the header of the weights by ``change(header)``; the data stay."""

    def apply(model):
        path = model / "model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        new = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])

    return apply


def index(**where):
    def apply(model):
        shutil.move(model / "model.safetensors", model / "a.safetensors")
        (model / "model.safetensors.index.json").write_text(json.dumps(where))

    return apply


def pickled(model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /nowhere'\ntR.")


def cut(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def without_eos(model):
    edit("tokenizer_config.json", eos_token=None)(model)
    edit("tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")(model)


REMOTE = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
MODEL = "--actor.model_name_or_path"
MODELS = {
    "no config": (remove("config.json"), [MODEL, "holds no config.json"]),
    "broken config": (write("config.json", b'{"model_type": '), [MODEL, "config.json cannot be read", "anew"]),
    "config is a list": (write("config.json", b"[]"), [MODEL, "config.json holds no object"]),
    "config without a type": (write("config.json", b"{}"), [MODEL, "did not load"]),
    "unknown type": (edit("config.json", model_type="gpt99"), [MODEL, "did not load", "gpt99"]),
    "remote code": (edit("config.json", model_type="evil", **REMOTE), [MODEL, "--orz.trust_remote_code", "read the code"]),
    "an encoder": (edit("config.json", model_type="t5", architectures=["T5EncoderModel"]), [MODEL, "causal language model"]),
    "a classifier": (edit("config.json", architectures=["Qwen2ForSequenceClassification"]), [MODEL, "causal language"]),
    "no weights": (remove("model.safetensors"), [MODEL, "holds no weights (model.safetensors)", "anew"]),
    "pickled weights": (pickled, [MODEL, "pickled weights alone (pytorch_model.bin)", "save_pretrained"]),
    "empty weights": (write("model.safetensors", b""), [MODEL, "model.safetensors", "is damaged"]),
    "no safetensors": (write("model.safetensors", b"not a checkpoint"), [MODEL, "is no safetensors file"]),
    "broken header": (write("model.safetensors", struct.pack("<Q", 9) + b'{"a": 17}'), [MODEL, "no valid header"]),
    "cut weights": (cut, [MODEL, "bytes instead of", "is damaged"]),
    "missing shard": (index(weight_map={"x": "b.safetensors"}), [MODEL, "b.safetensors is missing", "anew"]),
    "index without a map": (index(metadata={}), [MODEL, "has no weight_map", "anew"]),
    "tensor not in its shard": (index(weight_map={"x": "a.safetensors"}), [MODEL, "a.safetensors lacks x"]),
    "other width": (edit("config.json", hidden_size=64), [MODEL, "is [", "of different models"]),
    "other vocabulary": (edit("config.json", vocab_size=1024), [MODEL, "embed_tokens.weight", "[1024, 128]"]),
    "too few layers": (edit("config.json", num_hidden_layers=6), [MODEL, "layers.4", "says 6 layers"]),
    "too many layers": (edit("config.json", num_hidden_layers=2), [MODEL, "4 layers", "says 2"]),
    "a tensor is missing": (weights(lambda header: header.__setitem__("x", header.pop("model.layers.2.mlp.up_proj.weight"))),
                            [MODEL, "layers.2.mlp.up_proj.weight", "anew"]),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), [MODEL, "tokenizer", "save_pretrained"]),
    "broken tokenizer": (write("tokenizer.json", b'{"version": '), [MODEL, "tokenizer.json cannot be read"]),
    "tokenizer of nothing": (write("tokenizer.json", b"{}"), [MODEL, "tokenizer", "save_pretrained"]),
    "no eos": (without_eos, [MODEL, "no eos token", "tokenizer_config.json (eos_token)"]),
    "small vocabulary": (edit("config.json", vocab_size=300), [MODEL, "the model only 300 (vocab_size)"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models(run, tmp_path, name):
    change, named = MODELS[name]
    change(tmp_path / "model")
    check(run(), 2, ["rror: ", *named])


def test_critic_of_another_vocabulary_or_with_a_head_of_another_shape(run, tmp_path):
    critic = shutil.copytree(tmp_path / "model", tmp_path / "critic")
    edit("config.json", vocab_size=300)(critic)
    flags = ("--critic.model_name_or_path", "{tmp}/critic")
    check(run(*flags), 2, ["--critic.model_name_or_path", "only 300"])
    edit("config.json", vocab_size=512)(critic)
    weights(
        lambda header: header.__setitem__(
            "score.weight", {"dtype": "BF16", "shape": [8, 16], "data_offsets": [0, 256]}
        )
    )(critic)
    check(run(*flags), 2, ["--critic.model_name_or_path", "score.weight", "[1, 128]", "reshape"])


def test_chat_templates(run, tmp_path):
    flag = "--data.apply_chat_template"
    check(run(flag), 2, [flag, "has no chat template", "Leave the flag out"])
    edit("tokenizer_config.json", chat_template="{{ messages | nothing }}")(tmp_path / "model")
    check(run(flag), 2, [flag, "chat template fails", "Mend it"])


def test_tokenizer_without_pad_is_as_good(run, tmp_path):
    edit("tokenizer_config.json", pad_token=None)(tmp_path / "model")
    check(run(), "starts", ["1 prompts, 1 steps"])


def test_bos_that_the_prompt_lacks_is_said(run, tmp_path):
    path = tmp_path / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    piece = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing", "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [481], "tokens": ["<|endoftext|>"]}},
    }  # fmt: skip
    path.write_text(json.dumps(content))
    changes = dict(bos_token="<|endoftext|>", tokenizer_class="PreTrainedTokenizerFast")
    edit("tokenizer_config.json", **changes)(tmp_path / "model")
    check(run(), "starts", ["puts <|endoftext|> in front", "--orz.prompt_template"])


def test_last_rollout_smaller_than_the_ranks(run, tmp_path):
    """Nine prompts, four a rollout and one response each: two ranks, and the last rollout has one sample."""
    (tmp_path / "rows.jsonl").write_text(GOOD * 9)
    flags = ("--rollout.n_samples_per_prompt", "1", "--actor.num_gpus_per_node", "2", "--critic.num_gpus_per_node", "2",
             "--orz.critic_updates", "1")  # fmt: skip
    named = ["--rollout.batch_size 4", "of 9 prompts the last rollout has 1", "the 2 ranks", "--data.max_samples"]
    check(run(*flags), 2, named)
    check(run(*flags, "--data.max_samples", "8"), "starts", ["8 prompts, 2 steps"])
    check(run(*flags, "--rollout.batch_size", "16"), "starts", ["9 prompts, 1 steps"])
    (tmp_path / "rows.jsonl").write_text(GOOD)
    check(run(*flags), 2, ["of 1 prompts the last rollout has 1"])


def test_another_build_of_openrlhf(run, monkeypatch):
    from openrlhf_orz import compat

    monkeypatch.setattr(compat, "version", lambda name: "0.11.2")
    check(run(), 2, ["OpenRLHF 0.11.2 is installed", "bash tools/setup.sh"])


def test_what_is_sound_reaches_ray(run):
    """Else the cases above could all fail for one and the same reason."""
    check(run(), "starts", ["1 prompts, 1 steps"])
