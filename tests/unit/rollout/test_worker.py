"""The worker's extension on small models: which heads are packed again, which checksums are kept, what is stale."""

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from tqdm import tqdm
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import composed_weight_loader

from openrlhf_orz.rollout import worker
from openrlhf_orz.rollout.sync.checksums import EngineReport, checksum
from openrlhf_orz.rollout.worker import (
    OrzWorkerExtension,
    never_loaded,
    packed_copies,
    tied_heads,
    untouched,
)


def test_progress_bars_make_no_semaphore():
    assert isinstance(tqdm.get_lock(), type(threading.RLock()))


def bare(cls, weight):
    """vLLM's module without its distributed set-up."""
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    module.weight = weight
    module.shard_indices = SimpleNamespace(num_org_elements=len(weight))
    return module


class Model(nn.Module):
    """Linear layer, embedding and head as vLLM's CPU build has them: ``cpu_linear`` holds packed weights."""

    def __init__(self, tied=True):
        super().__init__()
        self.embed = bare(VocabParallelEmbedding, nn.Parameter(torch.ones(4, 2)))
        self.lm_head = bare(ParallelLMHead, self.embed.weight if tied else nn.Parameter(torch.zeros(4, 2)))
        self.lm_head.quant_method = SimpleNamespace(process_weights_after_loading=self.pack)
        self.linear = nn.Linear(2, 2)
        self.plain = nn.Linear(2, 2)
        self.plain.cpu_linear = nn.functional.linear  # nothing packed
        self.packed, self.loaded, self.tells, self.untouched = [], [], True, []
        self.repack()

    def pack(self, head):
        self.packed.append((head, head.weight[0, 0].item()))

    def repack(self):
        self.linear.cpu_linear = type("Packed", (), {"__call__": lambda self, x: x})()

    def load_weights(self, weights):
        weights = list(weights)
        self.loaded += weights
        for name, weight in weights:
            self.get_parameter(name).data.copy_(weight)
        return {name for name, _ in weights} if self.tells else None


def make(model, repacks=True):
    extension = object.__new__(OrzWorkerExtension)
    extension.device = torch.device("cpu")
    extension.model_runner = SimpleNamespace(get_model=lambda: model, model_config=repacks)
    return extension


@pytest.fixture
def send(monkeypatch):
    """Hand weights over as a transport would, without its buffer; vLLM's reload packs again unless told not to."""
    monkeypatch.setattr(worker, "initialize_layerwise_reload", lambda model: None)
    monkeypatch.setattr(worker, "untouched", lambda model: {f"{name}.weight" for name in model.untouched})
    monkeypatch.setattr(worker, "finalize_layerwise_reload", lambda model, repacks: repacks and model.repack())

    def call(extension, weights, kind="file", check=False, last=True):
        monkeypatch.setattr(worker, "open_source", lambda source, device, group: None)
        monkeypatch.setattr(worker, "views", lambda buffer, places: list(weights.items()))
        return extension.load_synced_weights((kind, "where"), [], last, check)[1]

    return call


def report(extension, names, dtype="float32"):
    return EngineReport.read(extension.weight_report(names, dtype))


def test_tied_heads_are_those_with_an_embeddings_weight():
    assert tied_heads(Model(tied=False)) == []
    model = Model()
    assert tied_heads(model) == [model.lm_head]


def test_a_tied_head_is_packed_again_from_the_new_weight(send):
    model = Model()
    send(make(model), {"embed.weight": torch.full((4, 2), 7.0)})
    assert model.packed == [(model.lm_head, 7.0)]
    untied = Model(tied=False)
    send(make(untied), {"embed.weight": torch.full((4, 2), 7.0)})
    assert untied.packed == []


def test_on_a_gpu_weights_are_loaded_and_nothing_is_packed(send):
    model = Model()
    extension = make(model)
    send(extension, {"embed.weight": torch.full((4, 2), 7.0)}, kind="ipc")
    assert [name for name, _ in model.loaded] == ["embed.weight"] and model.packed == []
    assert model.embed.weight[0, 0] == 7


def test_parameters_that_no_bucket_has_loaded_are_told(send):
    names = {"embed.weight": torch.ones(4, 2), "linear.weight": torch.ones(2, 2), "linear.bias": torch.ones(2)}
    rest = ["plain.bias", "plain.weight"]
    assert send(make(Model()), names) == rest  # not the tied head
    assert send(make(Model(tied=False)), names) == ["lm_head.weight", *rest]
    extension = make(Model())
    for _ in range(2):  # each sync anew
        for i, (name, weight) in enumerate(names.items(), 1):
            found = send(extension, {name: weight}, kind="ipc", last=i == 3)
            assert found == (rest if i == 3 else [])
    silent = Model()
    silent.tells = False
    assert send(make(silent), names) == []


def test_names_that_leave_out_a_module():
    """As vLLM's experts tell them: the module that holds the weights is not in the name."""
    names = ["l.0.experts.routed.w13", "l.0.experts.routed.w2", "l.0.norm.weight"]
    params = [{name} for name in names]
    assert never_loaded(params, {"l.0.experts.w13", "l.0.norm.weight"}) == ["l.0.experts.routed.w2"]
    assert never_loaded(params, set(names)) == [] and never_loaded([{"w"}], {""}) == ["w"]


