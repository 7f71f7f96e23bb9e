"""All transports between real processes: two ranks of a trainer and an engine, which opens the buffers itself."""

import multiprocessing
import os
import re
import resource
import time
from datetime import timedelta
from operator import itemgetter

import pytest
import torch
import torch.distributed as dist

from openrlhf_orz.rollout.sync import transport
from openrlhf_orz.rollout.sync.checksums import EngineReport, SyncError, checksum
from openrlhf_orz.rollout.sync.send import Weights, as_in_checkpoint, verify_sync
from openrlhf_orz.rollout.sync.transport import (
    BroadcastBroken,
    BroadcastTransport,
    FileTransport,
    IpcTransport,
    open_source,
    read_places,
    views,
)

LIMIT = 2000  # bytes: the model below takes several buckets
CPU = torch.device("cpu")


def model(kind=""):
    torch.manual_seed(1)
    if kind == "broadcast of experts":
        from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

        config = Qwen3MoeConfig(
            hidden_size=8, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, moe_intermediate_size=4,
            num_experts=3, num_experts_per_tok=2, intermediate_size=12, vocab_size=16, head_dim=4,
        )  # fmt: skip
        return Qwen3MoeForCausalLM(config)
    net = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 40), torch.nn.Linear(40, 50, bias=False))
    net[2].weight.data = net[2].weight.data.t().contiguous().t()  # not contiguous
    net.head = torch.nn.Linear(16, 50, bias=False)
    net.head.weight = net[0].weight  # tied: sent once
    return net


class GlooGroup:
    """Stands in for vLLM's PyNcclCommunicator, of rank 0 and the engine's worker."""

    def __init__(self, directory, rank):
        store = dist.FileStore(f"{directory}/group", 2)
        self.group = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=60))

    def broadcast(self, tensor, src, stream):
        options = dist.BroadcastOptions()
        options.rootRank = src
        self.group.broadcast([tensor], options).wait()


def engine(pipe, directory):
    """Loads what it is told to, and returns checksums, so that nothing of the buffer is left when it has answered."""
    group = None
    while (message := pipe.recv()) is not None:
        source, places, last = message
        if source[0] == "broadcast" and group is None:
            group = GlooGroup(directory, 1)
        held = views(open_source(source, CPU, group), read_places(places))
        answer = [(name, checksum(tensor), tensor.dtype, tuple(tensor.shape)) for name, tensor in held], last
        del held
        pipe.send(answer)


def rank_of_trainer(rank, kind, directory):
    dist.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2)
    torch.multiprocessing.set_sharing_strategy("file_system")
    answers = []
    if rank == 0:
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        process = context.Process(target=engine, args=(theirs, directory))
        process.start()

    def call(source, places, last, meanwhile):
        assert rank == 0
        ours.send((source, list(map(list, places)), last))
        meanwhile()
        answers.append(ours.recv())
        return ["cpu"]

    class FirstBroadcast:
        """The engine joins when it gets the first buffer."""

        def broadcast(self, tensor, src, stream):
            self.group = getattr(self, "group", None) or GlooGroup(directory, 0)
            self.group.broadcast(tensor, src, stream)

    weights = Weights(model(kind), torch.bfloat16, LIMIT)
    path = f"{directory}/weights"
    ways = {
        "file": FileTransport(path, torch.bfloat16, call),
        "ipc": IpcTransport(CPU, torch.bfloat16, call),
        "broadcast": BroadcastTransport(FirstBroadcast(), CPU, torch.bfloat16, call),
    }
    nbytes = weights.send(ways[kind.split()[0]])
    dist.barrier()  # rank 0 alone knows of the file: the other one may be here before the engine has read it
    assert not os.path.exists(path)
    if rank == 0:
        ours.send(None)
        process.join(60)
        sent = as_in_checkpoint(weights.model, [(name, param.detach()) for name, param in weights.params])
        expected = [(name, checksum(tensor.bfloat16()), torch.bfloat16, tuple(tensor.shape)) for name, tensor in sent]
        received = [each for answer, _ in answers for each in answer]
        assert sorted(received, key=itemgetter(0)) == sorted(expected, key=itemgetter(0))
        experts = [name for name, *_ in expected if re.search(r"experts\.\d", name)]
        assert len(experts) == (36 if "experts" in kind else 0), "three matrices each, by the checkpoint's names"
        buckets = len(weights.buckets())
        assert buckets > 2 and [last for _, last in answers] == [False] * (len(answers) - 1) + [True]
        assert len(answers) == (1 if kind == "file" else buckets)
        assert nbytes == 2 * sum(p.numel() for p in model(kind).parameters())
    if kind == "ipc":
        count_exports(rank)
    fails_on_all_ranks(rank, f"{directory}/other")
    dist.destroy_process_group()


