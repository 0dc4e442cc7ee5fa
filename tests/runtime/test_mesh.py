"""Sizes fill the devices or are refused."""

import jax
import pytest

from gvm_jax.config import ConfigError, get_config
from gvm_jax.runtime.mesh import AXES, describe_devices, make_mesh


def sizes(*values):
    mesh = get_config().mesh
    mesh.update(dict(zip(AXES, values, strict=True)))
    return mesh


@pytest.mark.parametrize(
    ("given", "filled"),
    [
        ((-1, 1, 1), (4, 1, 1)),
        ((-1, 2, 1), (2, 2, 1)),
        ((1, -1, 2), (1, 2, 2)),
        ((2, 1, -1), (2, 1, 2)),
        ((2, 2, 1), (2, 2, 1)),
    ],
)
def test_axes_fill_four_devices(given, filled):
    made = make_mesh(sizes(*given))
    assert made.axis_names == AXES and made.devices.shape == filled and {*made.devices.flat} == {*jax.devices()}


@pytest.mark.parametrize("given", [(1, 1, 1), (-1, 3, 1), (-1, 8, 1), (4, 2, 1)])
def test_sizes_that_do_not_fill_them_are_refused(given):
    with pytest.raises(ConfigError, match=rf"mesh\.data = {given[0]}, mesh\.fsdp = {given[1]}, .* 4 cpu device\(s\)"):
        make_mesh(sizes(*given))


def test_a_mesh_over_given_devices_uses_these():
    assert make_mesh(get_config().mesh, jax.devices()[:1]).devices.flatten().tolist() == jax.devices()[:1]
    with pytest.raises(ConfigError, match=r"mesh\.tensor = 2: cannot be laid over 1 "):
        make_mesh(sizes(-1, 1, 2), jax.devices()[:1])


def test_devices_are_described_in_a_line():
    assert describe_devices() == f"4 × cpu (cpu), 1 process(es), jax {jax.__version__}"
