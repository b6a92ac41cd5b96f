"""Documents from a TensorFlow Datasets text set that is in ArrayRecord, or that TFDS can prepare
here. See `sources`.

TensorFlow itself is not needed, nor installed. A set that is built with Apache Beam (wikipedia, c4)
needs the `beam` extra, unless it is prepared already; TFDS looks in $TFDS_DATA_DIR, else
~/tensorflow_datasets."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from jaxdistill.data import beam_options as beam
from jaxdistill.data import files
from jaxdistill.data.documents import Document
from jaxdistill.errors import BadInput, nearest

# A split may be a slice with colons of its own: train[:10%]. A name has no colon: before one TFDS
# finds the sets of communities, whose code it would fetch and run.
_SOURCE = re.compile(
    r"^tfds:(\w[\w.+-]*(?:/\w[\w.+-]*)?)(?::([\d*]+\.[\d*]+\.[\d*]+))?(?::(\w+(?:\[.*\])?))?$"
)
_RECORDS_A_READ = 256
_RECORDS_A_PART = 65_536
_RETRIES = 6  # of a download, over 12 seconds
# Of `parse_options`, by name: some sets only show while they are prepared that Beam builds them,
# and no other imports it.
_BEAM_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def parse(source: str) -> tuple[str, str]:
    """'tfds:NAME[/CONFIG][:VERSION][:SPLIT]' as (what TFDS calls it, split or '')."""
    match = _SOURCE.match(source)
    if not match:
        raise BadInput(
            f"source {source!r}: expected tfds:NAME[/CONFIG][:VERSION][:SPLIT], e.g. tfds:wikipedia/20230601.en:train"
        )
    name, version, split = match.groups()
    return (f"{name}:{version}" if version else name), split or ""


def digest(source: str) -> str:
    """A digest of the set's full name with version, its split, and its records' sizes and
    counts."""
    builder = open_builder(source)
    split = _split(builder, source)
    info = builder.info.splits[split]
    return files.digest_of(
        [builder.info.full_name, split, info.num_examples, list(info.shard_lengths or [])]
    )


def ranges(source: str) -> Iterator[tuple[int, int]]:
    """The parts that a set is read in: (begin, end) of its records; prepares the set first if TFDS
    can.

    Raises:
        BadInput: no such set or split; not in ArrayRecord; what preparing it lacks.
    """
    builder = open_builder(source)
    total = builder.info.splits[_split(builder, source)].num_examples
    for begin in range(0, total, _RECORDS_A_PART):
        yield begin, min(begin + _RECORDS_A_PART, total)


def read(source: str, begin: int, end: int) -> Iterator[Document]:
    """The documents that records `begin` to `end` of a set are, in its order. Raises as `ranges`,
    or for want of text."""
    builder = open_builder(source)
    field = _text_field(builder, source)
    data = builder.as_data_source(split=_split(builder, source))
    for first in range(begin, end, _RECORDS_A_READ):
        numbers = range(first, min(first + _RECORDS_A_READ, end))
        for number, record in zip(numbers, data.__getitems__(list(numbers))):
            text = record[field]
            yield Document(
                text.decode("utf-8") if isinstance(text, bytes) else str(text), f"{source}#{number}"
            )


def ready(source: str, beam_options: str) -> None:
    """Prepares a set if it is not; one that is built with Apache Beam with these pipeline options.
    Raises as `ranges`."""
    open_builder(source, beam_options)


def open_builder(source: str, beam_options: str = "") -> Any:
    """The TFDS builder, its records ready to be read."""
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text  # registers sets that the plain import leaves out
    from tensorflow_datasets.core.utils import file_utils

    del tensorflow_datasets
    name, _ = parse(source)
    for data_dir in file_utils.list_data_dirs():
        for pattern in ("features.json", "*/features.json", "*/*/features.json"):
            for file in (epath.Path(data_dir) / re.split("[/:]", name)[0]).glob(pattern):
                files.check_features(file.parent)
    try:
        builder = tfds.builder(name, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        hint = nearest(
            name.split("/")[0].split(":")[0],
            tfds.list_builders(with_community_datasets=False),
            "see tensorflow.org/datasets/catalog for the names",
        )
        raise BadInput(f"source {source!r}: TFDS has no set {name!r}; {hint}") from error
    except (ValueError, AssertionError, RuntimeError, ImportError) as error:
        raise BadInput(
            f"source {source!r}: TFDS cannot open {name!r}: {_first_line(error)}"
        ) from error
    if not builder.data_path.exists():
        _prepare(builder, source, beam_options)
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise BadInput(
            f"source {source!r} is in {builder.info.file_format.value} under {os.fspath(builder.data_path)!r}, "
            "expected array_record: convert it (tfds convert_format), or move it away to have it prepared again"
        )
    return builder


def _prepare(builder: Any, source: str, beam_options: str) -> None:
    import tensorflow_datasets as tfds

    by_beam = isinstance(builder, tfds.core.BeamBasedBuilder)
    if by_beam and not _has_beam():
        raise BadInput(
            f"source {source!r} is not prepared, and preparing it needs Apache Beam: pip install apache-beam"
        )
    download = tfds.download.DownloadConfig(beam_runner=_BEAM_RUNNER)
    if by_beam or beam_options:
        download.beam_runner, download.beam_options = beam.parse_options(beam_options)
    try:
        with files.quiet_tfds(), _few_retries():
            builder.download_and_prepare(file_format="array_record", download_config=download)
    except ImportError as error:
        extra = " (pip install apache-beam)" if "beam" in str(error).lower() else ""
        raise BadInput(
            f"source {source!r}: preparing it needs a package that is not installed: {_first_line(error)}{extra}"
        ) from error
    except Exception as error:  # downloads fail in as many ways as there are servers
        raise BadInput(
            f"source {source!r}: TFDS could not download and prepare it: {_first_line(error)}; prepare it where "
            f"there is a network, as array_record, and copy it to {os.fspath(builder.data_path)!r}"
        ) from error


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """TFDS tries a download ten times, each after twice the time, and tells of all: without a network
    over three minutes."""
    from tensorflow_datasets.core.download import downloader

    log = logging.getLogger("urllib3.connectionpool")
    level, retries = log.level, downloader.MAX_RETRIES
    downloader.MAX_RETRIES = min(retries, _RETRIES)
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        downloader.MAX_RETRIES = retries
        log.setLevel(level)


def _has_beam() -> bool:
    import importlib.util

    return importlib.util.find_spec("apache_beam") is not None


def _split(builder: Any, source: str) -> str:
    splits = list(builder.info.splits)
    wanted = parse(source)[1] or ("train" if "train" in splits else splits[0])
    if wanted.split("[")[0] not in splits:
        raise BadInput(f"source {source!r} has no split {wanted!r}: {nearest(wanted, splits)}")
    return wanted


def _text_field(builder: Any, source: str) -> str:
    """The field `text`, else the first field that is text."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    names = [name for name, feature in features.items() if isinstance(feature, tfds.features.Text)]
    if not names:
        raise BadInput(
            f"source {source!r} has no text field, only {', '.join(features)}: choose a text set"
        )
    return "text" if "text" in names else names[0]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
