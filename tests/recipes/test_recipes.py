"""Every shell recipe, run against recorders: what it starts is what DRY_RUN=1 prints, the real parser and validate()
accept it, and it is what tests/recipes/expected.py says, arm by arm."""

import json
import re
from pathlib import Path

import pytest
from expected import LAUNCHERS, LIBRARIES, OTHERS, RECIPES
from recorded import ROOT, printed

from openrlhf_orz.cli import curate, warm_start
from openrlhf_orz.plan.hardware import parse_hardware
from openrlhf_orz.plan.layout import devices
from openrlhf_orz.plan.planner import plan_run
from openrlhf_orz.plan.shapes import KNOWN, Shape, shape_of
from openrlhf_orz.settings.command_line import parse

EXAMPLES = ROOT / "examples"
TRAIN = "openrlhf_orz.cli.train_ppo_ray"
CASES = [(script, arm) for script, (_, arms, _) in RECIPES.items() for arm in arms or (None,)]


def value(args, name):
    for part in name.split("."):
        args = getattr(args, part)
    return args


def starts(entries: list[dict], module: str) -> list[list[str]]:
    """The arguments of each start of ``python -m module``."""
    return [e["argv"][e["argv"].index(module) + 1 :] for e in entries if module in e["argv"]]


# shapes of what is in no table: a name of the hub, or what the recipe itself makes or is given
SHAPES = {
    "Qwen/Qwen2.5-Math-7B": KNOWN["Qwen/Qwen2.5-7B"],
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": KNOWN["Qwen/Qwen2.5-14B"],
    "org/model": KNOWN["Qwen/Qwen2.5-32B"],
    "org/critic": KNOWN["Qwen/Qwen2.5-32B"],
    "org/llama": Shape("llama", 4096, 32, 32, 8, 128, 14336, 128256, False),  # Llama-3.1-8B
}


def planned(args):
    """The recipe's plan, on the GPUs of 80 GB or the processor that it is for."""

    def shape(name):
        if name in KNOWN or name in SHAPES:
            return KNOWN.get(name) or SHAPES[name]
        folder = ROOT / name if (ROOT / name / "config.json").exists() else EXAMPLES / "tiny_base"
        assert folder == ROOT / name or args.orz.device == "cpu", f"no shape for {name}"
        return shape_of(json.loads((folder / "config.json").read_text()))

    critic = args.critic.model_name_or_path
    return plan_run(
        args,
        parse_hardware("cpu" if args.orz.device == "cpu" else "h100"),
        shape(args.actor.model_name_or_path),
        shape(critic) if critic else None,
    )


def test_no_script_is_without_a_test():
    found = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.sh")}
    assert found == {*RECIPES, *OTHERS, *LAUNCHERS, *LIBRARIES}


def test_no_arm_is_without_a_test():
    for script, (_, arms, _) in RECIPES.items():
        declared = re.search(r'^ARMS="(.*)"$', (EXAMPLES / script).read_text(), re.M)
        assert (declared[1].split() if declared else []) == list(arms), script


@pytest.mark.parametrize(("script", "arm"), CASES)
def test_what_it_trains_with(project, monkeypatch, script, arm):
    settings, arms, needed = RECIPES[script]
    env = needed | {"RUN_DIR": "run-dir"} | ({"ARM": arm} if arm else {})
    shown = printed(project.run(f"examples/{script}", DRY_RUN="1", **env))
    assert project.recorded() == [], "a dry run starts nothing"
    (project.folder / "run-dir").mkdir()
    project.run(f"examples/{script}", **env)
    entries = project.recorded()
    ran = [entry["argv"] for entry in entries]
    assert [command[command.index(".venv/bin/python") + 1 :] for command in shown] == ran

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OPENRLHF_TRUST_REMOTE_CODE", "0")
    (argv,) = starts(entries, TRAIN)
    flags = [word.split("=")[0] for word in argv if word.startswith("--")]
    assert len(flags) == len(set(flags)), "each flag once"
    args, explicit = parse(argv)  # exits on what the parser or validate() refuses
    for name, expected in (settings | (arms[arm] if arm else {})).items():
        found = value(args, name)
        assert (tuple(found) if isinstance(found, list) else found) == expected, name
    assert args.orz.run_dir == str(ROOT / "run-dir") and "data.prompt_dataset" in explicit
    found = planned(args)
    assert found.hardware.per_node * found.hardware.nodes >= sum(devices(args).values()) and found.seconds.step > 0
    assert found.fits or args.orz.device == "cpu", "what a recipe asks for must fit"
    for rest in starts(entries, "openrlhf_orz.cli.curate"):
        curate.configuration(rest)
    for rest in starts(entries, "openrlhf_orz.cli.warm_start"):
        warm_start.build_parser().parse_args(rest)


