"""Runs OpenRLHF's SFT trainer in one process on a CPU: python examples/lib/one_process.py openrlhf.cli.train_sft ...

The process group is formed by a file: for an address torch would start a server that listens on all interfaces. The
model is ours, as in training: rows of a pack (--ds.packing_samples, --ds.attn_implementation orz_packed) share the
template with which they all begin, and log-probs are computed only where the loss reads them.
"""

import runpy
import sys
import tempfile

import openrlhf.models
import torch.distributed as dist
from openrlhf.trainer import sft_trainer

from openrlhf_orz.trainer.actor import OrzActor


class SftActor(OrzActor):
    """Computes log-probs (B, S - 1) where the micro-batch's loss mask (B, S - 1) says so, else 0."""

    loss_mask = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, on_cpu=True, **kwargs)

    def forward(self, sequences, **kwargs):
        return super().forward(sequences, action_mask=SftActor.loss_mask, **kwargs)


def tell_masks(batches):
    """OpenRLHF's ``iter_grad_accum_global_norm``, which shows the model each micro-batch's loss mask."""

    def told(window, strategy, accumulated, mask_of):
        for batch, info in batches(window, strategy, accumulated, mask_of):
            SftActor.loss_mask = mask_of(batch)
            yield batch, info

    return told


if __name__ == "__main__":
    del sys.path[0], sys.argv[0]  # as with python -m
    openrlhf.models.Actor = SftActor
    sft_trainer.iter_grad_accum_global_norm = tell_masks(sft_trainer.iter_grad_accum_global_norm)
    with tempfile.TemporaryDirectory(prefix="orz-") as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
