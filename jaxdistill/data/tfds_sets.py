"""Labelled sets of TensorFlow Datasets, by name, as `tfds_text` finds and prepares them. Called by
data_sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxdistill.data import tfds_text
from jaxdistill.data.found_set import Found, Table
from jaxdistill.errors import BadInput, shortened

_ROWS_A_READ = 256


def find(source: str) -> Found:
    """The set of 'tfds:NAME[/CONFIG][:VERSION][:SPLIT]', prepared here if it is not yet. Raises
    `BadInput` as `tfds_text.open_builder`."""
    builder = tfds_text.open_builder(source)
    classes = {name: _classes(feature) for name, feature in builder.info.features.items()}

    def table(split: str) -> Table:
        try:
            data = builder.as_data_source(split=split)
        except (ValueError, AssertionError) as error:
            raise BadInput(
                f"source {source!r}: TFDS cannot read it: {shortened(error, 250)}"
            ) from error

        def rows(names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
            for first in range(0, len(data), _ROWS_A_READ):
                numbers = range(first, min(first + _ROWS_A_READ, len(data)))
                for record in data.__getitems__(list(numbers)):
                    yield tuple(_plain(record[name]) for name in names)

        return Table(classes, rows)

    return Found(tfds_text.parse(source)[1], tuple(builder.info.splits), table)


def _classes(feature: Any) -> tuple[str, ...]:
    """The names of the classes of a feature, or of each item of one."""
    import tensorflow_datasets as tfds

    feature = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    names = feature.names if isinstance(feature, tfds.features.ClassLabel) else ()
    return tuple(names or ())


def _plain(value: Any) -> Any:
    """A value of NumPy's, or of several of them, as Python's own."""
    if isinstance(value, dict):
        return {name: _plain(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
