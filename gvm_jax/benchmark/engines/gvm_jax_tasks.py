"""This project's rollouts, gradient norms, log-probabilities and updates, as a training step computes them."""

import dataclasses

import jax
import numpy as np
from gvm_jax_model import GvmJaxEngine, given_rollouts, logprobs_program, training_sizes

from gvm_jax.rollout.engine import RolloutEngine
from gvm_jax.rollout.paged_attention import TILE
from gvm_jax.rollout.policy import Policy
from gvm_jax.rollout.settings import RolloutSettings
from gvm_jax.runtime.keys import run_key
from gvm_jax.training.gradient_norms import GradientNormSettings, per_sample_gradient_norms
from gvm_jax.training.step import TrainStep


class Rollouts(GvmJaxEngine):
    """The parameters are brought to the rollouts' layout and dtype once, as the peers hold theirs."""

    def __init__(self, workload: dict):
        super().__init__(workload, devices=None)
        settings = RolloutSettings.from_config(self.config)
        engine = RolloutEngine(self.model, self.mesh, settings, workload["stop_ids"])
        self.policy = Policy(engine, self.load())
        self.prompts = [np.array(prompt, np.int32) for prompt in workload["prompts"]]
        # The bundled TPU kernel reads a prompt for each sample, the others for a tile of its samples.
        self.samples_per_read = 1 if engine.kernels == "tpu" else TILE
        self.configured += f", {settings}, attention {engine.kernels}"

    def run(self, counts: list[int], seed: int) -> dict:
        ids, key = np.arange(len(counts), dtype=np.int32), run_key(seed, "rollouts", 0)
        counts = np.array(counts, np.int32)
        rollouts = self.policy.sample(self.prompts, ids, counts, key, self.workload["temperature"])
        stats = dataclasses.asdict(self.policy.stats)
        return {
            "lengths": rollouts.response_lengths.tolist(),
            "prefill_seconds": stats["prefill_seconds"],
            "stats": stats,
            "steps": stats["decode_blocks"] * self.config.rollout.block_steps,
            "samples_per_read": self.samples_per_read,
        }


class Norms(GvmJaxEngine):
    """All samples in one call; the parameters are cast once, as the peer holds its own."""

    def __init__(self, workload: dict):
        super().__init__(workload, model__remat="none", optimizer__logprob_chunk=128)
        settings = GradientNormSettings.from_config(self.config.gradient_norms)
        rollouts, chunk = given_rollouts(workload), self.config.optimizer.logprob_chunk

        def norms(params, rollouts, measured):
            return per_sample_gradient_norms(
                self.model, params, rollouts, measured, settings, workload["temperature"], chunk
            )

        self.arguments = self.load(self.model.dtype), rollouts, np.ones(len(rollouts.group), bool)
        self.compiled = jax.jit(norms).lower(*self.arguments).compile()
        temporaries = self.compiled.memory_analysis().temp_size_in_bytes / 1e9
        self.configured += (
            f", {settings}, remat={self.config.model.remat}, attention {self.model.attention}, "
            f"{temporaries:.2f} GB of temporaries"
        )

    def run(self, counts: list[int], seed: int) -> dict:
        return {"norms": self.compiled(*self.arguments).tolist()}


class Logprobs(GvmJaxEngine):
    """Packed as for training; the parameters are cast once, as the peer holds its own."""

    def __init__(self, workload: dict):
        super().__init__(workload, model__remat="none")
        size, chunk, rollouts = workload["micro_batch"], self.config.optimizer.logprob_chunk, given_rollouts(workload)
        self.params = self.load(self.model.dtype)
        self.program, self.useful = logprobs_program(self.model, rollouts, size, workload["temperature"], chunk)
        self.configured += (
            f", packed rows of {rollouts.tokens.shape[1]} tokens, {size} a pass, attention {self.model.attention}, "
            f"logits of {chunk} response tokens at a time"
        )

    def run(self, counts: list[int], seed: int) -> dict:
        rows = zip(self.program(self.params).tolist(), self.workload["responses"], strict=True)
        logprobs = [row[: len(response)] for row, response in rows]
        return {"logprobs": logprobs, "packing_efficiency": self.useful}


class Update(GvmJaxEngine):
    """The train step with equal counts: one RAFT++ update, every response accepted, nothing measured."""

    def __init__(self, workload: dict):
        super().__init__(workload, allocation__strategy="uniform", **training_sizes(workload))
        optimizer, params, rollouts = self.config.optimizer, self.load(), given_rollouts(workload)
        logprobs, _ = logprobs_program(
            self.model, rollouts, optimizer.micro_batch, workload["temperature"], optimizer.logprob_chunk
        )
        prompts = np.arange(len(workload["prompts"]), dtype=np.int32)
        rollouts = rollouts.replace(logprobs=np.asarray(logprobs(params)))
        step = TrainStep.from_config(self.config, self.model, self.mesh, len(prompts)).jitted
        self.train_step, self.state = step.train_step, step.initial_state(params, prompts)
        self.batch = rollouts, np.ones(len(prompts), np.float32), prompts
        rows = optimizer.samples_per_row
        self.configured += (
            f", float32 parameters and AdamW, attention {self.model.attention}, remat={self.config.model.remat}, "
            f"packed rows of {rows} × {rollouts.tokens.shape[1]} tokens, {optimizer.micro_batch // rows} a "
            f"micro-batch, logits of {optimizer.logprob_chunk} tokens at a time"
        )

    def run(self, counts: list[int], seed: int) -> dict:
        self.state, metrics = self.train_step(self.state, *self.batch)
        return {name: float(getattr(metrics, name)) for name in ("loss", "gradient_norm", "packing_efficiency")}
