"""This project's rollout engine, as a training step calls it."""

import dataclasses
import pathlib

import jax_device
from protocol import serve


class GvmJax:
    """The parameters are brought to the rollouts' layout and dtype once, as the peers hold theirs."""

    def __init__(self, workload: dict):
        import numpy as np
        from ml_collections import ConfigDict

        from gvm_jax.models.config import Qwen2Config
        from gvm_jax.models.qwen2 import Model
        from gvm_jax.models.sharding import param_shardings
        from gvm_jax.models.weights import load_params
        from gvm_jax.rollout.engine import RolloutEngine
        from gvm_jax.rollout.settings import RolloutSettings
        from gvm_jax.runtime.keys import run_key
        from gvm_jax.runtime.mesh import describe_devices, make_mesh

        settings = {"page_size": 64, "slots": workload["slots"], **workload["rollout"]}
        names = [field.name for field in dataclasses.fields(RolloutSettings)]
        for name in settings:
            if name not in names:
                raise ValueError(f"--rollout={name}=...: no field of rollout; allowed are {', '.join(names)}")
        folder = pathlib.Path(workload["model"])
        mesh = make_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))
        model = Model(Qwen2Config.from_folder(folder), np.dtype(workload["dtype"]))
        settings = RolloutSettings(
            max_prompt_tokens=max(map(len, workload["prompts"])), max_new_tokens=workload["max_new_tokens"], **settings
        )
        self._prompts = [np.array(prompt, np.int32) for prompt in workload["prompts"]]
        engine = RolloutEngine(model, mesh, settings, workload["stop_ids"])
        self._policy = engine.load(load_params(model, folder, param_shardings(model, mesh)))
        self._workload, self._key, self._block_steps = workload, run_key, settings.block_steps
        self.configured = f"computed in {workload['dtype']}, {settings}, {describe_devices()}"

    def warm_up(self) -> None:
        """A whole run."""
        self.run(self._workload["counts"], seed=0)

    def run(self, counts: list[int], seed: int) -> dict:
        """One call of `Policy.sample`."""
        import numpy as np

        rollouts = self._policy.sample(
            self._prompts,
            np.arange(len(counts), dtype=np.int32),
            np.array(counts, np.int32),
            self._key(seed, "rollouts", 0),
            self._workload["temperature"],
        )
        stats = dataclasses.asdict(self._policy.stats)
        steps = stats["decode_blocks"] * self._block_steps
        return {
            "lengths": rollouts.response_lengths.tolist(),
            "prefill_seconds": stats["prefill_seconds"],
            "stats": stats,
            "steps": steps,
        }


if __name__ == "__main__":
    serve(GvmJax, ("jax", "jaxlib", "flax"), jax_device.state)
