"""Ray for one run: joined where it runs, else started on loopback, and stopped at the end if it was ours."""

import glob
import os
import secrets
import signal
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path

from openrlhf_orz.config import ConfigError


def resources_needed(args) -> int:
    """GPUs (logical ones on CPU) that the run's placement asks for."""
    actor = args.actor.num_nodes * args.actor.num_gpus_per_node
    if args.train.colocate_all and not args.train.async_enable:
        return actor
    total = actor + args.vllm.num_engines * args.vllm.tensor_parallel_size
    if args.critic.model_name_or_path and not args.train.colocate_all:
        total += args.critic.num_nodes * args.critic.num_gpus_per_node
    if args.algo.kl.init_coef > 0 and not (args.train.colocate_all or args.train.colocate_actor_ref):
        total += args.ref.num_nodes * args.ref.num_gpus_per_node
    return total


def worker_env(args, local: bool) -> dict[str, str]:
    """Environment of all Ray workers of the run; a ``local`` one keeps every socket on loopback."""
    env = {
        "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "true"),
        "NCCL_DEBUG": os.environ.get("NCCL_DEBUG", "WARN"),
        "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": os.environ.get("RAY_ENABLE_ZERO_COPY_TORCH_TENSORS", "1"),
        "OPENRLHF_TRUST_REMOTE_CODE": "1" if args.orz.trust_remote_code else "0",
    }
    if args.orz.device == "cpu":
        cores = len(os.sched_getaffinity(0))
        env["DS_ACCELERATOR"] = "cpu"
        # Ray's one thread for each worker would leave cores idle; the trainers share them by phase
        env["OMP_NUM_THREADS"] = str(max(1, cores // args.vllm.num_engines))
        env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # threads that wait must not spin: critic, policy, engine and graders share the cores
        env["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    if local:
        env["VLLM_HOST_IP"] = "127.0.0.1"
        env["GLOO_SOCKET_IFNAME"] = "lo"
    return env


stopped_by = signal.SIGINT  # the signal behind a KeyboardInterrupt


def terminate(signum, frame):
    """SIGTERM as if it were Ctrl-C: that one Ray lets through its C++ code, though not a class of our own."""
    global stopped_by
    stopped_by = signum
    raise KeyboardInterrupt


class Engines:
    """Stands in for the engine's Ray class where OpenRLHF starts engines, and keeps their handles.

    Engines that shut down by themselves release shared memory and end their processes; killed with Ray they do not.
    """

    SHUTDOWN_S = 15

    def __init__(self, ray, engine_cls):
        self.ray, self.remote_cls, self.handles = ray, ray.remote(engine_cls), []

    def options(self, **options):
        self.with_options = self.remote_cls.options(**options)
        return self

    def remote(self, *args, **kwargs):
        self.handles.append(self.with_options.remote(*args, **kwargs))
        return self.handles[-1]

    def shutdown(self):
        """Ask all engines to end, and wait for it a bounded time; one that has died already is no matter."""
        refs = [engine.shutdown.remote() for engine in self.handles]
        if refs:
            self.ray.wait(refs, num_returns=len(refs), timeout=self.SHUTDOWN_S)


def running_ray() -> str | None:
    """Address of the Ray to join: RAY_ADDRESS, or one that ``ray start`` left on this machine and that answers."""
    if os.environ.get("RAY_ADDRESS"):
        return os.environ["RAY_ADDRESS"]
    note = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
    try:
        address = note.read_text().strip()
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, ValueError):
        return None
    return address


@contextmanager
def ray_session(args):
    """Ray, initialised with what the run needs. Raises ConfigError if a running Ray cannot give it."""
    address, needed = running_ray(), resources_needed(args)
    # what the ranks of this run leave to each other, gone at the end also if they were killed
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
    args.orz.scratch = f"{memory}/orz-{os.getpid()}-{secrets.token_hex(4)}-"
    args.orz.own_ray = address is None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        # Ray's switch, read when it is imported, for taking 127.0.0.1 as the node's address: all its servers then
        # listen on loopback alone
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Ray would run its workers, here all that computes, behind everything else on the machine (nice 15)
        os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    common = dict(
        runtime_env={"env_vars": worker_env(args, local=address is None)}, log_to_driver=args.orz.worker_logs
    )
    if address is not None:
        try:
            ray.init(address=address, **common)
        except ConnectionError as error:
            raise ConfigError(f"no Ray answers at {address} (RAY_ADDRESS): start it, or unset RAY_ADDRESS") from error
    else:
        local = dict(address="local", include_dashboard=False)
        if args.orz.device == "cpu":  # logical GPUs and CPUs: enough for OpenRLHF's placement
            local.update(num_gpus=needed, num_cpus=max(os.cpu_count(), needed + 4))
        ray.init(**local, **common)
    signal.signal(signal.SIGTERM, terminate)  # Ray has put its own there
    try:
        available = ray.cluster_resources().get("GPU", 0)
        if available < needed:
            remedy = (
                "start it with: ray start --num-gpus N (logical GPUs)"
                if args.orz.device == "cpu"
                else "lower --actor.num_gpus_per_node and the like, or add nodes"
            )
            raise ConfigError(f"the run needs {needed} GPUs and Ray has {available:g}: {remedy}")
        yield ray
    finally:
        ray.shutdown()
        for left in glob.glob(f"{args.orz.scratch}*"):
            os.unlink(left)
