"""The command line: every flag of OpenRLHF's train_ppo_ray plus ``--orz.*``, parsed and checked without Ray or vLLM."""

import argparse
import difflib
import sys

from openrlhf_orz.settings.derive import ConfigError, derive, validate
from openrlhf_orz.settings.finished import finished
from openrlhf_orz.settings.flags import add_flags
from openrlhf_orz.settings.redact import hide, redact
from openrlhf_orz.settings.upstream import build_parser as upstream_parser
from openrlhf_orz.settings.upstream import check_args


def build_parser() -> argparse.ArgumentParser:
    parser = upstream_parser()
    parser.prog = "python -m openrlhf_orz.cli.train_ppo_ray"
    parser.usage = f"{parser.prog} --actor.model_name_or_path M --data.prompt_dataset D [FLAGS]; --help lists them"
    parser.allow_abbrev = False  # a flag cut short would be some other one
    add_flags(parser)
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
    parser = build_parser()
    parser._defaults.clear()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return set(vars(parser.parse_args(argv)))


def parse(argv: list[str]):
    """Returns (nested arguments, names of the flags given). Exits with status 2 and a message on flags that cannot be.

    The namespace is OpenRLHF's after its own checks, with ``args.orz`` and all derived values filled in.
    """
    parser = build_parser()
    flat, rest = parser.parse_known_args(argv)
    try:
        if rest:
            raise ConfigError(unknown(parser, rest))
        explicit = explicit_flags(argv)
        derive(flat, explicit)
        if flat.__dict__["train.agent_func_path"] is None and flat.__dict__["reward.remote_url"] is None:
            flat.__dict__["reward.remote_url"] = "orz"  # graded by our agent: no reward model
        args = check_args(flat)
        validate(args)
    except (ConfigError, AssertionError) as error:
        print(f"{parser.prog}: error:", *redact(str(error)).splitlines(), sep="\n  ", file=sys.stderr)
        raise SystemExit(2) from None
    del args.dry_run  # no run has it: a checkpoint must not differ by it
    args.orz.own_agent = args.train.agent_func_path is None and args.reward.remote_url == ["orz"]
    # OpenRLHF's dynamic mode alone lets us choose the optimizer steps; fixed micro-batches run in it, too.
    args.train.dynamic_batch_enable = True
    args.rollout.max_tokens_per_gpu = args.rollout.max_tokens_per_gpu or args.train.max_tokens_per_gpu
    hide(args)
    return finished(args), explicit
