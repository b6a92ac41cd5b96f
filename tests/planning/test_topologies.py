"""Names of slices."""

import pytest

from jaxdistill.errors import BadInput
from jaxdistill.planning.topologies import GENERATIONS, find, find_all
from jaxdistill.training.speed import peak_flops

KINDS = {
    "v2": "TPU v2",
    "v3": "TPU v3",
    "v4": "TPU v4",
    "v5e": "TPU v5 lite",
    "v5p": "TPU v5",
    "v6e": "TPU v6 lite",
    "tpu7x": "TPU7x",
}


@pytest.mark.parametrize(
    "name, chips, devices",
    [
        ("v3:16x16", 256, 512),
        ("v5e:16x16", 256, 256),
        ("v6e:1x1", 1, 1),
        ("v4:2x2x1", 4, 4),
        ("v5p:4x4x8", 128, 128),
        ("tpu7x:2x2x1", 4, 8),
    ],
)
def test_chips_and_devices(name, chips, devices):
    found = find(name)
    assert (found.chips, found.devices, found.name) == (chips, devices, name)


def test_a_v4_chip_is_one_device_and_a_slice_of_one_chip_is_its_own_host():
    assert find("v4:2x2x1").options() == {"chip_config_name": "megacore"}
    assert (
        find("v5e:1x1").options() == {"chips_per_host_bounds": (1, 1, 1)}
        and find("v5e:2x2").options() == {}
    )


def test_an_unknown_generation_lists_the_known_ones():
    with pytest.raises(BadInput) as error:
        find("v6:4x4")
    assert "'v6:4x4'" in str(error.value) and "v5e:4x4" in str(error.value)
    assert all(name in str(error.value) for name in GENERATIONS)


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v5e:16", "v5e:4x0", "v5e:axb", "v5e:2x2x2x2"])
def test_a_name_without_a_shape_shows_one(name):
    with pytest.raises(BadInput, match="v5e:4x4"):
        find(name)


@pytest.mark.parametrize("name", ["v5e:16x32", "v6e:2x2x2", "v3:2x2x4", "v4:32x32x8"])
def test_what_no_pod_holds(name):
    """libtpu compiles for such slices as for any other."""
    with pytest.raises(BadInput, match="is no slice of"):
        find(name)
    assert find("v5e:2x2x1").chips == 4 and find("v3:32x32").devices == 2048


def test_several_in_one_call():
    assert [t.name for t in find_all(["v3:4x4,v5e:4x4", "v3:4x4"])] == ["v3:4x4", "v5e:4x4"]
    with pytest.raises(BadInput, match="tpu7x"):
        find_all([","])


@pytest.mark.parametrize("name", GENERATIONS)
def test_peaks_are_those_of_a_run(name):
    """A plan's MFU and a run's must be of one peak."""
    generation = GENERATIONS[name]
    assert peak_flops(KINDS[name]) == pytest.approx(generation.flops / generation.devices_a_chip)
