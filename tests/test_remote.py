"""A run whose workdir is in a bucket, against a server that speaks Google Cloud Storage on this
machine."""

import json
import os
import shutil

import gcsfs.retry
import numpy as np
import pytest
from etils import epath

from jaxdistill import cli, conversion, defaults, remote, run
from jaxdistill.data.feeds import Shape
from jaxdistill.data.prepare import prepare
from jaxdistill.data.records import open_reader
from jaxdistill.data.tokenizers import load_tokenizer, train_wordpiece
from jaxdistill.errors import BadInput, Interrupted
from jaxdistill.evaluation import stored
from jaxdistill.interop import from_pretrained, verify_export
from jaxdistill.training.metrics import read_metrics
from tests.bucket import serve
from tests.conftest import tiny_config, write_text
from tests.test_run import interrupt


@pytest.fixture(scope="module")
def bucket():
    """gs://… of an empty bucket."""
    with serve() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "FSSPEC_GCS": '{"token": "anon"}',
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "GCE_METADATA_ROOT": "127.0.0.1:1",
            "NO_GCE_CHECK": "true",
        }.items():
            patch.setenv(name, value)
        yield epath.Path("gs://bucket")


@pytest.mark.slow
def test_a_run_in_a_bucket_is_stopped_and_resumed_and_equals_a_local_one(
    bucket, tmp_path, monkeypatch
):
    monkeypatch.setenv("JAXDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    config = tiny_config(write_text(tmp_path / "text.txt"))
    config.export, config.order = True, ("words",)
    config.networks.student.start = "random"
    config.stages.words = defaults.stage("pretrain", "student", steps=6, batch_size=8)
    expected = run.train(config, tmp_path / "local")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, "words", 3)
        run.train(config, bucket / "w")
    assert not (bucket / "w" / "DONE").exists()
    (bucket / "w" / "DONE").write_text("of a shorter order, which the next call takes away")
    shutil.rmtree(tmp_path / "cache")  # another machine goes on
    steps = sorted(path.name for path in (bucket / "w" / "checkpoints" / "words").iterdir())
    assert steps and all(step.isdigit() for step in steps)
    results = run.train(config, bucket / "w")
    assert results["student_sha256"] == expected["student_sha256"]
    rows = [(row["stage"], row["step"], row["loss"]) for row in read_metrics(bucket / "w")]
    assert rows == [
        (row["stage"], row["step"], row["loss"]) for row in read_metrics(tmp_path / "local")
    ]
    names = {path.name for path in (bucket / "w").iterdir()}
    (kept,) = (bucket / "w" / "data").iterdir()
    assert (
        load_tokenizer(kept).get_vocab()
        == load_tokenizer(tmp_path / "local" / "student").get_vocab()
    )
    assert {
        "config.json",
        "metrics.jsonl",
        "results.json",
        "plots",
        "stages",
        "student",
        "tensorboard",
    } <= names
    assert not list((bucket / "w" / "checkpoints").glob("*/*"))
    assert (bucket / "w" / "DONE").read_text() == "words\n"
    assert (
        json.loads((bucket / "w" / "results.json").read_text())["student_sha256"]
        == expected["student_sha256"]
    )
    model, params = from_pretrained(bucket / "w" / "student")
    assert (
        verify_export(bucket / "w" / "student", model, params, with_torch=True)[
            "torch_max_relative_difference"
        ]
        < 1e-4
    )
    assert (
        load_tokenizer(bucket / "w" / "student").get_vocab()
        == load_tokenizer(tmp_path / "local/student").get_vocab()
    )
    conversion.export(bucket / "w", bucket / "exported")
    assert {"config.json", "model.safetensors", "vocab.txt"} <= {
        path.name for path in (bucket / "exported").iterdir()
    }
    with pytest.raises(BadInput, match="not empty"):
        conversion.export(bucket / "w", bucket / "exported")
    assert sorted(os.listdir(tmp_path)) == [
        "cache",
        "local",
        "text.txt",
    ]  # nothing landed in a folder named "gs:"


