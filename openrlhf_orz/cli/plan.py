"""What a run needs, before it is paid for: ``python -m openrlhf_orz.cli.plan FLAGS [--hardware h100x8x16]``.

FLAGS are those of train_ppo_ray. No GPU is needed, no weights are read, Ray is not started.
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_orz.plan import hardware as machines
from openrlhf_orz.plan.advice import advise
from openrlhf_orz.plan.choice import choose_layout, describe_layout
from openrlhf_orz.plan.layout import default_lengths
from openrlhf_orz.plan.planner import Plan, PlanError, plan_run
from openrlhf_orz.plan.seconds import CPU_RATES, Rates
from openrlhf_orz.plan.shapes import KINDS, KNOWN, Shape, UnknownShape, shape_of
from openrlhf_orz.plan.text import plan_dict, plan_text
from openrlhf_orz.plan.timeline import timeline, timeline_title
from openrlhf_orz.report.pictures import write_timeline
from openrlhf_orz.report.run_data import open_file
from openrlhf_orz.runtime import ray_session
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.command_line import parse, training_parser
from openrlhf_orz.settings.families import fit_to_models
from openrlhf_orz.settings.finished import finished
from openrlhf_orz.settings.models import load_config

PROGRAM = "python -m openrlhf_orz.cli.plan"
DOES_NOT_FIT = 3  # exit status
# From settings and given flags to lines for the plan, and the mean tokens of a prompt where the data are here.
Look = Callable[[Any, set[str]], tuple[list[str], float | None]]


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
    add("--picture", type=Path, metavar="FILE", help="draw the step's timeline (.svg, .png; needs matplotlib)")
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


def gpus_found() -> machines.Hardware | None:
    """The GPUs that a run has: of the Ray that it would join, else of this machine."""
    address = ray_session.running_ray()
    if address is None:
        return machines.gpus_here()
    nodes = ray_session.cluster_gpus(address)
    if not nodes:
        return None
    here = machines.gpus_here()
    kind = here if here is not None else machines.gpu_by_name(nodes[0][0])
    return replace(kind, nodes=len(nodes), per_node=min(count for _, count in nodes))


def on_cpu(rest: list[str]) -> bool:
    """Whether these training flags say --orz.device cpu."""
    return any(a == "--orz.device=cpu" or (a, b) == ("--orz.device", "cpu") for a, b in zip(rest, [*rest[1:], ""]))


def choose_hardware(own: argparse.Namespace, rest: list[str]) -> tuple[machines.Hardware, str | None]:
    """(hardware, remark): from --hardware, or the GPUs found, or an assumption, which the remark states."""
    if own.hardware:
        return machines.parse_hardware(own.hardware), None
    if on_cpu(rest):
        return machines.parse_hardware("cpu"), None
    found = gpus_found()
    if found is not None:
        return found, f"hardware: the {found.nodes} x {found.per_node} {found.name} found; --hardware names others"
    if any(part.split("=", 1)[0] == "--orz.device" for part in rest):
        return machines.parse_hardware("h100"), "hardware: h100, an assumption; --hardware names another one"
    return machines.parse_hardware("cpu"), "hardware: this machine's processors; --hardware names a GPU"


def _shape(config: Any) -> Shape:
    """By formula where there is one."""
    kind = config.get("model_type") if isinstance(config, dict) else config.model_type
    return shape_of(config) if kind in KINDS else built_shape(config)


def built_shape(config: Any) -> Shape:
    """As ``shape_of``, of any causal language model that transformers builds; its layers keep what a Llama's keep."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = str(config.get("model_type") if isinstance(config, dict) else config.model_type)
    try:
        whole = AutoConfig.for_model(**config) if isinstance(config, dict) else config
        text = whole.get_text_config()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(text)
        heads, hidden = text.num_attention_heads, text.hidden_size
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        layers, vocabulary = text.num_hidden_layers, text.vocab_size
    except Exception as error:  # whatever transformers raises of a family without such a model, or one it cannot build
        words = " ".join(str(error).split())[:200]
        raise UnknownShape(f"a model of type {kind!r} cannot be counted: {type(error).__name__}: {words}") from None
    head = model.get_output_embeddings()
    each = getattr(text, "num_local_experts", None) or getattr(text, "n_routed_experts", None)
    each = each or getattr(text, "num_experts", None)
    share = (getattr(text, "num_experts_per_tok", None) or each) / each if each else 1.0
    products = 0.0
    for path, module in model.named_modules():
        if module is head or isinstance(module, torch.nn.Embedding):
            continue
        routed = share if re.search(r"\bexperts\b", path) else 1.0
        products += routed * sum(p.numel() for p in module.parameters(recurse=False) if p.ndim > 1)
    body = sum(p.numel() for p in model.parameters())  # a tied head counts once
    tied = head is None or head.weight is model.get_input_embeddings().weight
    return Shape(
        kind=kind,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=getattr(text, "head_dim", None) or hidden // heads,
        intermediate=getattr(text, "intermediate_size", None) or 4 * hidden,
        vocabulary=vocabulary,
        tied=tied,
        counted=(body - (0 if tied else vocabulary * hidden), round(products)),
    )


