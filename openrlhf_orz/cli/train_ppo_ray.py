"""Train: ``python -m openrlhf_orz.cli.train_ppo_ray --actor.model_name_or_path M --data.prompt_dataset D``."""

import contextlib
import gc
import os
import sys
import time
from collections.abc import Mapping, Set
from functools import partial
from pathlib import Path
from types import MappingProxyType

from openrlhf_orz.cli import plan
from openrlhf_orz.cli.run_prompts import (
    data_kept,
    look_at_data,
    prepare_data,
    replayed_steps,
    short_rollout,
    short_run,
    template_of,
)
from openrlhf_orz.runtime import checkpoints, console, ray_session, resume
from openrlhf_orz.runtime.nodes import ask_agents, keep_logs, mark_shared
from openrlhf_orz.runtime.private import new_scratch
from openrlhf_orz.runtime.run_dir import held, save_config, start_clean
from openrlhf_orz.runtime.stopping import RESTARTS_VARIABLE, StopHandler, Stopped, is_supervised, supervise
from openrlhf_orz.runtime.universal import universal_copy
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.finished import RunFacts, changed, for_openrlhf, policy_steps, rollouts_of
from openrlhf_orz.settings.redact import printable, redact
from openrlhf_orz.settings.skip_plan import describe_attention, describe_forwards

CLASSES = ("trainer", "actor", "critic", "agent", "reward")  # of one's own: --orz.trainer_cls and its like


def begin(args, explicit: Set[str] = frozenset(), **facts) -> RunFacts:
    """Prepare the prompts, look where the run starts, and put its directory into that state. ``facts`` are known.

    Raises DataError if there is nothing to train on, ConfigError if the directory is another run's, Finished if this
    one is done.
    """
    for folder in (args.ckpt.path, args.orz.run_dir):
        checkpoints.clear_partial(folder)
    with data_kept(args):
        prepared, prompts = prepare_data(args, explicit)
        files = prepared["data.prompt_dataset"].split(",")
        prompts_sha256 = resume.prompts_sha256(files, prompts)
        resume.check_finished(args, rollouts_of(args, prompts), prompts_sha256)
        found = resume.find_checkpoint(args, prompts_sha256)
        universal = universal_copy(found, args)
    own_ray = ray_session.running_ray() is None
    start_step = 0 if found is None else checkpoints.step_of(found)
    run = RunFacts(
        prompts=prompts,
        policy_steps=policy_steps(args, prompts),
        data=prepared,
        template=None if args.data.apply_chat_template else template_of(args),
        prompts_sha256=prompts_sha256,
        recorded_flags=resume.flag_values(args),
        checkpoints=args.ckpt.path,
        save_steps=args.ckpt.save_steps,
        resume_from=None if found is None else str(found),
        start_step=start_step,
        universal=universal,
        last_step=replayed_steps(args, files, start_step) if args.orz.replay else None,
        restarts=int(os.environ.get(RESTARTS_VARIABLE, 0)),
        own_ray=own_ray,
        shared={} if own_ray else mark_shared((args.orz.run_dir, args.ckpt.path)),
        **({"scratch": new_scratch()} | facts),
    )
    if args.ckpt.load_enable:
        for name in ("metrics.jsonl", "eval.jsonl"):
            lost = resume.rewind(Path(args.orz.run_dir) / name, run.start_step)
            if lost:
                print(
                    f"[orz] {lost} lines of {name} lie after step {run.start_step}: moved to lost-{name}", flush=True
                )
    return run


def own_code(args, explicit: Set[str], given: Mapping[str, type]):
    """The settings with what follows from code of the user's, which is imported here, before Ray starts.

    Raises ConfigError if a file or class that flags or ``given`` name is not what it must be.
    """
    from openrlhf_orz.settings.own_code import check_own_files

    check_own_files(args)
    if not given and not any(getattr(args.orz, f"{name}_cls") for name in CLASSES):
        return args
    if ray_session.running_ray() is None:
        ray_session.lock_ray()  # the import of these classes is that of Ray
    from openrlhf_orz.trainer.classes import run_classes

    classes = run_classes(args, given)
    unused = {"orz.verifier", "orz.plain_math_verify", "orz.grader_workers"} & explicit
    if classes.own_rewards and unused:
        raise ConfigError(f"--{min(unused)} would not be used: a class of yours gives the rewards. Leave it out")
    ours = args.orz.verifier_grades or bool(classes.agent) and not classes.own_rewards
    return changed(args, {"orz.verifier_grades": ours})


def train(args, explicit: set[str], stopping: StopHandler, given: Mapping[str, type] = MappingProxyType({})) -> None:
    """One run, from checked arguments to the saved model. Raises what failed. ``given``: as for ``run_classes``."""
    from openrlhf_orz.settings.upstream import allow_remote_code, check_openrlhf

    check_openrlhf()
    allow_remote_code(args.orz.trust_remote_code)
    args = own_code(args, explicit, given)
    with held(args):
        start_clean(args)
        stopping.clear()
        scratch = new_scratch()
        with ray_session.warm_workers(args, scratch) as python:
            run_held(args, explicit, stopping, given, scratch=scratch, worker_python=python)


