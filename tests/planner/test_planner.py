"""Plans of a tiny model, compiled for the CPU's virtual devices in place of a TPU's."""

import dataclasses
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import pytest

from gvm_jax.config import ConfigError, get_config
from gvm_jax.errors import InputError
from gvm_jax.models.config import Qwen2Config
from gvm_jax.models.packed_attention import segment_attention
from gvm_jax.models.qwen2 import Model, UnstackedQwen2
from gvm_jax.planner import Assumptions, plan, render, search
from gvm_jax.planner.abstract_run import AbstractRun, replicated_arrays
from gvm_jax.planner.advice import advice
from gvm_jax.planner.hlo import parse
from gvm_jax.planner.hlo_costs import program_costs
from gvm_jax.planner.model_flops import body_flops, head_flops, layer_weights, program_flops
from gvm_jax.planner.planner import compile_program, plan_run
from gvm_jax.planner.search import candidates
from gvm_jax.planner.topologies import CHIPS, Topology, chip_of
from gvm_jax.runtime.mesh import replica_mesh

TINY = pathlib.Path(__file__).parents[1] / "models/golden/tiny_untied"
ASSUMED = Assumptions(data_rows=100, prompt_tokens=4, response_tokens=8)


@dataclasses.dataclass(frozen=True)
class OfTheCpu(Topology):
    """Virtual CPU devices in a TPU's place, with any amount of memory."""

    def devices(self) -> list:
        return jax.devices()[: self.size]

    def host(self) -> Topology:
        return self


def topology(size=4, memory=2**30) -> Topology:
    return OfTheCpu("tpu", dataclasses.replace(CHIPS["v5e"], hbm_bytes=memory), size)


def tiny_config(data=1, fsdp=1, tensor=1, **fields):
    config = get_config()
    config.update_from_flattened_dict({
        "model.path": str(TINY), "data.path": "unread", "model.compute_dtype": "float32", "model.attention": "xla",
        "prompts_per_step": 4, "rollouts_per_step": 16, "data.max_prompt_tokens": 8, "rollout.max_new_tokens": 16,
        "rollout.slots": 8, "rollout.page_size": 8, "rollout.prefill_tokens": 64, "optimizer.updates_per_step": 2,
        "optimizer.micro_batch": 4, "mesh.data": data, "mesh.fsdp": fsdp,
        "mesh.tensor": tensor,
    })  # fmt: skip
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def build(config, where=None, network=None) -> AbstractRun:
    return AbstractRun.build(config, where or topology(), ASSUMED, network)


def network(**changes) -> Qwen2Config:
    return dataclasses.replace(Qwen2Config.from_folder(TINY), **changes)


def with_run(made, **changes):
    return dataclasses.replace(made, run=dataclasses.replace(made.run, **changes))


@pytest.fixture(scope="module")
def made():
    lines = []
    made = plan(tiny_config(fsdp=4), topology(), assumptions=ASSUMED, progress=lines.append)
    assert any("train step" in line for line in lines)
    return made


def test_the_weights_of_a_layer_are_the_models():
    layers = Model(network()).abstract_params["layers"]
    kernels = sum(layers[name]["kernel"].size for name in layers if name.endswith("proj"))
    assert layer_weights(network()) * network().num_hidden_layers == kernels


def test_model_operations_are_those_of_a_program_without_loops():
    wide = network(hidden_size=256, intermediate_size=512, vocab_size=1024, head_dim=64)
    model, rows, length = Model(wide, network=UnstackedQwen2), 2, 32

    def logits(params, tokens):
        module = model.bind(params)
        attention = segment_attention(jnp.ones_like(tokens))
        hidden, _ = module(tokens, jnp.broadcast_to(jnp.arange(length), tokens.shape), attention)
        return module.logits(hidden)

    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    compiled = jax.jit(logits).lower(model.abstract_params, tokens).compile()
    expected = body_flops(wide, rows * length, length) + head_flops(wide, rows * length)
    assert program_costs(parse(compiled.as_text()), 1).flops == expected
    assert compiled.cost_analysis()["flops"] == pytest.approx(expected, rel=0.1)  # norms and softmaxes are in it


