"""The extension of vLLM's worker (``worker_extension_cls``): weight sync in buckets, and the report that proves it."""

import threading
import weakref
from collections.abc import Callable

import torch
from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap
from tqdm import tqdm
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from openrlhf_orz.models.cpu_ops import allow_tiles
from openrlhf_orz.rollout.sync.checksums import EngineReport, checksum, find_sources
from openrlhf_orz.rollout.sync.transport import device_key, open_source, read_places, views

# In a spawned process, as vLLM's is, tqdm's own lock is a file in shared memory, which stays if the process is killed.
tqdm.set_lock(threading.RLock())
allow_tiles()


def tied_heads(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the output heads that share an embedding's weight."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    modules = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    embeddings = {id(module.weight) for module in modules if not isinstance(module, ParallelLMHead)}
    return [module for module in modules if isinstance(module, ParallelLMHead) and id(module.weight) in embeddings]


def comparable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's parameters by name as their checksums are to be taken.

    A vocabulary has no rows of padding, and what a loader turns into other numbers (the A of a Mamba layer, from its
    logarithm) is empty: only what the loader received can be compared.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    found = dict(model.named_parameters())
    for name, param in found.items():
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, VocabParallelEmbedding):
            found[name] = param[: module.shard_indices.num_org_elements]
        elif "composed_weight_loader" in getattr(getattr(param, "weight_loader", None), "__qualname__", ""):
            found[name] = param[:0]
    return found


def packed_copies(model: torch.nn.Module) -> dict[str, Callable]:
    """Return, by module, the functions that hold weights packed by vLLM's CPU build. Packing again makes new ones."""
    return {
        name: module.cpu_linear
        for name, module in model.named_modules()
        if getattr(module, "cpu_linear", None) not in (None, torch.nn.functional.linear)
    }


def forget_expert_kernels(model: torch.nn.Module) -> None:
    """Have the experts' kernels made again by the reload that follows.

    Where there is one, vLLM takes the weights of a reload as an update of what the kernel already packed, and its CPU
    build packs none again: it would compute with rows in the wrong places.
    """
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def untouched(model: torch.nn.Module) -> set[str]:
    """Parameters of modules into which a reload has copied nothing, though the model may have told that it did.

    While weights are reloaded parameters have no memory. A model that copies into them past their loaders (gpt-oss)
    loses what it copies, and keeps the weights of before.
    """
    names = set()
    for module_name, module in model.named_modules():
        info = get_layerwise_info(module)
        if info.can_load() and info.load_numel <= 0 < (info.load_numel_total or 0):
            names |= {f"{module_name}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)}
    return names


def never_loaded(params: list[set[str]], loaded: set[str]) -> list[str]:
    """One name of each parameter, given by all of its names, of which none is ``loaded``.

    Those may leave out one module of the path.
    """

    def shorter(name: str) -> set[str]:
        parts = name.split(".")
        return {".".join(parts[:i] + parts[i + 1 :]) for i in range(len(parts) - 1)}

    return sorted(min(names) for names in params if not any({name, *shorter(name)} & loaded for name in names))


class OrzWorkerExtension(WorkerWrap):
    """Methods that vLLM adds to its worker. ``device`` and ``model_runner`` are the worker's."""

    def init_process_group(self, *args, **kwargs):
        """As OpenRLHF's, also once more: when an engine was started again, all of them form a new group."""
        if hasattr(old := getattr(self, "_model_update_group", None), "destroy"):
            old.destroy()
        return super().init_process_group(*args, **kwargs)

    def gpu_memory_mib(self) -> float | None:
        """Return the memory in use on this worker's GPU, by all processes, in MiB; None on a CPU."""
        if self.device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(self.device)
        return (total - free) / 2**20

    def load_synced_weights(
        self, source: tuple, places: list, last: bool = True, check: bool = False
    ) -> tuple[str, list[str]]:
        """Load named tensors, in checkpoint format, from a buffer of the trainer.

        Args:
            source: where the buffer is: ("file", path), which must hold all of the model's weights,
                ("ipc", {device: handle}) or ("broadcast", bytes).
            places: the TensorPlace of each tensor in it.
            last: whether this is the last buffer of a sync.
            check: keep the tensors' checksums for ``weight_report``.

        Returns the name of the device, as the transport has it, and, with the last buffer, the model's parameters that
        no buffer of the sync has loaded.
        """
        group = getattr(self, "_model_update_group", None)
        weights = views(open_source(source, self.device, group), read_places(places))
        if check:
            self.orz_handed = getattr(self, "orz_handed", {}) | {name: checksum(weight) for name, weight in weights}
        model = self.model_runner.get_model()
        names: dict[int, set[str]] = {}  # of each parameter: of a tied head, too, or a router's bias
        for name, param in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(param), set()).add(name)
        loaded = self._reload(model, weights) if source[0] == "file" else model.load_weights(weights)
        if self.device.type == "cuda":
            # the trainer may free the buffer as soon as this call returns
            torch.cuda.synchronize(self.device)
        # a model that does not tell is checked by its log-probs alone
        self.orz_loaded = getattr(self, "orz_loaded", set()) | (
            set().union(*names.values()) if loaded is None else set(loaded)
        )
        if not last:
            return device_key(self.device), []
        loaded, self.orz_loaded = self.orz_loaded, set()
        return device_key(self.device), never_loaded(list(names.values()), loaded)

    def _reload(self, model: torch.nn.Module, weights: list[tuple[str, torch.Tensor]]) -> set[str] | None:
        """Load all weights into a model whose linear layers keep only packed copies (vLLM's CPU build).

        It is what vLLM's ``reload_weights`` does, which does not tell what was loaded. Returns the names of that.
        """
        # weak references: the old copies must be freed while the new ones are made
        self.orz_packed = {name: weakref.ref(packed) for name, packed in packed_copies(model).items()}
        heads = tied_heads(model)
        forget_expert_kernels(model)
        initialize_layerwise_reload(model)
        own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        loaded = model.load_weights(iter(weights))
        if loaded is not None:
            loaded = set(loaded) - untouched(model)
        finalize_layerwise_reload(model, self.model_runner.model_config)
        if loaded is not None:  # what vLLM makes of them when all are there (DeepSeek's attention) is made anew
            loaded |= {name for name, _ in model.named_parameters(remove_duplicate=False)} - own
        # A reload packs no new copy for a head that is tied to the embedding.
        for head in heads:
            head.quant_method.process_weights_after_loading(head)
        return loaded

    def weight_report(self, names: list[str], dtype: str) -> tuple:
        """Return an EngineReport for the trainer's parameters ``names``, sent as ``dtype``; then forget checksums."""
        model = self.model_runner.get_model()
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        params = comparable(model)
        sources, absent = find_sources(
            names,
            params,
            rename=lambda name: next(iter(mapper.apply_list([name])), None) if mapper else name,
            fused=getattr(model, "packed_modules_mapping", {}),
        )
        # vLLM keeps some (biases of packed layers) in a wider dtype; casting back gives the same bits
        held = {name: checksum(param.to(getattr(torch, dtype))) for name, param in params.items()}
        packed, before = packed_copies(model), getattr(self, "orz_packed", {})
        stale = [name for name, copy in before.items() if copy() is not None and copy() is packed.get(name)]
        handed, self.orz_handed = getattr(self, "orz_handed", {}), {}
        return tuple(EngineReport(handed, held, sources, absent, stale))
