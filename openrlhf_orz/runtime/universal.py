"""Resuming on other ranks or with another ZeRO stage: DeepSpeed's universal checkpoint of a checkpoint.

    PATH/.partial-universal-global_step40/_actor/, _critic/   made before Ray starts, removed when all have loaded it

DeepSpeed's converter gathers every parameter and its moments from the files of the ranks. It runs in a process of its
own, which starts as ``python -m openrlhf_orz.runtime.universal SOURCE OUTPUT STAGE``.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from openrlhf_orz.runtime.checkpoints import partial_path, size_of
from openrlhf_orz.runtime.fork_server import PR_SET_PDEATHSIG
from openrlhf_orz.runtime.resume import flag_values, read_trainer
from openrlhf_orz.settings.checks import ConfigError

COPIES = 3  # the disk space that a conversion takes at most, in sizes of the checkpoint


def cannot_convert(was: dict, now: dict, roles: list[str]) -> Iterator[str]:
    """Why a checkpoint of other ranks or another ZeRO stage cannot be loaded, and the remedy, one line each.

    Args:
        was, now: the flags of the checkpoint and of this run, by dotted name.
        roles: "actor" and "critic", as far as they are in the checkpoint.
    """
    stage, frozen = was["ds.zero_stage"], now["ds.lora.rank"] > 0 or now["orz.freeze_critic"] != "none"
    if 0 in (stage, now["ds.zero_stage"]):
        yield f"DeepSpeed converts from ZeRO-1, 2 and 3 to these: give --ds.zero_stage {stage}, on any number of ranks"
    for name in ("ds.tensor_parallel_size", "ds.zpg"):
        if now[name] > 1:
            yield f"--{name} {now[name]} cuts it, too: resume on as many ranks, with --ds.zero_stage {stage}"
    for role in roles:
        if now[f"{role}.optim"] == "muon":
            yield f"DeepSpeed converts no --{role}.optim muon: resume on as many ranks, with --ds.zero_stage {stage}"
        model = f"{role}.model_name_or_path"
        if frozen and was[model] != now[model]:
            yield f"weights that do not train are read from the model again: give --{model} {was[model]}"


def universal_copy(checkpoint: Path | None, args: SimpleNamespace) -> str | None:
    """The folder for DeepSpeed to load instead of ``checkpoint``, which stays; None if it can load the checkpoint.

    Raises ConfigError, with the remedy, if the checkpoint cannot be converted or the disk cannot hold the copy.
    """
    roles = [role for role in ("actor", "critic") if checkpoint and (checkpoint / f"_{role}").is_dir()]
    if checkpoint is None or not roles:
        return None
    now = flag_values(args)
    was = now | read_trainer(checkpoint)["flags"]
    before, after = was["ds.zero_stage"], now["ds.zero_stage"]
    ranks = {role: now[f"{role}.num_nodes"] * now[f"{role}.num_gpus_per_node"] for role in roles}
    saved = {role: len(list((checkpoint / f"_{role}").glob("rank*.pt"))) for role in roles}
    if saved != ranks:
        cut = ", ".join(f"of {role} {saved[role]}, now {ranks[role]}" for role in roles)
        print(f"[orz] other ranks ({cut}): each takes the random states of its number modulo the old ones", flush=True)
    elif all(was[name] == now[name] for name in ("ds.zero_stage", "ds.grad_accum_dtype")):
        return None
    if before == after == 0:  # each rank holds all, and the first has written it
        return None
    if reasons := list(cannot_convert(was, now, roles)):
        raise ConfigError(f"{checkpoint} is of other ranks or another ZeRO stage:\n  " + "\n  ".join(reasons))
    output, needed = partial_path(checkpoint.parent, f"universal-{checkpoint.name}"), COPIES * size_of(checkpoint)
    if (free := shutil.disk_usage(checkpoint).free) < needed:
        raise ConfigError(
            f"{checkpoint} must be converted for these ranks and --ds.zero_stage {after}: that takes {needed >> 20}"
            f" MiB for a while, and {free >> 20} are free. Make room, or resume on as many ranks and in the same stage"
        )
    print(f"[orz] converting the checkpoint from ZeRO-{before} to ZeRO-{after}", flush=True)
    shutil.rmtree(output, ignore_errors=True)
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    for role in roles:
        folders = [str(folder / f"_{role}" / checkpoint.name) for folder in (checkpoint, output)]
        command = [sys.executable, "-m", "openrlhf_orz.runtime.universal", *folders, str(after)]
        streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        done = subprocess.run(command, env=environment, start_new_session=True, **streams)
        if done.returncode:
            shutil.rmtree(output, ignore_errors=True)
            cause = (done.stdout.strip().splitlines() or ["no output"])[-1]
            raise ConfigError(
                f"DeepSpeed cannot convert {folders[0]} ({cause}): resume on {saved[role]} ranks, with"
                f" --ds.zero_stage {before}"
            )
    return str(output)


def convert(source: Path, output: Path, stage: int) -> None:
    """Write the universal checkpoint of ``source``, a tag's folder by DeepSpeed, to be loaded in ZeRO ``stage``.

    DeepSpeed's converter writes a format for ZeRO-3 and one for the other stages; here one is made into the other.
    """
    import torch
    from deepspeed import __version__
    from deepspeed.checkpoint import ds_to_universal

    ds_to_universal.main(
        Namespace(
            input_folder=str(source), output_folder=str(output), num_extract_workers=1, num_merge_workers=1,
            keep_temp_folder=False, strict=True, inject_missing_state=True,
        )
    )  # fmt: skip
    part, whole = (output / f"{name}mp_rank_00_model_states.pt" for name in ("zero_pp_rank_0_", ""))
    zero, cut = output / "zero", part.exists()
    state = torch.load(zero / "optimizer_state.pt", map_location="cpu", weights_only=False)
    own = state.pop("optimizer_state_dict", None)
    state.pop("fp32_flat_groups", None)  # of one rank
    step = own["state"][0]["step"] if cut else torch.load(next(zero.rglob("step.pt")), weights_only=True)
    if stage == 3:
        # its loader gives all groups of parameters the first one's numbers; their decay differs
        numbers = {key: value for key, value in state["param_groups"][0].items() if key != "weight_decay"}
        state["optimizer_state_dict"] = {"state": {0: {"step": step}}, "param_groups": [numbers]}
    if stage == 3 and not cut:
        whole.rename(part)
    if stage < 3 and cut:
        part.rename(whole)
        state["ds_version"] = __version__
        for file in [*zero.rglob("fp32.pt"), *zero.rglob("exp_avg.pt"), *zero.rglob("exp_avg_sq.pt")]:
            torch.save({"param": torch.load(file, weights_only=True), "cat_dim": 0}, file)
            torch.save(step, file.with_name("step.pt"))
    torch.save(state, zero / "optimizer_state.pt")


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    convert(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
