"""A whole training step of this project: the loop's two lines, `collect` and `update`."""

import json
import pathlib
import time

import jax_device
from protocol import serve

MODES = ("pilot", "online")


class GvmJaxStep:
    """GVM-RAFT++ as its authors run it (`mode=pilot`: pilots that are thrown away), or on earlier visits' statistics.

    In online mode each run does its update once more without norms and allocation, uncounted, to tell what they cost.
    """

    def __init__(self, workload: dict):
        from gvm_jax.config import get_config, validate
        from gvm_jax.runtime.mesh import describe_devices
        from gvm_jax.training.step import TrainStep
        from gvm_jax.training.trainer import Trainer

        self._config = config = get_config()
        settings = {"mode": "pilot", "remat": config.model.remat, **workload["step"]}
        if settings["mode"] not in MODES or set(settings) != {"mode", "remat"}:
            raise ValueError(f"--step: found {settings}; allowed are mode={' or '.join(MODES)}, and remat=NAME")
        data = pathlib.Path(workload["folder"], "questions.jsonl")
        rows = zip(workload["questions"], workload["golds"], strict=True)
        data.write_text(
            "".join(json.dumps({"problem": problem, "answer": reference}) + "\n" for problem, reference in rows)
        )
        prompts = len(workload["prompts"])
        config.model.path, config.data.path = workload["model"], str(data)
        config.model.compute_dtype, config.model.remat = workload["dtype"], settings["remat"]
        config.data.system_prompt, config.data.user_template = workload["system_prompt"], workload["user_template"]
        config.data.max_prompt_tokens = max(map(len, workload["prompts"]))
        config.prompts_per_step, config.rollouts_per_step = prompts, sum(workload["counts"])
        config.rollout.max_new_tokens, config.rollout.slots = workload["max_new_tokens"], workload["slots"]
        with config.unlocked():  # `validate` tells of unknown fields
            config.rollout.update(workload["rollout"])
        config.optimizer.updates_per_step, config.optimizer.micro_batch = 1, workload["micro_batch"]
        if settings["mode"] == "pilot":
            config.allocation.strategy, config.allocation.mode = "gvm_paper", "pilot"
            config.allocation.pilot_samples = workload["pilot_samples"]
            config.allocation.pilot_weight, config.allocation.decay = 0.0, 0.0
        validate(config)
        self._run = run = Trainer(config)
        if [list(tokens) for tokens in run.prompts.tokens] != workload["prompts"]:
            raise ValueError("this project's prompts are not the workload's")
        self._state, self._plain = run.initial_state(), None
        if settings["mode"] == "online":
            plain = config.copy_and_resolve_references()
            plain.unlock()
            plain.allocation.strategy = "uniform"
            self._plain = TrainStep.from_config(plain, run.sampler.model, run.sampler.mesh, prompts).jitted
        self.configured = (
            f"float32 parameters and AdamW, computed in {workload['dtype']}, remat={config.model.remat}, allocation "
            f"{config.allocation.strategy} ({config.allocation.mode}), gradient_norms.method="
            f"{config.gradient_norms.method}, {config.rollout.slots} slots, math-verify in worker processes, "
            f"{describe_devices()}"
        )

    def warm_up(self) -> None:
        """A whole step."""
        self.run([], 0)

    def run(self, counts: list[int], seed: int) -> dict:
        """A step; each run goes on where the last one ended, with other random numbers."""
        import jax

        run = self._run
        run.timer.reset()
        begin = time.perf_counter()
        self._state, graded = run.collect(self._state)
        with run.timer("update"):
            self._state, metrics = run.update(self._state, graded, run.stream[int(self._state.step) + 1])
            jax.block_until_ready((self._state, metrics))
        seconds, phases = time.perf_counter() - begin, run.timer.seconds
        if self._plain:
            batch = graded.rollouts, graded.rewards, run.stream[int(self._state.step) + 1]
            begin = time.perf_counter()
            self._state, _ = jax.block_until_ready(self._plain.train_step(self._state, *batch))
            phases["of update: norms, allocation"] = phases["update"] - (time.perf_counter() - begin)
        lengths = graded.rollouts.response_lengths[: len(graded.scores)].tolist()
        return {
            "lengths": lengths, "accepted": int((graded.scores > 0).sum()), "phases": phases, "seconds": seconds,
            "prefill_seconds": None,
        }  # fmt: skip


if __name__ == "__main__":
    serve(GvmJaxStep, ("jax", "jaxlib", "flax", "optax", "math-verify"), jax_device.state)
