"""The command line: every flag of OpenRLHF's train_ppo_ray and ``--orz.*``, parsed and checked without Ray or vLLM."""

import argparse
import difflib
import sys
from types import SimpleNamespace

from openrlhf_orz.settings.checks import ConfigError, check_flags, check_numbers, check_run
from openrlhf_orz.settings.derive import derive, idle_flags
from openrlhf_orz.settings.finished import finished
from openrlhf_orz.settings.flags import ORZ_FLAGS
from openrlhf_orz.settings.openrlhf_flags import PAPER_DEFAULTS
from openrlhf_orz.settings.redact import hide, redact
from openrlhf_orz.settings.upstream import check_args, nested, openrlhf_parser


def training_parser() -> argparse.ArgumentParser:
    """OpenRLHF's parser with the paper's defaults, our flags and ``--dry_run``."""
    parser = openrlhf_parser()
    parser.prog = "python -m openrlhf_orz.cli.train_ppo_ray"
    parser.usage = f"{parser.prog} --actor.model_name_or_path M --data.prompt_dataset D [FLAGS]; --help lists them"
    parser.allow_abbrev = False  # a flag cut short would be some other one
    parser.set_defaults(**PAPER_DEFAULTS)
    group = parser.add_argument_group("Open-Reasoner-Zero")
    for flag in ORZ_FLAGS:
        if flag.type is bool:
            group.add_argument(f"--{flag.name}", action="store_true", default=flag.default, help=flag.help)
        else:
            group.add_argument(
                f"--{flag.name}",
                type=flag.type,
                default=flag.default,
                choices=flag.choices,
                nargs=flag.nargs,
                help=flag.help if flag.default is None else f"{flag.help} (default: {flag.default})",
            )
    parser.add_argument(
        "--dry_run", action="store_true", help="print what the run needs; openrlhf_orz.cli.plan's flags work, too"
    )
    return parser


def unknown(parser: argparse.ArgumentParser, rest: list[str]) -> str:
    """The message for the arguments ``rest`` that no flag takes, with the flags that may have been meant."""
    known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    lines = []
    for given in rest:
        name = given.split("=", 1)[0]
        if not name.startswith("-"):
            lines.append(f"{redact(given)!r} belongs to no flag: put a text with blanks in quotation marks")
            continue
        dotted = "--" + name.lstrip("-")
        last = [option for option in known if option.rpartition(".")[2] == dotted.lstrip("-").rpartition(".")[2]]
        near = difflib.get_close_matches(dotted, known, n=3, cutoff=0.7) or last[:3]
        hint = f"do you mean {' or '.join(near)}?" if near else "--help lists all flags"
        lines.append(f"{name} is not a flag: {hint}")
    named = any(line for line in rest if line.startswith("-"))
    return "\n".join(line for line in lines if not named or "is not a flag" in line)


def explicit_flags(argv: list[str]) -> set[str]:
    """The names of the flags that the user gave."""
    parser = training_parser()
    parser._defaults.clear()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return set(vars(parser.parse_args(argv)))


def parse(argv: list[str], gpus: tuple[int, int] | None = None) -> tuple[SimpleNamespace, set[str]]:
    """(the finished nested arguments, names of the flags given). Exits with status 2 and a message on wrong flags.

    The arguments are OpenRLHF's after its own checks, with ``args.orz`` and all derived values filled in. Credentials
    among them are ``Secret``. ``gpus``: (nodes, GPUs of each) that there are; None if nobody has looked.
    """
    parser = training_parser()
    flat, rest = parser.parse_known_args(argv)
    del flat.dry_run  # no run has it: a checkpoint must not differ by it
    try:
        if rest:
            raise ConfigError(unknown(parser, rest))
        explicit = explicit_flags(argv)
        check_numbers(vars(flat))
        for remark in derive(vars(flat), explicit, gpus):
            print(f"[orz] {remark}", flush=True)
        check_flags(nested(flat), explicit, idle_flags(vars(flat), explicit))
        args = check_args(flat)
        check_run(args)
    except (ConfigError, AssertionError) as error:
        print(f"{parser.prog}: error:", *redact(str(error)).splitlines(), sep="\n  ", file=sys.stderr)
        raise SystemExit(2) from None
    # After OpenRLHF's checks, which would have it pack whatever the attention. The dynamic mode alone lets us choose
    # the optimizer steps; fixed micro-batches run in it, too.
    args.train.dynamic_batch_enable = True
    args.rollout.max_tokens_per_gpu = args.rollout.max_tokens_per_gpu or args.train.max_tokens_per_gpu
    hide(args)
    return finished(args), explicit
