"""Checkpoints on disk: written under a partial name, listed in a manifest, renamed; checked again on resume.

    PATH/global_step40/_actor/, _critic/   what DeepSpeed writes: weights, optimizers, schedulers, by rank
    PATH/global_step40/trainer.json        step, place in the data, counters, best metric, the run's flags
    PATH/global_step40/trainer.pt          random states and responses drawn but not yet trained on
    PATH/global_step40/manifest.json       size and sha256 of every other file

A directory without the prefix ``.partial-`` is complete: one rename gives it its name, after all files are on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openrlhf_orz.runtime.files import sync_folder

MANIFEST, TRAINER, STATE = "manifest.json", "trainer.json", "trainer.pt"
PARTIAL = ".partial-"
FORMAT = 1
HASHES = ".hashes"  # in a partial checkpoint: what its ranks have hashed themselves
_TAG = re.compile(r"(best_)?global_step(\d+)")
_CHUNK = 1 << 22
_THREADS = 4  # hashing releases the interpreter's lock


class Damaged(ValueError):
    """A checkpoint that differs from its manifest; the message names the file and what is wrong."""


def partial_path(path: str | Path, tag: str) -> Path:
    """Where the checkpoint ``tag`` is written before it is complete."""
    return Path(path) / f"{PARTIAL}{tag}"


def step_of(checkpoint: str | Path) -> int:
    """The step in a checkpoint's name; -1 if the name is not that of a checkpoint."""
    match = _TAG.fullmatch(Path(checkpoint).name)
    return int(match[2]) if match else -1


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST)


def _sha256(file: Path, sync: bool = False) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
        if sync:
            os.fsync(stream.fileno())
    return digest.hexdigest()


def _writer(file: Path) -> int:
    """The rank that DeepSpeed or we have in the name of a file that it wrote; 0 where there is none."""
    match = re.search(r"rank_?(\d+)", file.name)
    return int(match[1]) if match else 0


def hash_written(partial: str | Path, role: str, rank: int, ranks: int) -> None:
    """Flush and hash the files below ``role`` that ``rank`` of ``ranks`` has written, and leave a note for ``commit``.

    They are still in the memory of its machine; ``commit`` would read those of all machines back through one.
    """
    partial = Path(partial)
    entries = {}
    for file in _files(partial / role):
        if _writer(file) % ranks == rank:
            digest, state = _sha256(file, sync=True), file.stat()
            entries[str(file.relative_to(partial))] = [state.st_size, state.st_mtime_ns, digest]
    (partial / HASHES).mkdir(exist_ok=True)
    (partial / HASHES / f"{role}-{rank}.json").write_text(json.dumps(entries))


def _hashed(partial: Path) -> dict[Path, str]:
    """The sha256 of each file that its rank has hashed and that has not changed since."""
    found = {}
    for note in (partial / HASHES).glob("*.json"):
        for name, (size, changed, digest) in json.loads(note.read_text()).items():
            state = (partial / name).stat()
            if (state.st_size, state.st_mtime_ns) == (size, changed):
                found[partial / name] = digest
    shutil.rmtree(partial / HASHES, ignore_errors=True)
    return found


