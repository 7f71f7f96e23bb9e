"""The extension of vLLM's worker: OpenRLHF's weight sync and ours."""

from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap

from openrlhf_orz.rollout.weight_sync import WeightFileLoader


class OrzWorkerExtension(WeightFileLoader, WorkerWrap):
    pass