def test_the_update_is_three_passes_over_every_row():
    tiny = network()
    weights = tiny.num_hidden_layers * layer_weights(tiny)
    attention = 4 * tiny.num_hidden_layers * tiny.num_attention_heads * tiny.head_dim * 25 / 2
    row = 3 * (24 * (2 * weights + attention) + 16 * 2 * tiny.hidden_size * tiny.vocab_size)
    fields = {"allocation__strategy": "uniform"}
    for kl, passes in ((0.0, 3), (0.1, 4)):  # the reference's forward pass
        run = build(tiny_config(fsdp=4, **fields, objective__kl_coefficient=kl))
        assert program_flops(run, "train step") == pytest.approx(16 * row * passes / 3)


def test_every_program_is_planned(made):
    assert [p.name for p in made.programs] == ["prefill", "copy pages", "decode 8", "train step"]
    assert made.fits and made.step_seconds > 0 and made.tokens_per_second_per_chip > 0
    fields = {"allocation__mode": "pilot", "allocation__pilot_samples": 1}
    assert [*build(tiny_config(fsdp=4, **fields)).step.lower()] == ["pilot", "train step"]


def test_a_plan_is_printed(made):
    text = render(made)
    assert text.startswith(f"{TINY}: ") and text.splitlines()[-1].startswith("fits: ")
    for part in ("MiB of memory on a chip", "TFLOP compiled", "Collectives of a train step", "step: at least"):
        assert part in text


def test_the_policy_is_held_while_sampling_and_dropped_before_the_update(made):
    decode, train = made.program("decode 8"), made.program("train step")
    assert made.run.replicas == made.run.engine.replicas == 4
    assert decode.held["KV pages"] == made.run.engine.cache_bytes / 4
    assert decode.held["parameters"] == train.held["parameters"] > 0
    assert "KV pages" not in train.held and "rollout weights" not in train.held


def test_replicas_share_the_samples(made):
    decode, prefill, copy = (made.program(name) for name in ("decode 8", "prefill", "copy pages"))
    assert decode.model_flops == program_flops(build(tiny_config(), topology(1)), "decode 8") * 4
    assert (made.runs(decode), made.runs(prefill), made.runs(copy)) == (1, 1, 1), "4 samples of 8 tokens a replica"
    for tensor, blocks in ((1, 5), (2, 10), (4, 20)):  # of 8 samples x 8 tokens
        run = build(tiny_config(fsdp=4, rollouts_per_step=160, prompts_per_step=128, rollout__tensor=tensor))
        more = dataclasses.replace(made, run=run)
        assert run.replicas == 4 // tensor and more.runs(decode) == more.runs(copy) == blocks
        assert more.runs(prefill) == 2 * tensor  # 128 prompts of 4 tokens, 64 tokens at once


def test_slots_without_a_sample_shorten_nothing(made):
    """4 samples a replica: twice the slots leave the blocks as many, and a narrower batch is what a step runs."""
    run = build(tiny_config(fsdp=4, rollout__slots=64))
    assert run.width == 8
    many = dataclasses.replace(made, run=dataclasses.replace(run, assumptions=Assumptions(100, 4, 64)))
    assert many.runs(made.program("decode 8")) == 8
    assert many.runs(dataclasses.replace(made.program("decode 8"), name="decode 64")) == 0


def test_a_replica_of_more_devices_holds_less_on_each():
    fields = {"fsdp": 4, "model__compute_dtype": "bfloat16"}
    one, two = (build(tiny_config(**fields, rollout__tensor=tensor)).held() for tensor in (1, 2))
    assert two["rollout weights"] == pytest.approx(one["rollout weights"] / 2, rel=0.05)
    assert two["KV pages"] == one["KV pages"] / 2


def test_state_halves_when_the_fsdp_axis_doubles():
    held = {fsdp: build(tiny_config(fsdp=fsdp), topology(fsdp)).held() for fsdp in (1, 2, 4)}
    state = {fsdp: arrays["parameters"] + arrays["optimizer"] for fsdp, arrays in held.items()}
    assert state[2] / state[1] == pytest.approx(0.5, rel=0.15)
    assert state[4] / state[2] == pytest.approx(0.5, rel=0.15)


def test_what_is_held_is_what_the_compiler_is_given(made):
    compiled = made.run.step.lower()["train step"].compile()
    rollouts = 16 * (24 * 4 + 4 + 4 + 16 * 4 + 4 + 1) + 16 * 4
    given = compiled.memory_analysis().argument_size_in_bytes
    assert sum(made.program("train step").held.values()) + rollouts == pytest.approx(given, rel=0.02)


