"""Runs the stages in order, each on the shards of the one before; a killed run goes on at its stage and shard."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from openrlhf_orz.data.curate import clean, collect, decontaminate, dedup, exclude, language, pass_rate
from openrlhf_orz.data.curate.config import STAGES, Clean, Config, Decontaminate, Dedup, Exclude, Language, PassRate
from openrlhf_orz.data.curate.inputs import Input, parse_inputs
from openrlhf_orz.data.curate.normalise import clean_question
from openrlhf_orz.data.curate.shards import Stage, code_version, file_hash, key_of
from openrlhf_orz.data.curate.similarity import embedder
from openrlhf_orz.data.curate.write import WRITTEN, write_dataset
from openrlhf_orz.data.json_lines import read_records
from openrlhf_orz.data.sources import READERS, DataError, suffix_of

Log = Callable[[str], None]
MakeSampler = Callable[[PassRate, int], pass_rate.Sampler] | None
_made: dict[str, Any] = {}  # objects that a worker process makes once: detector, references, evaluation sets


def run_pipeline(config: Config, log: Log = print, make_sampler: MakeSampler = None) -> dict:
    """Curate; returns the summary that funnel.json holds.

    `make_sampler(config.pass_rate, questions)` makes the sampler of a model when one is needed. Raises
    DataError, naming key or flag, when the run can't start on these inputs with this configuration.
    """
    folder = Path(config.output)
    inputs = parse_inputs(config.inputs)
    _check_output(folder, inputs)
    work = folder / "work"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"output {folder}: {error.strerror}. Choose another folder.") from error
    key = key_of(code_version(), [_fingerprint(item) for item in inputs], config.shard_rows)
    stage = Stage(work / "0_collect", key)
    finished = [stage]
    if not stage.done:
        _timed(stage, log, lambda: collect.collect(inputs, stage, config.shard_rows))
    _report(stage, log)
    for number, name in enumerate(STAGES, 1):
        options = getattr(config, name)
        if options is None:
            continue
        if name == "dedup" and not options.sources:
            options = dataclasses.replace(options, sources=_source_order(finished[-1]))
        before, extra = finished[-1], []  # extra: further files that the stage reads
        if name == "decontaminate":
            extra = [_content(spec) for spec in options.against]
        if name == "dedup" and options.embedding and options.embedding_model:
            extra = [_weights(options.embedding_model)]
        if name == "pass_rate":
            extra = [_content(os.path.join(spec, "rollouts")) for spec in options.rollouts]
            extra += [_weights(options.model)] if options.model else []
        stage = Stage(work / f"{number}_{name}", key_of(before.key, name, dataclasses.asdict(options), extra))
        if not stage.done:
            task = partial(_RUNNERS[name], before, stage, options, config, make_sampler)
            _timed(stage, log, task)
        _report(stage, log)
        finished.append(stage)
    summary = write_dataset(config, finished, folder)
    log(f"write: {summary['train']} train and {summary['heldout']} held-out rows in {folder / 'kept'}")
    return summary


def _check_output(folder: Path, inputs: list[Input]) -> None:
    """Raises DataError where what is in ``folder`` is no curation's, or an input lies where results are written."""
    if folder.is_dir() and not (folder / "funnel.json").exists() and not (folder / "work" / "0_collect").exists():
        others = sorted(path.name for path in folder.iterdir() if path.name != "work")
        if others:
            raise DataError(f"output {folder}: it holds {others[0]} and is no curation's. Choose a new folder.")
    for item in inputs:
        path = Path(item.path).expanduser().resolve()
        written = [(folder / name).resolve() for name in (*WRITTEN, "work")]
        if not item.generated and any(path.is_relative_to(place) for place in written):
            raise DataError(f"inputs ({item.name}): {item.path} is where results are written. Choose another output.")


def _timed(stage: Stage, log: Log, task: Callable[[], None]) -> None:
    begin = time.monotonic()
    there = len(stage.shards())
    if there:
        log(f"{stage.name}: going on after {there} shards")
    task()
    seconds = time.monotonic() - begin
    rows = stage.summary["rows_in"]
    log(f"{stage.name}: {rows} rows in {seconds:.1f} s, {rows / max(seconds, 1e-9):.0f} rows/s")


