"""Accelerators by name: memory, dense rates and links, each with its source."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, replace

GIB = 2**30


class UnknownHardware(ValueError):
    """A --hardware that is not in the table; the message lists the names."""


@dataclass(frozen=True)
class Hardware:
    """``nodes`` machines with ``per_node`` devices each; 0 means as many as the flags ask for.

    memory_gib: of one device, as drivers report it, rounded down. flops: per second, dense bfloat16, on a CPU in the
    run's dtype. bandwidth, link (inside a node), network (between nodes, for one device), host_link: bytes/s in one
    direction.
    """

    name: str
    memory_gib: float
    flops: float
    bandwidth: float
    link: float
    network: float
    host_link: float
    source: str
    host_gib: float | None = None  # memory of one node; None if it is not known
    per_node: int = 0
    nodes: int = 0

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"


NVIDIA = "NVIDIA's data sheet"
DGX = "network: one 400 Gb/s port for each GPU, as in DGX H100"
CONSUMER = "network: 100 Gb/s for 8 GPUs, an assumption"
# "flops" are without sparsity, half of the number that data sheets print in large type
TABLE = {
    "h100": Hardware("h100", 79, 989e12, 3.35e12, 450e9, 50e9, 50e9, f"{NVIDIA} of H100 SXM; {DGX}"),
    "h200": Hardware("h200", 139, 989e12, 4.8e12, 450e9, 50e9, 50e9, f"{NVIDIA} of H200 SXM; {DGX}"),
    "h800": Hardware(
        "h800", 79, 989e12, 3.35e12, 200e9, 50e9, 50e9,
        f"as H100 SXM with NVLink cut to 400 GB/s both ways (arXiv 2505.09343); {DGX}",
    ),
    "a100-80": Hardware(
        "a100-80", 79, 312e12, 2.039e12, 300e9, 25e9, 25e9,
        f"{NVIDIA} of A100 SXM 80 GB; network: one 200 Gb/s port for each GPU, as in DGX A100",
    ),
    "a100-40": Hardware(
        "a100-40", 39, 312e12, 1.555e12, 300e9, 25e9, 25e9,
        f"{NVIDIA} of A100 SXM 40 GB; network: one 200 Gb/s port for each GPU, as in DGX A100",
    ),
    "l40s": Hardware("l40s", 44, 362e12, 0.864e12, 25e9, 1.5e9, 25e9, f"{NVIDIA} of L40S; PCIe 4.0 x16; {CONSUMER}"),
    "4090": Hardware(
        "4090", 23, 165e12, 1.008e12, 25e9, 1.5e9, 25e9,
        f"NVIDIA's Ada architecture paper (bfloat16 with float32 sums); PCIe 4.0 x16; {CONSUMER}",
    ),
    "mi300x": Hardware(
        "mi300x", 191, 1307e12, 5.3e12, 448e9, 50e9, 50e9,
        "AMD's data sheet of MI300X; network: one 400 Gb/s port for each GPU, an assumption",
    ),
}  # fmt: skip
CPU_FLOPS_PER_CORE = 0.075e12  # float32, AMD Zen 3 with AVX2: an assumption; docs/notes/planning.md has measured rates
CPU_BANDWIDTH = 10e9  # bytes/s, all cores: an assumption
NAMES = (*TABLE, "cpu")


def this_machine() -> Hardware:
    """The processors of this machine, as one device that all ranks share."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    cores = len(os.sched_getaffinity(0))
    return Hardware(
        "cpu", memory, cores * CPU_FLOPS_PER_CORE, CPU_BANDWIDTH, 10e9, 1e9, 10e9,
        f"{cores} cores and {memory:.1f} GiB of this machine; 0.075 TFLOP/s a core in float32"
        " and bandwidths are assumptions",
        host_gib=memory,
    )  # fmt: skip


def gpu_by_name(name: str, memory_gib: float | None = None) -> Hardware:
    """The entry of the table for a GPU as its driver or Ray names it, with the memory that the driver reports.

    An unknown GPU gets an A100's rates, and ``source`` says so.
    """
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    small = memory_gib is not None and memory_gib < 60
    keys = [key for key in TABLE if set(key.split("-")) - {"80", "40"} <= words]
    keys = [key for key in keys if not key.startswith("a100") or key.endswith("-40") == small]
    found = TABLE[keys[0]] if keys else replace(
        TABLE["a100-80"], name=name or "GPU", source=f"rates of an A100, as {name or 'this GPU'} is not in the table"
    )  # fmt: skip
    return found if memory_gib is None else replace(found, memory_gib=float(int(memory_gib)))


def gpus_here() -> Hardware | None:
    """The GPUs of this machine that processes see, by nvidia-smi; None if there are none."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    found = [line.rpartition(",")[::2] for line in lines if "," in line]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = [] if visible is None else [x for x in visible.split(",") if x.strip() not in ("", "-1")]
    count = len(found) if visible is None else min(len(found), len(shown))
    if not count:
        return None
    try:
        memory = min(float(mib) for _, mib in found) / 1024
    except ValueError:  # "[N/A]" of a GPU that shares its host's memory
        memory = None
    return replace(gpu_by_name(found[0][0], memory), per_node=count, nodes=1)


def parse_hardware(text: str) -> Hardware:
    """From ``NAME``, ``NAMExGPUS`` or ``NAMExGPUSxNODES``, such as h100x8x16. Raises UnknownHardware."""
    match = re.fullmatch(r"([a-z0-9-]+?)(?:x(\d+))?(?:x(\d+))?", text.lower())
    name = match[1] if match else ""
    if name == "a100":
        name = "a100-80"
    if match is None or name not in NAMES or "0" in (match[2], match[3]):
        raise UnknownHardware(
            f"--hardware {text} is not NAME, NAMExGPUS or NAMExGPUSxNODES with a name of {', '.join(NAMES)}"
        )
    found = this_machine() if name == "cpu" else TABLE[name]
    per_node = int(match[2] or 0)
    return replace(found, per_node=per_node, nodes=int(match[3] or (1 if per_node else 0)))