def test_replicated_arrays_are_found():
    found = {}
    for name, config, size in (("split", {"fsdp": 4}, 4), ("whole", {"data": 4}, 4), ("one", {}, 1)):
        params = build(tiny_config(**config), topology(size)).step.abstract_state.params
        found[name] = replicated_arrays(params, least_bytes=1000)
    assert found["split"] == found["one"] == []
    assert any("embed_tokens" in path for path, _ in found["whole"])


def test_a_plan_that_does_not_fit_says_what_to_change(made):
    tight = with_run(made, topology=topology(memory=0.9 * max(p.total for p in made.programs)))
    text = render(tight)
    assert not tight.fits and "does not fit: needs" in text and "change: --config." in text and "frees about" in text
    assert advice(made) == []


def test_advice_names_the_fields_of_the_rollouts():
    run = build(tiny_config(fsdp=4, model__compute_dtype="bfloat16"))
    held = run.held()
    small = topology(memory=held["parameters"] + held["optimizer"] + held["KV pages"])
    text = "\n".join(advice(with_run(plan_run(run, only=("decode 8",)), topology=small)))
    for field in ("--config.rollout.tensor=2 (now 1)", "--config.rollout.pages=", "--config.rollout.slots="):
        assert field in text


@pytest.mark.parametrize(("shape", "micro_batch"), [({}, 4), ({"hidden_size": 46, "head_dim": 16}, 12)])
def test_what_is_advised_can_be_built(made, shape, micro_batch):
    """Of a plan with a byte of memory: all that there is to advise. A hidden size of 46 cannot be split into four."""
    fields = {"rollouts_per_step": 48, "optimizer__micro_batch": micro_batch, "model__remat": "dots"}
    fields |= {"optimizer__logprob_chunk": 64, "gradient_norms__chunk": 2}
    run = build(tiny_config(data=2, fsdp=2, **fields), topology(memory=1), network(**shape))
    lines = [line for line in advice(dataclasses.replace(made, run=run)) if line.startswith("--config")]
    assert len(lines) >= 5 and any("mesh.fsdp=4" in line for line in lines) == (not shape)
    for line in lines:
        changes = re.findall(r"--config\.([\w.]+)=(\w+)", line)
        assert run.changed({name: int(value) if value.isdigit() else value for name, value in changes})


def test_out_of_memory_at_compilation_is_an_answer(made):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: ... Used 20.31G of 15.75G hbm. Exceeded by 4.56G.")

    failed = compile_program(made.run, "train step", Lowered())
    assert not failed.fits_alone and failed.total == int(20.31 * 2**30)
    whole = dataclasses.replace(made, programs=(failed,))
    assert not whole.fits and whole.step_seconds is None


def test_topologies_count_devices_and_know_their_hosts():
    found = {}
    for name in ("v5e:4x4", "v5e:2x2", "v5p:4x4x4", "v6e:2x4", "tpu7x:2x2x2", "h100:8"):
        whole = Topology.parse(name)
        found[name] = (whole.size, whole.host().name, whole.host().size)
    assert found == {
        "v5e:4x4": (16, "v5e:2x2", 4), "v5e:2x2": (4, "v5e:2x2", 4), "v5p:4x4x4": (64, "v5p:2x2x1", 4),
        "v6e:2x4": (8, "v6e:2x2", 4), "tpu7x:2x2x2": (16, "tpu7x:2x2x1", 8), "h100:8": (8, "h100:8", 8),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["v9:4x4", "v5e", "v5e:4x4x4", "v5e:0x4", "h100:2x4", "v5p:4x4", "v5e:four"])
def test_a_wrong_topology_lists_what_is_allowed(name):
    with pytest.raises(ConfigError, match=r"--topology=.*(v5e:4x4|v5p:4x4x4|h100:8)"):
        Topology.parse(name)


