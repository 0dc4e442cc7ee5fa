"""The engine's own programs, prefill to sampling, compiled for TPUs that are not there."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import pytest

from gvm_jax.models.config import Qwen2Config
from gvm_jax.models.qwen2 import Model
from gvm_jax.rollout.engine import RolloutEngine
from gvm_jax.rollout.settings import RolloutSettings

TINY = pathlib.Path(__file__).parents[2] / "models/golden/tiny_untied"


@pytest.mark.slow
@pytest.mark.parametrize(
    "tpu_mesh, attention, weight_dtype",
    [
        ("v5e:2x4", "auto", "compute"),
        ("v5p:2x2x2", "tpu_shared", "int8"),
        ("v6e:2x4", "auto", "compute"),
        ("v6e:2x4", "tpu_shared", "int8"),
    ],
    indirect=["tpu_mesh"],
)
def test_the_engine_compiles_for_tpu(tpu_mesh, without_cache, attention, weight_dtype):
    """Qwen2.5-0.5B's heads over a tensor axis of two: the cache stays in place and holds whole vectors."""
    config = dataclasses.replace(
        Qwen2Config.from_folder(TINY), num_attention_heads=14, num_key_value_heads=2, head_dim=64, hidden_size=896,
        intermediate_size=512, vocab_size=1024,
    )  # fmt: skip
    settings = RolloutSettings(100, 60, 16, 32, attention=attention, weight_dtype=weight_dtype)
    engine = RolloutEngine(Model(config, jnp.bfloat16), tpu_mesh, settings, (1,))
    assert engine.kernels == {"auto": "tpu"}.get(attention, attention)
    local = engine.cache_bytes // engine.replicas // 2
    assert engine.replicas in (2, 4), "those of one host: of 4 or 8 chips"
    assert local * 2 == config.num_hidden_layers * settings.num_pages * 32 * 4 * 128 * 2
    assert {"prefill", "copy pages", "decode 16"} <= set(engine.compiled)
    for name, program in engine.compiled.items():
        if name == "copy pages":
            continue
        assert "tpu_custom_call" in program.as_text()
        assert program.memory_analysis().alias_size_in_bytes >= local
    assert jax.default_backend() == "cpu"
