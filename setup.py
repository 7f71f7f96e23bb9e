"""The package's metadata. Nothing is a hard dependency: the stack is one of two, and tools/setup.sh installs it.

The extras are read from the requirement files, the one place with versions. pip resolves an extra together with all
that its packages ask for, which the CPU stack cannot have (requirements-cpu.txt says why): tools/setup.sh leaves it
out.
No extra has OpenRLHF, which is a release with patches/ applied: tools/setup.sh builds it.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
EXTRAS = {
    "gpu": "requirements.txt",
    "cpu": "requirements-cpu.txt",
    "curate": "requirements-curate.txt",
    "report": "requirements-report.txt",
}


def pins(name: str) -> list[str]:
    """The requirements of a file, without its comments and pip's options."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("-")]


setup(
    name="openrlhf-orz",
    version="0.1.0",
    description="Open-Reasoner-Zero: minimalist PPO for reasoning on base models, as an extension of OpenRLHF",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["openrlhf_orz", "openrlhf_orz.*"]),
    package_data={"openrlhf_orz": ["report/assets/**"], "openrlhf_orz.data.curate": ["eval_sets.npz"]},
    extras_require={extra: pins(name) for extra, name in EXTRAS.items()},
)
