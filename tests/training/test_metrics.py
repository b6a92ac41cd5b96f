"""The metric writer: what is written is read back, resuming forgets what is run again, no
TensorFlow."""

import json
import subprocess
import sys

import jax.numpy as jnp

from jaxdistill.training import metrics
from jaxdistill.training.metrics import FILE, MetricWriter, read_metrics


def steps(workdir, stage="distill", network="student"):
    return [
        x["step"] for x in read_metrics(workdir) if (x["stage"], x["network"]) == (stage, network)
    ]


def points(directory):
    """{tag: [(step, value)]} as TensorBoard itself would show one run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory))
    found.Reload()

    def value(event):
        return (
            float(event.tensor_proto.float_val[0])
            if hasattr(event, "tensor_proto")
            else event.value
        )

    tags = [*found.Tags()["scalars"]]
    return {tag: [(e.step, value(e)) for e in found.Scalars(tag)] for tag in tags}


def test_both_outputs_hold_what_was_written(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write("distill", 10, {"loss": jnp.float32(2.5), "raw/mlm": 1.5})
        writer.write("distill", 20, {"loss": 2.0})
        writer.write("distill", 10, {"loss": 3.0}, network="random_start")
    lines = read_metrics(tmp_path)
    assert [(x["stage"], x["network"], x["step"], x["loss"]) for x in lines] == [
        ("distill", "student", 10, 2.5),
        ("distill", "student", 20, 2.0),
        ("distill", "random_start", 10, 3.0),
    ]
    assert lines[0]["raw/mlm"] == 1.5 and lines[0]["time"] > 1e9
    assert points(tmp_path / "tensorboard/distill/student") == {
        "loss": [(10, 2.5), (20, 2.0)],
        "raw/mlm": [(10, 1.5)],
    }
    assert points(tmp_path / "tensorboard/distill/random_start") == {"loss": [(10, 3.0)]}


def test_not_a_number_stays_valid_json(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write("a", 1, {"loss": float("nan"), "other": float("inf")})
    assert "NaN" not in (tmp_path / FILE).read_text()
    assert read_metrics(tmp_path)[0]["loss"] is None and not (tmp_path / "tensorboard").exists()


def test_rewind_forgets_only_what_is_run_again(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (10, 20):
            writer.write("pretrain", step, {"loss": 1.0}, network="teacher")
        for step in (10, 20, 30, 40):
            writer.write("distill", step, {"loss": float(step)})
    with MetricWriter(tmp_path) as writer:
        writer.rewind("distill", 25)
        for step in (30, 40):
            writer.write("distill", step, {"loss": step + 0.5})
    assert steps(tmp_path) == [10, 20, 30, 40] and steps(tmp_path, "pretrain", "teacher") == [
        10,
        20,
    ]
    assert [x["loss"] for x in read_metrics(tmp_path)[2:]] == [10.0, 20.0, 30.5, 40.5]
    assert points(tmp_path / "tensorboard/distill/student")["loss"] == [
        (10, 10),
        (20, 20),
        (30, 30.5),
        (40, 40.5),
    ]


def test_rewind_leaves_other_stages_and_networks_alone(tmp_path):
    """Stage A is interrupted, B is run, A is resumed: B's lines, later in the file, must
    survive."""
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        for step in (10, 20):
            writer.write("transfer", step, {"loss": 1.0})
        writer.write("distill", 20, {"loss": 1.0}, network="random_start")
        writer.write("transfer", 30, {"loss": 1.0}, network="copied_start")
        writer.rewind("transfer", 10)  # step 10 is done: its line stays
        assert steps(tmp_path, "transfer") == [10]
        assert steps(tmp_path, "distill", "random_start") == [20]
        assert steps(tmp_path, "transfer", "copied_start") == [30]
        writer.rewind("nothing of this", 0)
        writer.rewind("transfer", 0)
        assert steps(tmp_path, "transfer") == []


def test_a_torn_last_line_is_dropped(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write("distill", 10, {"loss": 1.0})
    with (tmp_path / FILE).open("a") as file:
        file.write('{"stage": "distill", "network": "stu')
    assert steps(tmp_path) == [10]
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write("distill", 20, {"loss": 1.0})
    assert steps(tmp_path) == [10, 20]
    assert all(json.loads(line) for line in (tmp_path / FILE).read_text().splitlines())


def test_a_remote_workdir_is_spooled_and_resumed(tmp_path, monkeypatch):
    """A local path plays the bucket; nothing may be appended to or opened there except whole
    files."""
    monkeypatch.setattr(metrics.remote, "is_remote", lambda path: True)
    bucket = tmp_path / "bucket"
    with MetricWriter(bucket) as writer:
        writer.write("distill", 10, {"loss": 1.0})
        assert not (bucket / FILE).exists()
        writer.flush()
        assert steps(bucket) == [10]
        writer.write("distill", 20, {"loss": 2.0})
    assert points(bucket / "tensorboard/distill/student") == {"loss": [(10, 1.0), (20, 2.0)]}
    with MetricWriter(bucket) as writer:
        writer.rewind("distill", 10)
        writer.write("distill", 20, {"loss": 3.0})
        monkeypatch.setattr(metrics, "UPLOAD_SECONDS", 0.0)
        writer.write("distill", 30, {"loss": 4.0})
        assert steps(bucket) == [10, 20, 30]
    assert [x["loss"] for x in read_metrics(bucket)] == [1.0, 3.0, 4.0]


def test_close_twice_and_nothing_to_read(tmp_path):
    assert read_metrics(tmp_path / "nowhere") == []
    writer = MetricWriter(tmp_path)
    writer.close()
    writer.close()


def test_tensorflow_is_not_imported(tmp_path):
    """Even where it is installed: a fake one that fails on import stands in its place."""
    (tmp_path / "tensorflow.py").write_text("raise RuntimeError('tensorflow was imported')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from jaxdistill.training.metrics import MetricWriter\n"
        "assert not {'jax', 'tensorboard', 'matplotlib'} & set(sys.modules)\n"
        f"w = MetricWriter({str(tmp_path / 'work')!r}); w.write('a', 1, {{'loss': 1.0}}); w.close()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
