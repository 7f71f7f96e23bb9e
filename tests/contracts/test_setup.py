"""tools/setup.sh: what stops it, in one line with the remedy, and that it is idempotent.

The real script runs each time, stopped before it installs anything.
"""

import os
import shutil
import subprocess
import sys
import time
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
TOOLS = "bash env cat sha256sum cut grep sed ls tail head mkdir mktemp rm df awk dirname chmod flock".split()


def setup(venv, *args, **env):
    return subprocess.run(
        ["bash", str(ROOT / "tools" / "setup.sh"), *args],
        env={**os.environ, "ORZ_VENV": str(venv), "PYTHON": sys.executable, **{k: str(v) for k, v in env.items()}},
        capture_output=True,
        text=True,
        timeout=120,
    )


def refused(run, *words):
    """One line that says what is wrong and what to do."""
    assert run.returncode == 1, run.stdout + run.stderr
    lines = run.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("setup: error: "), run.stderr
    for word in words:
        assert word in lines[0], run.stderr
    assert run.stdout == ""


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


def interpreter(path, spoil):
    """This Python, made to look like one that will not do before it reads the probe."""
    return script(path, f"#!/bin/sh\nexec {sys.executable} -c 'import sys; {spoil}; exec(sys.stdin.read())'\n")


@pytest.mark.parametrize("args", [["tpu"], ["cpu", "gpu"], ["--help"]])
def test_wrong_argument(tmp_path, args):
    run = setup(tmp_path / "venv", *args)
    assert run.returncode == 2 and run.stderr == "usage: bash tools/setup.sh [auto|cpu|gpu]\n"
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    "spoil, words",
    [
        ("sys.version_info = (3, 9, 0)", ["is Python 3.9", "3.10, 3.11 or 3.12"]),
        ("sys.version_info = (3, 13, 0)", ["is Python 3.13"]),
        ('sys.modules["ensurepip"] = None', ["lacks the venv module", "-venv"]),
        ('import sysconfig; sysconfig.get_path = lambda name: "/nowhere"', ["headers", "-dev"]),
        ("sys.exit(1)", ["does not run"]),
    ],
)
def test_python_that_will_not_do(tmp_path, spoil, words):
    python = interpreter(tmp_path / "python", spoil)
    refused(setup(tmp_path / "venv", "cpu", PYTHON=python), str(python), "PYTHON=/path/to/python3.11", *words)