def test_what_a_model_has_copied_into_nothing_is_told(send, monkeypatch):
    model = Model()
    weights = {name: torch.ones_like(param) for name, param in model.named_parameters() if "lm_head" not in name}
    assert send(make(model), weights) == []
    model.untouched = ["linear"]
    assert send(make(model), weights) == ["linear.weight"]


def test_what_is_made_of_loaded_weights_need_not_be_loaded(send, monkeypatch):
    """vLLM drops it when a reload begins, and makes it anew when all weights are there."""
    model = Model()
    product = nn.Parameter(torch.zeros(2))
    model.plain.register_parameter("product", product)
    monkeypatch.setattr(worker, "initialize_layerwise_reload", lambda model: delattr(model.plain, "product"))
    remake = worker.finalize_layerwise_reload

    def finalize(model, repacks):
        remake(model, repacks)
        model.plain.register_parameter("product", product)

    monkeypatch.setattr(worker, "finalize_layerwise_reload", finalize)
    weights = {name: torch.ones_like(param) for name, param in model.named_parameters() if "product" not in name}
    assert send(make(model), weights) == []
    assert send(make(model), weights, kind="ipc") == ["plain.product"], "there nothing makes it anew"


def test_untouched_modules(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU())
    told = {  # pending, elements loaded, elements in all
        model[0]: (True, 0, 6), model[1]: (True, 3, 6), model[2]: (False, 0, 6), model: (True, 0, None),
        model[3]: (True, 0, 0),
    }  # fmt: skip

    def info(module):
        pending, done, total = told[module]
        return SimpleNamespace(can_load=lambda: pending, load_numel=done, load_numel_total=total)

    monkeypatch.setattr(worker, "get_layerwise_info", info)
    assert untouched(model) == {"0.weight", "0.bias"}


def test_experts_are_packed_again(send):
    model = Model()
    model.plain.quant_method = SimpleNamespace(moe_kernel="packs once")
    send(make(model), {"embed.weight": torch.ones(4, 2)}, kind="ipc")
    assert model.plain.quant_method.moe_kernel == "packs once"
    send(make(model), {"embed.weight": torch.ones(4, 2)})
    assert model.plain.quant_method.moe_kernel is None  # vLLM's reload makes another


def test_one_name_of_a_parameter_is_enough(send):
    model = Model()
    model.plain.weight = model.linear.weight  # as a router's bias, which its experts have, too
    names = {"embed.weight": torch.ones(4, 2), "linear.weight": torch.ones(2, 2), "linear.bias": torch.ones(2)}
    assert send(make(model), names) == ["plain.bias"]


def test_checksums_are_kept_only_if_asked_for_and_for_one_report(send):
    extension, names = make(Model()), ["embed.weight", "linear.weight"]
    first, second = {"embed.weight": torch.full((4, 2), 7.0)}, {"linear.weight": torch.ones(2, 2)}
    send(extension, first, kind="ipc")
    assert report(extension, names).handed == {}
    for weights in (first, second):  # two buckets
        send(extension, weights, kind="ipc", check=True)
    sums = {name: checksum(weight) for name, weight in (first | second).items()}
    assert report(extension, names).handed == sums
    assert report(extension, names).handed == {}


def test_a_report_of_what_the_model_holds(send):
    model = Model()
    send(make(model), {"embed.weight": torch.full((4, 2), 7.0)})
    model.embed.shard_indices.num_org_elements = 3  # and a row of padding
    model.embed.bias = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 0.0]))
    model.plain.bias.weight_loader = composed_weight_loader(lambda param, weight: None, torch.exp)
    found = report(make(model), ["embed.weight"], "bfloat16")
    assert found.held["embed.weight"] == checksum(torch.full((3, 2), 7.0, dtype=torch.bfloat16))
    assert found.held["embed.bias"] == checksum(torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16))
    assert found.held["plain.bias"] == checksum(torch.empty(0)) != found.held["linear.bias"]
    assert found.sources["embed.weight"] == ["embed.weight"] and found.sources["linear.weight"] == []


@pytest.mark.parametrize("repacks, stale", [(True, []), (False, ["linear"])])
def test_a_copy_that_was_packed_before_the_sync_is_stale(send, repacks, stale):
    model = Model()
    assert list(packed_copies(model)) == ["linear"]
    extension = make(model, repacks)
    assert report(extension, []).stale == []  # nothing has been synced
    send(extension, {"embed.weight": torch.ones(4, 2)})
    assert report(extension, []).stale == stale


def test_names_are_those_of_the_models_mapper():
    model = Model()
    model.hf_to_vllm_mapper = SimpleNamespace(
        apply_list=lambda names: [n.removeprefix("model.") for n in names if n != "x"]
    )
    model.packed_modules_mapping = {"linear": ["a", "b"]}
    found = report(make(model), ["model.embed.weight", "model.a.weight", "x"])
    assert found.sources["embed.weight"] == ["model.embed.weight"]
    assert found.sources["linear.weight"] == ["model.a.weight"] and found.absent == {"linear.weight": ["b"]}


def test_memory_in_use_is_that_of_the_workers_own_gpu(monkeypatch):
    extension = make(Model())
    assert extension.gpu_memory_mib() is None
    extension.device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30 * device.index, 2**32))
    assert extension.gpu_memory_mib() == 3072
