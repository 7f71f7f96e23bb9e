"""What of this machine serves a run: ``python -m openrlhf_orz.cli.doctor [--run_dir DIR] [--json]``.

Each line says what was looked at, what was found and, where that is not enough, the remedy. Nothing but the standard
library is imported, so it works before set-up, with any Python. Exit status 1 where a run cannot start.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CUDA_MAJOR = 13  # of the pinned torch's wheels
PACKAGES = ("torch", "vllm", "deepspeed", "ray", "transformers")


@dataclass(frozen=True)
class Finding:
    """One line: ``state`` is ok, warn (a run starts, and may be slow or fail later) or fail."""

    what: str
    state: str
    found: str
    remedy: str = ""


def output_of(*command: str) -> str | None:
    """What a command prints; None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def at_least(what: str, value: float, fail: float, warn: float, unit: str, remedy: str) -> Finding:
    state = "fail" if value < fail else "warn" if value < warn else "ok"
    return Finding(what, state, f"{value:.0f} {unit}", "" if state == "ok" else remedy)


def python_and_compiler() -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 10) <= sys.version_info[:2] <= (3, 12)
    found = [Finding("python", "ok" if good else "fail", version, "" if good else "use Python 3.10, 3.11 or 3.12")]
    compiler = next(
        (path for name in (os.environ.get("CXX"), "g++", "c++", "clang++") if name and (path := shutil.which(name))),
        None,
    )
    words = (output_of(compiler, "--version") or "").split("\n")[0] if compiler else "none"
    return [
        *found,
        Finding(
            "C++ compiler",
            "ok" if compiler else "fail",
            words,
            "" if compiler else "install g++ 10 or newer, or set CXX",
        ),
    ]