@pytest.fixture
def bare_path(tmp_path):
    """A PATH with the shell's tools alone: no Python, no compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        if shutil.which(tool):
            (folder / tool).symlink_to(shutil.which(tool))
    return folder


def test_no_python_at_all(tmp_path, bare_path):
    refused(
        setup(tmp_path / "venv", "cpu", PATH=bare_path, PYTHON=""), "needs Python 3.10, 3.11 or 3.12", "found none"
    )


def test_broken_shim_is_passed_over(tmp_path, bare_path):
    """A version manager's shim exists, and refuses; the next candidate is taken."""
    script(bare_path / "python3.11", "#!/bin/sh\necho 'no such version' >&2\nexit 127\n")
    script(bare_path / "python3", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    refused(setup(tmp_path / "venv", "cpu", PATH=bare_path, PYTHON="", CXX=""), "C++ compiler")  # the next check


def test_missing_compiler(tmp_path, bare_path):
    refused(setup(tmp_path / "venv", "cpu", PATH=bare_path, CXX=""), "C++ compiler", "apt-get install g++")
    refused(setup(tmp_path / "venv", "cpu", CXX="/nowhere/g++"), "CXX=/nowhere/g++", "install g++")
    broken = script(tmp_path / "g++", "#!/bin/sh\nexit 1\n")
    refused(setup(tmp_path / "venv", "cpu", CXX=broken), "OpenMP")


def test_missing_git(tmp_path, bare_path):
    compiler = script(tmp_path / "g++", "#!/bin/sh\nexit 0\n")
    refused(setup(tmp_path / "venv", "cpu", PATH=bare_path, CXX=compiler), "needs git", "apt-get install git")


def test_low_disk(tmp_path):
    refused(setup(tmp_path / "venv", "cpu", ORZ_MIN_FREE_GB=10**6), "1000000 GB", "ORZ_VENV")


def cuda(folder, driver=None, nvcc=None):
    """Stand-ins for what a machine has; None: it has none."""
    folder.mkdir(exist_ok=True)
    for name, said in (
        ("nvidia-smi", f"| CUDA Version: {driver} |"),
        ("nvcc", f"Cuda compilation tools, release {nvcc}"),
    ):
        version = driver if name == "nvidia-smi" else nvcc
        script(folder / name, f"#!/bin/sh\necho '{said}'\n" if version else "#!/bin/sh\nexit 9\n")
    return {"PATH": f"{folder}:{os.environ['PATH']}", "CUDA_HOME": "", "ORZ_MIN_FREE_GB": 10**6}


@pytest.mark.parametrize(
    ("driver", "nvcc", "words"),
    [
        ("12.8", "13.0, V13.0.88", ["needs a driver for CUDA 13", "says CUDA 12", "580"]),
        (
            "13.0",
            "12.8, V12.8.93",
            ["needs nvcc of CUDA 13, has 12", "install cuda-toolkit-13-0", "CUDA_HOME"],
        ),
        ("13.0", None, ["needs nvcc of CUDA 13, has none"]),
        ("13.1", "13.0, V13.0.88", ["GB of free disk"]),  # the next check
    ],
)
def test_cuda_is_looked_at_before_anything_is_downloaded(tmp_path, driver, nvcc, words):
    refused(setup(tmp_path / "venv", "gpu", **cuda(tmp_path / "bin", driver, nvcc)), *words)


def test_an_image_is_built_where_no_gpu_answers(tmp_path):
    run = setup(tmp_path / "venv", "gpu", **cuda(tmp_path / "bin", None, "13.0"))
    assert "fine for an image" in run.stdout and "GB of free disk" in run.stderr


def test_what_set_up_for_gpus_starts(tmp_path):
    """By a recorder in the place of the environment's Python, under a PATH without ninja: hashes for all packages, and
    DeepSpeed's optimizer built with the environment's ninja.
    """
    venv, log = tmp_path / "venv", tmp_path / "log"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").touch()
    script(
        venv / "bin" / "python",
        f"""#!/bin/bash
built="ADAM=$DS_BUILD_FUSED_ADAM NINJA=$DS_ENABLE_NINJA FOR=$DS_ACCELERATOR ARCH=$TORCH_CUDA_ARCH_LIST"
echo "CALL $* | PATH=$PATH $built" >>{log}
while [ $# -gt 0 ]; do [ "$1" != -r ] || cat "$2" >>{log}; shift; done
""",
    )
    run = setup(venv, "gpu", **(cuda(tmp_path / "bin", "13.0", "13.0") | {"ORZ_MIN_FREE_GB": 0}))
    assert run.returncode == 0, run.stdout + run.stderr
    calls = [call.partition("\n") for call in log.read_text().split("CALL ")]
    (stack,) = [call for call in calls if "--require-hashes" in call[0] and "ADAM= " in call[0]]
    (deepspeed,) = [call for call in calls if "ADAM=1" in call[0]]
    packages = [line for line in stack[2].splitlines() if line and line[0] not in "# "]
    assert len(packages) > 250 and any(line.startswith("torch==") for line in packages)
    assert not any(line.startswith(("deepspeed==", "flash-attn")) for line in packages)
    assert f"PATH={venv}/bin:" in deepspeed[0] and "NINJA=1" in deepspeed[0] and "9.0" in deepspeed[0]
    assert "FOR=cuda" in deepspeed[0]  # whether or not a GPU is seen here
    assert "--require-hashes" in deepspeed[0] and "--no-build-isolation" in deepspeed[0]
    assert deepspeed[2].startswith("deepspeed==0.19.6") and "--hash=sha256:" in deepspeed[2]
    assert setup(venv, "gpu").stdout.startswith("setup: nothing to do")


def test_the_gpu_s_list_is_compiled_from_the_pins():
    """Every pin is in it, every package has a hash, and no index is named."""
    text = (ROOT / "requirements-gpu.txt").read_text()
    entries = [entry for entry in text.replace("\\\n", "").splitlines() if entry and entry[0] not in "# "]
    assert len(entries) > 250 and all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text and "--index" not in text
    locked = {entry.split(" ")[0].split("[")[0].lower() for entry in entries}
    wanted = [Requirement(line.split("#")[0]) for line in (ROOT / "requirements.txt").read_text().splitlines()
              if line.split("#")[0].strip()]  # fmt: skip
    for pin in wanted:
        assert f"{pin.name}{pin.specifier}".lower().replace("_", "-") in locked, pin


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("keep")
    refused(setup(tmp_path, "cpu", ORZ_MIN_FREE_GB=0), "not a virtual environment", "ORZ_VENV")
    assert (tmp_path / "mine").read_text() == "keep"


def test_other_mode(tmp_path):
    (tmp_path / ".orz").mkdir()
    (tmp_path / ".orz" / "mode").write_text("gpu\n")
    refused(setup(tmp_path, "cpu"), "was set up for gpu", "delete it")


def test_unreachable_index_and_rerun(tmp_path):
    venv = tmp_path / "venv"
    env = dict.fromkeys(("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"), "")
    env |= {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": 1}
    words = "pip cannot reach its package index", "PIP_INDEX_URL", "run again"
    refused(setup(venv, "cpu", ORZ_MIN_FREE_GB=0, **env), *words)
    assert not (venv / ".orz" / "venv").exists()  # no stamp for what failed
    # pip says less when told not to retry
    refused(setup(venv, "cpu", ORZ_MIN_FREE_GB=0, **{**env, "PIP_RETRIES": 0}), "pip finds no pip==", "index")
    made = (venv / "pyvenv.cfg").stat().st_mtime_ns
    refused(setup(venv, "cpu", ORZ_MIN_FREE_GB=0, **env), *words)
    assert (venv / "pyvenv.cfg").stat().st_mtime_ns == made  # the rerun went on from there


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """What `pip install -e .` would read, made by setuptools as pip does."""
    folder = tmp_path_factory.mktemp("metadata")
    for name in (
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        *(path.name for path in ROOT.glob("requirements*.txt")),
    ):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "openrlhf_orz", folder / "openrlhf_orz", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", "built", "dist_info"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (info,) = folder.glob("*.dist-info")
    return folder, message_from_bytes((info / "METADATA").read_bytes())


def test_nothing_is_a_hard_dependency(metadata):
    needed = metadata[1].get_all("Requires-Dist")
    assert needed and all("extra ==" in line for line in needed)
    assert metadata[1]["Name"] == "openrlhf-orz"
    assert set(metadata[1]["Requires-Python"].split(",")) == {">=3.10", "<3.13"}


@pytest.mark.parametrize(
    "extra, name",
    [
        ("gpu", "requirements.txt"),
        ("cpu", "requirements-cpu.txt"),
        ("curate", "requirements-curate.txt"),
        ("report", "requirements-report.txt"),
    ],
)
def test_extras_are_the_requirement_files(metadata, extra, name):
    wanted = [
        Requirement(line.split("#")[0])
        for line in (ROOT / name).read_text().splitlines()
        if line.split("#")[0].strip()
    ]
    found = [Requirement(line) for line in metadata[1].get_all("Requires-Dist")]
    for version in ("3.10", "3.11", "3.12"):
        here = {"python_version": version, "platform_machine": "x86_64", "extra": extra}
        holds = {(r.name, str(r.specifier)) for r in found if r.marker.evaluate(here)}
        assert holds == {(r.name, str(r.specifier)) for r in wanted if r.marker is None or r.marker.evaluate(here)}


def test_the_package_brings_its_data(metadata):
    built = metadata[0] / "built"
    for path in (ROOT / "openrlhf_orz").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert (built / path.relative_to(ROOT)).is_file(), path


def test_nothing_to_do_is_quick():
    venv = Path(sys.prefix)
    package = venv / ".orz" / "package"
    # set-up would point an environment of another checkout to this one
    if not package.exists() or not package.read_text().startswith(f"{ROOT} "):
        assert not os.environ.get("CI"), "CI must run the tests in the environment of tools/setup.sh"
        pytest.skip("this environment is not one that tools/setup.sh has made for this checkout")
    began = time.monotonic()
    run = setup(venv)
    assert run.returncode == 0 and "nothing to do" in run.stdout, run.stdout + run.stderr
    assert time.monotonic() - began < 20  # 2 s alone; installing anything takes far longer
