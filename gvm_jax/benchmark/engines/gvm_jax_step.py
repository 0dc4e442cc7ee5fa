"""A whole training step of this project: the loop's two lines, `collect` and `update`."""

import json
import pathlib
import time

import jax
from gvm_jax_model import make_config, training_sizes
from jax_device import JaxEngine

from gvm_jax.runtime.mesh import describe_devices
from gvm_jax.training.step import TrainStep
from gvm_jax.training.trainer import Trainer


class Step(JaxEngine):
    """GVM-RAFT++ as its authors run it (allocation.mode=pilot: pilots that are thrown away), or online.

    Online, by statistics of earlier visits, each run does its update once more without norms and allocation, uncounted,
    to tell what they cost.
    """

    packages = ("jax", "jaxlib", "flax", "optax", "math-verify")

    def __init__(self, workload: dict):
        super().__init__(workload)
        data = pathlib.Path(workload["folder"], "questions.jsonl")
        rows = zip(workload["questions"], workload["reference_answers"], strict=True)
        data.write_text("".join(json.dumps({"problem": problem, "answer": answer}) + "\n" for problem, answer in rows))
        online = workload["fields"].get("allocation.mode") == "online"
        pilots = {
            "allocation__strategy": "gvm_paper", "allocation__mode": "pilot", "allocation__pilot_weight": 0.0,
            "allocation__pilot_samples": workload["pilot_samples"], "allocation__decay": 0.0,
        }  # fmt: skip
        prompt = {f"data__{name}": workload[name] for name in ("system_prompt", "user_template")}
        fields = {**training_sizes(workload), **prompt, **({} if online else pilots)}
        self.config = config = make_config(workload, data__path=str(data), **fields)
        self.trainer = trainer = Trainer(config)
        if [list(tokens) for tokens in trainer.prompts.tokens] != workload["prompts"]:
            raise ValueError("this project's prompts are not the workload's")
        self.state, self.plain = trainer.initial_state(), None
        if online:
            plain = config.copy_and_resolve_references()
            plain.unlock()
            plain.allocation.strategy = "uniform"
            model, mesh = trainer.sampler.model, trainer.sampler.mesh
            self.plain = TrainStep.from_config(plain, model, mesh, len(workload["prompts"])).jitted
        self.configured = (
            f"float32 parameters and AdamW, computed in {workload['dtype']}, remat={config.model.remat}, allocation "
            f"{config.allocation.strategy} ({config.allocation.mode}), gradient_norms.method="
            f"{config.gradient_norms.method}, {config.rollout.slots} slots, math-verify in worker processes, "
            f"{describe_devices()}"
        )

    def run(self, counts: list[int], seed: int) -> dict:
        """A step; each run goes on where the last one ended, with other random numbers."""
        run = self.trainer
        run.timer.reset()
        begin = time.perf_counter()
        self.state, graded = run.collect(self.state)
        with run.timer("update"):
            self.state, metrics = run.update(self.state, graded, run.stream[int(self.state.step) + 1])
            jax.block_until_ready((self.state, metrics))
        seconds, phases = time.perf_counter() - begin, run.timer.seconds
        if self.plain:
            batch = graded.rollouts, graded.rewards, run.stream[int(self.state.step) + 1]
            begin = time.perf_counter()
            self.state, _ = jax.block_until_ready(self.plain.train_step(self.state, *batch))
            phases["of update: norms, allocation"] = phases["update"] - (time.perf_counter() - begin)
        lengths = graded.rollouts.response_lengths[: len(graded.scores)].tolist()
        accepted = int((graded.scores > 0).sum())
        return {"lengths": lengths, "accepted": accepted, "phases": phases, "seconds": seconds}
