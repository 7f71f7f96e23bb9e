"""What a run needs, before it is paid for: ``python -m openrlhf_orz.cli.plan FLAGS [--hardware h100x8x16]``.

FLAGS are those of train_ppo_ray. No GPU is needed, no weights are read, Ray is not started.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from openrlhf_orz.plan import hardware as machines
from openrlhf_orz.plan.advice import advise
from openrlhf_orz.plan.layout import default_lengths
from openrlhf_orz.plan.planner import Plan, PlanError, plan_run
from openrlhf_orz.plan.seconds import CPU_RATES, Rates
from openrlhf_orz.plan.shapes import KNOWN, Shape, UnknownShape, shape_of
from openrlhf_orz.plan.text import plan_dict, plan_text
from openrlhf_orz.settings.command_line import parse

PROGRAM = "python -m openrlhf_orz.cli.plan"


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def plan_parser() -> argparse.ArgumentParser:
    """The parser of the plan's own flags, without those of training."""
    found = argparse.ArgumentParser(
        prog=PROGRAM, usage=f"{PROGRAM} FLAGS OF train_ppo_ray [--hardware H] [...]", allow_abbrev=False,
        description="What a run needs, before it is paid for.",
    )  # fmt: skip
    add = found.add_argument
    add("--hardware", help=f"NAME, NAMExGPUS or NAMExGPUSxNODES, NAME of {', '.join(machines.NAMES)}")
    add("--json", action="store_true", help="print one JSON object instead of the text")
    add("--model_config", type=Path, help="config.json of the policy, for a model that is neither here nor reachable")
    add("--critic_config", type=Path, help="the same for the critic, where it is another model")
    add("--prompt_tokens", type=positive, help="mean tokens of a prompt")
    add("--response_tokens", type=positive, help="mean tokens of a response; a run's metrics.jsonl has it")
    add("--steps", type=int, help="steps of the run, for its hours")
    add("--host_gib", type=positive, help="host memory of a node in GiB (default: not checked)")
    add("--peak_tflops", type=positive, help="dense TFLOP/s of a device instead of the table's")
    add("--training", type=positive, help="share of the peak in training and forwards")
    add("--prefill", type=positive, help="share of the peak in prefill")
    add("--decode", type=positive, help="share of the memory bandwidth in decoding")
    add("--concurrent", type=int, help="requests that an engine decodes at once")
    return found


def choose_hardware(own: argparse.Namespace, rest: list[str]) -> tuple[machines.Hardware, str | None]:
    """(hardware, remark): from --hardware, or the GPU found here, or an assumption, which the remark states."""
    given = {part.split("=", 1)[0] for part in rest}
    cpu = any(a == "--orz.device=cpu" or (a, b) == ("--orz.device", "cpu") for a, b in zip(rest, [*rest[1:], ""]))
    if own.hardware:
        return machines.parse_hardware(own.hardware), None
    if cpu:
        return machines.parse_hardware("cpu"), None
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        try:
            name = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.lower()
        except (OSError, subprocess.TimeoutExpired):
            name = ""
        for key in sorted(machines.TABLE, key=len, reverse=True):
            if all(part in name for part in key.split("-")):
                return machines.parse_hardware(key), None
    if "--orz.device" in given:
        return machines.parse_hardware("h100"), "hardware: h100, an assumption; --hardware names another one"
    return machines.parse_hardware("cpu"), "hardware: this machine's processors; --hardware names a GPU"


def model_shape(flag: str, name: str, file: Path | None) -> Shape:
    """The shape of a model, from a file, the table, a directory or the hub's config.json; the model's code never runs.

    ``flag`` is "model" for the policy or "critic". Raises PlanError.
    """
    if file is not None:
        try:
            return shape_of(json.loads(file.read_text()))
        except (OSError, ValueError) as error:
            raise PlanError(f"--{flag}_config: {file}: {error}") from None
    if name in KNOWN and not Path(name).exists():
        return KNOWN[name]
    from transformers import AutoConfig

    where = f"--{'actor' if flag == 'model' else 'critic'}.model_name_or_path"
    try:
        return shape_of(AutoConfig.from_pretrained(name, trust_remote_code=False).get_text_config())
    except UnknownShape as error:
        raise PlanError(f"{where}: {name}: {error}") from None
    except Exception as error:  # transformers, the hub and a broken file raise many classes
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PlanError(
            f"{where}: the configuration of {name} did not load: {first[:200]}. Fetch it where the hub can be reached"
            f" (hf download {name} config.json), or name its file: --{flag}_config FILE"
        ) from None


def plan_from_flags(own: argparse.Namespace, rest: list[str]) -> tuple[Plan, str | None]:
    """(plan, remark) from the plan's own flags and those of training. Exits with status 2 on wrong training flags."""
    hardware, remark = choose_hardware(own, rest)
    given = {part.split("=", 1)[0] for part in rest}
    flags = list(rest)
    if "--orz.device" not in given:
        flags += ["--orz.device", "cpu" if hardware.is_cpu else "cuda"]
    if hardware.per_node:
        for role in ("actor", "critic", "ref"):
            for name, value in (("num_nodes", hardware.nodes), ("num_gpus_per_node", hardware.per_node)):
                if f"--{role}.{name}" not in given:
                    flags += [f"--{role}.{name}", str(value)]
    with contextlib.redirect_stdout(sys.stderr):  # messages of the parser must not mix with the JSON
        args, _ = parse(flags)
    if (args.orz.device == "cpu") != hardware.is_cpu:
        raise PlanError(f"--orz.device {args.orz.device} does not go with --hardware {own.hardware}: leave it out")
    if own.peak_tflops:
        hardware = replace(hardware, flops=own.peak_tflops * 1e12, source=f"--peak_tflops; else {hardware.source}")
    if own.host_gib:
        hardware = replace(hardware, host_gib=own.host_gib)
    policy = model_shape("model", args.actor.model_name_or_path, own.model_config)
    critic = None
    if args.critic.model_name_or_path:
        same = args.critic.model_name_or_path == args.actor.model_name_or_path and own.critic_config is None
        critic = policy if same else model_shape("critic", args.critic.model_name_or_path, own.critic_config)
    lengths = default_lengths(args, own.prompt_tokens, own.response_tokens)
    names = ("training", "prefill", "decode", "concurrent")
    chosen = {name: getattr(own, name) for name in names if getattr(own, name)}
    rates = replace(CPU_RATES if hardware.is_cpu else Rates(), **chosen)
    return plan_run(args, hardware, policy, critic, lengths, rates), remark


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    own, rest = plan_parser().parse_known_args(argv)
    try:
        found, remark = plan_from_flags(own, rest)
    except (PlanError, UnknownShape, machines.UnknownHardware) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    if remark:
        found.notes.append(remark)
    if own.json:
        print(json.dumps(plan_dict(found, advise(found), own.steps), indent=1))
    else:
        print(plan_text(found, own.steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
