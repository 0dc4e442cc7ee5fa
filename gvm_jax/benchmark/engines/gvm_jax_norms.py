"""This project's gradient norms, as a training step calls them."""

import dataclasses
import json

import jax_device
from packed import given_model, given_rollouts
from protocol import serve


class GvmJaxNorms:
    """All samples in one call; the parameters are cast once, as the peer holds its own."""

    def __init__(self, workload: dict):
        import jax
        import jax.numpy as jnp
        import numpy as np

        from gvm_jax.models.weights import load_params
        from gvm_jax.runtime.mesh import describe_devices
        from gvm_jax.training.gradient_norms import GradientNormSettings, per_sample_gradient_norms

        defaults = {"method": "gram", "parameters": "embed_tokens", "chunk": 1, "max_samples": 0, "remat": "none"}
        defaults["attention"] = "auto"
        for name, value in workload["norms"].items():
            if name not in defaults:
                raise ValueError(f"--norms={name}=...: no field of the norms; allowed are {', '.join(defaults)}")
            if type(value) is not type(defaults[name]):
                raise ValueError(f"--norms={name}={value}: must be like {name}={json.dumps(defaults[name])}")
        given = {**defaults, **workload["norms"]}
        settings = GradientNormSettings(**{f.name: given[f.name] for f in dataclasses.fields(GradientNormSettings)})
        model, _, folder = given_model(workload, given["remat"], given["attention"])
        params = load_params(model, folder, dtype=model.dtype)

        rollouts = given_rollouts(workload)
        wanted = np.ones(len(rollouts.group), bool)

        def norms(params, rollouts):
            return per_sample_gradient_norms(
                model, params, rollouts, jnp.array(wanted), settings, workload["temperature"], 128
            )

        self._lowered = jax.jit(norms).lower(params, rollouts)
        self._arguments, self._lengths = (params, rollouts), rollouts.response_lengths.tolist()
        self.configured = (
            f"computed in {workload['dtype']}, {settings}, remat={given['remat']}, attention "
            f"{model.attention}, {describe_devices()}"
        )

    def warm_up(self) -> None:
        """Compiles, and a whole run."""
        self._compiled = self._lowered.compile()
        temporaries = self._compiled.memory_analysis().temp_size_in_bytes / 1e9
        self.configured += f", {temporaries:.2f} GB of temporaries"
        self.run([], 0)

    def run(self, counts: list[int], seed: int) -> dict:
        """One call; each sample is measured once."""
        norms = self._compiled(*self._arguments).tolist()
        return {"norms": norms, "lengths": self._lengths, "prefill_seconds": None}


if __name__ == "__main__":
    serve(GvmJaxNorms, ("jax", "jaxlib", "flax"), jax_device.state)
