"""This project's train step on given responses: one RAFT++ update over packed rows."""

import jax_device
from packed import given_model, given_rollouts, logprobs_program
from protocol import serve


class GvmJaxUpdate:
    """The program of training, with equal counts: every response is accepted and nothing is measured."""

    def __init__(self, workload: dict):
        import numpy as np

        from gvm_jax.config import get_config
        from gvm_jax.models.sharding import param_shardings
        from gvm_jax.models.weights import load_params
        from gvm_jax.runtime.mesh import describe_devices
        from gvm_jax.training.step import TrainStep

        prompts, responses = workload["prompts"], workload["responses"]
        if len(prompts) % workload["micro_batch"]:
            raise ValueError(f"--micro_batch={workload['micro_batch']}: must divide the {len(prompts)} responses")
        config = get_config()
        config.prompts_per_step = config.rollouts_per_step = len(prompts)
        config.data.max_prompt_tokens, config.rollout.max_new_tokens = max(map(len, prompts)), max(map(len, responses))
        config.allocation.strategy = "uniform"
        for name, value in workload["update"].items():
            fields = {
                "remat": config.model,
                "attention": config.model,
                "logprob_chunk": config.optimizer,
                "samples_per_row": config.optimizer,
            }
            if name not in fields:
                raise ValueError(f"--update={name}=...: no field of the update; allowed are {', '.join(fields)}")
            if type(value) is not type(fields[name][name]):
                raise ValueError(f"--update={name}={value}: must be like {name}={fields[name][name]}")
            fields[name][name] = value
        if broken := [name for name in ("logprob_chunk", "samples_per_row") if config.optimizer[name] < 1]:
            raise ValueError(f"--update={broken[0]}={config.optimizer[broken[0]]}: must be an integer >= 1")
        config.optimizer.updates_per_step, config.optimizer.micro_batch = 1, workload["micro_batch"]
        model, mesh, folder = given_model(workload, config.model.remat, config.model.attention)
        params = load_params(model, folder, param_shardings(model, mesh))
        self._prompts, rollouts = np.arange(len(prompts), dtype=np.int32), given_rollouts(workload)
        rows = config.optimizer.samples_per_row
        size, chunk = config.optimizer.micro_batch, config.optimizer.logprob_chunk
        logprobs, _ = logprobs_program(model, rollouts, size, workload["temperature"], chunk)
        self._rollouts = rollouts.replace(logprobs=np.asarray(logprobs(params)))
        step = TrainStep.from_config(config, model, mesh, len(prompts)).jitted
        self._step, self._state = step.train_step, step.initial_state(params, self._prompts)
        self._lengths = rollouts.response_lengths.tolist()
        self.configured = (
            f"float32 parameters and AdamW, computed in {workload['dtype']}, attention {model.attention}, "
            f"remat={config.model.remat}, packed "
            f"rows of {rows} × {rollouts.tokens.shape[1]} tokens, {workload['micro_batch'] // rows} a micro-batch, "
            f"logits of {config.optimizer.logprob_chunk} tokens at a time, {describe_devices()}"
        )

    def warm_up(self) -> None:
        """Compiles, and an update."""
        self.run([], 0)

    def run(self, counts: list[int], seed: int) -> dict:
        """An update on all responses."""
        import numpy as np

        self._state, metrics = self._step(
            self._state, self._rollouts, np.ones(len(self._lengths), np.float32), self._prompts
        )
        loss, norm, useful = (float(x) for x in (metrics.loss, metrics.gradient_norm, metrics.packing_efficiency))
        return {
            "loss": loss, "gradient_norm": norm, "packing_efficiency": useful, "lengths": self._lengths,
            "prefill_seconds": None,
        }  # fmt: skip


if __name__ == "__main__":
    serve(GvmJaxUpdate, ("jax", "jaxlib", "flax", "optax"), jax_device.state)
