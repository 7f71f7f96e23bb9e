"""Ray for one run: join the Ray that runs, or start one on loopback and stop it at the end."""

import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil

from openrlhf_orz.runtime.console import say
from openrlhf_orz.runtime.fork_server import fork_server
from openrlhf_orz.runtime.nodes import AGENTS_VARIABLE, ask_agents, start_agents
from openrlhf_orz.runtime.private import clean_leftovers, owned, private_folder, ray_root, shared_folder
from openrlhf_orz.runtime.stopping import StopHandler, signals_blocked
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.finished import RunFacts


def placement_gpus(args: SimpleNamespace) -> int:
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


def rank_env(device: str) -> dict[str, str]:
    """Extra environment variables for the ranks of policy, critic and reference model; values already set win.

    glibc returns freed memory to the kernel and takes it again for each micro-batch. On a CPU clearing a page costs as
    much as the arithmetic on it, so there a rank keeps its memory: in one heap for its main thread and one for each
    thread that computes values.
    """
    heaps = 1 + len(os.sched_getaffinity(0))
    keep = {"MALLOC_TRIM_THRESHOLD_": str(2**60), "MALLOC_MMAP_MAX_": "0", "MALLOC_ARENA_MAX": str(heaps)}
    return {name: os.environ.get(name, value) for name, value in keep.items() if device == "cpu"}


