"""Where mailboxes are found: a short private directory per run, and endpoints published in it as files.

    <base>/mach-<uid>-<random>/      0700; base is the temporary directory, or /tmp if that has too long a path
        place                        boot and host of the process that keeps the run: there its lock is to be seen
        c0-1.sock                    ipc socket of c0, incarnation 1
        c0.at                        where c0 is bound now: its endpoint; replaced atomically
        c0.life                      incarnation of c0 that lives now: nobody else can write it, so strangers cannot
                                     speak for a life to come

Knows no ZeroMQ. Laws: an address is never guessed and never reused: the kernel or the incarnation makes it,
its owner publishes it after binding (a second bind of one ipc path succeeds and steals it). Nobody but the user
can enter. It is there as long as its keeper: so it is not in $XDG_RUNTIME_DIR, which goes when the user logs out, and
locked: systemd-tmpfiles, which removes what has lain in temporary directories for long, passes over what is, and so
does `sweep`. A lock is of the kernel, and means the same in all of its containers. Who removes it all the same, as a
scheduler does with TMPDIR, has it made again (`bus/likeness.py`).
"""

import fcntl
import functools
import os
import re
import shutil
import stat
import tempfile
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from configs.errors import ConfigError, RunError

PATH_CAP = 107
"""Bytes of a socket's path, a limit of the kernel."""
_PATTERN = re.compile(r"mach-\d+-[a-z0-9_]{8}")
_held: dict[Path, int] = {}
"""Descriptors of the directories that this process keeps."""
_placed: set[Path] = set()
"""Those that it could lock, and so has put a place into."""


