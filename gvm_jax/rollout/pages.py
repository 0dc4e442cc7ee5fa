"""The page pool: which pages of the KV cache are free."""

import numpy as np
from jaxtyping import Int

TRASH_PAGE = 0  # masked writes land here; never given to a sequence


class PagePool:
    """Pages by number. Each has one owner: a prompt, whose samples read its pages, or a sample."""

    def __init__(self, num_pages: int):
        self._free = np.arange(num_pages - 1, TRASH_PAGE, -1, dtype=np.int32)  # a stack: its first `_count` entries
        self._count = num_pages - 1

    @property
    def num_free(self) -> int:
        """Pages without an owner."""
        return self._count

    def allocate(self, count: int) -> Int[np.ndarray, " count"]:
        """`count` free pages. The caller has checked `num_free`."""
        if count > self._count:
            raise RuntimeError(f"{count} pages asked for, {self._count} free")
        self._count -= count
        return self._free[self._count : self._count + count].copy()

    def release(self, pages: Int[np.ndarray, " n"]) -> None:
        """Give pages back."""
        self._free[self._count : self._count + len(pages)] = pages
        self._count += len(pages)


def pages_for(tokens, page_size: int):
    """Pages that hold so many tokens (a number or an array of them)."""
    return -(-tokens // page_size)


def least_pages(max_prompt: int, max_response: int, page_size: int) -> int:
    """Pages that a pool needs at least: the trash page, one longest sequence, and its copy of a shared page.

    A sample shares the full pages of its prompt and has the prompt's last, partly filled page twice: the prompt's and
    its own copy. The last token sampled is never an input, so its keys and values need no place.
    """
    return 2 + pages_for(max_prompt + max_response - 1, page_size)
