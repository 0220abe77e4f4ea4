"""Reads ids from a memory-mapped file with little memory, and little from the disk."""

import mmap
import os
from typing import Any, Self

import numpy as np

from makemoe.data.tokenizer import Ids
from makemoe.machine import memory

MAPPED_WINDOWS = 2048
"""Windows that are read before their pages are unmapped."""


class Place:
    """Where ids are in a mapped file: with it, a process that is started anew maps them itself.

    Pickled, the ids would be copied.

    Args:
        ids: all of a mapped file, or a part of it.
    """

    def __init__(self, ids: Any) -> None:
        pages = np.frombuffer(ids._mmap, np.uint8).ctypes.data
        # A mapping begins at a multiple of this, at or before the array.
        begin = ids.offset - ids.offset % mmap.ALLOCATIONGRANULARITY
        self.file, self.dtype, self.length = os.fspath(ids.filename), ids.dtype, len(ids)
        self.offset = begin + ids.ctypes.data - pages

    @classmethod
    def of(cls, ids: Ids) -> Self | Ids:
        """The place of ids; of ids in memory, or of a file that is gone, the ids themselves."""
        file, pages = getattr(ids, "filename", None), getattr(ids, "_mmap", None)
        return ids if file is None or pages is None or not os.path.exists(file) else cls(ids)

    def mapped(self) -> Ids:
        """The ids, mapped anew."""
        ids: Ids = np.memmap(self.file, self.dtype, "r", self.offset, (self.length,))
        return ids


class Mapped:
    """Says to the system how ids are read; does nothing for ids in memory.

    Args:
        ids: all of a mapped file, or a part of it.
        at_random: whether windows at random places are read, or one after another.
    """

    def __init__(self, ids: Ids, at_random: bool) -> None:
        self.ids, self.read = ids, 0
        if at_random and self.pages is not None and ids.nbytes > memory().machine // 2:
            self._read_no_more_than_asked()

    @property
    def pages(self) -> mmap.mmap | None:
        """The mapping; None if there is none, or none that the system lets us advise."""
        pages = getattr(self.ids, "_mmap", None)
        return pages if hasattr(mmap, "MADV_DONTNEED") else None

    def was_read(self, windows: int) -> None:
        """Note that so many windows were read; unmap all pages now and then.

        The system maps 64 KiB or more around whatever is read. These pages count as memory of the
        process until others need the memory: a run on a large text would seem to take gigabytes.
        """
        self.read += windows
        if self.read >= MAPPED_WINDOWS:
            self.read = 0
            if self.pages is not None:
                self.pages.madvise(mmap.MADV_DONTNEED)

    def _read_no_more_than_asked(self) -> None:
        """Turn off reading ahead, up to megabytes per window.

        It helps while there is memory for the whole file, and costs several times as much as the
        windows themselves if there is not.
        """
        assert self.pages is not None
        begin = self.ids.ctypes.data - np.frombuffer(self.pages, np.uint8).ctypes.data
        first_page = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        length = self.ids.nbytes - (first_page - begin)
        if length > 0:
            self.pages.madvise(mmap.MADV_RANDOM, first_page, length)
