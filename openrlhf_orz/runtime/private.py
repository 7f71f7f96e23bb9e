"""Folders that only this user may enter, locks that say who lives in a folder, and what killed runs have left.

All that a run makes outside of its run directory lies in folders named ``orz-HOST-RANDOM``, mode 0700: one in shared
memory, one where Ray keeps its files. The process that made such a folder holds a lock on a file in it for as long as
it lives. The kernel drops the lock when that process ends, however it ends, and shows it to every container that sees
the folder, as a process number would not.
"""

import contextlib
import fcntl
import getpass
import glob
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from openrlhf_orz.runtime.processes import ProcessRecord

LOCK = ".lock"
LONGEST_ROOT = 21  # characters of a folder in which Ray's sockets still have paths of at most 107 bytes


class Occupied(RuntimeError):
    """Another process holds a folder's lock; the message says which."""


def shared_folder() -> str:
    """Where the processes of a run leave files to each other: in memory, if there is such a folder."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()


def host_key() -> str:
    """Six digits for this start of this machine: folders on a network disk may be another machine's."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = socket.gethostname()
    return hashlib.sha256(boot.encode()).hexdigest()[:6]


def new_scratch() -> str:
    """A new run's folder in ``shared_folder``, with a slash at its end. ``private_folder`` makes it."""
    return f"{shared_folder()}/orz-{host_key()}-{secrets.token_hex(4)}/"


def owned(path: str | Path) -> bool:
    """Whether this user owns ``path`` itself; for a link, the link. False where there is nothing."""
    try:
        return os.lstat(path).st_uid == os.getuid()
    except OSError:
        return False


def require_private(path: str | Path) -> str:
    """``path``, made with mode 0700 if it is not there. Raises PermissionError if anybody else may enter it."""
    path = str(path).rstrip("/")  # with the slash a link would be followed
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{path} is not this user's alone (it must be a folder with mode 0700): remove it")
    return f"{path}/"


class FolderLock:
    """Holds ``folder``/.lock until ``release`` or the end of this process, and writes into it whose it is.

    Raises Occupied if another process holds it. ``certain`` is False on a file system that has no locks.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / LOCK
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self.certain = True
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self.fd, 200).decode(errors="replace").strip() or "another process"
            os.close(self.fd)
            raise Occupied(owner) from None
        except OSError:
            self.certain = False
        os.ftruncate(self.fd, 0)
        user = os.environ.get("USER") or str(os.getuid())
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(self.fd, f"{user} on {socket.gethostname()}, process {os.getpid()}, since {now}\n".encode())

    def release(self) -> None:
        """Give the folder free; it may be gone already."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)
        os.close(self.fd)


@contextlib.contextmanager
def private_folder(path: str):
    """Make the folder ``path`` with its lock for the body; then end what is on record there, and remove it.

    A folder that is there already, made on this machine by another process of the run, is left to that one.
    """
    path = path.rstrip("/")
    new = f"{path}.{secrets.token_hex(4)}"  # the name by which leftovers are found comes when the lock is held
    os.mkdir(new, 0o700)
    lock = FolderLock(new)
    try:
        try:
            os.rename(new, path)
        except OSError:
            shutil.rmtree(new)
            require_private(path)
            yield
            return
        try:
            yield
        finally:
            bury(path)
    finally:
        lock.release()


@contextlib.contextmanager
def vllm_files() -> Iterator[None]:
    """For a command that starts vLLM itself: what it leaves behind, sockets and rendezvous files, goes with the body.

    What killed commands and runs have left goes before.
    """
    clean_leftovers((shared_folder(),))
    folder, temporary = new_scratch().rstrip("/"), tempfile.tempdir
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as a container may be given
        user = f"uid_{os.getuid()}"
    compiled = f"torchinductor_{user}"  # torch's name for it, below TMPDIR
    cache = compile_cache(os.path.join(tempfile.gettempdir(), compiled))
    places = {"VLLM_RPC_BASE_PATH": folder, "TMPDIR": folder}
    before = {name: os.environ.get(name) for name in places}
    with private_folder(folder):
        os.symlink(cache, os.path.join(folder, compiled))
        os.environ.update(places)
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = temporary
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def bury(folder: str) -> None:
    """End the processes on record in ``folder`` and remove it."""
    for note in glob.glob(f"{glob.escape(folder)}/*.json"):
        ProcessRecord(note.removesuffix(".json")).kill_leftovers()
    shutil.rmtree(folder, ignore_errors=True)


def clean_leftovers(folders: tuple[str, ...]) -> list[str]:
    """Bury what killed runs of this user, on this machine since it was started, have left in ``folders``.

    Returns the paths removed. What another process has locked is alive, whatever container it is in.
    """
    removed = []
    for path in (path for folder in folders for path in glob.glob(f"{glob.escape(folder)}/orz-{host_key()}-*")):
        if not re.fullmatch(r"orz-[0-9a-f]{6}-[0-9a-f]{8}", os.path.basename(path)):
            continue
        if not owned(path) or not stat.S_ISDIR(os.lstat(path).st_mode):
            continue
        try:
            lock = FolderLock(path) if os.path.lexists(f"{path}/{LOCK}") else None
        except (Occupied, OSError):
            continue
        # without a lock it was made by a rank or an engine on a node that came later
        notes = [] if lock and lock.certain else glob.glob(f"{glob.escape(path)}/*.json")
        if any(ProcessRecord(note.removesuffix(".json")).alive() for note in notes):
            continue
        bury(path)
        if lock:
            lock.release()
        removed.append(path)
    return removed


def ray_root(wanted: str) -> str:
    """The folder for Ray's files: ``wanted``, or /tmp where the paths of sockets would be too long."""
    return wanted if len(os.fsencode(wanted)) <= LONGEST_ROOT else "/tmp"


def compile_cache(wanted: str) -> str:
    """A folder for compiled code that nobody else can have filled: ``wanted``, or one in this user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    with contextlib.suppress(OSError):
        os.mkdir(wanted, 0o700)
    if owned(wanted):
        mode = os.lstat(wanted).st_mode
        if stat.S_ISDIR(mode) and not mode & 0o022:
            return wanted
    own = os.path.join(home, "openrlhf_orz", os.path.basename(wanted))
    os.makedirs(os.path.dirname(own), exist_ok=True)
    return require_private(own).rstrip("/")
