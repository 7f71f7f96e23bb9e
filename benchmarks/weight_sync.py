"""Weight sync on CPU: one file in shared memory and one call, against a call and a barrier for each parameter.

    python benchmarks/weight_sync.py [--size smollm2-135m] [--repeats 5] [--engine]

Ours sends through the file transport of openrlhf_orz/rollout/sync, as training on a CPU does. On both routes the
receiver, a Ray actor, copies the weights into its own model. Stock OpenRLHF calls the engine and waits at a barrier
for each parameter. Its tensors travel by NCCL or CUDA IPC, which need a GPU; here they travel in the call, through
Ray's object store. ``--engine`` also syncs into a real vLLM engine and measures calls to it that carry no data.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import common


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(common.SHAPES), default="smollm2-135m")
    parser.add_argument("--dtype", choices=tuple(common.DTYPES), default=common.cpu_dtype())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engine", action="store_true")
    return parser.parse_args(argv)


def build(size, dtype):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(common.model_config(size), dtype=getattr(torch, common.DTYPES[dtype]))


class Receiver:
    """In place of an engine's worker: copies the weights that it receives into its own model."""

    def __init__(self, size, dtype):
        self.parameters = dict(build(size, dtype).named_parameters())

    def load_weights(self, source, places, last):
        import torch

        from openrlhf_orz.rollout.sync.transport import open_source, read_places, views

        for name, weight in views(open_source(source, torch.device("cpu")), read_places(places)):
            self.parameters[name].data.copy_(weight)

    def update_weight(self, name, weight):
        self.parameters[name].data.copy_(weight)

    def checksum(self):
        return sum(p.double().sum().item() for p in self.parameters.values())


def send_file(model, dtype, receivers, args) -> None:
    """The route that training takes on CPU."""
    import ray
    import torch

    from openrlhf_orz.rollout.sync.send import Weights
    from openrlhf_orz.rollout.sync.transport import FileTransport

    def load(source, places, last):
        ray.get([receiver.load_weights.remote(source, places, last) for receiver in receivers])

    dtype = getattr(torch, common.DTYPES[dtype])
    transport = FileTransport(f"{args.run.scratch}weights", dtype, load)
    Weights(model, dtype, args.orz.sync_bucket_mib * 2**20).send(transport)


def with_engine(model_dir, args, pg, model, options) -> dict:
    import ray
    from openrlhf.trainer.ray import create_vllm_engines

    from openrlhf_orz.rollout.engine import Engines, OrzRolloutActor, engine_args

    class Engine(OrzRolloutActor):
        async def no_weights(self):
            await self.llm.collective_rpc("check_health")

    engines = create_vllm_engines(1, 1, str(model_dir), 0, False, False, True, 512, pg, 0.5,
                                  engine_cls=Engines(Engine, ""), extra_engine_args=engine_args(args))  # fmt: skip
    file = common.seconds(lambda: send_file(model, options.dtype, engines, args), options.repeats)
    count = len(list(model.parameters()))
    calls = common.seconds(lambda: [ray.get(engines[0].no_weights.remote()) for _ in range(count)], 1)
    ray.get(engines[0].shutdown.remote())
    return {"seconds_file": file, "seconds_calls_without_data": calls}


def main(argv=None) -> dict:
    options = parse(argv)
    logging.disable(logging.INFO)
    result = common.Result("weight_sync", options.dtype)
    import sides
    import torch
    import torch.distributed as dist

    from openrlhf_orz.settings.finished import RunFacts, for_openrlhf

    with tempfile.TemporaryDirectory(prefix="bench-") as scratch_dir:
        model_dir = Path(scratch_dir) / "model"
        if options.engine:
            common.write_model(model_dir, options.size)
        else:
            common.model_config(options.size).save_pretrained(model_dir)
        args = sides.our_args(sides.common_flags(model_dir, 16, options.dtype), Path(scratch_dir) / "run")
        with sides.session(args) as (pg, scratch):
            import ray

            args = for_openrlhf(args, RunFacts(checkpoints=args.ckpt.path, scratch=scratch))

            dist.init_process_group("gloo", init_method=f"file://{scratch}sync", rank=0, world_size=1)
            model = build(options.size, options.dtype)
            for parameter in model.parameters():
                parameter.data.normal_(0, 0.02)
            receiver = ray.remote(Receiver).options(num_cpus=0.1).remote(options.size, options.dtype)
            parameters = dict(model.named_parameters())
            size = sum(p.numel() * p.element_size() for p in parameters.values())

            def one_file():
                send_file(model, options.dtype, [receiver], args)

            def per_parameter():
                for name, parameter in parameters.items():
                    ray.get(receiver.update_weight.remote(name, parameter.data))
                    dist.barrier()

            times = {"file": [], "per_parameter": []}
            sent = sum(p.double().sum().item() for p in parameters.values())
            for i in range(options.repeats + 1):
                for name, route in (("file", one_file), ("per_parameter", per_parameter)):
                    start = time.perf_counter()
                    route()
                    if i:
                        times[name].append(time.perf_counter() - start)
                    assert abs(ray.get(receiver.checksum.remote()) - sent) <= 1e-6 * max(1.0, abs(sent)), name
            extra = {}
            if options.engine:
                ray.kill(receiver)
                extra["engine"] = with_engine(model_dir, args, pg, model, options)
            dist.destroy_process_group()
    times = {name: common.median(found) for name, found in times.items()}
    return result.finish(
        ratio=times["file"] / times["per_parameter"], speedup=times["per_parameter"] / times["file"],
        seconds_by_route=times, bytes=size, bytes_per_s={name: size / s for name, s in times.items()},
        parameters=len(parameters), size=options.size, threads=torch.get_num_threads(),
        cores=len(os.sched_getaffinity(0)), **extra,
    )  # fmt: skip


if __name__ == "__main__":
    main()
