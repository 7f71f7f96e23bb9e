"""Credentials are told from other text, and do not reach what a run writes."""

import json
import pickle
from types import SimpleNamespace

import pytest

from openrlhf_orz.runtime.run_dir import save_config
from openrlhf_orz.settings.command_line import parse
from openrlhf_orz.settings.redact import HIDDEN, Secret, copy_redacted, redact

FLAGS = ["--actor.model_name_or_path", "m", "--data.prompt_dataset", "d", "--orz.device", "cpu"]


@pytest.mark.parametrize(
    "text, hidden",
    [
        ("https://user:sesame@host/x", "https://(not shown)@host/x"),
        ("s3://sesame@bucket and http://a:sesame@b:8000", "s3://(not shown)@bucket and http://(not shown)@b:8000"),
        ("http://host/get?api_key=sesame&n=2", "http://host/get?api_key=(not shown)&n=2"),
        ("token hf_" + "a1B2" * 8 + ".", "token (not shown)."),
        ("the environment's open-sesame-1", "the environment's (not shown)"),
        ("https://user:se/same@host/x", "https://(not shown)@host/x"),
        ("https://user:se@same/a@b@host/x", "https://(not shown)@host/x"),
        ("http://a:8000,http://u:sesame@h/b", "http://a:8000,http://(not shown)@h/b"),
        *(
            (f"a {token}, b", "a (not shown), b")
            for token in (
                "github_pat_" + "a1_B" * 8,
                "ASIA" + "A1B2" * 4,
                "xoxb-123-456-abcdef",
                "wandb_v1_" + "aB1_" * 8,
                "glpat-" + "a1-B" * 5,
                "ghs_" + "a1B2" * 8,
            )
        ),
    ],
)
def test_hidden(monkeypatch, text, hidden):
    monkeypatch.setenv("SOME_API_KEY", "open-sesame-1")
    assert redact(text) == hidden


@pytest.mark.parametrize(
    "secret",
    ["/begins/like/a/path", "~tilde-dot-", ".hidden-x", "12345678", 'quo"te-and\\back', "schlüssel-ß", "a'b\"c-long"],
)
def test_a_secret_of_any_shape_is_hidden_as_it_is_and_as_it_is_written(monkeypatch, secret):
    monkeypatch.setenv("SOME_API_KEY", secret)
    for text in (secret, json.dumps(secret), json.dumps({"a": [secret]}, ensure_ascii=False), repr([secret])):
        shown = redact(f"x {text} y")
        assert HIDDEN in shown and secret not in shown and json.dumps(secret)[1:-1] not in shown, shown


def test_each_line_of_a_secret_is_hidden(monkeypatch):
    monkeypatch.setenv("SSH_PRIVATE_KEY", "-----BEGIN-----\nsesame-sesame\n-----END-----\n")
    assert redact("a log's line: sesame-sesame.") == "a log's line: (not shown)."


def test_a_path_that_is_there_is_shown(monkeypatch, tmp_path):
    (tmp_path / "token").touch()
    monkeypatch.setenv("HF_TOKEN", str(tmp_path / "token"))
    assert redact(f"read {tmp_path}/token") == f"read {tmp_path}/token"


def test_long_lines_take_no_time():
    line = "a:://" * 100_000
    assert redact(line) == line


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8000/a@b",
        "Qwen/Qwen2.5-7B",
        "name@folder",
        "mail me@home",
        "tokens=3 keys=4",
        "{'token': 7}",
        "/a/b?c",
    ],
)
def test_left_alone(monkeypatch, text):
    monkeypatch.setenv("SHORT_KEY", "b")  # would hide half of everything
    monkeypatch.setenv("SSH_KEY", "/a/b")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    assert redact(text) == text


def test_secret_survives_its_way_to_the_workers_unseen():
    secret = pickle.loads(pickle.dumps(Secret("sesame")))
    assert secret == "sesame" and "sesame" not in repr(secret) and "sesame" not in repr(SimpleNamespace(key=[secret]))
    assert repr(Secret("http://u:sesame@h")) == repr("http://(not shown)@h")


def test_no_credential_in_config_json_or_in_the_printed_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "sesame-of-the-hub")
    monkeypatch.setenv("WANDB_API_KEY", "sesame-of-wandb")
    args, explicit = parse(
        [
            *FLAGS,
            "--logger.wandb.key",
            "sesame1",
            "--reward.remote_url",
            "https://me:sesame2@host/a,http://host/b?token=sesame3",
            "--logger.wandb.run_name",
            "sesame-of-the-hub",
        ]
    )
    save_config(args, explicit, tmp_path / "config.json")
    written = (tmp_path / "config.json").read_text()
    for text in (written, str(args)):  # OpenRLHF prints the latter
        assert "sesame" not in text and HIDDEN in text and "host/a" in text
    assert json.loads(written)["flags"]["reward"]["remote_url"][0] == "https://(not shown)@host/a"
    assert args.reward.remote_url[0] == "https://me:sesame2@host/a" and args.logger.wandb.key == "sesame1"


def test_logs_are_kept_without_credentials(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "sesame-of-the-hub")
    (tmp_path / "kept").mkdir()
    (tmp_path / "worker-1.err").write_bytes(b"asked https://a:sesame@host\nwith sesame-of-the-hub \xff\nok\n")
    copy_redacted(tmp_path / "worker-1.err", tmp_path / "kept")
    kept = (tmp_path / "kept" / "worker-1.err").read_text()
    assert "sesame" not in kept and kept.splitlines()[2] == "ok"


def test_no_credential_in_messages(capsys):
    for wrong in (
        ["--reward.remote_url", "ftp://me:sesame@host"],
        ["https://me:sesame@host"],
        ["--x=http://a:sesame@b"],
    ):
        with pytest.raises(SystemExit):
            parse([*FLAGS, *wrong])
        captured = capsys.readouterr()
        assert "sesame" not in captured.out + captured.err
