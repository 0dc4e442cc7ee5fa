"""The page pool: which pages of the KV cache are free, and how many sequences read each of the others."""

import numpy as np

TRASH_PAGE = 0  # masked writes land here; never given to a sequence


class PagePool:
    """Reference-counted pages. A prompt's full pages are shared by all samples of the prompt."""

    def __init__(self, num_pages: int):
        self._references = np.zeros(num_pages, np.int32)
        self._references[TRASH_PAGE] = 1
        self._free = list(range(num_pages - 1, TRASH_PAGE, -1))

    @property
    def num_free(self) -> int:
        """Pages that no sequence holds."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` free pages, each with one reference. The caller has checked `num_free`."""
        if count > len(self._free):
            raise RuntimeError(f"{count} pages asked for, {len(self._free)} free")
        pages = [self._free.pop() for _ in range(count)]
        self._references[pages] = 1
        return pages

    def share(self, pages: list[int]) -> None:
        """One more reference to each page."""
        self._references[pages] += 1

    def release(self, pages: list[int]) -> None:
        """One reference less to each page; a page without any is free again."""
        self._references[pages] -= 1
        self._free.extend(page for page in pages if self._references[page] == 0)


def pages_for(tokens: int, page_size: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // page_size)


def least_pages(max_prompt: int, max_response: int, page_size: int) -> int:
    """Pages that a pool needs at least: the trash page, the longest prompt's, and one longest sequence's.

    The last token of a prompt is not prefilled, and the last token sampled is never an input.
    """
    prompt = pages_for(max_prompt - 1, page_size)
    return 1 + prompt + pages_for(max_prompt + max_response - 1, page_size)