def test_another_recipe_and_a_foreign_folder_are_refused_in_a_bucket(bucket, tmp_path):
    config = tiny_config(write_text(tmp_path / "text.txt"))
    (bucket / "foreign" / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="holds no run"):
        run.train(config, bucket / "foreign")
    assert (bucket / "foreign" / "thesis.txt").read_text() == "mine"
    config.data.path = str(bucket / "text")
    with pytest.raises(BadInput, match="local files"):
        run.train(config, bucket / "other")


def test_a_local_copy_has_everything_and_goes_away(bucket, tmp_path):
    (bucket / "deep" / "a" / "b.txt").write_text("b")
    (bucket / "deep" / "c.txt").write_text("c")
    with remote.local(bucket / "deep") as copy:
        assert (copy / "a" / "b.txt").read_text() == "b" and (copy / "c.txt").read_text() == "c"
    assert not copy.exists()
    with remote.local(epath.Path(tmp_path)) as same:
        assert same == epath.Path(tmp_path)


def test_a_path_whose_package_is_missing_is_one_line(monkeypatch, capsys):
    def missing(*_, **__):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(conversion, "export", missing)
    assert cli.main(["export", "--model=gs://b/w", "--out=/tmp/x"]) == 2
    assert "pip install gcsfs" in capsys.readouterr().err
    monkeypatch.setattr(conversion, "export", lambda *_, **__: __import__("no_such_package"))
    with pytest.raises(ImportError, match="no_such_package"):
        cli.main(["export", "--model=gs://b/w", "--out=/tmp/x"])


def test_a_refusing_store_is_one_line(monkeypatch, capsys):
    def refuse(*_, **__):
        raise gcsfs.retry.HttpError({"code": 401, "message": "Invalid Credentials"})

    monkeypatch.setattr(conversion, "export", refuse)
    assert cli.main(["export", "--model=gs://b/w", "--out=/tmp/x"]) == 2
    assert (
        "Invalid Credentials" in (error := capsys.readouterr().err)
        and "credentials" in error
        and "Traceback" not in error
    )
    assert remote.refused(OSError("Forbidden: https://x")) and not remote.refused(
        OSError(5, "disk")
    )


@pytest.mark.slow
def test_beam_prepares_text_of_a_bucket_by_way_of_one(bucket, tmp_path):
    """As on Dataflow, whose workers see no folder of this machine."""
    source = write_text(tmp_path / "text.txt")
    (bucket / "texts" / "text.txt").write_text(source.read_text())
    tokenizer = train_wordpiece([source.read_text()], 120)
    options = {"sequence_length": 32, "split": "all"}
    beam = prepare(
        "gs://bucket/texts",
        tokenizer,
        tmp_path / "beam",
        beam_options="temp_location=gs://bucket/tmp",
        **options,
    )
    here = prepare("gs://bucket/texts", tokenizer, tmp_path / "here", **options)
    table, expected = (
        open_reader(made).fetch(np.arange(made.num_records))[0] for made in (beam, here)
    )
    assert (
        len(table) > 50
        and (table.tokens == expected.tokens).all()
        and (table.breaks == expected.breaks).all()
    )
    assert not list((bucket / "tmp").glob("*"))


def test_what_a_teacher_says_is_stored_in_a_bucket(bucket):
    """ArrayRecord knows local files alone."""
    layout = stored.Layout({"hidden": Shape((2,), "float32")}, frozenset({"hidden"}))
    lengths, values = np.array([3, 1]), np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    path = bucket / "derived" / "it.array_record"
    stored.write(path, layout, [(np.array([1, 0]), lengths[::-1], {"hidden": values})], 2, "x")
    assert stored.there(path, layout, 2, "x") and not stored.there(path, layout, 2, "y")
    found = stored.read(path, layout, lengths)(np.array([0, 1]), 4)["hidden"]
    np.testing.assert_array_equal(found[0, :3], values[1])
    np.testing.assert_array_equal(found[1, :1], values[0, :1])
    assert not found[1, 1:].any()
