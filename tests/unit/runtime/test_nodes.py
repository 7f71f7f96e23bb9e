"""Machines of a joined Ray: folders that they do not see are noticed before models load; logs and stacks come home."""

import os
import sys

import pytest

from openrlhf_orz.runtime import nodes
from openrlhf_orz.settings.checks import ConfigError


def test_logs_of_this_job_are_kept(tmp_path):
    for name, text in {
        "worker-1-job-2.out": "ours",
        "worker-1-job-3.err": "",
        "worker-1-other-2.out": "theirs",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "worker-2-job-4.out").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "worker-2-job-5.out")
    nodes.keep_logs(tmp_path, tmp_path / "logs", "job")
    assert {file.name: file.read_text() for file in (tmp_path / "logs").iterdir()} == {"worker-1-job-2.out": "ours"}


def test_a_folder_that_is_not_shared_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "SEE_S", 0.3)
    marks = nodes.mark_shared([str(tmp_path / "run"), str(tmp_path / "disk")])
    nodes.require_shared(marks)
    nodes.require_shared({})
    (tmp_path / "disk" / nodes.MARK).write_text("an older run's")  # as another machine's own folder would have
    assert nodes.unseen(marks, 0.1) == str(tmp_path / "disk")
    (tmp_path / "disk" / nodes.MARK).unlink()
    with pytest.raises(ConfigError, match=f"--ckpt.output_dir, --ckpt.path: .* does not see {tmp_path}/disk"):
        nodes.require_shared(marks)


def test_without_agents_nobody_is_asked(monkeypatch):
    monkeypatch.delenv(nodes.AGENTS_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)  # an import would fail
    nodes.ask_agents("finish")


def test_a_lost_machine_does_not_silence_the_others(monkeypatch, capsys):
    asked = []

    class Method:
        def remote(self, *args):
            asked.append(args)
            return "ref"

    class Agent:
        write_stacks = Method()

    class Ray:
        util = type(
            "util", (), {"list_named_actors": staticmethod(lambda: ["orz-node-gone", "other", "orz-node-here"])}
        )
        wait = staticmethod(lambda refs, **options: (refs, []))
        get = staticmethod(lambda ref, timeout: None)

        @staticmethod
        def get_actor(name):
            if name == "orz-node-gone":
                raise ValueError("Failed to look up actor")
            return Agent

    monkeypatch.setitem(sys.modules, "ray", Ray)
    monkeypatch.setenv(nodes.AGENTS_VARIABLE, "1")
    nodes.ask_agents("write_stacks", "logs/hang-training-1.txt", named=True)
    assert asked == [("logs/hang-training-1-here.txt",)]
    assert "agent on node gone, write_stacks: Failed to look up actor" in capsys.readouterr().err
