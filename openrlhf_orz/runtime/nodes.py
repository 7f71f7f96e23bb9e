"""The other machines of a run: each has an agent, a Ray actor that keeps the run's folder there and brings home what
the machine knows: logs, and stacks when something hangs.

Only a Ray that is joined has other machines. Without agents every function here does nothing.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from openrlhf_orz.runtime.private import clean_leftovers, private_folder, shared_folder
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.redact import copy_redacted

AGENTS_VARIABLE = "ORZ_NODE_AGENTS"  # in the environment of a run that has agents
PREFIX = "orz-node-"
MARK = ".shared"
ANSWER_S = 30.0  # longest wait for the agents' answers; a machine may be lost
BEGIN_S = 120.0  # and for their first, for which a busy machine must start them
SEE_S = 5.0  # a network file system may show a new file late


def keep_logs(source: Path, target: Path, job_id: str) -> None:
    """Copy the logs of this job's Ray workers into the run directory; the originals are in Ray's temporary one."""
    target.mkdir(exist_ok=True)
    for log in source.glob(f"worker-*-{job_id}-*"):
        copy_redacted(log, target)


# ---- folders that all machines must see


def mark_shared(folders: Iterable[str]) -> dict[str, str]:
    """Leave a mark in each folder; returns it by folder. Raises OSError."""
    marks = {folder: secrets.token_hex(8) for folder in folders}
    for folder, mark in marks.items():
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, MARK).write_text(mark)
    return marks


def unseen(marks: dict[str, str], seconds: float = SEE_S) -> str | None:
    """The first folder in which this machine does not see the driver's mark; None where it sees all of them."""
    end = time.monotonic() + seconds
    for folder, mark in marks.items():
        while True:
            with suppress(OSError):
                if Path(folder, MARK).read_text() == mark:
                    break
            if time.monotonic() > end:
                return folder
            time.sleep(0.2)
    return None


def require_shared(marks: dict[str, str]) -> None:
    """Raise ConfigError if this machine does not see the folders that the driver has marked."""
    if folder := unseen(marks):
        raise ConfigError(
            f"--ckpt.output_dir, --ckpt.path: the machine {socket.gethostname()} does not see {folder} as the driver's"
            " does: give folders that all machines of the run share"
        )


# ---- agents


class NodeAgent:
    """Lives on one machine for as long as the run."""

    def __init__(self, scratch: str):
        self.folders = ExitStack()
        clean_leftovers((shared_folder(),))
        self.folders.enter_context(private_folder(scratch))

    def unseen(self, marks: dict[str, str]) -> str | None:
        """As the function."""
        return unseen(marks)

    def write_stacks(self, path: str) -> None:
        """Write the stacks of this machine's processes."""
        from openrlhf_orz.runtime.watchdog import write_stacks

        write_stacks(Path(path))

    def keep_logs(self, target: str, job_id: str) -> None:
        """As the function, of this machine's workers."""
        import ray

        keep_logs(Path(ray._private.worker.global_worker.node.get_logs_dir_path()), Path(target), job_id)

    def finish(self) -> None:
        """Remove the run's folder here, with what is on record in it."""
        self.folders.close()


def start_agents(ray, scratch: str, marks: dict[str, str], needed: int) -> dict:
    """Start an agent on each machine of the cluster that has GPUs, and on the driver's; returns them by node.

    Keep what it returns for as long as the run: Ray ends an actor whose handle is gone.

    Raises ConfigError, before any model is loaded, if machines that the run cannot do without do not see its folders.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    chosen = [name for name, node in nodes.items() if name == here or node["Resources"].get("GPU")]
    os.environ[AGENTS_VARIABLE] = "1"
    agents = {
        name: ray.remote(NodeAgent)
        .options(
            name=f"{PREFIX}{name}",
            num_cpus=0,
            max_concurrency=4,
            scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False),
        )
        .remote(scratch)
        for name in chosen
    }
    blind = {}
    refs = {name: agent.unseen.remote(marks) for name, agent in agents.items()}
    for name, answer in _answers(ray, refs, BEGIN_S).items():
        if isinstance(answer, Exception):
            print(f"[orz] warning: no agent on {_host(nodes[name])}: {str(answer).splitlines()[0]}", flush=True)
        elif answer:
            blind[name] = f"{_host(nodes[name])} does not see {answer} as the driver's machine does"
    left = sum(node["Resources"].get("GPU", 0) for name, node in nodes.items() if name not in blind)
    if blind and left < needed:
        raise ConfigError(
            "--ckpt.output_dir, --ckpt.path: " + "; ".join(blind.values())
            + ": give folders that all machines of the run share"
        )  # fmt: skip
    for line in blind.values():
        print(f"[orz] warning: {line}: a rank that Ray puts there will end the run", flush=True)
    return agents


def _host(node: dict) -> str:
    return f"the machine {node['NodeManagerHostname']}"


def _answers(ray, refs: dict, limit_s: float = ANSWER_S) -> dict:
    """What the agents answer within ``limit_s``, by name; exceptions among them."""
    ray.wait(list(refs.values()), num_returns=len(refs), timeout=limit_s) if refs else None
    answers = {}
    for name, ref in refs.items():
        try:
            answers[name] = ray.get(ref, timeout=0.1)
        except Exception as error:  # a lost machine, a full disk: whatever it is, the run has other worries
            answers[name] = error
    return answers


def ask_agents(method: str, *args, named: bool = False) -> None:
    """Call ``method`` of all agents of this run; failures are printed. ``named``: a text gets the machine's name."""
    if AGENTS_VARIABLE not in os.environ:
        return
    import ray

    refs, answers = {}, {}
    try:
        names = [name for name in ray.util.list_named_actors() if name.startswith(PREFIX)]
    except Exception as error:
        names = []
        print(f"no agents answer: {error}", file=sys.stderr, flush=True)
    for name in names:
        node = name.removeprefix(PREFIX)
        own = [str(Path(args[0]).with_stem(f"{Path(args[0]).stem}-{node[:8]}"))] if named else args
        try:
            refs[node] = getattr(ray.get_actor(name), method).remote(*own)
        except Exception as error:  # its machine is lost; the others are asked all the same
            answers[node] = error
    for node, answer in (answers | _answers(ray, refs)).items():
        if isinstance(answer, Exception):
            print(f"agent on node {node[:8]}, {method}: {str(answer).splitlines()[0]}", file=sys.stderr, flush=True)
