"""What is saved comes back to the bit, whole or not at all."""

import errno
import gc
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxdistill.errors import BadInput, JaxDistillError, PreemptedNow, TrainingStopped
from jaxdistill.training import sharding, state
from jaxdistill.training.checkpoints import Checkpoints, checksums, disk_errors
from tests.conftest import STUDENT, cast_of, make_stage, random_params

STAGE = make_stage("progressive")


def example(step, seed=0):
    """A state in which no leaf is like another."""
    made = state.create(cast_of(STAGE), random_params(STUDENT, seed))
    rng = np.random.default_rng(seed)
    moments = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), made.optimizer)
    return made.replace(
        step=jnp.int32(step), optimizer=moments, skipped=jnp.int32(3), skipped_in_a_row=jnp.int32(2)
    )


def like():
    return jax.eval_shape(
        lambda key: state.create(cast_of(STAGE), STUDENT.init(key)), jax.random.key(0)
    )


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    )


MESHES = {
    "one": (1, 1, 1),
    "data": (8, 1, 1),
    "fsdp": (1, 2, 1),
    "tensor": (1, 1, 2),
    "mixed": (2, 2, 2),
}


@pytest.mark.parametrize(
    "saved",
    ["mixed", *(pytest.param(name, marks=pytest.mark.slow) for name in MESHES if name != "mixed")],
)
def test_restored_is_saved_to_the_bit_on_any_mesh(tmp_path, saved):
    given = sharding.place(sharding.make_mesh(*MESHES[saved]), example(4))
    first = Checkpoints(tmp_path)
    first.save(given, {"seconds": 1.5, "layers": [{"layer": 0}]}, wait=True)
    first.close()
    for shape in MESHES.values():
        mesh = sharding.make_mesh(*shape)
        held, page = Checkpoints(tmp_path).restore(like(), mesh)
        assert equal(held, example(4))
        assert page == {"schema": 2, "seconds": 1.5, "layers": [{"layer": 0}]}
        assert all(
            leaf.sharding.device_set == set(mesh.devices.flat) for leaf in jax.tree.leaves(held)
        )


