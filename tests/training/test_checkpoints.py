"""What is saved comes back to the bit, whole or not at all."""

import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.errors import BadInput, TrainingStopped
from jaxdistill.training import sharding, state
from jaxdistill.training.checkpoints import Checkpoints, disk_errors
from tests.conftest import STUDENT, make_stage, random_params

STAGE = make_stage("progressive")


def example(step, seed=0):
    """A state in which no leaf is like another."""
    made = state.create(STAGE, random_params(STUDENT, seed))
    rng = np.random.default_rng(seed)
    moments = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), made.optimizer)
    return made.replace(step=jnp.int32(step), optimizer=moments, skipped=jnp.int32(3), skipped_in_a_row=jnp.int32(2))


def like():
    return jax.eval_shape(lambda key: state.create(STAGE, STUDENT.init(key)), jax.random.key(0))


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    )


@pytest.mark.parametrize("saved, restored", [(1, 1), (1, 8), (8, 1)])
def test_restored_is_saved_to_the_bit_on_any_number_of_devices(tmp_path, saved, restored):
    given = sharding.place(sharding.make_mesh(saved), example(4))
    first = Checkpoints(tmp_path)
    first.save(given, {"seconds": 1.5, "layers": [{"layer": 0}]}, wait=True)
    first.close()
    mesh = sharding.make_mesh(restored)
    held, page = Checkpoints(tmp_path).restore(like(), mesh)
    assert equal(held, given)
    assert page == {"schema": 1, "seconds": 1.5, "layers": [{"layer": 0}]}
    assert all(leaf.sharding.device_set == set(mesh.devices.flat) for leaf in jax.tree.leaves(held))


def test_a_relative_folder(tmp_path, monkeypatch):
    """`--workdir=runs/x` is below the folder that the command was given in."""
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints("runs/x")
    checkpoints.save(example(2), {}, wait=True)
    checkpoints.close()
    assert Checkpoints(tmp_path / "runs" / "x").latest() == 2


def test_the_newest_ones_are_kept_and_the_newest_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (2, 4, 6):
        checkpoints.save(example(step, seed=step), {"at": step}, wait=True)
    mesh = sharding.make_mesh(1)
    held, page = checkpoints.restore(like(), mesh)
    assert checkpoints.latest() == 6 and page == {"schema": 1, "at": 6} and equal(held, example(6, seed=6))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "6"]
    checkpoints.save(example(6, seed=0), {"at": "again"}, wait=True)  # already there: left alone
    assert checkpoints.restore(like(), mesh)[1]["at"] == 6
    checkpoints.close(delete=True)
    assert not tmp_path.exists()


def test_a_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(example(2), {}, wait=True)
    monkeypatch.setattr("jaxdistill.training.checkpoints.SCHEMA", 2)
    with pytest.raises(BadInput, match="schema 1, this version reads 2"):
        checkpoints.restore(like(), sharding.make_mesh(1))


def test_an_unfinished_save_is_not_a_checkpoint(tmp_path):
    """A killed process leaves a folder under a temporary name: the one before it is the newest."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(example(2), {}, wait=True)
    checkpoints.close()
    partial = tmp_path / "4.orbax-checkpoint-tmp"
    (partial / "state").mkdir(parents=True)
    (partial / "state" / "half").write_text("x")
    again = Checkpoints(tmp_path)
    assert again.latest() == 2
    assert equal(again.restore(like(), sharding.make_mesh(1))[0], example(2))


def test_what_is_saved_is_of_the_moment_of_saving(tmp_path):
    """A save goes on in the background while the loop donates the state's buffers and writes on in the page."""
    checkpoints, given = Checkpoints(tmp_path), example(2)
    page = {"layers": [{"layer": 0, "before": {"loss": 1.0}}], "seconds": 1.0}
    checkpoints.save(given, page)
    page["layers"][0]["after"] = {"loss": 0.5}
    page["layers"] += [{"layer": i} for i in range(1, 50)]
    jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(given)
    checkpoints.close()
    held, found = Checkpoints(tmp_path).restore(like(), sharding.make_mesh(1))
    assert equal(held, example(2))
    assert found["layers"] == [{"layer": 0, "before": {"loss": 1.0}}]


def test_what_is_handed_over_survives_the_next_step(tmp_path, monkeypatch):
    """On a CPU an array may be handed over without a copy: the next step's donation must not reach it."""
    checkpoints, given, held = Checkpoints(tmp_path), example(2), []
    monkeypatch.setattr(checkpoints._manager, "save", lambda step, args: held.append(args["state"].item))
    checkpoints.save(given, {})
    jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(given)
    assert jax.tree.leaves(given)[0].is_deleted() and equal(held[0], example(2))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Quota exceeded"),
        OSError(errno.EROFS, "Read-only file system"),
        PermissionError(errno.EACCES, "denied"),
        ValueError("RESOURCE_EXHAUSTED: write failed\nmore"),
    ],
)
def test_a_full_disk_stops_training_with_one_line(tmp_path, monkeypatch, error):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(example(2), {}, wait=True)

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", fail)
        with pytest.raises(TrainingStopped, match="cannot write .*earlier checkpoints are intact.*to resume") as caught:
            checkpoints.save(example(4), {}, wait=True)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3
    assert checkpoints.latest() == 2
    checkpoints.close()


def test_other_errors_pass(tmp_path):
    with pytest.raises(ZeroDivisionError), disk_errors(tmp_path):
        raise ZeroDivisionError("a bug")