def count_exports(rank):
    """Each export is opened by an engine, or given back by its rank: also if one engine is asked, or one dies."""
    counts = {"exported": 0, "given back": 0}
    real = transport.export, transport.give_back, transport.device_key

    def export(buffer):
        counts["exported"] += 1
        return real[0](buffer)

    def give_back(handle):
        counts["given back"] += 1
        real[1](handle)

    def send(devices, fails_at=None):
        calls = []

        def call(source, places, last, meanwhile):
            assert sorted(source[1]) == ["gpu-0", "gpu-1"]
            calls.append(last)
            if len(calls) == fails_at:
                raise ValueError("an engine died")
            return devices

        counts.update(dict.fromkeys(counts, 0))
        way = IpcTransport(CPU, torch.bfloat16, call)
        Weights(model(), torch.bfloat16, LIMIT).send(way)

    transport.export, transport.give_back, transport.device_key = export, give_back, lambda device: f"gpu-{rank}"
    buckets = len(Weights(model(), torch.bfloat16, LIMIT).buckets())
    for devices in (["gpu-0", "gpu-1"], ["gpu-1"]):
        send(devices)
        assert counts == {"exported": buckets, "given back": 0 if f"gpu-{rank}" in devices else buckets}
    with pytest.raises((ValueError, RuntimeError), match="an engine died"):
        send(["gpu-0", "gpu-1"], fails_at=2)
    assert counts == {"exported": 2, "given back": 1}
    transport.export, transport.give_back, transport.device_key = real


def fails_on_all_ranks(rank, path):
    """An engine that dies in a sync is known to all ranks, which can then make another one together."""

    def call(*args):
        raise ValueError("an engine died")

    for way in (
        FileTransport(path, torch.bfloat16, call), IpcTransport(CPU, torch.bfloat16, call),
        BroadcastTransport(None, CPU, torch.bfloat16, call),
        FileTransport("/no/folder/file", torch.bfloat16, call),
    ):  # fmt: skip
        error = {BroadcastTransport: BroadcastBroken}.get(type(way), (ValueError, OSError))
        with pytest.raises(error if rank == 0 else RuntimeError, match="an engine died|No such file"):
            Weights(model(), torch.bfloat16, LIMIT).send(way)

    def ask(names, dtype):
        raise ValueError("an engine died")

    with pytest.raises(ValueError if rank == 0 else RuntimeError, match="an engine died"):
        verify_sync(Weights(model(), torch.bfloat16, LIMIT), ask, {})
    dist.barrier()


@pytest.mark.parametrize("kind", ["file", "ipc", "broadcast", "broadcast of experts"])
def test_weights_cross_processes(kind, tmp_path):
    # new processes by a fork server, which alone imports torch, once for both kinds
    multiprocessing.set_forkserver_preload(["openrlhf_orz.rollout.sync.send"])
    torch.multiprocessing.start_processes(rank_of_trainer, (kind, str(tmp_path)), nprocs=2, start_method="forkserver")


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_file_is_gone_after_a_failure(alone, tmp_path):
    def call(source, places, last, meanwhile):
        assert os.path.getsize(source[1]) > 0 and os.stat(source[1]).st_mode & 0o077 == 0
        raise RuntimeError("the engine died")

    with pytest.raises(RuntimeError, match="died"):
        Weights(model(), torch.float32, LIMIT).send(FileTransport(f"{tmp_path}/weights", torch.float32, call))
    assert not os.path.exists(f"{tmp_path}/weights")


def test_file_is_gone_where_it_cannot_be_written(alone, tmp_path):
    """Weights smaller than the file's buffer are written when it is closed."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limit[1]))
    try:
        with pytest.raises(OSError):
            Weights(model(), torch.float32, LIMIT).send(FileTransport(f"{tmp_path}/weights", torch.float32, print))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not os.path.exists(f"{tmp_path}/weights")


def test_file_is_let_go(alone, tmp_path):
    """Its pages are freed beside what goes on; soon no descriptor holds them."""

    def held():
        return [fd for fd in os.listdir("/proc/self/fd") if "/weights" in readlink(fd)]

    def readlink(fd):
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the one that listed them
            return ""

    def call(source, places, last, meanwhile):
        assert held()

    Weights(model(), torch.float32, LIMIT).send(FileTransport(f"{tmp_path}/weights", torch.float32, call))
    end = time.monotonic() + 30
    while held() and time.monotonic() < end:
        time.sleep(0.01)
    assert not held()


def test_verify_names_what_is_skipped_or_stale(alone):
    weights = Weights(model(), torch.bfloat16, LIMIT)
    sums = weights.checksums()
    assert len(sums) == 4

    def engines(names, dtype, change=None, drop=None):
        assert names == list(sums) and dtype == "bfloat16"
        handed = {name: value for name, value in sums.items() if name != drop}
        held = {name: value._replace(total=value.total + (name == change)) for name, value in sums.items()}
        return [[tuple(EngineReport(handed, held, {name: [name] for name in names}, {}, []))]]

    assert verify_sync(weights, engines, {}) == 1.0
    with pytest.raises(SyncError, match="engine 0: 1.bias: the engine did not get it"):
        verify_sync(weights, lambda *args: engines(*args, drop="1.bias"), {})
    with pytest.raises(SyncError, match="engine 0: 0.weight: the model holds"):
        verify_sync(weights, lambda *args: engines(*args, change="0.weight"), {})
    weights.params[1][1].data += 1  # the trainer moved on without a sync
    with pytest.raises(SyncError, match=r"1.weight: the engine got other values"):
        verify_sync(weights, engines, {})


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="must share one"):
        open_source(("file", f"{tmp_path}/none"), CPU)
    with pytest.raises(KeyError, match="device cpu"):
        open_source(("ipc", {"GPU-1": b""}), CPU)