def commit(partial: str | Path) -> Path:
    """Flush all files of ``partial`` to disk, write the manifest and rename the directory; returns the new path.

    What its ranks have hashed is not read again (``hash_written``). An older checkpoint of that name is replaced.
    Raises OSError; the new checkpoint then has no final name.
    """
    partial = Path(partial)
    final = partial.with_name(partial.name.removeprefix(PARTIAL))
    hashed = _hashed(partial)
    files = _files(partial)
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = list(pool.map(lambda file: hashed.get(file) or _sha256(file, sync=True), files))
    entries = {
        str(file.relative_to(partial)): {"bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, hashes)
    }
    with open(partial / MANIFEST, "w") as stream:
        json.dump({"format": FORMAT, "files": entries}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    put_in_place(partial)
    return final


def put_in_place(partial: Path) -> None:
    """Rename a folder whose files are on disk to its final name; one of that name is replaced. Raises OSError."""
    final = partial.with_name(partial.name.removeprefix(PARTIAL))
    for folder in {partial, *(file.parent for file in _files(partial))}:
        sync_folder(folder)
    if final.exists():  # a run resumed from an earlier step comes here again
        old = final.with_name(f"{PARTIAL}old-{final.name}")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        partial.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(final)
    sync_folder(final.parent)


def sync_files(folder: Path) -> None:
    """Put all files of a folder on disk. Raises OSError."""
    for file in _files(folder):
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())


def verify(checkpoint: str | Path) -> None:
    """Raise Damaged unless every file has its size and sha256 of the manifest, and the trainer's files are there."""
    checkpoint = Path(checkpoint)
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise Damaged(
                f"{MANIFEST} is of format {manifest['format']}, not {FORMAT}: of another version of this package"
            )
        entries = manifest["files"]
        sizes = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()}
    except FileNotFoundError:
        raise Damaged(f"{MANIFEST} is missing") from None
    except Damaged:
        raise
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error})") from None
    for name, (size, _) in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            raise Damaged(f"{name} is missing")
        if file.stat().st_size != size:
            raise Damaged(f"{name} has {file.stat().st_size} bytes, not {size}")
    for name in (TRAINER, STATE):
        if name not in sizes:
            raise Damaged(f"{name} is not part of it: weights alone, nothing to resume from")
    with ThreadPoolExecutor(_THREADS) as pool:
        for (name, (_, digest)), found in zip(sizes.items(), pool.map(lambda n: _sha256(checkpoint / n), sizes)):
            if found != digest:
                raise Damaged(f"{name} has changed since it was written (sha256)")


def all_checkpoints(path: str | Path) -> list[Path]:
    """Complete checkpoints under ``path``, newest step first; of one step, the best before the regular one.

    The regular one is written before the step is evaluated: it does not know that it is the best.
    """
    folder = Path(path)
    found = [entry for entry in folder.iterdir() if entry.is_dir() and step_of(entry) >= 0] if folder.is_dir() else []
    return sorted(found, key=lambda entry: (step_of(entry), entry.name.startswith("best")), reverse=True)


def newest_valid(path: str | Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that is not damaged, and each newer one that is, with what is wrong."""
    skipped = {}
    for checkpoint in all_checkpoints(path):
        try:
            verify(checkpoint)
        except Damaged as error:
            skipped[checkpoint] = f"{checkpoint} is damaged: {error}"
        else:
            return checkpoint, skipped
    return None, skipped


def size_of(folder: str | Path) -> int:
    """Bytes of all files under ``folder``."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def put_damaged_aside(checkpoint: Path) -> Path:
    """Give a damaged checkpoint a name by which it counts no more, as its step may be made again; returns the path."""
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return checkpoint.rename(aside)


def rotate(path: str | Path, max_num: int, max_bytes: float, keep: Path | None = None) -> list[Path]:
    """Delete the oldest checkpoints beyond ``max_num`` or ``max_bytes``, but never the newest, nor ``keep``.

    Of the best checkpoints only the newest is kept. Returns what was deleted.
    """
    everything = all_checkpoints(path)
    best = [c for c in everything if c.name.startswith("best")]
    regular = [c for c in everything if not c.name.startswith("best")]
    doomed = best[1:]
    sizes = {c: size_of(c) for c in everything} if max_bytes != float("inf") else {}
    total = sum(sizes[c] for c in best[:1]) if sizes else 0
    for number, checkpoint in enumerate(regular):
        total += sizes.get(checkpoint, 0)
        if number and (number >= max_num or total > max_bytes):
            doomed.append(checkpoint)
    doomed = [checkpoint for checkpoint in doomed if checkpoint != keep]
    for checkpoint in doomed:
        shutil.rmtree(checkpoint, ignore_errors=True)
    return doomed


def clear_partial(path: str | Path) -> list[Path]:
    """Remove what interrupted writes have left; returns the paths. What was to be replaced gets its name back."""
    for old in Path(path).glob(f"{PARTIAL}old-*"):
        name = old.name.removeprefix(f"{PARTIAL}old-")
        if not (Path(path) / name).exists():
            old.rename(old.with_name(name))
    left = sorted(Path(path).glob(f"{PARTIAL}*"))
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return left
