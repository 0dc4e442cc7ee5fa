"""What a step of this project computes from given responses: the train step itself, once for each algorithm."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from gvm_jax_model import GvmJaxEngine, given_rollouts, logprobs_program, make_config, training_sizes

from gvm_jax.models.weights import save_params
from gvm_jax.training.gradient_norms import GradientNormSettings, per_sample_gradient_norms
from gvm_jax.training.step import TrainStep

LEARNING_RATE = 0.1  # so large that rounding of the float32 parameters hides no digit of the update
CHUNK = 512  # tokens whose logits are held at once


class Agreement(GvmJaxEngine):
    """Pilot-free: one visit of each prompt fills the statistics, from which the next counts come."""

    def __init__(self, workload: dict):
        jax.config.update("jax_default_matmul_precision", "highest")  # a GPU would round to 10 bits (TF32)
        super().__init__(workload, model__remat="full")
        self.configured += (
            ", float32 parameters, the train step with allocation gvm_paper and gradient_norms.method=gram, packed "
            f"rows, {workload['micro_batch']} a micro-batch"
        )

    def warm_up(self) -> None:
        pass  # nothing is timed

    def run(self, counts: list[int], seed: int) -> dict:
        workload, rollouts, params = self.workload, given_rollouts(self.workload), self.load()
        temperature, rewards = workload["temperature"], np.array(workload["rewards"], np.float32)
        program, _ = logprobs_program(self.model, rollouts, workload["micro_batch"], temperature, CHUNK)
        found = np.asarray(program(params))
        shifts = np.zeros_like(found)
        for row, shift in zip(shifts, workload["shifts"], strict=True):
            row[: len(shift)] = shift
        rollouts = rollouts.replace(logprobs=jnp.array(found + shifts))
        settings = GradientNormSettings.from_config(self.config.gradient_norms)

        def norms(params, rollouts):
            return per_sample_gradient_norms(
                self.model, params, rollouts, jnp.array(rewards > 0), settings, temperature, CHUNK
            )

        norms = jax.jit(norms)(params, rollouts).tolist()
        del params
        losses, gradient_norms = {}, {}
        for algorithm in ("raft", "grpo", "raft_pp"):
            state = None  # free the former's memory first
            state, metrics = self._step(algorithm, rollouts, rewards)
            losses[algorithm], gradient_norms[algorithm] = float(metrics.loss), float(metrics.gradient_norm)
        allocation = np.zeros(len(state.counts), np.int32)
        allocation[np.asarray(state.prompt_ids)] = np.asarray(state.counts)
        rows = zip(found.tolist(), workload["responses"], strict=True)
        return {
            "logprobs": [row[: len(response)] for row, response in rows],
            "norms": norms,
            "allocation": allocation.tolist(),
            "losses": losses,
            "gradient_norms": gradient_norms,
            "tensors": self._save(state),
        }

    def _step(self, algorithm: str, rollouts, rewards):
        """The state after one step with one update, and its metrics."""
        config = make_config(
            self.workload, allocation__strategy="gvm_paper", objective__algorithm=algorithm,
            optimizer__learning_rate=LEARNING_RATE, **training_sizes(self.workload),
        )  # fmt: skip
        prompts = np.arange(config.prompts_per_step, dtype=np.int32)
        step = TrainStep.from_config(config, self.model, self.mesh, len(prompts)).jitted
        state = step.initial_state(self.load(), prompts)
        by_prompt = np.argsort(np.asarray(state.prompt_ids)).astype(np.int32)  # a group is a place in `prompt_ids`
        return step.train_step(state, rollouts.replace(group=by_prompt[rollouts.group]), rewards, prompts)

    def _save(self, state) -> dict[str, str]:
        """Files with the clipped gradient and with what AdamW makes of it, by the checkpoint's names."""

        def save(params, name: str) -> str:
            folder = pathlib.Path(self.workload["folder"], "gvm_jax", name)
            save_params(self.model, params, folder, "float32", self.folder)
            return str(folder / "model.safetensors")

        (mean,) = optax.tree_utils.tree_get_all_with_path(state.opt_state, "mu")
        gradient = jax.tree.map(lambda m: m / (1 - 0.9), mean[1])  # mu = (1 - b1) g after the first update
        files = {"gradient": save(gradient, "gradient")}
        del gradient
        return files | {"update": save(jax.tree.map(jnp.subtract, state.params, self.load()), "update")}
