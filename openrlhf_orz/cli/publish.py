"""Make a run's policy ready for others: ``python -m openrlhf_orz.cli.publish RUN [--to NAME] [--output DIR]``.

Writes a folder with the policy, its tokenizer and chat template, and a model card: base model and licence, curve,
command, settings, data, evaluation. Of a run with LoRA the policy is its adapters, or with ``--merged`` whole weights.
With ``--to`` it is pushed to a hub, too. Neither paths nor tokens go out.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from openrlhf_orz.report import card
from openrlhf_orz.report.pictures import write_pictures
from openrlhf_orz.report.run_data import Run, RunError, flatten_flags, load_run
from openrlhf_orz.settings.checks import ConfigError
from openrlhf_orz.settings.redact import printable, redact
from openrlhf_orz.trainer.exports import ADAPTER, Source, convert_checkpoint, find_source, whole_model

TOKENIZER = (
    "*.jinja", "*.py", "*.model", "*.txt", "vocab.json", "tokenizer*.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
MODEL = (*TOKENIZER, "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")
PLACES = ("_name_or_path", "name_or_path", "is_local", "local_files_only")  # in configurations: whence it was loaded


def publish_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m openrlhf_orz.cli.publish", description=__doc__.split("\n\n")[1])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's directory")
    parser.add_argument(
        "--checkpoint", metavar="NAME", help="a checkpoint's name, best (the best one), hf or hf_ema; else the newest"
    )
    parser.add_argument("--merged", action="store_true", help="of adapters (--ds.lora.rank): whole weights with them")
    parser.add_argument("--output", type=Path, help="a new folder (default: RUN/published)")
    parser.add_argument("--to", metavar="NAME", help="push it to this repository of the hub, which is made if need be")
    parser.add_argument("--public", action="store_true", help="a repository that is made is open to all")
    parser.add_argument("--critic", action="store_true", help="with the critic (--critic.save_value_network)")
    parser.add_argument("--licence", help="the hub's identifier, where the base model's folder names none: apache-2.0")
    parser.add_argument("--base_model", help="the base model's name on the hub, where it was trained from a folder")
    parser.add_argument("--evaluation", type=Path, help="an evaluation's folder (default: RUN/evaluation if there)")
    return parser


# ---- the folder


def copy_files(source: Path, target: Path, patterns: tuple[str, ...] = MODEL) -> None:
    """Copy a model's own files, and nothing else that lies there."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted({file for pattern in patterns for file in source.glob(pattern)}):
        shutil.copyfile(file, target / file.name)


def forget_places(folder: Path, base: str) -> None:
    """How the model was loaded goes from its configurations; adapters name their ``base``."""
    for name in ("config.json", "tokenizer_config.json", ADAPTER[0]):
        path = folder / name
        if path.exists():
            content = {key: value for key, value in json.loads(path.read_text()).items() if key not in PLACES}
            if "base_model_name_or_path" in content:
                content["base_model_name_or_path"] = base
            path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_weights(source: Source, output: Path) -> None:
    """Write the model or the adapters, and the tokenizer. Raises ConfigError."""
    if source.from_deepspeed:
        convert_checkpoint(source.folder, output, adapters=source.adapters is not None)
        (output / "README.md").unlink(missing_ok=True)  # peft's
    elif source.adapters:
        copy_files(source.folder, output, TOKENIZER)
        copy_files(source.adapters, output, ADAPTER)
    else:
        copy_files(source.folder, output)


def until(run: Run, step: int | None) -> None:
    """Leave out what came after ``step``, which is not of the weights."""
    if step is not None:
        run.metrics = [row for row in run.metrics if row["step"] <= step]
        run.evals = [row for row in run.evals if row["step"] <= step]


def set_sampling(folder: Path, flags: dict[str, str]) -> None:
    """Sampling as in training, in generation_config.json. Of the base model's only the tokens stay: a penalty or a
    limit of its own would hold for who loads this model.
    """
    path = folder / "generation_config.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    kept = {key: value for key, value in content.items() if key.endswith("_token_id") or key == "transformers_version"}
    content = kept | {"do_sample": True, "top_k": 0}  # 0: all tokens; transformers would take 50
    for key, flag in (("temperature", "rollout.temperature"), ("top_p", "rollout.top_p")):
        if flag in flags:
            content[key] = float(flags[flag])
    longest = flags.get("rollout.max_new_tokens", "null")
    if longest != "null":
        content["max_new_tokens"] = int(longest)
    elif "data.max_len" in flags:  # prompt and response; else transformers would stop after 20 tokens
        content["max_length"] = int(flags["data.max_len"])
    path.write_text(json.dumps(content, indent=2) + "\n")


def base_file(base: str, name: str) -> Path | None:
    """A file of the base model: in its folder, in the hub's cache, or from the hub."""
    if Path(base).is_dir():
        return Path(base) / name if (Path(base) / name).is_file() else None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    found = try_to_load_from_cache(base, name)
    if isinstance(found, str):
        return Path(found)
    try:
        return Path(hf_hub_download(base, name, etag_timeout=5))
    except Exception:  # whatever a network and a hub raise: the licence is then not known, and the card says so
        return None


def licence_of(base: str) -> str | None:
    """The licence in the metadata of the base model's card."""
    page = base_file(base, "README.md")
    text = page.read_text(encoding="utf-8", errors="replace") if page else ""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"(?m)^license:\s*[\"']?([\w.-]+)", front[1]) if front else None
    return found[1] if found else None


