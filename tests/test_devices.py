"""What the rules on numbers of devices advise is accepted when it is followed."""

import itertools
import re

import pytest

from gvm_jax.config import ConfigError, get_config, validate
from gvm_jax.models.config import Qwen2Config
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.sharding import check_axes, divisor
from gvm_jax.runtime.mesh import AXES, check_replicas, mesh_sizes
from gvm_jax.training.batch_sizes import check_micro_batch

NETWORKS = {  # heads, MLP and vocabulary have 4 and 2 in common
    "tiny": Qwen2Config(24, 128, 384, 2, 4, 2, 32, 1e4, 1e-6, True),
    "qwen2.5-0.5b": Qwen2Config(151936, 896, 4864, 24, 14, 2, 64, 1e6, 1e-6, True),
}


def check(config, model, devices: int) -> None:
    """Every rule that a run on so many devices of one process must keep."""
    sizes = mesh_sizes(config.mesh, devices, "cpu")
    shape = dict(zip(AXES, sizes, strict=True))
    check_axes(model, shape)
    check_replicas(config.rollout.tensor or shape["tensor"], devices, divisor(model, "tensor"))
    check_micro_batch(config, shape["data"] * shape["fsdp"])


def follow(config, error: ConfigError) -> None:
    """Sets the flags that the message gives."""
    flags = dict(re.findall(r"--config\.([a-z_.]+)=(-?\d+)", str(error)))
    assert flags and "\n" not in str(error), error
    config.update_from_flattened_dict({field: int(value) for field, value in flags.items()})
    validate(config)


def assert_advice_leads_to_a_run(config, model, devices):
    told = []
    while True:
        try:
            return check(config, model, devices)
        except ConfigError as error:
            subject = re.match(r"[\w.]+", str(error))[0]
            assert told.count(subject) == 0, (told, error)  # what was followed is not refused again
            told.append(subject)
            follow(config, error)


def sized(rollouts, updates, micro_batch, samples_per_row=1, prompts=4):
    config = get_config()
    config.model.path = config.data.path = "somewhere"
    config.prompts_per_step, config.rollouts_per_step = prompts, rollouts
    config.optimizer.updates_per_step, config.optimizer.micro_batch = updates, micro_batch
    config.optimizer.samples_per_row = samples_per_row
    validate(config)
    return config


@pytest.mark.parametrize("network", NETWORKS)
def test_meshes_and_replicas(network):
    model = Model(NETWORKS[network])
    for devices in (3, 8):
        for axes in itertools.product((-1, 1, 2, 3), repeat=3):
            for rollout_tensor in (0, 3):
                if axes.count(-1) <= 1:
                    config = sized(64, 1, 8)
                    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = axes
                    config.rollout.tensor = rollout_tensor
                    assert_advice_leads_to_a_run(config, model, devices)


@pytest.mark.parametrize("devices", [2, 3, 5, 6, 7, 8, 12])
def test_micro_batches(devices):
    for updates, micro_batch, samples_per_row in itertools.product((1, 3), (1, 8), (1, 2)):
        for share in (8, 24, 56):
            config = sized(updates * share, updates, micro_batch, samples_per_row)
            try:
                check_micro_batch(config, devices)
            except ConfigError as error:
                follow(config, error)
                check_micro_batch(config, devices)


def test_three_devices_take_a_micro_batch_that_divides_the_update():
    with pytest.raises(ConfigError, match=r"use --config\.optimizer\.micro_batch=6$"):
        check_micro_batch(sized(48, 2, 8), 3)
    with pytest.raises(ConfigError, match=r"use --config\.rollouts_per_step=516 --config\.optimizer\.micro_batch=6$"):
        check_micro_batch(sized(512, 2, 8, prompts=64), 3)


def test_a_floor_that_is_the_cap_keeps_the_samples_of_a_prompt():
    config = sized(32, 1, 8)
    config.allocation.min_samples = config.allocation.max_samples = 8
    validate(config)
    with pytest.raises(ConfigError, match=r"micro_batch") as raised:
        check_micro_batch(config, 3)
    follow(config, raised.value)
    check_micro_batch(config, 3)
    assert (config.prompts_per_step, config.rollouts_per_step) == (6, 48)
