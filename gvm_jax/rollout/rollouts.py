"""What the engine returns: sampled tokens as they were sampled, never re-tokenised."""

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

    @classmethod
    def empty(cls, prompts: list[np.ndarray], counts: np.ndarray, max_prompt: int, max_response: int) -> "Rollouts":
        """Rows for `counts[i]` samples of prompt i, as numpy arrays without a response yet."""
        group = np.repeat(np.arange(len(prompts), dtype=np.int32), counts)
        tokens = np.zeros((len(group), max_prompt + max_response), np.int32)
        for row, i in enumerate(group):
            tokens[row, : len(prompts[i])] = prompts[i]
        return cls(
            tokens=tokens,
            prompt_lengths=np.array([len(prompts[i]) for i in group], np.int32),
            response_lengths=np.zeros(len(group), np.int32),
            logprobs=np.zeros((len(group), max_response), np.float32),
            group=group,
            stopped=np.zeros(len(group), bool),
        )

    def append(self, row: int, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Write the next response tokens of a row in place (numpy arrays only)."""
        begin = self.response_lengths[row]
        at = self.prompt_lengths[row] + begin
        self.tokens[row, at : at + len(tokens)] = tokens
        self.logprobs[row, begin : begin + len(tokens)] = logprobs
        self.response_lengths[row] += len(tokens)

    def response(self, row: int) -> np.ndarray:
        """The response tokens of a row."""
        begin = self.prompt_lengths[row]
        return self.tokens[row, begin : begin + self.response_lengths[row]]

    @staticmethod
    def concatenate(first: "Rollouts", second: "Rollouts") -> "Rollouts":
        """Rows of both, first's before second's."""
        fields = first.__dataclass_fields__
        return Rollouts(**{f: np.concatenate([getattr(first, f), getattr(second, f)]) for f in fields})
