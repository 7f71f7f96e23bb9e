"""examples/distill_reasoner.sh: the real parsers take each of its commands, OpenRLHF's SFT trainer's included."""

import pytest
import upstream_sft
from recorded import printed

from openrlhf_orz.cli import curate, distill, evaluate

SCRIPT = "examples/distill_reasoner.sh"


def after(commands, module):
    (found,) = (command[command.index(module) + 1 :] for command in commands if module in command)
    return found


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_commands_fit_together(project, device):
    env = {"RUN_DIR": "r", "DEVICE": device, "TEACHER": "org/teacher", "STUDENT": "org/student", "GPUS": "8"}
    commands = printed(project.run(SCRIPT, "--adam.lr", "2e-5", DRY_RUN="1", **env))
    assert project.recorded() == []
    (project.folder / "r").mkdir()
    project.run(SCRIPT, "--adam.lr", "2e-5", **env)
    ran = [entry["argv"] for entry in project.recorded()]
    assert [command[command.index(".venv/bin/python") + 1 :] for command in commands] == ran

    _, config = curate.configuration(after(commands, "openrlhf_orz.cli.curate"))
    generate = evaluate.evaluate_parser().parse_args(after(commands, "openrlhf_orz.cli.evaluate"))
    evaluate.check_options(generate)
    rows = distill.build_parser().parse_args(after(commands, "openrlhf_orz.cli.distill"))
    sft = vars(upstream_sft.parser().parse_args(after(commands, "openrlhf.cli.train_sft")))
    assert generate.data == [f"questions={config.output}/kept/train.jsonl"] and generate.model == "org/teacher"
    assert rows.responses == [generate.out / "responses.jsonl"] and str(rows.output) == sft["data.dataset"]
    assert sft["model.model_name_or_path"] == "org/student" and sft["adam.lr"] == 2e-5
    assert sft["data.input_template"] == "" and sft["data.max_len"] > generate.max_len
    assert (sft["data.input_key"], sft["data.output_key"]) == ("input", "output")
    launcher = commands[-1][: commands[-1].index("openrlhf.cli.train_sft")]
    if device == "cuda":
        assert generate.engines * generate.tensor_parallel == 8 and sft["ds.zero_stage"] == 3
        assert "--standalone" in launcher and launcher[launcher.index("--nproc-per-node") + 1] == "8"
    else:
        assert "MASTER_ADDR=127.0.0.1" in launcher and sft["ds.param_dtype"] == "fp32"


def test_a_curation_of_its_own(project):
    commands = printed(project.run(SCRIPT, DRY_RUN="1", DEVICE="cpu", CURATE_CONFIG="examples/curate_arithmetic.yaml"))
    assert after(commands, "openrlhf_orz.cli.curate")[:2] == ["--config", "examples/curate_arithmetic.yaml"]


def test_an_unknown_device(project):
    assert "neither cuda nor cpu" in project.run(SCRIPT, DEVICE="tpu", status=2) and project.recorded() == []


def test_the_warm_ups_of_the_cpu_recipes_are_taken_too(project):
    for script in ("train_orz_reasoning_gym_cpu.sh", "train_orz_smollm2_135m_cpu.sh"):
        commands = printed(project.run(f"examples/{script}", DRY_RUN="1", RUN_DIR="r"))
        upstream_sft.parser().parse_args(after(commands, "openrlhf.cli.train_sft"))
