"""The OpenRLHF symbols that we build on, under their own names, and the check that the seams are there."""

from importlib.metadata import PackageNotFoundError, version

UPSTREAM_VERSION = "0.11.2"
PATCHES = 11  # in patches/series
REMEDY = "run: bash tools/setup.sh"


class WrongBuild(RuntimeError):
    """OpenRLHF is not installed, or not as the build with our seams; the message names the command that mends it."""


def check_openrlhf() -> None:
    """Raise WrongBuild, naming the one command that mends it, unless OpenRLHF is installed with our seams."""
    try:
        found = version("openrlhf")
    except PackageNotFoundError:
        raise WrongBuild(f"OpenRLHF is not installed; {REMEDY}") from None
    needed = f"{UPSTREAM_VERSION}+orz.{PATCHES}"
    if found != needed:
        raise WrongBuild(f"OpenRLHF {found} is installed, {needed} is needed (patches/); {REMEDY}")


def build_parser():
    """OpenRLHF's argument parser for train_ppo_ray."""
    from openrlhf.cli.train_ppo_ray import build_parser

    return build_parser()


def check_args(args):
    """OpenRLHF's own argument checks: flat namespace in, nested one out."""
    from openrlhf.cli.train_ppo_ray import check_args

    return check_args(args)


def launch(args, **classes):
    """OpenRLHF's train(args, ...) with our classes."""
    from openrlhf.cli.train_ppo_ray import train

    return train(args, **classes)
