"""A project of the real examples/ where every program that they start is a recorder: what would run is written down.

The recorders stand in for programs of tests alone: python, ray, srun, scontrol, docker, nvidia-smi, hostname and
tools/setup.sh. Each writes its arguments and the environment that matters to a file; what it prints or how it ends is
in ANSWERS.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ("ray", "srun", "scontrol", "docker", "nvidia-smi", "hostname")
KEEP = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "NODES", "GPUS", "RUN_DIR", "HEAD_IP", "MODEL", "DATA",
        "RAY_JOB_STOP_WAIT_TIME_S", "PATH")  # fmt: skip
RECORDER = f"""#!{sys.executable}
import json, os, signal, sys, time
name = os.path.basename(sys.argv[0])
signal.signal(signal.SIGTERM, lambda *_: (write("SIGTERM"), os._exit(143)))
def write(what):
    entry = {{"program": name, "argv": sys.argv[1:], "what": what}}
    entry["env"] = {{key: os.environ[key] for key in {KEEP!r} if key in os.environ}}
    with open(os.environ["RECORD"], "a") as file:
        file.write(json.dumps(entry) + "\\n")
write("started")
for answer in json.loads(os.environ.get("ANSWERS", "[]")):
    if answer["program"] == name and answer.get("with", "") in " ".join(sys.argv[1:]):
        while answer.get("until", "") not in open(os.environ["RECORD"]).read():  # such a start is recorded
            time.sleep(0.02)
        print(answer.get("prints", ""))
        if answer.get("deaf"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if answer.get("stays"):
            time.sleep(120)
        sys.exit(answer.get("status", 0))
"""


class Project:
    """The folder, and how its scripts are run."""

    def __init__(self, folder: Path):
        self.folder, self.record, self.bin = folder, folder / "record.jsonl", folder / "bin"
        self.started: list[subprocess.Popen] = []
        # copies, not links: a script that follows a link must not find the real project, and set it up
        shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("tiny_base"))
        (folder / "tools").mkdir()
        self.bin.mkdir()
        self.put(folder / "tools/setup.sh", "#!/usr/bin/env bash\nexit 0\n")
        self.put(folder / ".venv/bin/python", RECORDER)
        self.put(folder / ".venv/bin/ray", RECORDER)
        for program in PROGRAMS:
            self.put(self.bin / program, RECORDER)

    @staticmethod
    def put(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def env(self, answers=(), **given) -> dict[str, str]:
        ours = {"ORZ_VENV", "RUN_DIR", "DRY_RUN", "ARM", "MODEL", "DATA", "CRITIC", "NODES", "GPUS", "MASTER_PORT"}
        env = {key: value for key, value in os.environ.items() if key not in ours and not key.startswith("SLURM_")}
        env |= {"PATH": f"{self.bin}:{env['PATH']}", "HOME": str(self.folder), "RECORD": str(self.record)}
        return env | {"MASTER_PORT": "23456", "ANSWERS": json.dumps(list(answers))} | given

    def start(self, script: str, *args: str, answers=(), **env: str) -> subprocess.Popen:
        process = subprocess.Popen(
            ["bash", script, *args], cwd=self.folder, env=self.env(answers, **env), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def end(self) -> None:
        """Leave nothing behind of a test that has failed."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)  # a recipe hands it on to what it runs, in groups of their own
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def run(self, script: str, *args: str, status: int = 0, answers=(), **env: str) -> str:
        """What it prints; fails unless it ends with this status."""
        process = self.start(script, *args, answers=answers, **env)
        out, err = process.communicate(timeout=60)
        assert process.returncode == status, err
        return out + err if status else out

    def recorded(self) -> list[dict]:
        """What was started so far, in order, and forgets it."""
        entries = [json.loads(line) for line in self.record.read_text().splitlines()] if self.record.exists() else []
        self.record.unlink(missing_ok=True)
        return entries


def printed(text: str) -> list[list[str]]:
    """The commands of a dry run."""
    return [shlex.split(line) for line in text.splitlines() if line.strip()]
