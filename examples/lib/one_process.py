"""Runs a module as one process of torch.distributed on a CPU: python examples/lib/one_process.py MODULE [ARGS].

The process group is formed by a file: for an address torch would start a server that listens on all interfaces.
"""

import runpy
import sys
import tempfile

import torch.distributed as dist

if __name__ == "__main__":
    del sys.path[0], sys.argv[0]  # as with python -m
    with tempfile.TemporaryDirectory(prefix="orz-") as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
