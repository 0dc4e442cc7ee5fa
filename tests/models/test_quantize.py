"""Int8 parameters: the rounding error, and the network that computes with them against plain numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gvm_jax.models.quantize import quantize, quantize_matrix
from gvm_jax.models.qwen2 import Model, Qwen2, UnstackedQwen2
from gvm_jax.models.sharding import param_shardings
from gvm_jax.runtime import cpu
from tests.models.test_parity import logits_of

# Outputs of each matrix, by its own axes: every other axis is contracted and shares a scale.
OUTPUTS = {"embed_tokens": "vd->v", "lm_head": "vd->v", "gate_proj": "ldf->lf", "up_proj": "ldf->lf"} | {
    "down_proj": "lfd->ld", "q_proj": "ldhe->lhe", "k_proj": "ldhe->lhe", "v_proj": "ldhe->lhe", "o_proj": "lhed->ld",
}  # fmt: skip


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def matrices(params):
    """Where the matrices are in the tree."""
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        keys = tuple(entry.key for entry in path)
        if keys[-1] == "kernel":
            yield keys[:-1]


def dequantised(params):
    """Float parameters q · scale, in float64 numpy."""

    def walk(name, node):
        if not isinstance(node, dict):
            return np.asarray(node, np.float64)
        node = {key: walk(key, child) for key, child in node.items()}
        if "scale" in node and "kernel" in node:
            axes, outputs = OUTPUTS[name].split("->")
            scale = node.pop("scale")
            node["kernel"] = np.einsum(f"{axes},{outputs}->{axes}", node["kernel"], scale)
        return node

    return walk("", params)


def numpy_logits(config, params, tokens):
    """Qwen2's logits of one sequence [L], layer by layer in float64."""
    length, hd = len(tokens), config.head_dim

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * scale

    def rotate(x):  # [L, heads, head_dim]
        angles = np.arange(length)[:, None] * config.rope_theta ** (-np.arange(0, hd, 2) / hd)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        a, b = x[..., : hd // 2], x[..., hd // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = params["embed_tokens"]["kernel"][tokens]
    for i in range(config.num_hidden_layers):
        layer = jax.tree.map(lambda w: w[i], params["layers"])  # noqa: B023
        h = norm(x, layer["input_layernorm"]["scale"])
        q, k, v = (
            np.einsum("td,dhe->the", h, layer[f"{n}_proj"]["kernel"]) + layer[f"{n}_proj"]["bias"] for n in "qkv"
        )
        groups = config.num_attention_heads // config.num_key_value_heads
        k, v = np.repeat(rotate(k), groups, 1), np.repeat(v, groups, 1)
        scores = np.einsum("the,she->hts", rotate(q), k) / np.sqrt(hd)
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hts,she->the", weights / weights.sum(-1, keepdims=True), v)
        x = x + np.einsum("the,hed->td", mixed, layer["o_proj"]["kernel"])
        h = norm(x, layer["post_attention_layernorm"]["scale"])
        gate = h @ layer["gate_proj"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ layer["up_proj"]["kernel"])) @ layer["down_proj"]["kernel"]
    head = params["embed_tokens" if config.tie_word_embeddings else "lm_head"]["kernel"]
    return norm(x, params["norm"]["scale"]) @ head.T


@pytest.fixture(params=["untied", "tied"])
def network(tiny, request):
    """(config, float parameters) with embeddings untied and tied; biases and norms are not trivial."""
    model, params, _ = tiny
    config = dataclasses.replace(model.config, tie_word_embeddings=request.param == "tied")
    return config, {name: node for name, node in params.items() if name != "lm_head" or request.param == "untied"}


def test_no_entry_is_off_by_more_than_half_a_scale(tiny):
    params = tiny[1]
    rounded = jax.jit(quantize)(params)
    for path in matrices(params):
        kernel, stored = np.asarray(at(params, path)["kernel"], np.float64), at(rounded, path)
        axes, outputs = OUTPUTS[path[-1]].split("->")
        scale = np.einsum(f"{outputs},{axes}->{axes}", stored["scale"], np.ones_like(kernel))
        q = np.asarray(stored["kernel"], np.float64)
        assert stored["kernel"].dtype == np.int8 and stored["scale"].dtype == np.float32
        assert (np.abs(kernel - q * scale) <= scale * (0.5 + 1e-4)).all(), path
        contracted = tuple(i for i, axis in enumerate(axes) if axis not in outputs)
        np.testing.assert_array_equal(np.abs(q).max(contracted), 127, err_msg=str(path))  # the whole range is used
    for name in ("input_layernorm", "post_attention_layernorm"):
        np.testing.assert_array_equal(rounded["layers"][name]["scale"], params["layers"][name]["scale"])
    np.testing.assert_array_equal(rounded["layers"]["q_proj"]["bias"], params["layers"]["q_proj"]["bias"])


