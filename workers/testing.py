"""A bad line for tests: a TCP proxy on one edge of a run, with delay, limits, silence, bit flips and cuts.

    with Proxy(endpoint, delay_s=0.1) as proxy:
        address.publish(directory, "c1", proxy.endpoint)     # parents of c1 reconnect through it

Runs in a thread of its own. It knows nothing of what the bytes say. Laws: bytes of one direction never overtake each
other; every fault that fires is counted in `fired`; when it is closed nothing of it is left.
"""

import asyncio
import contextlib
import math
import random
import threading
from collections import Counter
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

CHUNK = 1 << 16


class Proxy:
    """Carries connections to `target`, `tcp://host:port`. The settings can be changed while it runs.

    Args:
        delay_s: seconds that bytes take, each way.
        jitter_s: uniform extra delay of each piece.
        bytes_per_s: the most that passes, each way and connection.
        flip: share of pieces in which one bit changes.
        seed: of jitter and flips.
    """

    def __init__(
        self,
        target: str,
        *,
        delay_s: float = 0.0,
        jitter_s: float = 0.0,
        bytes_per_s: float = math.inf,
        flip: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.host, _, port = target.removeprefix("tcp://").rpartition(":")
        self.port = int(port)
        self.delay_s, self.jitter_s, self.bytes_per_s, self.flip = delay_s, jitter_s, bytes_per_s, flip
        self.silent = False
        """Half-open: connections stay, and what comes is swallowed."""
        self.fired: Counter[str] = Counter()
        """`connection`, `delayed`, `limited`, `flipped`, `swallowed`, `cut`, `refused`: how often."""
        self.endpoint = ""
        self._random = random.Random(seed)
        self._down = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        """Listen on a port that the system chooses."""
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._carry, "127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection and end the thread."""
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Break all connections, and refuse new ones until `heal`."""
        self._down = True
        self._do(self._break())

    def heal(self) -> None:
        """Let connections through again."""
        self._down = False

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, both ways, until one end hangs up."""
        if self._down:
            self.fired["refused"] += 1
            writer.close()
            return
        self.fired["connection"] += 1
        self._writers.add(writer)
        try:
            there, back = await asyncio.open_connection(self.host, self.port)
        except OSError:
            self._hang_up(writer)
            return
        self._writers.add(back)
        with contextlib.suppress(asyncio.CancelledError):  # the end; Python 3.11 would print it as an error
            await asyncio.gather(self._one_way(reader, back), self._one_way(there, writer))

    async def _one_way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pieces into a queue with the time when each is due, and out of it."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        out = asyncio.ensure_future(self._deliver(queue, writer))
        free = 0.0
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(CHUNK):
                if self.silent:
                    self.fired["swallowed"] += 1
                    continue
                now = self._loop.time()
                free = max(free, now) + len(piece) / self.bytes_per_s
                delay = self.delay_s + self.jitter_s * self._random.random()
                self.fired["delayed"] += delay > 0.0
                self.fired["limited"] += free > now
                queue.put_nowait((free + delay, self._spoiled(piece)))
        queue.put_nowait((0.0, b""))
        await out

    async def _deliver(self, queue: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                due, piece = await queue.get()
                if not piece:
                    break
                await asyncio.sleep(max(due - self._loop.time(), 0.0))
                writer.write(piece)
                await writer.drain()
        self._hang_up(writer)

    def _spoiled(self, piece: bytes) -> bytes:
        if self._random.random() >= self.flip:
            return piece
        self.fired["flipped"] += 1
        changed = bytearray(piece)
        changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)

    def _hang_up(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.close()

    async def _break(self) -> None:
        for writer in tuple(self._writers):
            self.fired["cut"] += 1
            self._writers.discard(writer)
            writer.transport.abort()

    async def _end(self) -> None:
        self._server.close()
        self._down = True
        await self._break()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