def require_plain_head(args) -> None:
    """For --orz.fp32_head, before models load. Raises ConfigError."""
    from openrlhf_orz.models.log_prob_head import NO_FP32_HEAD, rescales_logits
    from openrlhf_orz.settings.models import load_config

    flag, path = "--actor.model_name_or_path", args.actor.model_name_or_path
    config = load_config(flag, path, args.orz.trust_remote_code).get_text_config()
    if rescales_logits(config.to_dict()):
        raise ConfigError(f"--orz.fp32_head: {config.model_type} ({flag}) {NO_FP32_HEAD}")


def look_ahead(args, explicit: set[str]) -> tuple[list[str], float | None]:
    """For --dry_run: own code, models and data as a run looks at them, if they are here: ``plan.Look``.

    Raises what a run raises: ConfigError, DataError.
    """
    from openrlhf_orz.data.prepare import chat_renderer
    from openrlhf_orz.settings.models import check_models

    args = own_code(args, explicit, {})
    own = [f"--orz.{name}_cls {given}" for name in CLASSES if (given := getattr(args.orz, f"{name}_cls"))]
    lines = [f"code of yours, which loads: {', '.join(own)}"] if own else []
    named = {args.actor.model_name_or_path, args.critic.model_name_or_path} - {None, ""}
    tokenizer = check_models(args) if all(os.path.isdir(name) for name in named) else None
    if tokenizer is not None:
        if args.data.apply_chat_template:
            chat_renderer(tokenizer)
        if args.orz.fp32_head:
            require_plain_head(args)
    about_data, prompt_tokens = look_at_data(args, explicit, tokenizer)
    return [*lines, *about_data], prompt_tokens


def run_held(args, explicit: set[str], stopping: StopHandler, given: Mapping[str, type], **facts) -> None:
    """``train``, in a directory that is this run's alone. ``facts``: of RunFacts, as far as they are known."""
    from openrlhf_orz.runtime.console import LiveReport, Progress
    from openrlhf_orz.runtime.watchdog import require_heartbeats, watched
    from openrlhf_orz.settings.families import fit_to_models
    from openrlhf_orz.settings.upstream import launch

    run_dir = Path(args.orz.run_dir)
    args, remarks = fit_to_models(args, explicit)
    if args.orz.fp32_head:
        require_plain_head(args)
    for remark in remarks:
        print(f"[orz] {remark}", flush=True)
    run = begin(args, explicit, **facts)
    changes = resume.changes(args, run.resume_from)
    save_config(args, explicit, run_dir / "config.json", run.start_step, changes)
    steps = rollouts_of(args, run.prompts)
    steps = min(steps, run.last_step or steps)
    print(describe_forwards(args), describe_attention(args), sep="\n")
    print(f"[orz] {run.prompts} prompts, {steps} steps, into {run_dir}", flush=True)
    for said in filter(None, (short_rollout(args, run.prompts), *short_run(args, steps))):
        print(f"[orz] {said}", flush=True)
    report = LiveReport(run_dir, args.orz.report_every)
    progress = Progress(run_dir, steps, report.step)
    console.tell_stage(run_dir, "starting Ray" if run.own_ray else "joining Ray")
    with progress, driver_output(args), ray_session.ray_session(args, run, stopping) as ray:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from openrlhf_orz.rollout.engine import Engines, OrzRolloutActor, engine_args
        from openrlhf_orz.trainer.actor import OrzReferenceModelActor
        from openrlhf_orz.trainer.classes import run_classes

        logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
        classes = run_classes(args, given)
        # in reach of the files by which driver and trainer speak, without the delays of a network file system
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        as_trainer = ray.remote(num_cpus=0, scheduling_strategy=here)
        as_rank = ray.remote(num_gpus=1, runtime_env={"env_vars": ray_session.rank_env(args.orz.device)})
        engines = Engines(OrzRolloutActor, run.scratch, run.start_step, str(run_dir))
        console.tell_stage(run_dir, "loading models" if args.orz.replay else "starting engines, loading models")
        failed_start = partial(engines.failed_start, limit_s=args.orz.start_timeout_s)
        resume.unmark_finished(args)
        try:
            with require_heartbeats(args), watched(failed_start, "engines"):
                launch(
                    for_openrlhf(args, run),
                    policy_cls=as_rank(classes.actor),
                    critic_cls=as_rank(classes.critic),
                    reference_cls=as_rank(OrzReferenceModelActor),
                    trainer_cls=as_trainer(classes.trainer),
                    engine_cls=engines,
                    extra_engine_args=engine_args(args, classes.agent, classes.reward),
                )
        finally:
            engines.shutdown()
            stopping.clear()
            job = ray.get_runtime_context().get_job_id()
            keep_logs(logs, run_dir / "logs", job)
            ask_agents("keep_logs", str(run_dir / "logs"), job)
    report.finish()
    resume.mark_finished(args, steps, run.prompts_sha256)


