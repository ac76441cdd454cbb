"""Where a running launcher is asked for something: a socket in the run's private directory.

    asker ──── {"restart": "c2"} ────▶ launcher      one packet each way, then the connection ends
    asker ◀── {"done": true, "text": …} ── launcher  when it is done, or cannot be

Knows no member: the supervisor decides. Laws: nobody but the user can enter the directory; an asker that says
nothing, says nonsense or leaves costs the launcher nothing. It works while the run directory cannot be written.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from configs.errors import RunError

NAME = "desk.sock"
PACKET = 1 << 16
"""Most bytes of a packet."""
ASKERS = 16
"""Most connections at a time; the oldest is let go for a new one."""


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody wants."""

    restart: str
    """A component."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of it."""

    done: bool
    text: str


Promise = Callable[[], Answer | None]
"""Answers when there is something to answer."""


class Desk:
    """The launcher's end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._listener = listener(directory)
        self._askers: list[socket.socket] = []
        self._owed: list[tuple[socket.socket, Promise]] = []

    def reopen(self) -> None:
        """Listen again where nobody is found any more, since the socket's file was removed (OSError: it cannot be)."""
        if not os.path.lexists(self._directory / NAME):
            old, self._listener = self._listener, listener(self._directory)
            old.close()

    def sockets(self) -> list[socket.socket]:
        """To wait on: one of them is readable when there may be something new to `serve`."""
        return [self._listener, *self._askers]

    def serve(self, obey: Callable[[Ask], Promise]) -> None:
        """Have done what was asked since the last time, and answer all that is done."""
        for asker, wanted in self._take():
            self._owed.append((asker, obey(wanted)))
        for owed in tuple(self._owed):
            asker, promise = owed
            answer = promise()
            if answer is not None:
                self._owed.remove(owed)
                reply(asker, answer)

    def _take(self) -> Iterator[tuple[socket.socket, Ask]]:
        with suppress(OSError):  # nobody there, or no descriptor left: whoever asks waits
            while True:
                asker, _ = self._listener.accept()
                asker.setblocking(False)
                self._askers.append(asker)
                while len(self._askers) > ASKERS:
                    self._askers.pop(0).close()
        for asker in tuple(self._askers):
            try:
                packet = asker.recv(PACKET)
            except BlockingIOError:
                continue
            except OSError:
                packet = b""
            self._askers.remove(asker)
            try:
                wanted = msgspec.json.decode(packet, type=Ask)
            except msgspec.MsgspecError as error:
                reply(asker, Answer(done=False, text=f"not understood: {error}"))
            else:
                yield asker, wanted

    def close(self) -> None:
        """Nobody is asked in any more; who still waits hears that the launcher has gone."""
        for one in (*self.sockets(), *(asker for asker, _ in self._owed)):
            one.close()


def listener(directory: Path) -> socket.socket:
    """Where askers come in."""
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        door.bind(str(directory / NAME))
        door.listen(ASKERS)
    except OSError:
        door.close()
        raise
    door.setblocking(False)
    return door


def reply(asker: socket.socket, answer: Answer) -> None:
    """The end of one request."""
    with asker, suppress(OSError):  # it may have left
        asker.send(msgspec.json.encode(answer))


def ask(directory: Path, wanted: Ask, within_s: float) -> Answer:
    """Ask the launcher whose sockets lie in `directory`.

    Raises:
        RunError: nobody answers there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asker:
        asker.settimeout(within_s)
        try:
            asker.connect(str(directory / NAME))
            asker.send(msgspec.json.encode(wanted))
            packet = asker.recv(PACKET)
        except TimeoutError:
            raise RunError(f"the launcher gave no answer within {within_s:.0f} s; see mach status") from None
        except OSError as error:
            why = f"the launcher cannot be asked in {directory} ({error.strerror})"
            if isinstance(error, FileNotFoundError):
                why += (
                    f": it has just ended, or {directory.parent} is another place here, as in a container or a sandbox"
                )
                raise RunError(f"{why}; see mach status, and give the command where the launcher runs") from error
            raise RunError(f"{why}; see mach status") from error
    if not packet:
        raise RunError("the launcher ended before it answered; see mach status")
    return msgspec.json.decode(packet, type=Answer)
