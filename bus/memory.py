"""Memory for long tensors that arrive, used again as soon as nobody holds it.

Fresh memory of some megabytes costs a page fault for every 4 KiB, which is more than the copy into it. Knows no
frame and no tensor. Law: memory is handed out only while nothing else refers to it, seen by CPython's reference
count: a tensor made over it, and every view of that tensor, counts as a reference until it is gone.
"""

from sys import getrefcount

KEPT = 16
"""Blocks that are remembered; the oldest is let go for a new one."""


_held = [bytearray()]
_FREE = getrefcount(_held[0])
"""References to a block that only a list holds, and the call: 2 in CPython 3.11, and nobody promises it."""


class Pool:
    """Blocks of memory of one thread."""

    def __init__(self) -> None:
        self._blocks: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """`size` bytes, aligned to 16, that nobody else holds; their content is arbitrary."""
        blocks = self._blocks
        for i in range(len(blocks)):
            if len(blocks[i]) == size and getrefcount(blocks[i]) == _FREE:
                return blocks[i]
        if len(blocks) >= KEPT:
            del blocks[0]
        blocks.append(bytearray(size))
        return blocks[-1]

    def copy(self, frame: bytes | memoryview) -> bytearray:
        """The bytes of a frame in memory of our own."""
        memory = self.take(len(frame))
        memoryview(memory)[:] = frame  # `memory[:] =` would copy twice
        return memory