def _report(stage: Stage, log: Log) -> None:
    found = stage.summary
    reasons = ", ".join(f"{reason} {count}" for reason, count in found["reasons"].items())
    log(f"{stage.name}: {found['rows_in']} in, {found['kept']} kept" + (f", out: {reasons}" if reasons else ""))


# ---- the inputs of a stage, for its key


def _fingerprint(item: Input) -> list:
    fields = dataclasses.asdict(item)
    fields.pop("path")
    return [fields, None if item.generated else _content(item.path)]


def _content(path: str) -> Any:
    """Names and hashes of the files at a path; a name that is no path (a hub data set) stands for itself."""
    root = Path(path).expanduser()
    if root.is_file():
        return [root.name, file_hash(root)]
    if root.is_dir():
        files = (
            file for file in sorted(root.rglob("*")) if file.is_file() and suffix_of(file) in (*READERS, ".arrow")
        )
        return [[file.relative_to(root).as_posix(), file_hash(file)] for file in files]
    return path


def _weights(model: str) -> Any:
    """Names and hashes of the files of a model's folder; a hub name stands for itself."""
    root = Path(model).expanduser()
    files = sorted(path for path in root.iterdir() if path.is_file()) if root.is_dir() else []
    return [[path.name, file_hash(path)] for path in files] or model


def _source_order(stage: Stage) -> list[str]:
    """The sources in the order of their first rows, which is that of the inputs."""
    found: dict[str, None] = {}
    for row in stage.rows():
        found[row["source"]] = None
    return list(found)


# ---- stages that work on each shard alone


def _each_shard(config: Config, before: Stage, stage: Stage, work: Callable[[Path, Stage, int], None]) -> None:
    """Run `work` on every shard that is not done, in processes where there are several."""
    todo = [shard for shard in before.shards() if not stage.has(shard)]
    if config.processes == 1 or len(todo) <= 1:
        for shard in todo:
            work(before.kept(shard), stage, shard)
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            min(config.processes, len(todo)), context, initializer=_end_with, initargs=(os.getpid(),)
        ) as pool:
            for done in [pool.submit(work, before.kept(shard), stage, shard) for shard in todo]:
                done.result()
    _forget()


