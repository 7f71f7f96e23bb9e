"""A published run loads in plain transformers, tells what it is, and nothing of the machine it was made on."""

import base64
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openrlhf_orz.cli.publish import main, set_sampling
from openrlhf_orz.report import card
from openrlhf_orz.report.run_data import load_run
from openrlhf_orz.runtime import checkpoints
from openrlhf_orz.trainer.exports import whole_model

ROOT = Path(__file__).parents[3]
BASE = ROOT / "examples" / "tiny_base"
TOKEN = "hf_" + "a" * 30


@pytest.fixture
def run(tmp_path):
    """A run of two steps on curated rows, evaluated, its policy with other numbers than the base's."""
    pytest.importorskip("matplotlib")
    path, pool = tmp_path / "home" / "me" / "run", tmp_path / "home" / "me" / "pool"
    base = pool.with_name("base")
    shutil.copytree(BASE, base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    (base / "LICENSE").write_text("Apache")
    (pool / "kept").mkdir(parents=True)
    (pool / "funnel.json").write_text("{}")
    (pool / "README.md").write_text(f"---\na: b\n---\n# pool\n\n| mine | {pool}/rows.jsonl | MIT |\n")
    (path / "data").mkdir(parents=True)
    (path / "data" / "prompts_train.jsonl").write_text('{"prompt": "a"}\n' * 7)
    (path / "data" / "bad_rows_train.jsonl").write_text('{"row": 1, "reason": "no_answer"}\n' * 2)
    flags = {
        "actor": {"model_name_or_path": str(base), "adam": {"lr": 1e-6}},
        "rollout": {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 48},
        "data": {"prompt_dataset": str(pool / "kept" / "train.jsonl"), "apply_chat_template": False},
        "orz": {"prompt_template": "paper", "stop": ["</answer>"], "run_dir": str(path), "trust_remote_code": False},
        "reward": {"remote_url": "http://grader.internal:5000/x"}, "ckpt": {"path": str(path / "checkpoints")},
        "logger": {"wandb": {"org": "secret-team"}}, "ds": {"lora": {"rank": 0}},
    }  # fmt: skip
    command = ["python", "-m", "openrlhf_orz.cli.train_ppo_ray", f"--actor.model_name_or_path={base}",
               "--data.prompt_dataset", str(pool / "kept" / "train.jsonl"), "--ckpt.output_dir", str(path),
               "--logger.wandb.key", TOKEN, "--orz.stop", "</answer>"]  # fmt: skip
    config = {"flags": flags, "explicit": ["actor.model_name_or_path", "data.prompt_dataset", "reward.remote_url"],
              "command": command, "versions": {"torch": "2.13.0"}, "git_commit": "abc",
              "changed": [{"after_step": 1, "flags": [f"--data.prompt_dataset was {pool}/a.jsonl, is b"]}],
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    rows = [{"step": step, "reward": step / 4, "format": 0.9, "response_length": 20 + step} for step in (1, 2)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evals = [{"step": step, "eval_math_pass1": 0.25 * step, "eval_math_low": 0.1, "eval_math_high": 0.6}
             for step in (0, 2)]  # fmt: skip
    (path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evals))
    shutil.copytree(BASE, path / "hf")
    for name in ("hf/config.json", "hf/tokenizer_config.json"):
        content = json.loads((path / name).read_text()) | {"_name_or_path": str(base)}
        (path / name).write_text(json.dumps(content))
    (path / "hf" / "notes.bin").write_text(TOKEN)
    return path


def checkpoint(run: Path, tag: str, numbers: float = 0.5, state: dict | None = None, lora: int = 0) -> Path:
    """A checkpoint of the policy as DeepSpeed writes it on one rank, all weights the same number, or ``state``."""
    partial = checkpoints.partial_path(run / "checkpoints", tag)
    folder = partial / "_actor" / tag
    folder.mkdir(parents=True)
    if state is None:
        state = {name: torch.full_like(x, numbers) for name, x in load_file(BASE / "model.safetensors").items()}
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    torch.save({"module": state}, folder / "mp_rank_00_model_states.pt")
    base = json.loads((run / "config.json").read_text())["flags"]["actor"]["model_name_or_path"]
    flags = {"actor.model_name_or_path": base, "orz.trust_remote_code": False, "ds.param_dtype": "bf16",
             "ds.lora.rank": lora, "ds.lora.alpha": 8, "ds.lora.dropout": 0, "ds.lora.target_modules": "all-linear",
             "data.apply_chat_template": False, "orz.prompt_template": "paper"}  # fmt: skip
    trainer = {"flags": flags, "prompts_sha256": "", "global_step": checkpoints.step_of(tag)}
    (partial / checkpoints.TRAINER).write_text(json.dumps(trainer))
    (partial / checkpoints.STATE).write_text("")
    return checkpoints.commit(partial)


def test_it_loads_and_tells_what_it_is(run, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    folder, base = run.parent / "out", run / "hf" / "generation_config.json"
    given = json.loads(base.read_text()) if base.exists() else {}  # as base models ship theirs
    base.write_text(json.dumps(given | {"max_new_tokens": 16, "repetition_penalty": 1.05, "eos_token_id": 2}))
    assert main([str(run), "--output", str(folder)]) == 0, capsys.readouterr().err
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() > 800_000 and len(AutoTokenizer.from_pretrained(folder)) > 400
    sampling = GenerationConfig.from_pretrained(folder)
    assert (sampling.do_sample, sampling.temperature, sampling.top_p, sampling.top_k) == (True, 0.7, 1.0, 0)
    assert sampling.eos_token_id == 2 and sampling.max_new_tokens == 48
    assert "repetition_penalty" not in json.loads((folder / "generation_config.json").read_text())
    text = (folder / "README.md").read_text()
    assert text.startswith("---\n") and "\nlicense: apache-2.0\n" in text and (folder / "LICENSE").exists()
    assert "base model: `base` (a local folder)" in text and "base_model:" not in text
    assert (folder / "reward_and_length.png").stat().st_size > 5000 and "(reward_and_length.png)" in text
    assert "--actor.model_name_or_path=base" in text and "--orz.stop '</answer>'" in text
    assert (
        "max_tokens=48" in text and "| | first 1 of 2 steps | last 1 |" in text and "| reward | 0.25 | 0.5 |" in text
    )
    assert "**Resumed after step 1 with other flags**: --data.prompt_dataset was a.jsonl, is b." in text
    assert "7 prompts; rows left out: no_answer 2" in text and "| math | 50.0 | 10.0 to 60.0 | 0.0 |" in text
    assert "| mine | rows.jsonl | MIT |" in (folder / "data.md").read_text()
    assert json.loads((folder / "training.json").read_text())["flags"]["rollout.temperature"] == "0.7"
    # nothing of the machine, no token, no service
    assert not (folder / "notes.bin").exists()
    for file in folder.iterdir():
        content = file.read_bytes()
        for private in (run.parent.as_posix(), "home/me", TOKEN, "secret-team", "grader.internal"):
            assert private.encode() not in content, (file.name, private)
    assert main([str(run), "--output", str(folder)]) == 2  # a folder in use is left alone
    assert "is in use" in capsys.readouterr().err


@pytest.mark.parametrize("flags, limit", [
    ({"rollout.max_new_tokens": "48", "data.max_len": "64"}, {"max_new_tokens": 48}),
    ({"rollout.max_new_tokens": "null", "data.max_len": "64"}, {"max_length": 64}),
    ({}, {}),
])  # fmt: skip
def test_a_published_model_has_the_runs_limit(tmp_path, flags, limit):
    """Without --rollout.max_new_tokens, as recipes for GPUs are, --data.max_len bounds prompt and response."""
    set_sampling(tmp_path, {"rollout.temperature": "0.7", **flags})
    content = json.loads((tmp_path / "generation_config.json").read_text())
    assert content == {"do_sample": True, "top_k": 0, "temperature": 0.7, **limit}


def test_the_newest_that_is_whole(run, capsys):
    """A later checkpoint that is not damaged goes before hf; a hf that is cut before nothing."""
    old = checkpoint(run, "global_step1", 0.25)
    for file in (run / "hf").iterdir():
        os.utime(file, (file.stat().st_mtime + 60,) * 2)
    assert (
        main([str(run), "--output", str(run / "a")]) == 0 and "of the run's end" in (run / "a/README.md").read_text()
    )
    newer, broken = checkpoint(run, "global_step2", 0.5), checkpoint(run, "global_step3", 0.75)
    for folder in (newer, broken):
        os.utime(folder / checkpoints.TRAINER, (old.stat().st_mtime + 120,) * 2)
    next(broken.glob("_actor/*/*.pt")).write_bytes(b"cut")
    assert main([str(run), "--output", str(run / "b")]) == 0
    assert "global_step3 is damaged" in capsys.readouterr().out
    weights = load_file(run / "b" / "model.safetensors")
    assert all(bool((tensor == 0.5).all()) and tensor.dtype == torch.bfloat16 for tensor in weights.values())
    assert "You must put your answer" in (run / "b" / "chat_template.jinja").read_text()
    assert "of the checkpoint global_step2" in (run / "b" / "README.md").read_text()
    cut = run / "hf" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    assert not whole_model(run / "hf")
    shutil.rmtree(run / "checkpoints")
    assert main([str(run), "--output", str(run / "c")]) == 2 and "no model that is whole" in capsys.readouterr().err


def test_notes_do_not_steer_the_terminal(run, capsys):
    run = run.rename(run.with_name("run\x1b[2J"))
    (run / "hf" / "model.safetensors").write_bytes(b"cut")
    assert main([str(run)]) == 2
    told = "".join(capsys.readouterr())
    assert "hf is not whole" in told and "run\\x1b[2J" in told and "\x1b" not in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--critic"], "train with --critic.save_value_network"),
        (["--evaluation", "nowhere"], "no finished evaluation"),
        (["--to", "me/it"], "there is no token: set HF_TOKEN"),
        (["--merged"], "trained whole weights, no adapters"),
    ],
)
def test_refusals(run, options, words, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main([str(run), "--output", str(run / "out"), *options]) == 2 and words in capsys.readouterr().err
    assert (run / "out").exists() == ("--to" in options)  # what was written stays


def test_a_checkpoint_by_name(run, capsys):
    """The best, a step's, with the model beside it or without; the card tells which, and nothing of later steps."""
    best, later = checkpoint(run, "best_global_step1", 0.25), checkpoint(run, "global_step2", 0.5)
    beside = later / "global_step2_hf"
    shutil.copytree(BASE, beside)
    for number, (name, taken) in enumerate([("best", best), (best.name, best), ("hf", run / "hf")]):
        folder = run / f"out{number}"
        assert main([str(run), "--output", str(folder), "--checkpoint", name]) == 0, capsys.readouterr().err
        text = (folder / "README.md").read_text()
        if taken == best:
            assert "1 steps of reinforcement learning" in text and "| | first 1 of 1 steps |" in text
            assert "Weights: of the checkpoint best_global_step1." in text and "after step 2" not in text
            weights = load_file(folder / "model.safetensors")
            assert all(bool((tensor == 0.25).all()) for tensor in weights.values())
        else:
            assert "2 steps of reinforcement learning" in text and "Weights: of the run's end." in text
    for name, words in {
        "global_step2": "global_step2 is damaged: ",  # files that its manifest lacks are none of it
        "best_global_step7": "holds no best_global_step7 that is whole. It holds: hf, global_step2, best_global_step1",
        "hf_ema": "holds no hf_ema",
    }.items():
        if name == "global_step2":
            next(later.glob("_actor/*/*.pt")).write_bytes(b"cut")
        assert main([str(run), "--output", str(run / "no"), "--checkpoint", name]) == 2
        assert words in capsys.readouterr().err and not (run / "no").exists()
    shutil.copytree(run / "hf", run / "hf_critic")
    assert main([str(run), "--output", str(run / "no"), "--checkpoint", "best", "--critic"]) == 2
    assert "hf_critic is of the run's end, and the policy of the checkpoint best_" in capsys.readouterr().err


def test_the_model_beside_a_checkpoint(run):
    """--ckpt.save_hf: no conversion."""
    shutil.rmtree(run / "hf")
    partial = checkpoints.partial_path(run / "checkpoints", "global_step1")
    shutil.copytree(BASE, partial / "global_step1_hf")
    (partial / checkpoints.TRAINER).write_text(json.dumps({"flags": {}, "prompts_sha256": "", "global_step": 1}))
    (partial / checkpoints.STATE).write_text("")
    checkpoints.commit(partial)
    assert main([str(run), "--output", str(run / "out")]) == 0
    assert (run / "out" / "model.safetensors").read_bytes() == (BASE / "model.safetensors").read_bytes()


def test_adapters(run, capsys):
    """Adapters go out as they are, of the run's end and of a checkpoint, or merged; all give the same logits."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from openrlhf_orz.models.adapters import merged_state, without_adapters

    config = json.loads((run / "config.json").read_text())
    config["flags"]["ds"]["lora"]["rank"] = 4
    (run / "config.json").write_text(json.dumps(config))

    def load(folder):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", bias="none")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16), lora)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
            parameter.data = parameter.data.bfloat16()
    state = model.state_dict()
    model.save_pretrained(run / "hf_adapter")
    without_adapters(model).save_pretrained(run / "hf", state_dict=merged_state(model, state))
    (run / "hf" / "chat_template.jinja").write_text("You must put your answer")
    checkpoint(run, "global_step2", state=state, lora=4)
    tokens = torch.arange(40, 60)[None]
    expected = load(run / "hf")(tokens).logits
    for source in ("hf", "global_step2"):
        folder, merged = run / source.replace("hf", "end"), run / f"{source}_merged"
        assert main([str(run), "--output", str(folder), "--checkpoint", source]) == 0, capsys.readouterr().err
        assert not (folder / "model.safetensors").exists() and not (folder / "config.json").exists()
        named = json.loads((folder / "adapter_config.json").read_text())
        assert named["base_model_name_or_path"] == "base" and str(run.parent) not in json.dumps(named)
        adapted = PeftModel.from_pretrained(load(BASE), folder)
        gap = (adapted(tokens).logits - expected).abs().max()
        assert gap < 0.05 * expected.abs().max(), gap  # the merged weights are rounded to bfloat16
        assert (load(BASE)(tokens).logits - expected).abs().max() > 10 * gap
        assert "You must put your answer" in AutoTokenizer.from_pretrained(folder).chat_template
        text = (folder / "README.md").read_text()
        assert (
            "library_name: peft" in text and 'LLM("base", tokenizer="run", enable_lora=True, max_lora_rank=8)' in text
        )
        assert main([str(run), "--output", str(merged), "--checkpoint", source, "--merged"]) == 0
        assert torch.equal(load(merged)(tokens).logits, expected)
        assert "library_name: transformers" in (merged / "README.md").read_text()
    assert main([str(run), "--output", str(run / "x"), "--base_model", "org/base"]) == 0
    assert "base_model: org/base\nbase_model_relation: adapter" in (run / "x" / "README.md").read_text()
    shutil.rmtree(run / "hf_adapter")
    assert main([str(run), "--output", str(run / "no"), "--checkpoint", "hf"]) == 2
    assert "give --merged for whole weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file: file.rename(file.with_name("mp_rank_01_model_states.pt")), "each matrix in parts"),
        (lambda file: file.unlink(), "no weights (--ckpt.disable_ds)"),
        (lambda file: torch.save({"module": Path("x")}, file), "holds more than data, which is not run"),
        (lambda file: torch.save({"module": {"a": torch.zeros(1)}}, file), "is not of the model"),
    ],
)
def test_a_checkpoint_that_cannot_be_converted(run, spoil, words, capsys):
    shutil.rmtree(run / "hf")
    folder = checkpoint(run, "global_step1")
    spoil(folder / "_actor" / "global_step1" / "mp_rank_00_model_states.pt")
    folder.rename(checkpoints.partial_path(folder.parent, folder.name))
    checkpoints.commit(checkpoints.partial_path(folder.parent, folder.name))
    assert main([str(run)]) == 2
    error = capsys.readouterr().err
    assert words in error and "train with --ckpt.save_hf" in error
    assert not (run / "published").exists() and not list(run.glob(".partial*"))


def test_an_evaluation_of_these_weights(run, capsys):
    from openrlhf_orz.evaluate.run import weights_fingerprint

    (run / "evaluation").mkdir()
    content = {"n": 4, "seed": 0, "results": {"gsm8k": {"questions": 5, "n": 4, "avg_at_n": 0.5}},
               "settings": {"weights": weights_fingerprint(str(run / "hf"))}}  # fmt: skip
    (run / "evaluation" / "results.json").write_text(json.dumps(content))
    assert main([str(run), "--output", str(run / "a")]) == 0
    assert "| gsm8k | 5 | 4 | 50.0 |" in (run / "a" / "README.md").read_text()
    content["settings"]["weights"] = {"model.safetensors": "1-other"}
    (run / "evaluation" / "results.json").write_text(json.dumps(content))
    assert main([str(run), "--output", str(run / "b")]) == 0 and "of other weights" in capsys.readouterr().out
    assert "gsm8k" not in (run / "b" / "README.md").read_text()


def test_a_command_is_made_of_the_flags_where_none_is_recorded(run):
    config = json.loads((run / "config.json").read_text())
    del config["command"]
    config["explicit"] += ["orz.stop", "actor.adam.lr"]
    (run / "config.json").write_text(json.dumps(config))
    words = card.command_of(load_run(run))
    assert words[:5] == ["python", "-m", "openrlhf_orz.cli.train_ppo_ray", "--actor.model_name_or_path", "base"]
    assert words[-4:] == ["--orz.stop", "</answer>", "--actor.adam.lr", "1e-06"]


def test_places():
    assert card.without_places("see /a/b/c.json, ~/d/e and ../f/g; not a/b, https://h.org/x/y, 1/2 or </answer>") == (
        "see c.json, e and g; not a/b, https://h.org/x/y, 1/2 or </answer>"
    )
    assert card.shown("/a b/c d.jsonl,org/name,../x/y") == "c d.jsonl,name,y"
    assert card.shown("org/name") == "org/name" and card.shown("file:///a/b.py") == "b.py"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as an upload of small files takes."""

    files: dict[str, bytes] = {}
    asked: list[str] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(f"{self.path} {self.headers['Authorization']}")
        answer: dict = {"url": f"http://{self.headers['Host']}/me/it", "id": "1"}
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"http://{self.headers['Host']}/me/it/commit/1", "commitOid": "1"}
        elif "/create" in self.path:
            assert b'"private"' in body and b"false" not in body
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def test_it_is_pushed(run, monkeypatch, capsys):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main([str(run), "--output", str(run / "out"), "--to", "me/it"]) == 0, capsys.readouterr().err
    server.shutdown()
    assert Hub.files.keys() == {file.name for file in (run / "out").iterdir()}
    assert Hub.files["model.safetensors"] == (run / "out" / "model.safetensors").read_bytes()
    assert "/me/it" in capsys.readouterr().out and all(TOKEN in line for line in Hub.asked)
    # the hub is gone: the folder stays
    server.server_close()
    assert main([str(run), "--output", str(run / "two"), "--to", "me/it"]) == 2
    error = capsys.readouterr().err
    assert "me/it was not pushed" in error and TOKEN not in error and (run / "two" / "README.md").exists()
