"""The launchers, run against recorders of the programs that they start; their flags by those programs' own parsers."""

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
from expected import LAUNCHERS
from recorded import ROOT, printed

from openrlhf_orz.settings.command_line import parse

TRAIN = "openrlhf_orz.cli.train_ppo_ray"
RECIPE = "examples/train_orz_qwen2.5_7b.sh"
TWO_GPUS = {"program": "nvidia-smi", "prints": "GPU 0: A\nGPU 1: B"}
RAY_STAYS = {"program": "ray", "with": "--block", "stays": True}
RUN_STAYS = {"program": "python", "with": TRAIN, "stays": True}
NODES_COME = {"program": "python", "with": "wait_for_nodes", "until": '"program": "ray"'}
RESUMING = ["--ckpt.load_enable", "--orz.max_restarts", "3"]


def training(entries):
    (entry,) = (e for e in entries if TRAIN in e["argv"] and e["what"] == "started")
    return entry["argv"][entry["argv"].index(TRAIN) + 1 :], entry["env"]


def flag(argv, name):
    return argv[argv.index(name) + 1]


def wait_for(project, program, word, what="started"):
    """Until such a start, or signal, has been recorded."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        text = project.record.read_text() if project.record.exists() else ""
        for line in text.splitlines():
            if f'"program": "{program}"' in line and word in line and f'"what": "{what}"' in line:
                return
        time.sleep(0.05)
    raise AssertionError(f"{program} {word} was never {what}")


def ends(process, status):
    out, err = process.communicate(timeout=30)
    assert process.returncode == status, out + err
    return err


# ---- one node


def test_one_node_resumes_and_takes_all_gpus(project, monkeypatch):
    project.run("examples/launch/one_node.sh", RECIPE, "--train.seed", "1", answers=[TWO_GPUS])
    argv, env = training(project.recorded())
    assert argv[-5:] == [*RESUMING, "--train.seed", "1"]
    assert env["PATH"].startswith(f"{project.folder}/.venv/bin:")  # where ninja is
    assert env["NODES"] == "1" and env["GPUS"] == flag(argv, "--actor.num_gpus_per_node") == "2"
    assert flag(argv, "--ckpt.output_dir") == "runs/train_orz_qwen2.5_7b" and "RAY_ADDRESS" not in env
    monkeypatch.chdir(ROOT)
    args, _ = parse(argv)
    assert args.ckpt.load_enable and args.orz.max_restarts == 3 and args.vllm.num_engines == 2


def test_one_node_looks_at_the_machine_first(project):
    sick = {"program": "python", "with": "cli.doctor", "status": 1}
    said = project.run("examples/launch/one_node.sh", RECIPE, answers=[TWO_GPUS, sick], status=2)
    assert "this machine cannot run it" in said and not any(TRAIN in e["argv"] for e in project.recorded())
    project.run("examples/launch/one_node.sh", RECIPE, answers=[TWO_GPUS, sick], DOCTOR="0")
    assert training(project.recorded())


def test_one_node_keeps_arms_apart_and_may_leave_resuming_out(project):
    script = "examples/ablations/fig08_gae_lambda.sh"
    shown = project.run("examples/launch/one_node.sh", script, ARM="0.95", RESUME="0", DRY_RUN="1", RESTARTS="9")
    (command,) = printed(shown)
    assert flag(command, "--ckpt.output_dir") == "runs/fig08_gae_lambda-0.95" and "--ckpt.load_enable" not in command


@pytest.mark.parametrize("launcher", sorted(LAUNCHERS - {"launch/multi_node.sh"}))
def test_without_a_recipe(project, launcher):
    for args in ([], ["examples/none.sh"]):
        status = 1 if launcher == "launch/slurm.sh" and not args else 2
        assert "recipe" in project.run(f"examples/{launcher}", *args, status=status)
    assert project.recorded() == []


# ---- several nodes


def test_the_head_starts_ray_waits_runs_and_ends_ray(project):
    process = project.start(
        "examples/launch/multi_node.sh",
        "head",
        RECIPE,
        HEAD_IP="10.0.0.1",
        NODES="4",
        answers=[TWO_GPUS, RAY_STAYS, NODES_COME],
    )
    ends(process, 0)
    entries = project.recorded()
    kinds = [(e["program"], e["what"]) for e in entries if e["program"] != "nvidia-smi"]
    assert sorted(kinds[:2]) == [("python", "started"), ("ray", "started")]
    # Ray's workers have the environment of `ray start`; ninja is there
    assert all(e["env"]["PATH"].startswith(f"{project.folder}/.venv/bin:") for e in entries if e["program"] == "ray")
    assert kinds[2:] == [("python", "started"), ("ray", "SIGTERM")]
    (wait,) = (e for e in entries if "examples/lib/wait_for_nodes.py" in e["argv"])
    assert wait["argv"][1:] == ["10.0.0.1:6379", "4", "600"] and wait["env"]["RAY_AUTH_MODE"] == "token"
    argv, env = training(entries)
    assert env["RAY_ADDRESS"] == "10.0.0.1:6379" and flag(argv, "--actor.num_nodes") == "4"
    assert flag(argv, "--actor.num_gpus_per_node") == "2" and argv[-3:] == RESUMING
    token = project.folder / ".ray/auth_token"
    assert env["RAY_AUTH_TOKEN_PATH"] == str(token)
    assert re.fullmatch("[0-9a-f]{64}", token.read_text()) and token.stat().st_mode & 0o777 == 0o600


def test_the_run_s_status_is_the_head_s(project):
    fails = {"program": "python", "with": TRAIN, "status": 7}
    script = "examples/launch/multi_node.sh"
    ends(
        project.start(
            script, "head", RECIPE, HEAD_IP="h", NODES="1", GPUS="1", answers=[RAY_STAYS, NODES_COME, fails]
        ),
        7,
    )
    assert ("ray", "SIGTERM") in [(e["program"], e["what"]) for e in project.recorded()]


def test_without_all_nodes_nothing_is_run(project):
    never = NODES_COME | {"status": 1}
    script = "examples/launch/multi_node.sh"
    process = project.start(script, "head", RECIPE, HEAD_IP="h", NODES="2", GPUS="1", answers=[RAY_STAYS, never])
    assert "runs/train_orz_qwen2.5_7b.ray.log" in ends(process, 2)
    entries = project.recorded()
    assert not any(TRAIN in e["argv"] for e in entries) and entries[-1]["what"] == "SIGTERM"


def test_a_ray_that_cannot_start_is_not_waited_for(project):
    fails = {"program": "ray", "with": "--block", "status": 1}
    forever = {"program": "python", "with": "wait_for_nodes", "stays": True}
    script = "examples/launch/multi_node.sh"
    process = project.start(script, "head", RECIPE, HEAD_IP="h", NODES="1", GPUS="1", answers=[fails, forever])
    assert "Ray has ended: see runs/train_orz_qwen2.5_7b.ray.log" in ends(process, 2)
    assert not any(TRAIN in e["argv"] for e in project.recorded())


def test_a_signal_to_the_head_stops_the_run_before_ray(project):
    process = project.start(
        "examples/launch/multi_node.sh", "head", RECIPE, HEAD_IP="h", NODES="1", GPUS="1",
        answers=[RAY_STAYS, NODES_COME, RUN_STAYS],
    )  # fmt: skip
    wait_for(project, "python", TRAIN)
    process.send_signal(signal.SIGTERM)
    ends(process, 143)
    assert [(e["program"], e["what"]) for e in project.recorded()][-2:] == [("python", "SIGTERM"), ("ray", "SIGTERM")]


def test_a_ray_that_does_not_end_is_killed(project):
    deaf = RAY_STAYS | {"deaf": True}
    process = project.start(
        "examples/launch/multi_node.sh", "head", RECIPE, HEAD_IP="h", NODES="1", GPUS="1", RAY_STOP_S="1",
        answers=[deaf, NODES_COME],
    )  # fmt: skip
    ends(process, 0)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert str(project.folder / ".venv/bin/ray").encode() not in path.read_bytes(), path
        except OSError:
            pass  # has ended meanwhile


def test_a_worker_waits_for_head_and_token(project):
    script = "examples/launch/multi_node.sh"
    err = project.run(script, "worker", HEAD_IP="127.0.0.1", PORT="1", GPUS="8", WAIT_S="1", DOCTOR="0", status=2)
    assert "no head at 127.0.0.1:1, or no token in " in err and project.recorded() == []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        given = dict(HEAD_IP="127.0.0.1", PORT=port, GPUS="8", NODE_IP="127.0.0.2", DOCTOR="0")
        process = project.start(script, "worker", **given)
        time.sleep(0.3)
        assert process.poll() is None and project.recorded() == []
        project.put(project.folder / ".ray/auth_token", "secret")
        ends(process, 0)
    (entry,) = project.recorded()
    assert entry["argv"][:3] == ["start", "--address", f"127.0.0.1:{port}"] and "--block" in entry["argv"]
    assert flag(entry["argv"], "--node-ip-address") == "127.0.0.2" and entry["env"]["RAY_AUTH_MODE"] == "token"


def test_roles_and_addresses_are_asked_for(project):
    script = "examples/launch/multi_node.sh"
    assert "head RECIPE, or worker" in project.run(script, "boss", status=2)
    assert "HEAD_IP=10.0.0.1" in project.run(script, "head", RECIPE, status=1)
    assert "NODES=4" in project.run(script, "head", RECIPE, HEAD_IP="h", status=1)


def test_ray_s_own_parser_takes_the_flags_and_the_dashboard_stays_on_loopback(project):
    scripts = pytest.importorskip("ray.scripts.scripts")
    head = printed(
        project.run("examples/launch/multi_node.sh", "head", RECIPE, HEAD_IP="h", NODES="4", GPUS="8", DRY_RUN="1")
    )
    worker = printed(project.run("examples/launch/multi_node.sh", "worker", HEAD_IP="h", GPUS="8", DRY_RUN="1"))
    ports = []
    for command in (head[0], worker[0]):
        found = scripts.start.make_context("start", command[2:]).params
        assert found["dashboard_host"] == "127.0.0.1" and found["num_gpus"] == 8 and found["block"]
        ports.append({key: value for key, value in found.items() if key.endswith("port") and value})
    shown = (ROOT / "docs/notes/recipes.md").read_text()
    for port in {str(port) for found in ports for port in found.values()} - {"8265"}:
        assert re.search(rf"\b{port}\b", shown), f"docs/notes/recipes.md does not name port {port}"
    job = printed(project.run("examples/launch/ray_job.sh", RECIPE, DRY_RUN="1", NODES="4"))[0]
    submit = scripts.cli.commands["job"].commands["submit"]
    found = submit.make_context("submit", job[3:]).params
    assert found["no_wait"] and found["address"] == "http://127.0.0.1:8265"
    entrypoint = list(found["entrypoint"])
    assert entrypoint[0] == "env" and "NODES=4" in entrypoint and entrypoint[-3:] == RESUMING
    assert entrypoint[-4] == str(project.folder / RECIPE)


# ---- Slurm


SLURM = {"SLURM_JOB_ID": "42", "SLURM_GPUS_ON_NODE": "8"}


def test_slurm_on_one_node(project):
    script = "examples/launch/slurm.sh"
    env = SLURM | {"SLURM_JOB_NUM_NODES": "1", "SLURM_SUBMIT_DIR": str(project.folder)}
    project.run(script, RECIPE, **env)
    argv, _ = training(project.recorded())
    assert flag(argv, "--ckpt.output_dir") == "runs/train_orz_qwen2.5_7b-42" and "--ckpt.load_enable" in argv
    assert flag(argv, "--orz.stop_timeout_s") == "480"


def slurm_job(project, *answers):
    """A job of four nodes, whose script Slurm has copied elsewhere, as it does."""
    project.put(project.folder / "spool/slurm_script", (ROOT / "examples/launch/slurm.sh").read_text())
    env = SLURM | {"SLURM_JOB_NUM_NODES": "4", "SLURM_SUBMIT_DIR": str(project.folder)}
    addresses = {"program": "hostname", "prints": "10.0.0.9 172.17.0.1"}
    return project.start("spool/slurm_script", RECIPE, answers=[addresses, RAY_STAYS, NODES_COME, *answers], **env)


def test_slurm_on_several_nodes(project):
    ends(slurm_job(project), 0)
    entries = project.recorded()
    (srun,) = (e["argv"] for e in entries if e["program"] == "srun")
    assert flag(srun, "--nodes") == flag(srun, "--ntasks") == "3" and flag(srun, "--relative") == "1"
    assert srun[-2].endswith("examples/launch/multi_node.sh") and srun[-1] == "worker"
    (head,) = (e["argv"] for e in entries if e["program"] == "ray" and e["what"] == "started")
    assert flag(head, "--node-ip-address") == "10.0.0.9"
    assert not [e for e in entries if e["program"] == "scontrol"]


def test_slurm_s_signal_saves_and_queues_again(project):
    process = slurm_job(project, RUN_STAYS)
    wait_for(project, "python", TRAIN)
    os.kill(process.pid, signal.SIGTERM)  # B: in --signal, this script alone
    ends(process, 0)
    entries = project.recorded()
    told = [(e["program"], e["what"]) for e in entries]
    assert told.index(("python", "SIGTERM")) < told.index(("ray", "SIGTERM")) < told.index(("scontrol", "started"))
    assert entries[-1]["argv"] == ["requeue", "42"]


def test_a_run_that_fails_by_itself_is_not_queued_again(project):
    ends(slurm_job(project, {"program": "python", "with": TRAIN, "status": 2}), 2)
    assert not [e for e in project.recorded() if e["program"] == "scontrol"]


def test_sbatch_directives():
    lines = (ROOT / "examples/launch/slurm.sh").read_text().splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH ")]
    assert lines.index(directives[-1]) < lines.index("set -euo pipefail"), "sbatch stops reading at the first command"
    assert {"#SBATCH --requeue", "#SBATCH --signal=B:TERM@600", "#SBATCH --ntasks-per-node=1"} <= set(directives)


def test_slurm_elsewhere_than_in_the_project(project):
    err = project.run("examples/launch/slurm.sh", RECIPE, status=2, SLURM_SUBMIT_DIR=str(project.bin))
    assert "call sbatch in the project's folder" in err