def _end_with(parent: int) -> None:
    """A worker ends when its parent is killed: Linux's PR_SET_PDEATHSIG."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _once(name: str, make: Callable[[], Any]) -> Any:
    if name not in _made:
        _made[name] = make()
    return _made[name]


def _forget() -> None:
    for value in _made.values():
        if hasattr(value, "close"):
            value.close()
    _made.clear()


def _clean_shard(options: Clean, workers: int, source: Path, stage: Stage, shard: int) -> None:
    references = _once("references", lambda: clean.References(workers, options.plain_math_verify))
    check = references.check if options.check_answers else None
    stage.write(shard, *clean.clean(read_records(source), options, check))


def _exclude_shard(options: Exclude, source: Path, stage: Stage, shard: int) -> None:
    stage.write(shard, *exclude.exclude(read_records(source), options))


def _language_shard(options: Language, source: Path, stage: Stage, shard: int) -> None:
    detect = _once("detect", language.fasttext_detector)
    kept, rejected = language.split_language(read_records(source), options, detect)
    counts = Counter(row["meta"]["language"] for row in kept)
    stage.write(shard, kept, rejected, lambda: {"languages": counts})


def _decontaminate_shard(options: Decontaminate, source: Path, stage: Stage, shard: int) -> None:
    sets = _once("sets", partial(_eval_sets, options))
    embed = _once("embed", partial(embedder, stage="decontaminate")) if options.embedding else None
    vectors = _once("vectors", lambda: embed(sets.texts)) if embed and sets.texts else None
    stage.write(shard, *decontaminate.decontaminate(read_records(source), sets, options, embed, vectors))


def _eval_sets(options: Decontaminate) -> decontaminate.EvalSets:
    sets = decontaminate.EvalSets(options.ngram)
    if "builtin" in options.against:
        if options.ngram != decontaminate.BUILTIN_NGRAM:
            raise DataError(f"decontaminate.ngram: the packaged sets have {decontaminate.BUILTIN_NGRAM}-grams only.")
        decontaminate.load_builtin(sets)
    for spec in options.against:
        if spec != "builtin":
            for row in _questions(spec):
                sets.add(row["id"], clean_question(row["question"])[0])
    return sets


def _questions(spec: str) -> Iterator[dict]:
    found = 0
    for split in ("test", "train"):
        item = parse_inputs([{"path": spec, "split": split}])[0]
        try:
            for row, _ in collect.read_input(item):
                if row["question"].strip():
                    found += 1
                    yield row
        except DataError:
            if split == "train":
                raise
        if found:
            return
    raise DataError(f"decontaminate.against: {spec} has no questions.")


def _run_clean(before: Stage, stage: Stage, options: Clean, config: Config, _: MakeSampler) -> None:
    _each_shard(config, before, stage, partial(_clean_shard, options, config.processes))
    stage.finish()


def _run_on_shards(work: Callable, before: Stage, stage: Stage, options: Any, config: Config, _: MakeSampler) -> None:
    _each_shard(config, before, stage, partial(work, options))
    stage.finish()


def _run_decontaminate(before: Stage, stage: Stage, options: Decontaminate, config: Config, _: MakeSampler) -> None:
    sets = _eval_sets(options)  # errors come before any work
    _each_shard(config, before, stage, partial(_decontaminate_shard, options))
    stage.finish(against=options.against, questions=len(sets.questions))


# ---- stages that need all shards together


def _features_shard(source: Path, stage: Stage, shard: int) -> None:
    target = stage.folder / f"{shard:05d}.npz"
    if not target.exists():
        dedup.features(source, target)


def _run_dedup(before: Stage, stage: Stage, options: Dedup, config: Config, _: MakeSampler) -> None:
    _each_shard(config, before, stage, _features_shard)
    shards = before.shards()
    pool = dedup.PooledRows([before.kept(s) for s in shards], [stage.folder / f"{s:05d}.npz" for s in shards])
    embed = embedder(options.embedding_model) if options.embedding else None
    references = clean.References(config.processes)
    try:
        decision = dedup.decide_duplicates(pool, stage, options, embed, references.same)
    finally:
        references.close()
    for number, shard in enumerate(shards):
        if not stage.has(shard):
            dedup.split_shard(pool, number, decision, stage, shard)
    stage.finish(clusters=decision.clusters, conflicts=decision.conflicts)


def _estimates(stage: Stage, shard: int) -> Path:
    return stage.folder / f"{shard:05d}.estimates.jsonl"


def _run_pass_rate(before: Stage, stage: Stage, options: PassRate, config: Config, make_sampler: MakeSampler) -> None:
    mined = pass_rate.mine_rollouts(options.rollouts, options.template) if options.rollouts else None
    sample = None
    for shard in before.shards():
        if stage.has(shard):
            continue
        if mined is None and sample is None:
            if make_sampler is None:
                raise DataError("pass_rate.model: this caller has no way to sample a model. Use the command.")
            left = [s for s in before.shards() if not stage.has(s)]
            todo = sum(pass_rate.unasked(before.kept(s), _estimates(stage, s)) for s in left)
            sample = make_sampler(options, todo)
        file = _estimates(stage, shard)
        stage.write(shard, *pass_rate.filter_shard(before.kept(shard), options, sample, mined, file))
    stage.finish()


_RUNNERS: dict[str, Callable[[Stage, Stage, Any, Config, MakeSampler], None]] = {
    "clean": _run_clean,
    "exclude": partial(_run_on_shards, _exclude_shard),
    "language": partial(_run_on_shards, _language_shard),
    "dedup": _run_dedup,
    "decontaminate": _run_decontaminate,
    "pass_rate": _run_pass_rate,
}
