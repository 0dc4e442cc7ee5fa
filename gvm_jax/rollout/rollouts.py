"""What the engine returns: sampled tokens as they were sampled, never re-tokenised."""

from collections.abc import Sequence

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Rollouts:
    """N samples of the prompts of a step, one a row, ordered by prompt and sample. L = P + T, right-padded."""

    tokens: Int[Array, "N L"]  # prompt, response (stop token included), padding
    prompt_lengths: Int[Array, " N"]
    response_lengths: Int[Array, " N"]
    logprobs: Float[Array, "N T"]  # of the response tokens under the sampling policy; 0 beyond the response
    group: Int[Array, " N"]  # which of the step's prompts the row samples
    stopped: Bool[Array, " N"]  # ended by a stop token; otherwise cut at the length limit

    @property
    def max_response(self) -> int:
        """T, the most tokens a response can have."""
        return self.logprobs.shape[1]

    def response(self, row: int) -> Int[np.ndarray, " n"]:
        """The response tokens of a row (numpy arrays only)."""
        begin = self.prompt_lengths[row]
        return self.tokens[row, begin : begin + self.response_lengths[row]]

    @staticmethod
    def concatenate(parts: "Sequence[Rollouts]") -> "Rollouts":
        """Rows of all, in order (numpy arrays only)."""
        return jax.tree.map(lambda *fields: np.concatenate(fields), *parts)

    def take(self, rows: Int[np.ndarray, " M"]) -> "Rollouts":
        """These rows, in this order."""
        return jax.tree.map(lambda field: field[rows], self)

    def pad(self, rows: int, group: int) -> "Rollouts":
        """Empty rows behind, `rows` in all, that belong to `group` (numpy arrays only)."""
        missing = rows - len(self.group)
        padded = jax.tree.map(lambda field: np.pad(field, [(0, missing), *[(0, 0)] * (field.ndim - 1)]), self)
        padded.group[len(self.group) :] = group
        return padded


class Samples:
    """Responses while they grow, one a row; rows are added by request."""

    def __init__(self, max_response: int):
        self.max_response = max_response
        self._tokens = np.zeros((0, max_response), np.int32)
        self._logprobs = np.zeros((0, max_response), np.float32)
        self.lengths = np.zeros(0, np.int32)
        self.stopped = np.zeros(0, bool)

    def __len__(self) -> int:
        """Rows so far."""
        return len(self.lengths)

    def add(self, count: int) -> range:
        """Appends empty rows."""
        begin = len(self)
        for name in ("lengths", "stopped"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros(count, old.dtype)]))
        if len(self) > len(self._tokens):
            rows = max(len(self), 2 * begin)  # room for more: to copy all at every request takes quadratic time
            for name in ("_tokens", "_logprobs"):
                old = getattr(self, name)
                setattr(self, name, grown := np.zeros((rows, self.max_response), old.dtype))
                grown[:begin] = old[:begin]
        return range(begin, begin + count)

    def append(
        self, rows: Int[np.ndarray, " n"], tokens: Int[np.ndarray, "n K"], logprobs: Float[np.ndarray, "n K"]
    ) -> Int[np.ndarray, " n"]:
        """Writes each row's next tokens, which end at the first negative one; returns how many there were."""
        new = tokens >= 0
        counts = new.sum(1)
        row, step = np.nonzero(new)
        at = self.lengths[rows][row] + step
        self._tokens[rows[row], at] = tokens[new]
        self._logprobs[rows[row], at] = logprobs[new]
        self.lengths[rows] += counts
        return counts

    def response(self, row: int) -> Int[np.ndarray, " n"]:
        """The tokens of a row so far."""
        return self._tokens[row, : self.lengths[row]]

    def rollouts(self, prompts: Sequence[Int[np.ndarray, " P"]], group: Int[np.ndarray, " N"], max_prompt: int):
        """Rollouts of all rows, row i being a sample of prompts[group[i]]."""
        prompt_lengths = np.array([len(prompts[i]) for i in group], np.int32)
        tokens = np.zeros((len(self), max_prompt + self.max_response), np.int32)
        for row, i in enumerate(group):
            begin = prompt_lengths[row]
            tokens[row, :begin] = prompts[i]
            tokens[row, begin : begin + self.lengths[row]] = self.response(row)
        return Rollouts(
            tokens,
            prompt_lengths,
            self.lengths.copy(),
            self._logprobs[: len(self)].copy(),
            group.astype(np.int32),
            self.stopped.copy(),
        )