def test_every_bit_and_its_place_counts_in_a_checksum():
    x = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    seen = {
        int(checksums([x])[0]),
        int(checksums([np.roll(x, 1)])[0]),
        int(checksums([x[::-1].copy()])[0]),
    }
    for place in (0, 5, 11):
        for bit in range(32):
            other = x.copy()
            other.view(np.uint32).reshape(-1)[place] ^= np.uint32(1) << np.uint32(bit)
            seen.add(int(checksums([other])[0]))
    assert len(seen) == 3 + 3 * 32
    assert list(checksums([x, x.astype(np.int32)])) != list(checksums([x.astype(np.int32), x]))


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(
    tmp_path, capsys, monkeypatch, few
):
    """Whatever happens to whichever of its files: what is read is one of the two that were saved,
    to the bit. Nothing else is said: no traceback of a reader that was dropped."""
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", lambda it: ignored.append(repr(it.exc_value)))
    checkpoints = Checkpoints(tmp_path / "whole")
    for step in (2, 4):
        checkpoints.save(example(step, seed=step), {"at": step}, wait=True)
    checkpoints.close()
    files = sorted(
        path.relative_to(tmp_path / "whole")
        for path in (tmp_path / "whole" / "4").rglob("*")
        if path.is_file()
    )
    if few:
        largest = max(files, key=lambda file: (tmp_path / "whole" / file).stat().st_size)
        files = [largest, next(file for file in files if "array_metadatas" in file.parts)]
    damages = {
        "deleted": lambda path: path.unlink(),
        "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "flipped": lambda path: path.write_bytes(flip(path.read_bytes())),
    }
    went_back = set()
    for file in files:
        for damage, do in damages.items():
            folder = tmp_path / f"{damage}-{str(file).replace('/', '-')}"
            shutil.copytree(tmp_path / "whole", folder)
            do(folder / file)
            again = Checkpoints(folder)
            held, page = again.restore(like(), sharding.make_mesh(1))
            said = capsys.readouterr().err
            assert page["at"] in (2, 4) and equal(held, example(page["at"], seed=page["at"])), (
                file,
                damage,
            )
            assert (page["at"] == 2) == (
                "is damaged" in said and "kept as damaged-4, going on from step 2" in said
            )
            if page["at"] == 2:
                went_back.add(damage)
                assert (folder / "damaged-4").exists() and again.latest() == 2
                again.save(
                    example(4, seed=9), {"at": 4}, wait=True
                )  # the run comes to that step again
                assert equal(again.restore(like(), sharding.make_mesh(1))[0], example(4, seed=9))
            again.close()
    gc.collect()
    assert went_back == set(damages) and not ignored, ignored[:3]


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def test_wrong_numbers_in_sound_files_are_damage_too(tmp_path, monkeypatch, capsys):
    """As a faulty memory or a mistake in resharding would leave them."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(example(2), {}, wait=True)
    real = checkpoints._manager.save

    def save(step, args, **options):
        state = args["state"].item
        state = state.replace(
            params=jax.tree.map(lambda x: x.at[(0,) * x.ndim].add(1e-3), state.params)
        )
        return real(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), page=args["page"]),
            **options,
        )

    monkeypatch.setattr(checkpoints._manager, "save", save)
    checkpoints.save(example(4), {}, wait=True)
    held, _ = checkpoints.restore(like(), sharding.make_mesh(1))
    assert (
        equal(held, example(2))
        and "its contents are not those that were saved" in capsys.readouterr().err
    )


def test_a_store_that_does_not_answer_is_no_damage(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 4):
        checkpoints.save(example(step), {}, wait=True)

    real = ocp.StandardCheckpointHandler.restore

    def fail(self, folder, **options):
        if folder.parent.name == "4":
            raise ValueError("UNAVAILABLE: the service is away")
        return real(self, folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointHandler, "restore", fail)
        with pytest.raises(ValueError, match="UNAVAILABLE"):
            checkpoints.restore(like(), sharding.make_mesh(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4"]


@pytest.mark.parametrize("stop", [PreemptedNow, KeyboardInterrupt])
def test_a_signal_while_reading_is_no_damage(tmp_path, monkeypatch, stop):
    """It was taken for it, and a good checkpoint set aside."""
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 4):
        checkpoints.save(example(step), {}, wait=True)

    def stopped(*_, **__):
        raise stop

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", stopped)
    with pytest.raises(stop):
        checkpoints.restore(like(), sharding.make_mesh(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4"]


@pytest.mark.parametrize("field, value", [("seconds", 9.0), ("layers", 3), ("checksums", [])])
def test_a_page_that_was_changed_is_damage(tmp_path, field, value):
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 4):
        checkpoints.save(example(step), {"seconds": 1.0, "layers": []}, wait=True)
    file = tmp_path / "4" / "page" / "metadata"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    assert equal(checkpoints.restore(like(), sharding.make_mesh(1))[0], example(2))


def test_a_damaged_metric_costs_that_alone(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, best=True)
    for step, metric in ((1, 1.0), (2, 2.0)):
        checkpoints.save(example(step, seed=step), {}, metric=metric, wait=True)
    checkpoints.close()
    (tmp_path / "1" / "metrics" / "metrics").write_text("")
    again = Checkpoints(tmp_path, best=True)
    assert again.best() == 2 and "is damaged" in capsys.readouterr().err
    assert {1, 2} == set(again._manager.all_steps())


def test_when_all_are_damaged_nothing_is_touched(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 4):
        checkpoints.save(example(step), {}, wait=True)
        shutil.rmtree(tmp_path / str(step) / "state")
    with pytest.raises(
        BadInput,
        match="4 cannot be read .*, nor can 1 before it; delete .* to run the stage from its start",
    ):
        checkpoints.restore(like(), sharding.make_mesh(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4"]


def test_the_best_one_is_kept_beside_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, best=True)
    for step, metric in ((1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, None)):
        checkpoints.save(example(step, seed=step), {}, metric=metric, wait=True)
    checkpoints.close()
    again = Checkpoints(tmp_path, keep=1, best=True)
    assert again.best() == 2 and again.latest() == 5
    assert equal(again.restore_best(like(), sharding.make_mesh(1)), example(2, seed=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5"]
    shutil.rmtree(tmp_path / "2" / "state")
    assert (
        again.restore_best(like(), sharding.make_mesh(1)) is None
        and (tmp_path / "damaged-2").exists()
    )
    assert equal(again.restore(like(), sharding.make_mesh(1))[0], example(5, seed=5))


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
    assert (
        checkpoints.latest() == 6
        and page == {"schema": 2, "at": 6}
        and equal(held, example(6, seed=6))
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "6"]
    checkpoints.save(example(6, seed=0), {"at": "again"}, wait=True)  # already there: left alone
    assert checkpoints.restore(like(), mesh)[1]["at"] == 6
    checkpoints.close(delete=True)
    assert not tmp_path.exists()


def test_a_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(example(2), {}, wait=True)
    monkeypatch.setattr("jaxdistill.training.checkpoints.SCHEMA", 3)
    with pytest.raises(BadInput, match="schema 2, this version reads 3"):
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
    """A save goes on in the background while the loop donates the state's buffers and writes on in
    the page."""
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
    """On a CPU an array may be handed over without a copy: the next step's donation must not reach
    it."""
    checkpoints, given, held = Checkpoints(tmp_path), example(2), []
    monkeypatch.setattr(
        checkpoints._manager, "save", lambda step, args, **_: held.append(args["state"].item)
    )
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
        with pytest.raises(
            TrainingStopped, match="cannot write .*earlier checkpoints are intact.*to resume"
        ) as caught:
            checkpoints.save(example(4), {}, wait=True)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3
    assert checkpoints.latest() == 2
    checkpoints.close()


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("a bug"),
        jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."
        ),  # of a device
        BadInput("cannot read text.txt: Permission denied"),
    ],
)
def test_other_errors_pass(tmp_path, error):
    with pytest.raises(type(error)) as caught, disk_errors(tmp_path):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ESTALE])
def test_a_folder_that_is_gone_is_one_line_and_may_come_back(tmp_path, number):
    words = "cannot be used any more .*is its folder, disk or server gone"
    with (
        pytest.raises(JaxDistillError, match=words) as caught,
        disk_errors(tmp_path),
        disk_errors(tmp_path / "inner"),
    ):
        raise OSError(number, "words", "metrics.jsonl")
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)


def test_a_full_disk_is_said_once(tmp_path):
    with (
        pytest.raises(TrainingStopped) as caught,
        disk_errors(tmp_path),
        disk_errors(tmp_path / "inner"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value).count("cannot write") == 1
