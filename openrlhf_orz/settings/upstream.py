"""OpenRLHF's front door: its parser, its checks and its ``train``, and the check that it is the build with our seams.

Other rooms import OpenRLHF's classes, to subclass them, by themselves; tests/contracts looks at all of these symbols.
"""

import argparse
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

PATCHES = Path(__file__).parents[2] / "patches"
REMEDY = "run: bash tools/setup.sh"


class WrongBuild(RuntimeError):
    """OpenRLHF is not installed, or not as the build with our seams; the message names the command that helps."""


def needed_build() -> str:
    """The version of OpenRLHF that tools/setup.sh installs: the release in patches/UPSTREAM, and how many patches."""
    try:
        lines, series = (PATCHES / "UPSTREAM").read_text().splitlines(), (PATCHES / "series").read_text().split()
    except OSError as error:
        raise WrongBuild(
            f"{error}: openrlhf_orz runs from a checkout, with its patches/ beside it; {REMEDY}"
        ) from None
    release = next(line.split()[1] for line in lines if line.startswith("version "))
    return f"{release}+orz.{len(series)}"


def check_openrlhf() -> None:
    """Raise WrongBuild, naming the one command that helps, unless OpenRLHF is installed with our seams."""
    try:
        found = version("openrlhf")
    except PackageNotFoundError:
        raise WrongBuild(f"OpenRLHF is not installed; {REMEDY}") from None
    needed = needed_build()
    if found != needed:
        raise WrongBuild(f"OpenRLHF {found} is installed, {needed} is needed (patches/); {REMEDY}")


def allow_remote_code(allowed: bool) -> None:
    """Whether OpenRLHF, in this process, may run code from the repositories of models and tokenizers."""
    os.environ["OPENRLHF_TRUST_REMOTE_CODE"] = "1" if allowed else "0"


def openrlhf_parser() -> argparse.ArgumentParser:
    """OpenRLHF's argument parser for train_ppo_ray."""
    from openrlhf.cli.train_ppo_ray import build_parser

    return build_parser()


def nested(args: argparse.Namespace) -> SimpleNamespace:
    """A copy of flat arguments, named ``rollout.batch_size``, as ``args.rollout.batch_size``."""
    from openrlhf.utils.config import hierarchize

    return hierarchize(args)


def check_args(args: argparse.Namespace) -> SimpleNamespace:
    """OpenRLHF's own checks: flat arguments in, nested ones out. Fails by AssertionError."""
    from openrlhf.cli.train_ppo_ray import check_args

    return check_args(args)


def launch(args, **classes) -> None:
    """OpenRLHF's train(args, ...) with our classes."""
    from openrlhf.cli.train_ppo_ray import train

    return train(args, **classes)
