"""What a user's shell may do to the scripts: a CDPATH, a signal to the recipe alone."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [*ROOT.glob("examples/**/*.sh"), *ROOT.glob("tests/**/*.sh"), ROOT / "tools/setup.sh", ROOT / ".ci/run",
           *ROOT.glob("benchmarks/*.sh")]  # fmt: skip


def test_no_script_follows_a_cdpath():
    """With CDPATH=.:~/src, say, ``cd`` prints where it went, or goes elsewhere."""
    for script in SCRIPTS:
        text = script.read_text()
        first = re.search(r"\bcd \"\$\(dirname", text)
        if first and "lib/launch.sh" not in text[: first.start()]:  # which has unset it
            assert "unset CDPATH" in text[: first.start()], script


def test_a_recipe_is_found_with_a_cdpath(tmp_path):
    (tmp_path / "examples").mkdir()
    env = os.environ | {"DRY_RUN": "1", "RUN_DIR": "runs/x", "CDPATH": f"{tmp_path}:."}
    command = ["bash", "examples/quickstart.sh"]
    given, plain = (subprocess.run(command, cwd=ROOT, env=each, capture_output=True, text=True, check=True).stdout
                    for each in (env, env | {"CDPATH": ""}))  # fmt: skip
    assert given == plain and given.count("train_ppo_ray") == 1


@pytest.mark.parametrize("recipe, mode, given, used", [
    ("reasoning_gym_cpu", "gpu", {}, ".venv-cpu"), ("reasoning_gym_cpu", "cpu", {}, ".venv"),
    ("reasoning_gym_cpu", "gpu", {"ORZ_VENV": "mine"}, "mine"), ("qwen2.5_0.5b", "gpu", {}, ".venv"),
])  # fmt: skip
def test_what_keeps_to_the_cpu_has_its_own_environment_beside_one_for_gpus(project, recipe, mode, given, used):
    project.put(project.folder / ".venv/.orz/mode", f"{mode}\n")
    said = project.run(f"examples/train_orz_{recipe}.sh", DRY_RUN="1", RUN_DIR="runs/x", **given)
    pythons = {word for line in said.splitlines() for word in line.split() if word.endswith("/bin/python")}
    assert {path.removeprefix(f"{project.folder}/") for path in pythons} == {f"{used}/bin/python"}


def test_tests_have_their_own_environment_beside_one_for_gpus(project):
    (project.folder / "tests").mkdir()
    script = project.folder / "tests" / "run.sh"
    script.write_text((ROOT / "tests" / "run.sh").read_text())
    project.put(project.folder / "tools/setup.sh", 'echo "set up $1 in ${ORZ_VENV:-.venv}"; exit 3\n')
    for mode, used in (("gpu", f"{project.folder}/.venv-cpu"), ("cpu", ".venv")):
        project.put(project.folder / ".venv/.orz/mode", f"{mode}\n")
        assert f"set up cpu in {used}" in project.run("tests/run.sh", status=3)


CHILD = """
import signal, sys, time
def stop(signum, frame):
    print("child:", signum, flush=True)
    time.sleep(0.5)
    sys.exit(int(sys.argv[1]))
for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(each, stop)
print("child: up", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("whom", [os.kill, os.killpg])
@pytest.mark.parametrize("status", [143, 0])
def test_a_signal_to_a_recipe_reaches_what_it_runs(tmp_path, signum, whom, status):
    """Once, also where a scheduler sends it to the whole group. What comes after is not begun, whatever it answers."""
    (tmp_path / "child.py").write_text(CHILD)
    script = (f"set -euo pipefail; source {ROOT}/examples/lib/recipe.sh; cd {tmp_path};"
              f" run python3 child.py {status}; echo after; run true")  # fmt: skip
    recipe = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    first = recipe.stdout.readline()
    whom(recipe.pid, signum)
    rest, _ = recipe.communicate(timeout=20)
    assert first + rest == f"child: up\nchild: {signum.value}\n"
    assert recipe.returncode == (status or 128 + signum)


def test_a_signal_reaches_what_writes_a_log(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    script = f"set -euo pipefail; source {ROOT}/examples/lib/recipe.sh; cd {tmp_path}; log out python3 child.py 143"
    recipe = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    out, end = tmp_path / "out", time.monotonic() + 20
    while not (out.exists() and "up" in out.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(recipe.pid, signal.SIGTERM)
    recipe.communicate(timeout=20)
    assert recipe.returncode == 143 and out.read_text() == "child: up\nchild: 15\n"


def test_what_a_recipe_runs_gives_its_status():
    script = f"set -euo pipefail; source {ROOT}/examples/lib/recipe.sh; run true; run bash -c 'exit 7' || echo $?"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")
