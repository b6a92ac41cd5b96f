"""The profiler window: what TensorBoard and xprof read, of the steps asked for."""

import jax
import jax.numpy as jnp
import pytest

from jaxdistill.training.profiling import Profile


def steps_traced(folder, window, steps=6, fail_at=None):
    """Steps in whose trace our named computation appears."""
    work = jax.jit(lambda x: jnp.sin(x) @ x)
    x = work(jnp.ones((64, 64)))
    with Profile(window, folder) as profile:
        for step in range(steps):
            profile.before(step, x)
            if step == fail_at:
                raise KeyboardInterrupt
            with jax.profiler.TraceAnnotation(f"step_{step}"):
                x = work(x)
    return traced(folder)


def traced(folder):
    names = set()
    for path in folder.glob("plugins/profile/*/*.xplane.pb"):
        data = jax.profiler.ProfileData.from_file(str(path))
        names |= {
            event.name for plane in data.planes for line in plane.lines for event in line.events
        }
    return {int(name.removeprefix("step_")) for name in names if name.startswith("step_")}


def test_the_steps_asked_for_are_traced_where_tensorboard_looks(tmp_path):
    assert steps_traced(tmp_path, (2, 4)) == {2, 3}


def test_a_window_that_the_stage_ends_in_is_kept(tmp_path):
    assert steps_traced(tmp_path / "a", (4, 100)) == {4, 5}
    with pytest.raises(KeyboardInterrupt):
        steps_traced(tmp_path / "b", (1, 100), fail_at=3)
    assert traced(tmp_path / "b") == {1, 2}


@pytest.mark.parametrize("window", [(), (100, 105)])
def test_none_was_asked_for(tmp_path, window):
    assert steps_traced(tmp_path, window) == set() and not list(tmp_path.iterdir())