def model_shape(flag: str, name: str, file: Path | None) -> Shape:
    """The shape of a model, from a file, the table, a directory or the hub's config.json; the model's code never runs.

    ``flag`` is "model" for the policy or "critic". Raises PlanError.
    """
    if file is not None:
        try:
            with open_file(file) as stream:
                content = json.load(stream)
            if not isinstance(content, dict):
                raise ValueError("no JSON object: name a model's config.json")
            return _shape(content)
        except UnknownShape as error:
            raise UnknownShape(f"--{flag}_config: {file}: {error}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise PlanError(f"--{flag}_config: {file}: {error}") from None
    if name in KNOWN and not Path(name).exists():
        return KNOWN[name]
    from transformers import AutoConfig

    where = f"--{'actor' if flag == 'model' else 'critic'}.model_name_or_path"
    try:
        return _shape(AutoConfig.from_pretrained(name, trust_remote_code=False).get_text_config())
    except UnknownShape as error:
        raise UnknownShape(f"{where}: {name}: {error}") from None
    except Exception as error:  # transformers, the hub and a broken file raise many classes
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if not Path(name).is_absolute():
            first = f"there is no directory {name} here, and from the hub: {first}"
        raise PlanError(
            f"{where}: the configuration of {name} did not load: {first[:200]}. Fetch it where the hub can be reached"
            f" (hf download {name} config.json), or name its file: --{flag}_config FILE"
        ) from None


def _shapes(args, model: Path | None = None, critic: Path | None = None) -> tuple[Shape, Shape | None]:
    """The shapes of policy and critic, from these files where there are any. Raises PlanError."""
    policy, name = model_shape("model", args.actor.model_name_or_path, model), args.critic.model_name_or_path
    if not name:
        return policy, None
    same = name == args.actor.model_name_or_path and critic is None
    return policy, policy if same else model_shape("critic", name, critic)


def settings_of_run(argv: list[str]) -> tuple[SimpleNamespace, set[str]]:
    """As ``parse``, with placement and layout for the GPUs found; says what was chosen. For a run itself."""
    hardware = None if on_cpu(argv) else gpus_found()
    args, explicit = parse(argv, hardware and (hardware.nodes, hardware.per_node))
    if hardware is None or args.orz.device == "cpu":
        return args, explicit
    if args.train.colocate_all:  # fewer than are there, or a node is lost and will come back
        hardware = replace(hardware, nodes=args.actor.num_nodes, per_node=args.actor.num_gpus_per_node)
    try:
        before = plan_run(args, hardware, *_shapes(args))
    except (PlanError, UnknownShape) as error:
        print(f"[orz] layout: as the flags say, else as for a large model, for lack of a plan: {error}", flush=True)
        return args, explicit
    found = choose_layout(before, explicit)
    print(f"[orz] layout: {describe_layout(found)}; --dry_run has the plan", flush=True)
    if not found.fits:
        print("[orz] by the plan this does not fit; --dry_run lists flags with which it would", flush=True)
    return finished(found.args), explicit


def _fit(own: argparse.Namespace, args: SimpleNamespace, explicit: set[str]) -> tuple[SimpleNamespace, list[str]]:
    """As ``fit_to_models``, also from the files that --model_config and --critic_config name."""

    def config_of(flag: str, name: str, trust: bool) -> Any | None:
        file = own.model_config if name == args.actor.model_name_or_path else None
        if flag.startswith("--critic") and own.critic_config:
            file = own.critic_config
        known = file is None and name in KNOWN and not Path(name).exists()
        return None if known else load_config(flag, str(file or name), trust)

    return fit_to_models(args, explicit, config_of)


def settings_to_plan(
    own: argparse.Namespace, rest: list[str]
) -> tuple[SimpleNamespace, set[str], machines.Hardware, list[str]]:
    """The settings of a run with these flags, which of them were given, its hardware, and remarks.

    Exits with status 2 on wrong training flags; raises PlanError, ConfigError.
    """
    hardware, remark = choose_hardware(own, rest)
    given = {part.split("=", 1)[0] for part in rest}
    flags = list(rest)
    if "--data.prompt_dataset" not in given:
        flags += ["--data.prompt_dataset", "questions.jsonl"]  # which a plan does not read
    if "--orz.device" not in given:
        flags += ["--orz.device", "cpu" if hardware.is_cpu else "cuda"]
    if hardware.per_node and hardware.is_cpu:
        flags += [word for role in ("actor", "critic", "ref") if f"--{role}.num_gpus_per_node" not in given
                  for word in (f"--{role}.num_gpus_per_node", str(hardware.per_node))]  # fmt: skip
    gpus = None if hardware.is_cpu or not hardware.per_node else (hardware.nodes, hardware.per_node)
    with contextlib.redirect_stdout(sys.stderr):  # messages of the parser must not mix with the JSON
        args, explicit = parse(flags, gpus)
    if (args.orz.device == "cpu") != hardware.is_cpu:
        raise PlanError(f"--orz.device {args.orz.device} does not go with --hardware {own.hardware}: leave it out")
    if own.peak_tflops:
        hardware = replace(hardware, flops=own.peak_tflops * 1e12, source=f"--peak_tflops; else {hardware.source}")
    if own.host_gib:
        hardware = replace(hardware, host_gib=own.host_gib)
    return args, explicit, hardware, [remark] if remark else []


def plan_settings(
    own: argparse.Namespace,
    args: SimpleNamespace,
    explicit: set[str],
    hardware: machines.Hardware,
    remarks: list[str],
    prompt_tokens: float | None = None,
) -> Plan:
    """The plan of what ``settings_to_plan`` returns, and of prompts of so many tokens if nothing else is given.

    Raises PlanError, ConfigError, and UnknownShape for a model.
    """
    policy, critic = _shapes(args, own.model_config, own.critic_config)
    args, families = _fit(own, args, explicit)
    lengths = default_lengths(args, own.prompt_tokens, own.response_tokens, prompt_tokens)
    names = ("training", "prefill", "decode", "concurrent")
    chosen = {name: getattr(own, name) for name in names if getattr(own, name)}
    rates = replace(CPU_RATES if hardware.is_cpu else Rates(), **chosen)
    found = choose_layout(plan_run(args, hardware, policy, critic, lengths, rates), explicit)
    found.notes.extend(families)
    found.notes.extend(remarks)
    return found


def main(argv: list[str] | None = None, look: Look | None = None) -> int:
    """The command; its exit status: 3 for a run that does not fit, 2 for one that cannot be planned.

    ``look``, for a dry run, looks at what a run looks at before it starts. It also is asked where a model cannot be
    counted, so that there is no plan.
    """
    from openrlhf_orz.data.sources import DataError

    argv = sys.argv[1:] if argv is None else argv
    own, rest = plan_parser().parse_known_args(argv)
    try:
        args, explicit, *about = settings_to_plan(own, rest)
        with contextlib.redirect_stdout(sys.stderr):
            seen, prompt_tokens = look(args, explicit) if look else ([], None)
        try:
            found = plan_settings(own, args, explicit, *about, prompt_tokens)
        except UnknownShape as error:
            if look is None:
                raise
            _, families = _fit(own, args, explicit)
            print("\n  ".join([f"no plan: {error}", *families, *seen]))
            return 0
    except (PlanError, UnknownShape, machines.UnknownHardware, DataError, ConfigError) as error:
        program = PROGRAM if look is None else training_parser().prog
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    if own.picture:
        try:
            write_timeline(own.picture, timeline_title(found), timeline(found))
        except (ModuleNotFoundError, OSError, ValueError) as error:
            print(f"{PROGRAM}: error: --picture {own.picture}: {error}", file=sys.stderr)
            return 2
    if own.json:
        print(json.dumps({**plan_dict(found, advise(found), own.steps), "seen": seen}, indent=1))
    else:
        print(plan_text(found, own.steps, seen))
    return 0 if found.fits else DOES_NOT_FIT


if __name__ == "__main__":
    sys.exit(main())
