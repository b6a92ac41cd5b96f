from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdistill import commands, inputs
from jaxdistill.data import beam_options, tfds_text
from jaxdistill.data.sources import read_documents, source_digest
from jaxdistill.errors import BadInput
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of TFDS sets with one small text set in ArrayRecord, and one without text."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    for set_name, kind in (
        ("little_stories", tfds.features.Text()),
        ("little_numbers", tfds.features.Scalar(np.int64)),
    ):

        class Stories(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.2.0")
            url_infos: dict[str, Any] = {}
            name = set_name
            is_text = isinstance(kind, tfds.features.Text)
            features = tfds.features.FeaturesDict(
                {"title": kind, "text" if is_text else "count": kind}
            )

            def _info(self) -> Any:
                return tfds.core.DatasetInfo(
                    builder=self, features=self.features, disable_shuffling=True
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

            def _generate_examples(self, count: int = 0) -> Iterator[Any]:
                for n in range(count):
                    yield (
                        n,
                        dict.fromkeys(self.features, f"Story {n} is süß." if self.is_text else n),
                    )

        Stories(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture(autouse=True)
def in_data_dir(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(data_dir))
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))


def test_reads_a_prepared_set() -> None:
    documents = list(read_documents("tfds:little_stories"))
    assert [document.text for document in documents] == [f"Story {n} is süß." for n in range(5)]
    assert documents[3].name == "tfds:little_stories#3"
    assert len(list(read_documents("tfds:little_stories:1.2.0:test"))) == 2
    assert len(list(read_documents("tfds:little_stories:train[1:4]"))) == 3
    digests = {source_digest(f"tfds:little_stories:{split}") for split in ("train", "test")}
    assert len(digests) == 2 and source_digest("tfds:little_stories") in digests


def test_a_set_that_is_not_prepared_yet_is_downloaded_and_prepared_once(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registered set, as those of TFDS's catalogue, whose text lies on a web server (of this
    machine). Beam is not asked."""
    import tensorflow_datasets as tfds

    monkeypatch.setattr(beam_options, "require", None)

    (tmp_path / "stories.txt").write_text("\n".join(f"Tale {n} is süß." for n in range(4)))
    fetched: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_: Any) -> None:
            fetched.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        class DownloadedTales(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            url_infos: dict[str, Any] = {}

            def _info(self) -> Any:
                features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
                return tfds.core.DatasetInfo(
                    builder=self, features=features, disable_shuffling=True
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                path = dl_manager.download(f"http://127.0.0.1:{server.server_port}/stories.txt")
                return {"train": self._generate_examples(path)}

            def _generate_examples(self, path: Any) -> Iterator[Any]:
                yield from enumerate({"text": line} for line in path.read_text().splitlines())

        assert not (data_dir / "downloaded_tales").exists()
        documents = [document.text for document in read_documents("tfds:downloaded_tales")]
        assert documents == [f"Tale {n} is süß." for n in range(4)]
        assert fetched == ["/stories.txt"]
        server.shutdown()
    assert list((data_dir / "downloaded_tales" / "1.0.0").glob("*.array_record*"))
    assert [
        document.text for document in read_documents("tfds:downloaded_tales")
    ] == documents  # without the server


def test_names() -> None:
    assert tfds_text.parse("tfds:wikipedia/20230601.en") == ("wikipedia/20230601.en", "")
    assert tfds_text.parse("tfds:wikipedia/20230601.en:1.0.0:train[:10%]") == (
        "wikipedia/20230601.en:1.0.0",
        "train[:10%]",
    )
    assert tfds_text.parse("tfds:lm1b:test") == ("lm1b", "test")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("tfds:little_stories:tset", ["did you mean 'test'"]),
        ("tfds:little_numbers", ["no text field", "count"]),
        ("tfds:wikipedya", ["did you mean 'wikipedia'"]),
        ("tfds:", ["expected tfds:NAME"]),
        ("tfds:wikipedia/20230601.en", ["pip install apache-beam"]),
        (
            "tfds:huggingface:glue/mnli",
            ["expected tfds:NAME"],
        ),  # would fetch and run a community's code
        ("tfds:huggingface:squad", ["TFDS has no set 'huggingface'"]),
        ("tfds:../elsewhere", ["expected tfds:NAME"]),
        ("tfds:little_stories/data_dir=/tmp", ["expected tfds:NAME"]),
    ],
)
def test_bad_sources(source: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds_text, "_has_beam", lambda: False)
    with pytest.raises(BadInput) as error:
        list(read_documents(source))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), str(
        error.value
    )


def test_a_set_with_foreign_features(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TFDS would import the module that a feature's name begins with."""
    (tmp_path / "foreign_features.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = data_dir / "little_tales" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(
        '{"pythonClassName": "foreign_features.Text", "featuresDict": {"features": {}}}'
    )
    (folder / "dataset_info.json").write_text('{"name": "little_tales", "version": "1.0.0"}')
    with pytest.raises(BadInput):
        list(read_documents("tfds:little_tales"))
    assert not (tmp_path / "ran").exists()


def test_a_set_that_beam_builds_is_built_with_the_given_options(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never, without any, by Beam's own choice of a runner, which it would download."""
    import apache_beam as beam
    import tensorflow_datasets as tfds
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.runners.runner import create_runner

    given = []

    class BeamTales(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        url_infos: dict[str, Any] = {}

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()})
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            return beam.Create([(n, {"text": f"Tale {n}."}) for n in range(4)])

        def download_and_prepare(self, **options: Any) -> None:
            given.append(options["download_config"])
            super().download_and_prepare(**options)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        inputs, "find_tokenizer", stop
    )  # the set is ready before its text is first read
    with pytest.raises(KeyboardInterrupt):
        commands.prepare(
            tiny_config("tfds:beam_tales"),
            tmp_path,
            beam_options="direct_num_workers=1,job_name=tales",
        )
    (config_given,) = given
    assert type(config_given.beam_runner) is FnApiRunner
    assert config_given.beam_options.get_all_options()["job_name"] == "tales"
    assert sorted(document.text for document in read_documents("tfds:beam_tales")) == [
        f"Tale {n}." for n in range(4)
    ]
    shutil.rmtree(data_dir / "beam_tales")
    assert sorted(document.text for document in read_documents("tfds:beam_tales")) == [
        f"Tale {n}." for n in range(4)
    ]
    assert type(create_runner(given[1].beam_runner)) is FnApiRunner
