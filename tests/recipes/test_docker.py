"""docker/Dockerfile and its launcher: nothing published, no versions of its own. The image is not built here."""

import re

from recorded import ROOT

RECIPE = "examples/train_orz_qwen2.5_7b.sh"


def test_docker_builds_once_and_publishes_nothing(project):
    (project.folder / "rows.jsonl").touch()
    missing = {"program": "docker", "with": "image inspect", "status": 1}
    env = {"DATA": "rows.jsonl", "HF_TOKEN": "secret"}
    script = "examples/launch/docker.sh"
    project.run(script, RECIPE, "--train.seed", "1", answers=[missing], **env)
    inspect, build, run = (e["argv"] for e in project.recorded() if e["program"] == "docker")
    assert build[:3] == ["build", "--file", "docker/Dockerfile"]
    rows = str(project.folder / "rows.jsonl")
    assert run[run.index("HOME=/orz/runs") + 1 :][:2] == ["--env", "USER=orz"]  # a number has no name in the image
    assert run[0] == "run" and f"{rows}:{rows}:ro" in run and "secret" not in run and "HF_TOKEN" in run
    assert not {"--publish", "-p", "--publish-all", "-P", "--privileged", "--network"} & set(run)
    assert run[-4:] == ["examples/launch/one_node.sh", RECIPE, "--train.seed", "1"]
    project.run(script, RECIPE, **env)
    assert [e["argv"][0] for e in project.recorded() if e["program"] == "docker"] == ["image", "run"]
    assert "below runs/" in project.run(script, RECIPE, RUN_DIR="/elsewhere", status=2)


def test_the_image_is_what_set_up_makes():
    """Not built here: that it takes its versions from the requirement files, and what it copies is there."""
    text = (ROOT / "docker/Dockerfile").read_text()
    orders = [line.split() for line in text.replace("\\\n", " ").splitlines() if line and line[0] not in "# "]
    (base,) = (words[1] for words in orders if words[0] == "ARG")
    assert re.fullmatch(r"CUDA_IMAGE=nvidia/cuda:\d+\.\d+\.\d+-devel-ubuntu24\.04", base)
    (cuda,) = re.findall(r"^cuda-toolkit==(\d+\.\d+)", (ROOT / "requirements-gpu.txt").read_text(), re.MULTILINE)
    assert base.startswith(f"CUDA_IMAGE=nvidia/cuda:{cuda}."), "nvcc must be of torch's CUDA"
    copied = [name for words in orders if words[0] == "COPY" for name in words[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    set_up = (ROOT / "tools/setup.sh").read_text().replace("$MODE", "gpu")
    needed = set(re.findall(r"\$ROOT[\"/]*/([\w.-]+)", set_up)) - {".venv"}
    assert needed <= {*copied, "requirements.txt"} | {"build"}, "what set-up reads is copied"
    runs = [" ".join(words[1:]) for words in orders if words[0] == "RUN"]
    assert "bash tools/setup.sh gpu" in runs and not any("pip" in run or "==" in run for run in runs)
    assert not [words for words in orders if words[0] == "EXPOSE"]
    assert orders.index(["USER", "orz"]) < len(orders)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)