def test_devices_are_known_by_what_they_call_themselves():
    names = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200", "TPU v5 lite": "v5e", "TPU v5e": "v5e"}
    for name, chip in (names | {"TPU v5p": "v5p", "TPU v6 lite": "v6e"}).items():
        assert chip_of(name) is CHIPS[chip]
    for other in ("cpu", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GH200 480GB", "NVIDIA H100 80GB HBM3 MIG 1g"):
        assert chip_of(other) is None, "variants have other peaks"


@pytest.mark.parametrize("name", ["v5e:4x4", "v5p:2x2x4", "v6e:2x4"])
def test_a_hosts_chips_are_replicas_of_a_pod(name):
    """libtpu's own hosts; the mesh follows the links, so its neighbours may sit in different ones."""
    pytest.importorskip("libtpu", reason="topologies want libtpu: pip install '.[tpu]'")
    whole = Topology.parse(name)
    fields = {"rollouts_per_step": 32, "optimizer__micro_batch": whole.size, "model__compute_dtype": "bfloat16"}
    run = build(tiny_config(fsdp=whole.size, **fields, rollout__tensor=4), whole)
    assert (run.replicas, run.engine.replicas) == (whole.size // 4, 1)
    dealt = replica_mesh(run.mesh, 4, 4).devices[:, 0]
    assert all(len({device.process_index for device in devices}) == 1 for devices in dealt)
    assert {d.id for d in dealt.flat} == {d.id for d in run.mesh.devices.flat}
    with pytest.raises(ConfigError, match=r"rollout\.tensor = 8 .*must divide the 4 device\(s\) of a process"):
        build(tiny_config(fsdp=whole.size, **fields, rollout__tensor=8), whole)


def test_pages_are_copied_in_place(without_cache):
    """With the heads of Qwen2.5-Math-1.5B, whose cache a TPU's compiler likes to lay out in another way."""
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install '.[tpu]'")
    fields = {"model__compute_dtype": "bfloat16", "rollout__page_size": 64, "rollout__pages": 1024}
    heads = network(hidden_size=256, num_attention_heads=2, num_key_value_heads=2, head_dim=128)
    run = build(tiny_config(fsdp=4, **fields), Topology.parse("v5e:2x2"), heads)
    compiled = run.engine.lower()["copy pages"].compile()
    assert compiled.memory_analysis().temp_size_in_bytes < run.held()["KV pages"] / 100


@pytest.mark.parametrize(("name", "kernels"), [("auto", "gpu"), ("gpu", "gpu"), ("xla", "xla")])
def test_a_gpu_is_estimated_with_the_attention_that_a_run_takes(name, kernels):
    fields = {"rollout__attention": name, "model__attention": "auto", "model__compute_dtype": "bfloat16"}
    made = plan(tiny_config(fsdp=2, **fields), "h100:2", assumptions=ASSUMED)
    assert [p.name for p in made.programs] == ["decode 8", "train step"] and made.fits and made.step_seconds is None
    assert f"attention {kernels}; trained with attention cudnn" in render(made) and "\nestimate:" in render(made)


def test_a_plan_that_cannot_be_made_is_refused_as_in_a_run_there():
    with pytest.raises(InputError, match=r"--config\.model\.path=FOLDER"):
        plan(tiny_config(model__path="no/such-model"), "h100:1")
    with pytest.raises(ConfigError, match="--search: compiles"):
        search(tiny_config(), "h100:1")
    with pytest.raises(ConfigError, match=r"rollout\.attention = 'tpu': runs on a TPU, .* platform 'gpu'"):
        plan(tiny_config(rollout__attention="tpu"), "h100:1")


def test_the_search_knows_every_mesh_that_the_config_allows():
    found = list(candidates(tiny_config(rollouts_per_step=32), topology(), ASSUMED))
    meshes = {tuple(run.config.mesh[a] for a in ("data", "fsdp", "tensor")) for run in found}
    assert meshes == {(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)}
    assert {r.config.optimizer.micro_batch for r in found if r.config.mesh.tensor == 4} == {1, 2, 4, 8, 16}


def test_the_search_compiles_the_likeliest_and_returns_those_that_fit(monkeypatch):
    monkeypatch.setattr(sys.modules["gvm_jax.planner.search"], "MOST", 1)  # the package's `search` is the function
    lines, arguments = [], {"assumptions": ASSUMED}
    [found] = search(tiny_config(), topology(1), progress=lines.append, **arguments)
    assert found.fits and found.step_seconds > 0 and [p.name for p in found.programs] == ["decode 8", "train step"]
    assert "--config.mesh.fsdp=1" in found.run.flags and "--config.optimizer.micro_batch=" in found.run.flags
    assert any("1 will be compiled" in line for line in lines)
    assert search(tiny_config(), topology(1, memory=1), **arguments) == []


def test_only_config_json_is_needed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(json.loads((TINY / "config.json").read_text())))
    assert build(tiny_config(fsdp=4, model__path=str(tmp_path))).network == network()
