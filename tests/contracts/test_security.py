"""Nothing that a run reads is run: no code of model repositories, no pickles, no scripts of data sets."""

import ast
import shutil
from pathlib import Path

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF is not installed: bash tools/setup.sh")

ROOT = Path(__file__).parents[2]
BASE = ROOT / "examples" / "tiny_base"
FLAGS = (
    "--orz.device cpu --data.max_len 480 --rollout.batch_size 4 --rollout.n_samples_per_prompt 4 "
    "--orz.critic_updates 3"
).split()


def calls(package: Path):
    """(file, name of what is called, the call) of every call in the package."""
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path.relative_to(package).as_posix(), ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(given.value) for given in call.keywords if given.arg == name), None)


def upstream() -> Path:
    import openrlhf

    return Path(openrlhf.__file__).parent


def test_code_of_repositories_is_off_wherever_something_is_loaded():
    """Upstream too: 0009-trust-remote-code-switch. Its scripts of data sets: we hand it JSON lines of our own."""
    always = set()
    for package in (upstream(), ROOT / "openrlhf_orz"):
        for file, name, call in calls(package):
            given = keyword(call, "trust_remote_code")
            if given not in (None, "trust_remote_code()", "args.orz.trust_remote_code", "trust", "False",
                             "self.args.orz.trust_remote_code", "options.trust_remote_code",
                             "settings.trust_remote_code"):  # fmt: skip
                always.add((file, name))
    assert always == {("datasets/utils.py", "load_dataset")}


def test_the_switch_follows_the_flag(monkeypatch):
    import os

    from openrlhf_orz.runtime.ray_session import worker_env
    from openrlhf_orz.settings.command_line import parse
    from openrlhf_orz.settings.finished import RunFacts
    from openrlhf_orz.settings.upstream import allow_remote_code

    for flags, expected in (((), "0"), (("--orz.trust_remote_code",), "1")):
        monkeypatch.setenv("OPENRLHF_TRUST_REMOTE_CODE", "1")  # what stands in the environment does not count
        args, _ = parse(["--actor.model_name_or_path", "m", "--data.prompt_dataset", "d", *FLAGS, *flags])
        assert os.environ["OPENRLHF_TRUST_REMOTE_CODE"] == "1", "parsing leaves the environment as it is"
        allow_remote_code(args.orz.trust_remote_code)
        assert os.environ["OPENRLHF_TRUST_REMOTE_CODE"] == expected
        run = RunFacts(checkpoints="", scratch="/dev/shm/orz-0-")
        assert worker_env(args, run)["OPENRLHF_TRUST_REMOTE_CODE"] == expected


def test_what_unpickles_is_known():
    """rollout/sync/transport.py opens handles to GPU memory that this run's own ranks have made.

    runtime/universal.py reads what DeepSpeed has converted of a checkpoint to resume from, which is trusted.
    """
    found = {
        (file, name)
        for file, name, call in calls(ROOT / "openrlhf_orz")
        if name in ("torch.load", "pickle.load", "pickle.loads", "np.load", "exec", "eval", "importlib.import_module")
        and keyword(call, "weights_only") != "True"
        and keyword(call, "allow_pickle") != "False"
    }
    # config.py imports curation's own libraries and fork_server.py those of a run, by names that stand in the code;
    # own_code.py what the user's own flags name
    assert found <= {
        ("rollout/sync/transport.py", "pickle.loads"),
        ("runtime/universal.py", "torch.load"),
        ("data/curate/config.py", "importlib.import_module"),
        ("runtime/fork_server.py", "importlib.import_module"),
        ("settings/own_code.py", "importlib.import_module"),
    }


class Started(BaseException):
    """Raised in place of starting Ray."""


@pytest.fixture
def outcome(tmp_path, monkeypatch, capsys):
    """Runs the command; returns (status, output). What would be run by mistake leaves ``tmp_path/ran``."""
    import ray

    from openrlhf_orz.cli.train_ppo_ray import main

    def start(*args, **kwargs):
        raise Started

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setenv("OPENRLHF_TRUST_REMOTE_CODE", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    shutil.copytree(BASE, tmp_path / "model", ignore=shutil.ignore_patterns("*.py", "*.md"))
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1=?", "answer": "2"}\n')

    def run(data="rows.jsonl", *flags):
        named = {"--actor.model_name_or_path": "model", "--data.prompt_dataset": data, "--ckpt.output_dir": "run"}
        paths = [word for flag, name in named.items() for word in (flag, str(tmp_path / name))]
        try:
            status = main([*paths, *FLAGS, *flags])
        except Started:
            status = "starts"
        captured = capsys.readouterr()
        assert not (tmp_path / "ran").exists(), "something that was read has been run"
        return status, captured.out + captured.err

    return run


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_weights_are_refused_and_not_opened(outcome, tmp_path):
    import torch

    model = tmp_path / "model"
    (model / "model.safetensors").unlink()
    torch.save({"x": Bomb(tmp_path / "ran")}, model / "pytorch_model.bin")
    status, output = outcome()
    assert status == 2 and "pickled weights alone (pytorch_model.bin)" in output and "save_pretrained" in output
    # a name on the hub gets further than that: to transformers, which opens pickles of tensors alone
    from transformers import AutoModelForCausalLM

    with pytest.raises(Exception, match="(?i)weights.only|unpickl"):
        AutoModelForCausalLM.from_pretrained(model)
    assert not (tmp_path / "ran").exists()
    torch.load(model / "pytorch_model.bin", weights_only=False)  # that it is one
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_the_model_s_folder_is_not_run(outcome, tmp_path, file):
    import json

    path = tmp_path / "model" / file
    content = json.loads(path.read_text())
    kinds = {"config.json": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
             "tokenizer_config.json": {"AutoTokenizer": ["evil.Tokenizer", None]}}  # fmt: skip
    content |= {"model_type": "evil"} if file == "config.json" else {"tokenizer_class": "EvilTokenizer"}
    path.write_text(json.dumps(content | {"auto_map": kinds[file]}))
    (tmp_path / "model" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    status, output = outcome()
    if file == "config.json":
        assert status == 2 and "--orz.trust_remote_code" in output
    else:  # refused, or read with a class of transformers' own
        assert status == "starts" or "--orz.trust_remote_code" in output, output


def test_scripts_beside_data_are_not_run(outcome, tmp_path):
    script = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    folder = tmp_path / "sums"
    folder.mkdir()
    (folder / "sums.py").write_text(script)
    status, output = outcome("sums/sums.py")
    assert status == 2 and "sums.py is not a kind of file that is read" in output
    status, output = outcome("sums")
    assert status == 2 and "has no .json" in output
    shutil.copy(tmp_path / "rows.jsonl", folder)
    status, output = outcome("sums")
    assert status == "starts" and "1 rows kept" in output


def test_a_pickle_is_no_data(outcome, tmp_path):
    import pickle

    for name in ("rows.pt", "rows.pkl", "rows.jsonl", "rows.parquet", "rows.arrow"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
        status, output = outcome(name)
        assert status == 2 and "--data.prompt_dataset" in output