def gpus() -> list[Finding]:
    """GPUs, driver, links and nvcc; one line that says so where there is no GPU, or all are hidden."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return [Finding("GPUs", "ok", "hidden by CUDA_VISIBLE_DEVICES: runs take the CPU")]
    listed = output_of("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if not listed or not listed.strip():
        if Path("/dev/nvidia0").exists():
            return [Finding("GPUs", "fail", "devices, but nvidia-smi fails", "reload or reinstall the NVIDIA driver")]
        return [Finding("GPUs", "ok", "none: runs take the CPU")]
    rows = [[part.strip() for part in line.split(",")] for line in listed.strip().splitlines()]
    names = ", ".join(sorted({f"{name} {memory}" for name, memory, _ in rows}))
    found = [Finding("GPUs", "ok", f"{len(rows)} x {names}")]
    banner = re.search(r"CUDA (?:UMD )?Version:\s*(\d+)", output_of("nvidia-smi") or "")
    serves = banner is not None and int(banner.group(1)) >= CUDA_MAJOR
    remedy = "" if serves else f"update the driver to one for CUDA {CUDA_MAJOR}"
    found.append(
        Finding(
            "driver", "ok" if serves else "fail", f"{rows[0][2]}, CUDA {banner.group(1) if banner else '?'}", remedy
        )
    )
    if len(rows) > 1:
        links = re.findall(r"\b(NV\d+)\b", output_of("nvidia-smi", "topo", "-m") or "")
        say = f"NVLink ({links[0]})" if links else "no NVLink"
        remedy = "" if links else "sums over GPUs go through PCIe: prefer ZeRO-1 or fewer GPUs a model"
        found.append(Finding("links between GPUs", "ok" if links else "warn", say, remedy))
    release = re.search(r"release (\d+)\.(\d+)", output_of("nvcc", "--version") or "")
    right = release is not None and int(release.group(1)) == CUDA_MAJOR
    remedy = (
        "" if right else f"install the CUDA {CUDA_MAJOR} toolkit where kernels are to be built (set-up says which)"
    )
    return [*found, Finding("nvcc", "ok" if right else "warn", release.group(0) if release else "none", remedy)]


def memory_and_disk(run_dir: Path) -> list[Finding]:
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M))
    found = [
        at_least(
            "memory",
            int(fields["MemAvailable"]) / 2**20,
            4,
            8,
            "GiB",
            "free some: the quickstart takes 5 GiB, a GPU node needs more (plan)",
        )
    ]
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        found.append(Finding("shared memory", "fail", "/dev/shm cannot be written", "mount a tmpfs there"))
    else:
        size = shutil.disk_usage(shared).free / 2**20
        found.append(at_least("shared memory", size, 256, 2048, "MiB", "docker run --shm-size 16g, or a larger tmpfs"))
    for what, folder in (
        ("disk of the run", run_dir),
        ("disk of temporary files", Path(os.environ.get("TMPDIR") or "/tmp")),
    ):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not os.access(there, os.W_OK):
            found.append(Finding(what, "fail", f"{there} cannot be written", "choose another folder"))
        else:
            free = shutil.disk_usage(there).free / 2**30
            found.append(at_least(what, free, 1, 10, f"GiB at {there}", "free some, or choose a larger disk"))
    return found


def limits() -> list[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = soft if soft != resource.RLIM_INFINITY else 2**20
    found = [at_least("open files", most, 1024, 8192, f"(up to {hard})", "ulimit -n 65536")]
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    value = scope.read_text().strip() if scope.exists() else "0"
    closed = value in ("2", "3")
    remedy = "sysctl kernel.yama.ptrace_scope=1, or stacks of a hang cannot be read" if closed else ""
    return [*found, Finding("ptrace_scope", "warn" if closed else "ok", value, remedy)]


def network() -> list[Finding]:
    try:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
        found = [Finding("ports", "ok", "127.0.0.1 can be bound")]
    except OSError as error:
        found = [Finding("ports", "fail", str(error), "allow processes to listen on 127.0.0.1")]
    address = os.environ.get("RAY_ADDRESS")
    found.append(
        Finding("Ray", "ok", f"RAY_ADDRESS={address} is joined" if address else "each run starts one of its own")
    )
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return [*found, Finding("hub", "ok", "HF_HUB_OFFLINE=1: local models and data only")]
    host = re.sub(r"^\w+://|[:/].*$", "", os.environ.get("HF_ENDPOINT") or "huggingface.co")
    try:
        socket.create_connection((host, 443), timeout=3).close()
        return [
            *found,
            Finding("hub", "ok", f"{host} is reachable{', with a token' if os.environ.get('HF_TOKEN') else ''}"),
        ]
    except OSError:
        return [
            *found,
            Finding("hub", "warn", f"{host} is not reachable", "give local folders, and set HF_HUB_OFFLINE=1"),
        ]


def packages() -> list[Finding]:
    """The versions of what the results depend on, against the pins."""
    pins = (ROOT / "requirements-cpu.txt").read_text() + (ROOT / "requirements.txt").read_text()
    found = []
    for name in (*PACKAGES, "openrlhf"):
        installed = next((version for one in (name, f"{name}-cpu") if (version := _version(one))), None)
        wanted = sorted(set(re.findall(rf"^{name}(?:-cpu)?(?:\[\w+\])?==([\w.]+)", pins, re.M)))
        if installed is None:
            found.append(Finding(name, "fail", "not installed", "bash tools/setup.sh"))
        elif wanted and installed.split("+")[0] not in wanted:
            found.append(Finding(name, "warn", f"{installed}, pinned is {' or '.join(wanted)}", "bash tools/setup.sh"))
        else:
            found.append(Finding(name, "ok", installed))
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def examine(run_dir: Path) -> list[Finding]:
    """All findings, in the order in which they are printed."""
    parts: list[Callable[[], list[Finding]]] = [
        python_and_compiler, gpus, lambda: memory_and_disk(run_dir), limits, network, packages,
    ]  # fmt: skip
    return [finding for part in parts for finding in part()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m openrlhf_orz.cli.doctor", description="What of this machine serves a run."
    )
    parser.add_argument("--run_dir", type=Path, default=Path("runs"), help="where runs are to be written")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of lines")
    options = parser.parse_args(arguments)
    findings = examine(options.run_dir.absolute())
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(
                f"{finding.state:4}  {finding.what}: {finding.found}"
                + (f". {finding.remedy}" if finding.remedy else "")
            )
    return int(any(finding.state == "fail" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
