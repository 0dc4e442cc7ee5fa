"""A model is assembled as its platform has it."""

import jax
import jax.numpy as jnp
import pytest

from gvm_jax.config import get_config
from gvm_jax.models.assemble import make_model, resolve_compute_dtype
from gvm_jax.runtime import cpu


@pytest.mark.parametrize(
    ("fields", "platform", "dtype", "attention"),
    [
        ({}, "tpu", "bfloat16", "splash"),
        ({}, "gpu", "bfloat16", "cudnn"),
        ({"compute_dtype": "float32"}, "gpu", "float32", "xla"),
        ({"attention": "xla"}, "tpu", "bfloat16", "xla"),
        ({"attention": "cudnn"}, "gpu", "bfloat16", "cudnn"),
        ({"compute_dtype": "bfloat16", "remat": "dots"}, None, "bfloat16", "xla"),  # of the mesh's devices, CPUs
    ],
)
def test_dtype_and_attention_follow_the_platform(tiny, mesh, fields, platform, dtype, attention):
    settings = get_config().model
    settings.update(fields)
    model, described = make_model(settings, tiny[0].config, mesh, platform)
    assert (model.dtype, model.attention, model.remat) == (jnp.dtype(dtype), attention, settings.remat)
    assert model.abstract_params == tiny[0].abstract_params
    assert f"computed in {dtype}: " in described and described.endswith(f"trained with attention {attention}")


@pytest.mark.parametrize(
    ("name", "platform", "version", "amx", "dtype"),
    [
        ("auto", "tpu", (0, 10, 2), False, jnp.bfloat16),
        ("auto", "gpu", (0, 10, 2), False, jnp.bfloat16),
        ("auto", "cpu", (0, 12, 0), True, jnp.bfloat16),
        ("auto", "cpu", (0, 12, 0), False, jnp.float32),
        ("auto", "cpu", (0, 11, 9), True, jnp.float32),
        ("float32", "tpu", (0, 12, 0), True, jnp.float32),
        ("bfloat16", "cpu", (0, 10, 2), False, jnp.bfloat16),
    ],
)
def test_the_compute_dtype_is_the_faster_one(monkeypatch, name, platform, version, amx, dtype):
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setattr(cpu, "_has_amx", lambda: amx)
    resolved, reason = resolve_compute_dtype(name, platform)
    assert resolved == dtype
    assert reason.startswith(f"{resolved.name}: ") and "\n" not in reason
