"""The JAX sampler of Tunix, Google's library for post-training."""

import itertools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
from batches import sample_in_batches
from jax_device import JaxEngine
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen2.model import ModelConfig
from tunix.models.qwen2.params import create_model_from_safe_tensors


class TokenIds:
    """In a tokenizer's place: the prompts are token ids already, and responses stay so."""

    def __init__(self, pad_id: int):
        self._pad_id = pad_id

    def encode(self, ids: list[int]) -> list[int]:
        return ids

    def decode(self, ids: list[int]) -> str:
        """Nothing: no engine's decoding of text is counted."""
        return ""

    def bos_id(self) -> None:
        """None: the ids are complete."""

    def eos_id(self) -> int:
        """Never asked for: the stop ids are given to each call."""
        return self._pad_id

    def pad_id(self) -> int:
        return self._pad_id


class Rollouts(JaxEngine):
    """Batches of `slots` rows, left-padded; each batch runs until its last row ends."""

    packages = ("google-tunix", "jax", "flax")

    def __init__(self, workload: dict):
        super().__init__(workload)
        raw = json.loads(pathlib.Path(workload["model"], "config.json").read_text(encoding="utf-8"))
        dtype = jnp.dtype(workload["dtype"])
        config = ModelConfig(
            num_layers=raw["num_hidden_layers"],
            vocab_size=raw["vocab_size"],
            embed_dim=raw["hidden_size"],
            hidden_dim=raw["intermediate_size"],
            num_heads=raw["num_attention_heads"],
            head_dim=raw["hidden_size"] // raw["num_attention_heads"],
            num_kv_heads=raw["num_key_value_heads"],
            rope_theta=raw["rope_theta"],
            norm_eps=raw["rms_norm_eps"],
            use_tied_embedding=raw["tie_word_embeddings"],
            dtype=dtype,
            param_dtype=dtype,
        )
        auto = (jax.sharding.AxisType.Auto,) * 2
        mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), auto, devices=jax.devices()[:1])
        model = create_model_from_safe_tensors(workload["model"], config, mesh, dtype)
        self.width = max(map(len, workload["prompts"]))
        cache = CacheConfig(
            cache_size=self.width + workload["max_new_tokens"],
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
        )
        self.sampler = Sampler(model, TokenIds(workload["pad_id"]), cache)
        self.prefill_seconds, prefill = 0.0, self.sampler._compiled_prefill_fn

        def timed_prefill(*arguments, **options):
            begin = time.perf_counter()
            state = jax.block_until_ready(prefill(*arguments, **options))
            self.prefill_seconds += time.perf_counter() - begin
            return state

        self.sampler._compiled_prefill_fn = timed_prefill
        self.configured = (
            f"{workload['dtype']}, its own sampler (no paged cache), left-padded batches of {workload['slots']} rows "
            "sorted by prompt length; a prompt is computed once for each of its samples"
        )

    def run(self, counts: list[int], seed: int) -> dict:
        self.prefill_seconds = 0.0
        seeds = itertools.count(seed * sum(counts))  # one a batch, none twice

        def sample(prompts: list[list[int]]) -> list[int]:
            output = self.sampler(
                prompts,
                max_generation_steps=self.workload["max_new_tokens"],
                max_prompt_length=self.width,
                eos_tokens=self.workload["stop_ids"] or [-1],
                temperature=self.workload["temperature"],
                top_p=1.0,
                seed=next(seeds),
            )
            # Its responses end before the stop token, which counts.
            return [min(len(tokens) + 1, self.workload["max_new_tokens"]) for tokens in output.tokens]

        lengths = sample_in_batches(self.workload["prompts"], counts, self.workload["slots"], sample)
        return {"lengths": lengths, "prefill_seconds": self.prefill_seconds}