def cpu_env(args: SimpleNamespace) -> dict[str, str]:
    """The part of ``worker_env`` that makes all processes compute on the cores; nothing on GPUs."""
    if args.orz.device != "cpu":
        return {}
    cores = len(os.sched_getaffinity(0))
    return {
        "DS_ACCELERATOR": "cpu",
        # Ray's one thread for each worker would leave cores idle; the trainers share them by phase
        "OMP_NUM_THREADS": str(max(1, cores // args.vllm.num_engines)),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # else vLLM's core and its worker are two processes, and one spins while it waits for the other
        "VLLM_ENABLE_V1_MULTIPROCESSING": os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
        # threads that wait must not spin for long, as critic, policy, engine and graders share the cores; but without
        # any spinning a forward of many small operations on two cores takes a third longer
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000"),
    }


def temporary_folder() -> str:
    """Where Ray's files go, if their paths are short enough."""
    return os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()


def temporary_place(scratch: str) -> str:
    """The run's private folder for what should not lie in memory, as what is in ``scratch`` does."""
    return f"{ray_root(temporary_folder())}/{os.path.basename(scratch.rstrip('/'))}"


def datasets_env(scratch: str) -> dict[str, str]:
    """The part that keeps the copies of the prompts, which OpenRLHF has ``datasets`` make, in a private folder.

    It is read when ``datasets`` is imported.
    """
    return {"HF_DATASETS_CACHE": os.environ.get("HF_DATASETS_CACHE", f"{temporary_place(scratch)}/datasets")}


def worker_env(args: SimpleNamespace, run: RunFacts) -> dict[str, str]:
    """Environment of all Ray workers of the run; with a Ray of its own every socket is kept on loopback."""
    env = {
        "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "true"),
        "NCCL_DEBUG": os.environ.get("NCCL_DEBUG", "WARN"),
        "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": os.environ.get("RAY_ENABLE_ZERO_COPY_TORCH_TENSORS", "1"),
        "OPENRLHF_TRUST_REMOTE_CODE": "1" if args.orz.trust_remote_code else "0",
        # what DeepSpeed and vLLM compile needs ninja, which is in the environment; Ray fills in each node's PATH
        "PATH": f"{os.path.dirname(sys.executable)}:${{PATH}}",
        "WANDB_DIR": os.environ.get("WANDB_DIR", args.orz.run_dir),  # else below the directory of the moment
        # vLLM does not remove its sockets: put them where the end of the run does
        "VLLM_RPC_BASE_PATH": f"{run.scratch}ipc",
        **datasets_env(run.scratch),
        **cpu_env(args),
    }
    if args.orz.batch_invariant:
        env["VLLM_BATCH_INVARIANT"] = "1"
    if not run.own_ray:
        env[AGENTS_VARIABLE] = "1"
    else:
        env["VLLM_HOST_IP"] = "127.0.0.1"
        env["GLOO_SOCKET_IFNAME"] = "lo"
        if args.orz.device == "cuda":
            env["NCCL_SOCKET_IFNAME"] = os.environ.get("NCCL_SOCKET_IFNAME", "lo")  # NCCL's bootstrap
    return env


def listeners(port: int) -> set[int]:
    """The users whose processes listen on a TCP port of this machine."""
    users = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for words in map(str.split, Path(table).read_text().splitlines()[1:]):
                if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:  # 0A: it listens
                    users.add(int(words[7]))
    return users


def running_ray() -> str | None:
    """Address of the Ray to join: RAY_ADDRESS, or one that this user's ``ray start`` left here and that answers.

    A note that somebody else may have written does not count: to join a Ray is to let its owner run code here.
    """
    if os.environ.get("RAY_ADDRESS"):
        return os.environ["RAY_ADDRESS"]
    note = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
    if not owned(note) or not owned(note.parent):
        return None
    try:
        address = note.read_text().strip()
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, ValueError):
        return None
    here = listeners(int(port))  # none: the head is another machine
    return address if not here or os.getuid() in here else None


def cluster_gpus(address: str) -> list[tuple[str, int]]:
    """(type as Ray names it, number) of the GPUs of each living node that has any, of the Ray at ``address``.

    Raises ConfigError if it does not answer.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    say(f"asking the Ray at {address} for its GPUs")  # one that does not answer is waited for
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        raise ConfigError(f"no Ray answers at {address} (RAY_ADDRESS): start it, or unset RAY_ADDRESS") from error
    try:
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()
    kinds = [[k.partition(":")[2] for k in node if k.startswith("accelerator_type:")] or [""] for node in resources]
    return [(kind[0], int(node["GPU"])) for kind, node in zip(kinds, resources) if node.get("GPU", 0) >= 1]


def wait_for_gpus(ray: ModuleType, needed: int, seconds: float) -> float:
    """GPUs that Ray has. Waits for ``needed`` at most ``seconds``: a restarted run may wait for a lost node."""
    end = time.monotonic() + seconds
    while (available := ray.cluster_resources().get("GPU", 0)) < needed and time.monotonic() < end:
        time.sleep(1)
    return available


_TOKEN = secrets.token_hex(32)  # of each Ray that this process starts


def read_auth_again() -> None:
    """Have a Ray that is imported read ``RAY_AUTH_MODE`` and the token; it has read them when it was imported."""
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def lock_ray() -> None:
    """Before Ray is started: it listens on loopback only, and asks for a token.

    Loopback is open to all users of a machine, and whoever speaks to a Ray can have it run code.
    """
    # Ray reads this when it is imported, then takes 127.0.0.1 as the node's address, and all its servers listen there
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = _TOKEN
    if constants := sys.modules.get("ray._private.ray_constants"):  # by code of the user's, who may know nothing of it
        constants.ENABLE_RAY_CLUSTER = False
        read_auth_again()
    # Ray would give its workers, which do all the computing, low priority (nice 15)
    os.environ.setdefault("RAY_worker_niceness", "0")
    # and start workers at once that no actor of the run can have: they are without its environment
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # and give a worker up that has not come within a minute; on a busy machine the fork server imports for longer
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "180")


@contextmanager
def without_variable(name: str) -> Iterator[None]:
    """The environment is without ``name`` in the body."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def start_ray(ray: ModuleType, **options) -> None:
    """``ray.init``, again where a busy machine takes longer than the 30 s that Ray allows its start.

    SIGTERM stays blocked in all processes of this Ray, as Ray itself has it with SIGINT: ``timeout`` and schedulers
    send it to the whole process group, and the driver alone shall answer, by a stop that saves.
    Raises ConfigError if it has not started in three tries.
    """
    for left in (2, 1, 0):
        try:
            with signals_blocked(signal.SIGTERM):
                return ray.init(**options)
        except Exception as error:  # of no class of its own
            if "timed out during startup" not in str(error):
                raise
            for process in psutil.Process().children(recursive=True):  # Ray leaves what it has started so far
                with suppress(psutil.Error):
                    if options["_temp_dir"] in " ".join(process.cmdline()):
                        process.kill()
        if left:
            say("this machine is busy, and Ray's start took too long: trying again")
    raise ConfigError(
        f"Ray has not started in three tries of 30 s (load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores):"
        " start the run when the machine is less busy"
    )


@contextmanager
def warm_workers(args: SimpleNamespace, scratch: str) -> Iterator[str | None]:
    """The Python of Ray's workers, for ``RunFacts.worker_python``: forks of a server, which begins its imports here.

    None on GPUs, where cores are many, and with a Ray that runs already. ``scratch``: the run's folder, made here.
    """
    if args.orz.device != "cpu" or running_ray() is not None:
        yield None
        return
    with private_folder(scratch), fork_server(scratch, cpu_env(args) | datasets_env(scratch)) as python:
        yield python


@contextmanager
def ray_session(args: SimpleNamespace, run: RunFacts, stopping: StopHandler) -> Iterator[ModuleType]:
    """The module ray, initialised for the run. Raises ConfigError if Ray has too few GPUs or does not answer.

    Ray installs its own signal handlers; ``stopping`` is installed again after that.
    """
    address, needed = running_ray() if not run.own_ray else None, placement_gpus(args)
    temporary = temporary_folder()
    root, private = ray_root(temporary), temporary_place(run.scratch)
    if address is None and root != temporary:
        say(f"{temporary} is too long for the paths of Ray's sockets: they go to {root} (or to RAY_TMPDIR)")
    clean_leftovers((shared_folder(), root))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        lock_ray()
    import ray

    python = {"py_executable": run.worker_python} if run.worker_python else {}
    common = dict(runtime_env={"env_vars": worker_env(args, run), **python}, log_to_driver=args.orz.worker_logs)
    with ExitStack() as folders:
        folders.enter_context(private_folder(run.scratch))
        if root != shared_folder():
            folders.enter_context(private_folder(private))
        if address is not None:
            reason = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") else "this user's, by ray start"
            say(f"joining the Ray at {address} ({reason})")
            try:
                ray.init(address=address, **common)
            except ConnectionError as error:
                raise ConfigError(f"no Ray answers at {address} ({reason}): start it, or unset RAY_ADDRESS") from error
        else:
            # Ray opens its own folders to everybody: below the private one
            local = dict(address="local", include_dashboard=False, _temp_dir=f"{private}/r")
            if args.orz.device == "cpu":  # logical GPUs and CPUs: enough for OpenRLHF's placement
                local.update(num_gpus=needed, num_cpus=max(os.cpu_count(), needed + 4))
                # Ray refuses more GPUs than this variable names; who hides the GPUs of a machine has it empty
                with without_variable("CUDA_VISIBLE_DEVICES"):
                    start_ray(ray, **local, **common)
            else:
                start_ray(ray, **local, **common)
        folders.callback(ray.shutdown)
        stopping.install()  # Ray has replaced them
        available = wait_for_gpus(ray, needed, args.orz.start_timeout_s if run.restarts else 0)
        if available < needed:
            remedy = (
                "start it with: ray start --num-gpus N (logical GPUs)"
                if args.orz.device == "cpu"
                else "lower --actor.num_gpus_per_node and the like, or add nodes"
            )
            raise ConfigError(f"the run needs {needed} GPUs and Ray has {available:g}: {remedy}")
        if address is not None:
            agents = start_agents(ray, run.scratch, run.shared, needed)
            folders.callback(agents.clear)
            folders.callback(os.environ.pop, AGENTS_VARIABLE, None)
            folders.callback(ask_agents, "finish")
        yield ray