def data_card(run: Run) -> str | None:
    """The card that curation wrote beside the rows that the run trained on, without its pictures and metadata."""
    rows = Path(flatten_flags(run.config.get("flags")).get("data.prompt_dataset", ""))
    page = rows.parent.parent / "README.md"
    if rows.parent.name not in ("kept", "parquet") or not (page.parent / "funnel.json").exists() or not page.exists():
        return None
    text = re.sub(r"\A---\n.*?\n---\n", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"(?m)^(!\[.*|## Pictures)\n", "", text)


def evaluation_tables(folder: Path, source: Path, given: bool) -> dict[str, str]:
    """The table of an evaluation of these weights. Raises ConfigError if the one that was named is of others."""
    try:
        content = json.loads((folder / "results.json").read_text())
        weights, n, seed = content["settings"]["weights"], content["n"], content["seed"]
    except (OSError, ValueError, KeyError, TypeError):
        if given:
            raise ConfigError(f"--evaluation: {folder} holds no finished evaluation (results.json)") from None
        return {}
    from openrlhf_orz.evaluate.results import results_table
    from openrlhf_orz.evaluate.run import weights_fingerprint  # takes seconds

    if weights != weights_fingerprint(str(source)):
        words = f"{folder} is an evaluation of other weights than {source}"
        if given:
            raise ConfigError(f"--evaluation: {words}: evaluate these")
        print(printable(f"note: {words}, and is left out"))
        return {}
    return {f"By `openrlhf_orz.cli.evaluate`, {n} answers a question, seed {seed}:": results_table(content["results"])}


def publish(options: argparse.Namespace) -> Path:
    """Write the folder and return it. Raises RunError, ConfigError or OSError; then there is no folder."""
    run = load_run(options.run)
    flags = flatten_flags(run.config.get("flags"))
    base = flags.get("actor.model_name_or_path")
    if base is None:
        raise ConfigError(f"{run.path / 'config.json'} names no base model: nothing says what was trained")
    output = (options.output or run.path / "published").absolute()
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"--output: {output} is in use: choose another folder, or remove it")
    critic = run.path / "hf_critic"
    if options.critic and not whole_model(critic):
        raise ConfigError(f"--critic: {critic} is not there: train with --critic.save_value_network")
    source = find_source(run.path, flags, options.checkpoint, options.merged)
    if options.critic and source.step is not None:
        raise ConfigError(f"--critic: {critic} is of the run's end, and the policy {source.words}: leave one out")
    until(run, source.step)
    evaluated = options.evaluation or run.path / "evaluation"
    tables = evaluation_tables(evaluated, source.folder, options.evaluation is not None)
    partial = output.with_name(f".partial-{output.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        local = Path(base).is_dir() or base.startswith((".", "/", "~"))
        about = card.Published(
            source=source.words, base=options.base_model or card.shown(base), critic=options.critic, tables=tables,
            base_is_local=local and not options.base_model, licence=options.licence or licence_of(base),
            adapter_rank=int(flags["ds.lora.rank"]) if source.adapters else 0,
        )  # fmt: skip
        write_weights(source, partial)
        forget_places(partial, about.base)
        if not source.adapters:
            set_sampling(partial, flags)
        if options.critic:
            copy_files(critic, partial / "critic")
            forget_places(partial / "critic", about.base)
        for name in ("LICENSE", "LICENSE.txt", "NOTICE"):
            if there := base_file(base, name):
                shutil.copyfile(there, partial / name)
        if curated := data_card(run):
            about.curation = True
            (partial / "data.md").write_text(redact(card.without_places(curated)))
        if run.metrics:
            write_pictures([run], partial, span=max(1, len(run.metrics) // 20), only=card.PICTURE)
        facts: dict[str, Any] = {"command": card.command_of(run), "versions": run.config.get("versions")}
        facts |= {"git_commit": run.config.get("git_commit"), "prompts_per_rollout": flags.get("rollout.batch_size")}
        facts["flags"] = {
            name: card.shown(value) for name, value in sorted(flags.items()) if not name.startswith(card.NOT_SHOWN)
        }
        (partial / "training.json").write_text(redact(json.dumps(facts, indent=1)) + "\n")
        stop = run.config["flags"].get("orz", {}).get("stop") or []
        name = options.to or run.name
        (partial / "README.md").write_text(redact(card.write_card(run, about, list(stop), name)), encoding="utf-8")
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


def push(folder: Path, name: str, public: bool) -> str:
    """Upload a folder to the hub; its address. Raises ConfigError, which says what is missing."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise ConfigError(
            f"--to: there is no token: set HF_TOKEN, or call `hf auth login`. The folder stays: {folder}"
        )
    api = HfApi()
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="A run of openrlhf_orz"))
    except Exception as error:  # whatever a network and a hub raise
        lines = str(error).strip().splitlines() or [repr(error)]
        raise ConfigError(f"--to: {name} was not pushed: {lines[0]}. The folder stays: {folder}") from None


def main(argv: list[str] | None = None) -> int:
    options = publish_parser().parse_args(argv)
    try:
        folder = publish(options)
        print(printable(f"{folder}: the policy, its tokenizer and its card (README.md)"))
        if options.to:
            print(printable(push(folder, options.to, options.public)))
    except (RunError, ConfigError, OSError) as error:
        print(printable(f"error: {redact(str(error))}"), file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        print("error: the curve needs matplotlib: pip install -r requirements-report.txt", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
