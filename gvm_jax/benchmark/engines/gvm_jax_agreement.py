"""What a step of this project computes from given responses: the train step itself, once for each algorithm."""

import pathlib

import jax_device
from packed import given_model, given_rollouts, logprobs_program
from protocol import serve

LEARNING_RATE = 0.1  # so large that rounding of the float32 parameters hides no digit of the update


class GvmJaxAgreement:
    """Pilot-free: one visit of each prompt fills the statistics, from which the next counts come."""

    def __init__(self, workload: dict):
        import jax

        from gvm_jax.runtime.mesh import describe_devices

        jax.config.update("jax_default_matmul_precision", "highest")  # a GPU would round to 10 bits (TF32)
        self._workload, self._rollouts = workload, given_rollouts(workload)
        self._model, self._mesh, self._folder = given_model(workload, "full")
        self.configured = (
            f"float32 parameters, computed in {workload['dtype']}, the train step with allocation gvm_paper and "
            f"gradient_norms.method=gram, packed rows, {workload['micro_batch']} a micro-batch, {describe_devices()}"
        )

    def warm_up(self) -> None:
        """Nothing is timed."""

    def run(self, counts: list[int], seed: int) -> dict:
        """Everything once."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        from gvm_jax.config import get_config
        from gvm_jax.training.gradient_norms import GradientNormSettings, per_sample_gradient_norms

        workload, rollouts = self._workload, self._rollouts
        lengths, params = rollouts.response_lengths.tolist(), self._load()
        program, _ = logprobs_program(self._model, rollouts, workload["micro_batch"], workload["temperature"], 512)
        found = np.asarray(program(params))
        shifts = np.zeros_like(found)
        for row, shift in zip(shifts, workload["shifts"], strict=True):
            row[: len(shift)] = shift
        rollouts = rollouts.replace(logprobs=jnp.array(found + shifts))
        settings = GradientNormSettings.from_config(get_config().gradient_norms)
        measured = jnp.array(workload["rewards"]) > 0

        def norms(params, rollouts):
            return per_sample_gradient_norms(
                self._model, params, rollouts, measured, settings, workload["temperature"], 512
            )

        norms = jax.jit(norms)(params, rollouts).tolist()
        del params
        losses, gradient_norms = {}, {}
        for algorithm in ("raft", "grpo", "raft_pp"):
            state = None  # free the former's memory first
            state, metrics = self._step(algorithm, rollouts)
            losses[algorithm], gradient_norms[algorithm] = float(metrics.loss), float(metrics.gradient_norm)
        allocation = np.zeros(len(state.counts), np.int32)
        allocation[np.asarray(state.prompt_ids)] = np.asarray(state.counts)
        return {
            "logprobs": [row[:length] for row, length in zip(found.tolist(), lengths, strict=True)],
            "norms": norms,
            "allocation": allocation.tolist(),
            "losses": losses,
            "gradient_norms": gradient_norms,
            "tensors": self._save(state),
            "lengths": lengths,
            "prefill_seconds": None,
        }

    def _load(self):
        from gvm_jax.models.sharding import param_shardings
        from gvm_jax.models.weights import load_params

        return load_params(self._model, self._folder, param_shardings(self._model, self._mesh))

    def _step(self, algorithm: str, rollouts):
        """The state after one step with one update, and its metrics."""
        import numpy as np

        from gvm_jax.config import get_config
        from gvm_jax.training.step import TrainStep

        config, groups = get_config(), self._workload["groups"]
        prompts = np.arange(max(groups) + 1, dtype=np.int32)
        config.prompts_per_step, config.rollouts_per_step = len(prompts), len(groups)
        config.data.max_prompt_tokens = rollouts.tokens.shape[1] - rollouts.max_response
        config.rollout.max_new_tokens = rollouts.max_response
        config.allocation.strategy, config.objective.algorithm = "gvm_paper", algorithm
        config.optimizer.updates_per_step, config.optimizer.micro_batch = 1, self._workload["micro_batch"]
        config.optimizer.learning_rate = LEARNING_RATE
        step = TrainStep.from_config(config, self._model, self._mesh, len(prompts)).jitted
        state = step.initial_state(self._load(), prompts)
        by_prompt = np.argsort(np.asarray(state.prompt_ids))  # a group is a place in `prompt_ids`
        rollouts = rollouts.replace(group=by_prompt[np.array(groups)].astype(np.int32))
        return step.train_step(state, rollouts, np.array(self._workload["rewards"], np.float32), prompts)

    def _save(self, state) -> dict[str, str]:
        """Files with the clipped gradient and with what AdamW makes of it, by the checkpoint's names."""
        import jax
        import jax.numpy as jnp
        import optax

        from gvm_jax.models.weights import save_params

        def save(params, name: str) -> str:
            folder = pathlib.Path(self._workload["folder"], "gvm_jax", name)
            save_params(self._model, params, folder, "float32", self._folder)
            return str(folder / "model.safetensors")

        (mean,) = optax.tree_utils.tree_get_all_with_path(state.opt_state, "mu")
        gradient = jax.tree.map(lambda m: m / (1 - 0.9), mean[1])  # mu = (1 - b1) g after the first update
        files = {"gradient": save(gradient, "gradient")}
        del gradient
        return files | {"update": save(jax.tree.map(jnp.subtract, state.params, self._load()), "update")}


if __name__ == "__main__":
    serve(GvmJaxAgreement, ("jax", "jaxlib", "flax", "optax"), jax_device.state)
