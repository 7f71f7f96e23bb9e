"""Plans from flags, as the command makes them; without transformers where the model is in the table."""

from openrlhf_orz.plan.hardware import parse_hardware
from openrlhf_orz.plan.planner import plan_run
from openrlhf_orz.settings.command_line import parse

SEVEN = "Qwen/Qwen2.5-7B"
SLEEP = ("--vllm.enable_sleep", "--ds.enable_sleep")
COLOCATED = ("--train.colocate_all", *SLEEP, "--vllm.gpu_memory_utilization", "0.5")


def arguments(*flags, model=SEVEN, device="cuda"):
    base = ["--actor.model_name_or_path", model, "--data.prompt_dataset", "d", "--orz.device", device]
    return parse([*base, *map(str, flags)])[0]


def make(*flags, on="h100", model=SEVEN, **more):
    """A plan; ``flags`` may leave out nodes and GPUs, then it is one node of eight."""
    return plan_run(arguments(*flags, model=model), parse_hardware(on), **more)


def ranks(nodes: int, gpus: int) -> list[str]:
    return [f"--{role}.{name}={n}" for role in ("actor", "critic", "ref")
            for name, n in (("num_nodes", nodes), ("num_gpus_per_node", gpus))]  # fmt: skip
