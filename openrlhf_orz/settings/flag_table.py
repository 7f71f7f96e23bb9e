"""docs/flags.md, made from the flags' records: ``python -m openrlhf_orz.settings.flag_table > docs/flags.md``."""

from openrlhf_orz.settings.derive import derive, plain_default
from openrlhf_orz.settings.flags import ORZ_FLAGS, Flag
from openrlhf_orz.settings.openrlhf_flags import OPENRLHF_FLAGS, PAPER_DEFAULTS, RECORDS
from openrlhf_orz.settings.upstream import openrlhf_parser

HEAD = """# Flags

Made by `python -m openrlhf_orz.settings.flag_table > docs/flags.md` from the records in
`openrlhf_orz/settings/flags.py` and `openrlhf_flags.py`: change those, not this page.

The last column says what happens where a run is resumed (`--ckpt.load_enable`) with another value: it *may differ*, it
may differ *if allowed* by `--orz.allow_changed_flags`, it may differ and the checkpoint is *converted*, or it *must be
the same*. Where a default follows from the device or from other flags, the table has what comes of it (*derived*) on a
CPU without and with bfloat16 instructions, and on one machine of 8 GPUs, where the planner may then choose something
quicker that fits (`plan/choice.py`). The rules are in `openrlhf_orz/settings/derive.py`.

`--dry_run` prints the plan of a run and what was looked at, and starts nothing; the flags of `openrlhf_orz.cli.plan`,
such as `--hardware h100x8`, work with it.

## Ours

| flag | default | what it does | values | on resumption |
|---|---|---|---|---|
"""
MIDDLE = """
## OpenRLHF's

Each flag of OpenRLHF's `train_ppo_ray`; `--help` has their meaning. What it does here: it *works*; works *only with*
another one, and given without it the run says first that it has no effect, or is refused where the table says so; is
*refused* by name before Ray starts; or has *no effect*, which the run says, too. What is for GPUs alone has not been
run by us.

| flag | here | default | on resumption |
|---|---|---|---|
"""


# name, device, (nodes, GPUs of each), dtype of the parameters
PLACES = (("CPU", "cpu", None, "fp32"), ("CPU", "cpu", None, "bf16"), ("8 GPUs", "cuda", (1, 8), "bf16"))
FOLDERS = ("ckpt.output_dir", "ckpt.path", "logger.tensorboard_dir")  # they follow from the run's, named by the time


def derived() -> dict[str, str]:
    """For each flag whose default is not what a run has: what it has, as a cell of a table."""
    found: dict[str, dict[str, list[str]]] = {}
    defaults = {name: PAPER_DEFAULTS.get(name, plain_default(name)) for name in RECORDS}
    for place, device, gpus, dtype in PLACES:
        values = defaults | {"orz.device": device, "ds.param_dtype": dtype}
        derive(values, {"ds.param_dtype"}, gpus)
        for name in defaults.keys() - {"orz.device", *FOLDERS}:
            found.setdefault(name, {}).setdefault(place, []).append(shown_default(values[name]))
    return {
        name: "derived: " + ", ".join(f"{place} {' or '.join(dict.fromkeys(of))}" for place, of in places.items())
        for name, places in found.items()
        if {shown_default(defaults[name])} != {value for of in places.values() for value in of}
    }


def shown_default(value) -> str:
    """A flag's default as a cell of a table."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return " ".join(f"`{part}`" for part in value)
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _values(flag: Flag) -> str:
    if flag.type is bool:
        return "switch"
    if flag.choices:
        return ", ".join(f"`{choice}`" for choice in flag.choices)
    kinds: dict[object, str] = {int: "an integer", float: "a number", str: "texts" if flag.nargs else "a text"}
    if flag.range and flag.range.words.startswith("a "):  # "a finite number"
        return flag.range.words
    return kinds[flag.type] + (f" {flag.range.words}" if flag.range else "")


def flags_page() -> str:
    """The whole page."""
    theirs = {action.dest: action.default for action in openrlhf_parser()._actions}
    follows = derived()

    def default(flag: Flag, shown: str) -> str:
        return f"{shown}; {follows[flag.name]}" if flag.name in follows else shown

    ours = (
        (f"`--{flag.name}`", default(flag, shown_default(flag.default)), _what(flag), _values(flag), flag.resume.value)
        for flag in ORZ_FLAGS
    )
    inherited = (
        (
            f"`--{flag.name}`",
            flag.effect.words if flag.effect else "",
            default(flag, _inherited_default(flag, theirs[flag.name])),
            flag.resume.value,
        )
        for flag in OPENRLHF_FLAGS
    )
    return HEAD + _rows(ours) + MIDDLE + _rows(inherited)


def _what(flag: Flag) -> str:
    return f"{flag.help} ({flag.effect.words})" if flag.effect else flag.help


def _inherited_default(flag: Flag, theirs) -> str:
    """OpenRLHF's default, or ours, theirs and why."""
    if flag.name == "logger.wandb.run_name":
        return "`ppo_` and the time"
    if flag.name not in PAPER_DEFAULTS or flag.default == theirs:
        return shown_default(theirs)
    return f"{shown_default(flag.default)} (OpenRLHF: {shown_default(theirs)}): {flag.help}"


def _rows(cells) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


if __name__ == "__main__":
    print(flags_page(), end="")