@contextlib.contextmanager
def driver_output(args):
    """What OpenRLHF, Ray and vLLM print on the driver goes to logs/driver.log, unless --orz.worker_logs."""
    if args.orz.worker_logs:
        yield
        return
    with console.output_to(Path(args.orz.run_dir) / "logs" / "driver.log"):
        yield


def summary(args) -> str:
    """Where everything lies."""
    run_dir = Path(args.orz.run_dir)
    names = {
        "hf": "the policy, tokenizer and chat template, for transformers and vllm",
        "hf_ema": "the average of its weights (--train.enable_ema)",
        "hf_adapter": "the adapters by themselves (--ds.lora.rank)",
        "report.html": "all of it to look at: open it in a browser",
        "metrics.jsonl": "one line a step",
        "rollouts": "prompts, responses and verdicts",
        "tensorboard": "the same curves: tensorboard --logdir",
        "checkpoints": "to resume from",
        "data": "the prompts trained on, and the rows that were left out",
        "config.json": "flags and versions",
        "logs": "of the driver and the Ray workers",
    }
    lines = [f"  {str(run_dir / name):<{len(str(run_dir)) + 15}} {what}" for name, what in names.items()
             if (run_dir / name).exists()]  # fmt: skip
    return "\n".join(["[orz] done:", *lines])


def failed(error: Exception, args) -> int:
    """Tell what ended the run; the exit status: 2 for what the user can mend, else 1. Raises what nobody foresaw."""
    from openrlhf_orz.data.sources import DataError
    from openrlhf_orz.runtime.watchdog import RunFailed
    from openrlhf_orz.settings.upstream import WrongBuild

    if isinstance(getattr(error, "cause", None), ConfigError):  # a rank has found it, as the driver could not
        print(f"error: {redact(str(error.cause))}", file=sys.stderr)
        return 2
    # what a worker raised is of the class of its cause, too: an OSError there is no fault of the flags
    if type(error).__module__.partition(".")[0] == "ray":
        cause = "\n".join(str(error).splitlines()[-12:])
        where = os.path.join(args.orz.run_dir, "logs")
        print(f"{redact(cause)}\nerror: training failed; all logs: {where}", file=sys.stderr)
        return 1
    if isinstance(error, RunFailed):
        print(f"error: {error}; all logs: {os.path.join(args.orz.run_dir, 'logs')}", file=sys.stderr)
        return 1
    if isinstance(error, (ConfigError, DataError, WrongBuild, OSError)):
        print(printable(f"error: {redact(str(error))}"), file=sys.stderr)
        return 2
    raise error


def main(argv: list[str] | None = None, **classes: type) -> int:
    """The command; its exit status. ``classes`` are classes of one's own by name: ``trainer_cls``, ``actor_cls``,
    ``critic_cls``, ``agent_cls``, ``reward_cls``; each is as if the flag named it (docs/extending.md).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if unknown := classes.keys() - {f"{name}_cls" for name in CLASSES}:
        raise TypeError(f"main() has no {min(unknown)}; there are {', '.join(f'{name}_cls' for name in CLASSES)}")
    argv += [f"--orz.{name}={cls.__module__}:{cls.__qualname__}" for name, cls in classes.items()]
    if "--dry_run" in argv:
        return plan.main([part for part in argv if part != "--dry_run"], look_ahead)
    args, explicit = plan.settings_of_run(argv)
    console.keep_terminal()
    if args.orz.max_restarts > 0 and classes:
        print("error: --orz.max_restarts starts the command again: name your classes by flags", file=sys.stderr)
        return 2
    if args.orz.max_restarts > 0 and not is_supervised():
        # a restart while a node is lost is the same run: it waits for the node
        ranks = [f"--actor.{name}={getattr(args.actor, name)}" for name in ("num_nodes", "num_gpus_per_node")
                 if args.orz.device == "cuda" and f"actor.{name}" not in explicit]  # fmt: skip
        return supervise([*argv, *ranks], args.orz.run_dir, args.orz.max_restarts)
    stopping = StopHandler(args)
    stopping.install()
    start = time.time()
    try:
        train(args, explicit, stopping, classes)
    except KeyboardInterrupt:
        written = os.path.isdir(args.orz.run_dir)
        print("stopped;", f"what was written is in {args.orz.run_dir}" if written else "nothing was written",
              file=sys.stderr)  # fmt: skip
        return 128 + stopping.signum
    except resume.Finished as done:
        print(f"[orz] {done}")
        return 0
    except Stopped as stopped:
        print(getattr(stopped, "cause", stopped), file=sys.stderr)
        return 128 + stopping.signum
    except Exception as error:
        return failed(error, args)
    print(summary(args))
    print(f"[orz] {time.time() - start:.0f} s in all", flush=True)
    return 0


if __name__ == "__main__":
    status = main()
    gc.freeze()  # all is shut down: else the interpreter looks for garbage, for seconds, in all that was imported
    sys.exit(status)
