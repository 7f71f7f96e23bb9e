"""The command line: every flag of OpenRLHF's train_ppo_ray plus ``--orz.*``, parsed and checked without Ray or vLLM."""

import argparse
import sys

from openrlhf_orz.compat import build_parser as upstream_parser
from openrlhf_orz.compat import check_args
from openrlhf_orz.config import ConfigError, add_flags, derive, validate


def build_parser() -> argparse.ArgumentParser:
    parser = upstream_parser()
    parser.prog = "python -m openrlhf_orz.cli.train_ppo_ray"
    add_flags(parser)
    return parser


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
    flat = parser.parse_args(argv)
    explicit = explicit_flags(argv)
    try:
        derive(flat, explicit)
        if flat.__dict__["train.agent_func_path"] is None and flat.__dict__["reward.remote_url"] is None:
            flat.__dict__["reward.remote_url"] = "orz"  # graded by our agent: no reward model
        args = check_args(flat)
        validate(args)
    except (ConfigError, AssertionError) as error:
        print(f"{parser.prog}: error:", *str(error).splitlines(), sep="\n  ", file=sys.stderr)
        raise SystemExit(2) from None
    args.orz.own_agent = args.train.agent_func_path is None and args.reward.remote_url == ["orz"]
    # OpenRLHF's dynamic mode alone lets us choose the optimizer steps; fixed micro-batches run in it, too.
    args.train.dynamic_batch_enable = True
    args.rollout.max_tokens_per_gpu = args.rollout.max_tokens_per_gpu or args.train.max_tokens_per_gpu
    return args, explicit