def test_the_first_arm_is_the_default(project):
    for script, (_, arms, needed) in RECIPES.items():
        if arms:
            default, first = (
                project.run(f"examples/{script}", DRY_RUN="1", RUN_DIR="r", **needed, **arm)
                for arm in ({}, {"ARM": next(iter(arms))})
            )
            assert default == first, script


@pytest.mark.parametrize("script", [script for script, (_, arms, _) in RECIPES.items() if arms])
def test_an_unknown_arm_is_refused(project, script):
    out = project.run(f"examples/{script}", status=2, ARM="other", **RECIPES[script][2])
    assert "ARM=other is none of: " in out and project.recorded() == []


@pytest.mark.parametrize(
    ("script", "env", "said"),
    [
        ("train_orz_qwen2.5_32b_annealing.sh", {"MODEL": "m"}, "CRITIC=RUN/hf_critic"),
        ("ablations/fig10_data_scale.sh", {"ARM": "math7.5k"}, "DATA=math_train.jsonl"),
        ("ablations/fig12_languages.sh", {"ARM": "both"}, "DATA_CN=chinese.jsonl"),
        ("ablations/fig14_llama_lambda_kl.sh", {}, "MODEL=DIR"),
        ("ablations/fig15_sampling.sh", {}, "DATA=math_train.jsonl"),
    ],
)
def test_what_is_missing_is_named(project, script, env, said):
    assert said in project.run(f"examples/{script}", status=1, **env) and project.recorded() == []


def test_the_two_languages_differ_in_what_is_kept(project):
    kept = {}
    for arm in ("english", "both"):
        shown = project.run("examples/ablations/fig12_languages.sh", ARM=arm, DATA_CN="c", DRY_RUN="1", RUN_DIR="r")
        command = printed(shown)[0]
        _, config = curate.configuration(command[command.index("openrlhf_orz.cli.curate") + 1 :])
        kept[arm] = config.language["keep"] if isinstance(config.language, dict) else config.language.keep
    assert list(kept["english"]) == ["english"] and list(kept["both"]) == ["english", "chinese"]


def test_flags_of_the_user_take_the_place_of_the_recipe_s(project):
    given = [
        "--algo.advantage.lambd=0.9",
        "--orz.stop",
        "a b",
        "it's",
        "--ckpt.load_enable",
        "--data.input_template",
        "",
    ]
    project.run("examples/ablations/fig08_gae_lambda.sh", *given, RUN_DIR="r", ARM="0.95")
    (argv,) = starts(project.recorded(), TRAIN)
    assert "--algo.advantage.lambd" not in argv and argv.count("--algo.advantage.lambd=0.9") == 1
    at = argv.index("--orz.stop")
    assert argv[at:] == given[1:]


def test_paths_are_meant_from_where_the_recipe_is_called(project):
    (project.folder / "elsewhere").mkdir()
    (project.folder / "elsewhere/rows.jsonl").touch()
    shown = project.run(
        "-c", "cd elsewhere && bash ../examples/ablations/fig08_gae_lambda.sh", DATA="rows.jsonl", DRY_RUN="1"
    )
    (command,) = printed(shown)
    assert command[command.index("--data.prompt_dataset") + 1] == str(project.folder / "elsewhere/rows.jsonl")


def test_the_length_of_the_32b_may_be_the_release_s(project, monkeypatch):
    shown = project.run("examples/train_orz_qwen2.5_32b.sh", DRY_RUN="1", RUN_DIR="r", MAX_LEN="8192")
    monkeypatch.chdir(ROOT)
    (command,) = printed(shown)
    args, _ = parse(command[command.index(TRAIN) + 1 :])
    assert args.data.max_len == 8192 and args.train.max_tokens_per_gpu == 16384


@pytest.mark.parametrize("script", sorted({*RECIPES, *OTHERS, *LAUNCHERS}))
def test_house_style(script):
    lines = (EXAMPLES / script).read_text().splitlines()
    header = "\n".join(lines[: lines.index("set -euo pipefail")])
    assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("# ") and "Hardware: " in header
    assert all(len(line) <= 119 for line in lines)
    if script in RECIPES and not script.endswith("_cpu.sh") and script != "quickstart.sh":
        assert "Reproduces: " in header and "Not run by us" in header and re.search(r"[Hh]ours: |Expected: ", header)
    assert "DRY_RUN=1" in header or script == "launch/slurm.sh"


def test_every_recipe_is_in_the_docs():
    text = (ROOT / "docs/recipes.md").read_text()
    for script in {*RECIPES, *OTHERS, *LAUNCHERS}:
        assert f"examples/{script}" in text, script
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (Path(ROOT / "docs") / target).exists(), target