def temporary() -> Path:
    """The temporary directory.

    Raises:
        RunError: there is none.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:  # Python looks in $TMPDIR, /tmp, /var/tmp and the working directory
        raise RunError(
            "there is no temporary directory: nothing can be written to /tmp, to /var/tmp or here; make room, or set "
            "TMPDIR to a directory that can be written"
        ) from error


def base() -> Path:
    """Where private directories are made: the first of the usual places that leaves room for names."""
    places = (str(temporary()), "/tmp")
    fit = [place for place in places if len(os.fsencode(place)) <= 60 and os.access(place, os.W_OK | os.X_OK)]
    if not fit:
        raise RunError("no short writable directory for sockets; set TMPDIR to one whose path has at most 60 bytes")
    return Path(fit[0])


def make_directory(place: Path | None = None) -> Path:
    """A new private directory, in `base()` or the temporary directory, claimed for this process. Whoever keeps the run
    later calls `claim` again.
    """
    directory = Path(tempfile.mkdtemp(prefix=f"mach-{os.getuid()}-", dir=place or base()))
    claim(directory)
    return directory


def claim(directory: Path) -> None:
    """The calling process keeps the run from now on: `sweep`, and who cleans up by age, leave the directory alone while
    it lives.
    """
    if directory not in _held:
        _held[directory] = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(_held[directory], fcntl.LOCK_SH)
    except OSError:
        return  # a file system may know no locks; then nobody sweeps there, but who cleans up by age
    put(directory / "place", _place())  # once it is locked, for it is swept when it has a place and no lock
    _placed.add(directory)


def kept(directory: Path) -> bool:
    """Whether what this process has claimed lies there still: the same one, with its place in it where it has one."""
    try:
        same = os.path.samestat(os.fstat(_held[directory]), directory.lstat())
    except (KeyError, OSError):
        return False
    return same and (directory not in _placed or (directory / "place").exists())


def renew(directory: Path) -> None:
    """Make a directory again that somebody has removed, under its path, and claim it for this process.

    Raises:
        OSError: it cannot be made.
        RunError: it is another's by now.
    """
    for place in (*reversed(directory.parents), directory):
        if not os.path.lexists(place):
            place.mkdir(0o700)
    check_private(directory)
    _let_go(directory)
    claim(directory)


def check_private(directory: Path) -> None:
    """Raise a RunError if somebody else could enter the directory."""
    try:
        found = directory.lstat()
    except OSError as error:
        why = f"the directory of sockets is missing ({error.strerror}); mach stop, then mach resume, makes another"
        raise RunError(f"{directory}: {why}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise RunError(f"{directory}: is no private directory of this user; remove it and launch again")


def remove(directory: Path) -> None:
    """Remove a private directory and all in it; one that is gone already is fine. Its place goes last: whoever is
    stopped halfway leaves what `sweep` finds again.
    """
    with suppress(OSError):
        for entry in tuple(os.scandir(directory)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != "place":
                Path(entry).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
    _let_go(directory)


def sweep() -> list[Path]:
    """Remove this user's directories whose keeper is gone (a launcher killed with -9); which ones. May be called by
    several processes at a time. Of those of other hosts, who may share a file system with us and not its locks, nobody
    here can tell whether their keepers live; nor of those of before a restart of this one, for hosts may have one name.
    """
    places = {base(), temporary()}
    stale = [path for place in places for path in place.glob(f"mach-{os.getuid()}-*") if _abandoned(path)]
    for path in stale:
        remove(path)
    return stale


def socket_path(directory: Path, name: str, incarnation: int) -> Path:
    """The ipc socket of one life of a component; a name too long for the kernel is replaced by its digest.

    Raises:
        ConfigError: the directory leaves no room even for that.
    """
    path = directory / f"{name}-{incarnation}.sock"
    if len(os.fsencode(path)) > PATH_CAP:
        path = directory / f"{blake2b(path.name.encode(), digest_size=8).hexdigest()}.sock"
    if len(os.fsencode(path)) > PATH_CAP:
        raise ConfigError(
            f"{path}: longer than the {PATH_CAP} bytes that a socket's path may have; use a shorter TMPDIR"
        )
    return path


def publish(directory: Path, name: str, endpoint: str) -> None:
    """Tell where `name` is bound now."""
    put(directory / f"{name}.at", endpoint)


def withdraw(directory: Path, name: str, endpoint: str) -> None:
    """Take back what was published, unless a later life has published since."""
    if endpoint_of(directory, name) == endpoint:
        (directory / f"{name}.at").unlink(missing_ok=True)


def endpoint_of(directory: Path, name: str) -> str | None:
    """Where `name` is bound, or None while it is not."""
    try:
        return (directory / f"{name}.at").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def mark_of(directory: Path, name: str) -> tuple[int, int] | None:
    """Changes whenever `name` publishes; None while nothing is published. Costs one system call."""
    try:
        found = os.stat(f"{directory}/{name}.at")
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def announce(directory: Path, name: str, incarnation: int) -> None:
    """Tell which life of `name` is the present one; before it says anything to anybody."""
    put(directory / f"{name}.life", str(incarnation))


def life_of(directory: Path, name: str) -> int:
    """The newest incarnation of `name` that was announced, 0 if none was."""
    try:
        text = (directory / f"{name}.life").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return 0
    return int(text) if text.isdecimal() else 0


def depart(directory: Path, name: str, incarnation: int) -> None:
    """Take back what was announced, unless a later life has announced itself since."""
    if life_of(directory, name) == incarnation:
        (directory / f"{name}.life").unlink(missing_ok=True)


def _abandoned(directory: Path) -> bool:
    try:
        found = directory.lstat()
        if not _PATTERN.fullmatch(directory.name) or found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            return False
        if (directory / "place").read_text(encoding="utf-8") != _place():
            return False
        look = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, UnicodeDecodeError):
        return False  # being made or being removed just now
    try:
        fcntl.flock(look, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False  # its keeper lives, or another looks just now
    finally:
        os.close(look)
    return True


def _place() -> str:
    """Where locks are seen by all: one kernel. The host, too, for one that does not tell which boot it is of."""
    return f"{boot()} {os.uname().nodename}"


@functools.cache
def boot() -> str:
    """Name of the boot that this process lives in; "-" in a sandbox that does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "-"


@functools.cache
def clock() -> str:
    """Whose monotonic clock this process reads: all of a boot share one, but for those of another time namespace; "-"
    where that is not told.
    """
    try:
        return os.readlink("/proc/self/ns/time")
    except OSError:
        return "-"


def started(pid: int) -> str:
    """When a process started, in ticks since boot: pids are reused, pairs are not. Empty: not running."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in ("Z", "X") else fields[19]


def put(path: Path, text: str) -> None:
    """Write a file that others may read at any time: they see the old text or the new."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def _let_go(directory: Path) -> None:
    _placed.discard(directory)
    if directory in _held:
        os.close(_held.pop(directory))