def test_a_matrix_written_out():
    matrix = jnp.array([[2.54, 0.0, -1.0], [-0.03, 0.0, 0.5], [-2.54, 0.0, 0.25]], jnp.bfloat16)
    q, scale = quantize_matrix(matrix, (0,))
    np.testing.assert_allclose(scale, [2.546875 / 127, 1.0, 1.0 / 127], rtol=1e-6)  # an output of zeros divides by 1
    np.testing.assert_array_equal(q, [[127, 0, -127], [-1, 0, 64], [-127, 0, 32]])


@pytest.mark.parametrize("stacked", [True, False])
def test_logits_are_those_of_the_rounded_weights(network, stacked):
    config, params = network
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 17)
    expected = numpy_logits(config, dequantised(quantize(params)), tokens)
    model = Model(config, network=Qwen2 if stacked else UnstackedQwen2, weight_dtype="int8")
    rounded = quantize(params if stacked else cpu.unstack(params))
    logits = jax.jit(lambda p, t: logits_of(model, p, t))(rounded, tokens[None])[0]
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    exact = numpy_logits(config, dequantised(params), tokens)
    assert 1e-3 * exact.std() < np.abs(expected - exact).max() < exact.std(), "near the float network, and not it"


def test_scales_are_not_rounded_to_the_compute_dtype(tiny):
    """48 ones times a scale: the product is rounded once, to the output's dtype."""
    config = tiny[0].config
    rounded = cpu.unstack(quantize(tiny[1]))
    head, gate = rounded["lm_head"], rounded["layers"][0]["gate_proj"]
    for node in (head, gate):
        node["kernel"] = jnp.ones_like(node["kernel"])
        node["scale"] = 1.0 + jnp.arange(node["scale"].size) / 4096
    module = Model(config, jnp.bfloat16, network=UnstackedQwen2, weight_dtype="int8").bind(rounded)
    ones = jnp.ones((1, config.hidden_size), jnp.bfloat16)
    logits, gated = module.logits(ones)[0], module.layers[0].gate_proj(ones)[0]
    assert logits.dtype == jnp.float32 and gated.dtype == jnp.bfloat16
    np.testing.assert_allclose(logits, 48 * head["scale"], rtol=1e-6)
    np.testing.assert_array_equal(gated, (48 * gate["scale"]).astype(jnp.bfloat16))


@pytest.mark.parametrize("stacked", [True, False])
def test_the_model_declares_the_tree_that_quantize_gives(network, stacked, test_mesh):
    config, params = network
    model = Model(config, network=Qwen2 if stacked else UnstackedQwen2, weight_dtype="int8")
    rounded = quantize(params if stacked else cpu.unstack(params))
    shape_and_dtype = jax.tree.map(lambda x: (x.shape, x.dtype), model.abstract_params)
    assert shape_and_dtype == jax.tree.map(lambda x: (x.shape, x.dtype), rounded)
    shardings = param_shardings(model, test_mesh(fsdp=2, tensor=2))
    placed = jax.device_put(rounded, shardings)
    layer = placed["layers"] if stacked else placed["layers"][1]
    layers = (None,) * stacked
    expected = {
        "q_proj": (*layers, "tensor", None), "o_proj": (*layers, "fsdp"), "gate_proj": (*layers, "tensor"),
        "down_proj": (*layers, "fsdp"),
    }  # fmt: skip
    for name, spec in expected.items():
        assert tuple(layer[name]["scale"].sharding.spec) == spec, name
    assert tuple(placed["embed_tokens"]["scale"].sharding.spec) == ("tensor",)
    tokens = np.arange(9)[None]
    one, many = (jax.jit(lambda p: logits_of(model, p, tokens))(p) for p in (rounded, placed))
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_random_int8_parameters_are_refused(tiny):
    with pytest.raises(ValueError, match="quantize the parameters of a float model"):
        Model(tiny[0].config, weight_dtype="int8").init(0)
