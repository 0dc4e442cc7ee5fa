"""This project's log-probabilities of given responses, packed as for training."""

import jax_device
from packed import given_model, given_rollouts, logprobs_program
from protocol import serve


class GvmJaxLogprobs:
    """The parameters are cast once, as the peer holds its own."""

    def __init__(self, workload: dict):
        import numpy as np

        from gvm_jax.models.sharding import param_shardings
        from gvm_jax.models.weights import load_params
        from gvm_jax.runtime.mesh import describe_devices

        model, mesh, folder = given_model(workload, "none")
        self._rollouts, size = given_rollouts(workload), workload["micro_batch"]
        self._params = load_params(model, folder, param_shardings(model, mesh), np.dtype(workload["dtype"]))
        self._program, self._useful = logprobs_program(model, self._rollouts, size, workload["temperature"], 512)
        self.configured = (
            f"{workload['dtype']} parameters, packed rows of {self._rollouts.tokens.shape[1]} tokens, {size} a pass, "
            f"attention {model.attention}, "
            f"logits of 512 response tokens at a time, {describe_devices()}"
        )

    def warm_up(self) -> None:
        """Compiles, and a pass."""
        self.run([], 0)

    def run(self, counts: list[int], seed: int) -> dict:
        """One forward pass over all responses."""
        found, lengths = self._program(self._params).tolist(), self._rollouts.response_lengths.tolist()
        logprobs = [row[:length] for row, length in zip(found, lengths, strict=True)]
        return {"logprobs": logprobs, "packing_efficiency": self._useful, "lengths": lengths, "prefill_seconds": None}


if __name__ == "__main__":
    serve(GvmJaxLogprobs, ("jax", "jaxlib", "flax"), jax_device.state)
