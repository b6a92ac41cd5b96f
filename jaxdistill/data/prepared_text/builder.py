"""The TFDS builder of the prepared text. Imports tensorflow_datasets: only `prepare` imports it, in
a function."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import writer

from jaxdistill import remote


class PreparedText(tfds.core.GeneratorBasedBuilder):
    """Tokenised spans of documents, in document order, one ArrayRecord split named `text`."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: dict[
        str, Any
    ] = {}  # nothing to download: TFDS need not look for checksums beside the code

    def __init__(self, *, examples: Any, token_dtype: str, **kwargs: Any) -> None:
        """`examples`: pairs of a record's number and a mapping with `tokens`, `breaks`, `document`:
        an iterator, or a Beam transform that makes them in any order. `token_dtype`: uint16 or
        int32."""
        self._examples = examples
        self._token_dtype = token_dtype
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "tokens": tfds.features.Tensor(shape=(None,), dtype=np.dtype(self._token_dtype)),
                "breaks": tfds.features.Tensor(shape=(None,), dtype=np.int32),
                "document": tfds.features.Tensor(shape=(2,), dtype=np.int64),
            }
        )
        description = "Spans of consecutive WordPiece tokens, each of one document; see jaxdistill.data.prepare."
        return tfds.core.DatasetInfo(
            builder=self, description=description, features=features, disable_shuffling=True
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {"text": self._generate_examples()}

    def _generate_examples(self) -> Any:
        return self._examples

    def _example_writer(self) -> Any:
        return _LocalFirst(self.info.file_format)


class _LocalFirst(writer.ExampleWriter):
    """ArrayRecord writes local files only; a shard for a bucket is written here and copied
    there."""

    def write(self, path: epath.PathLike, examples: Iterable[tuple[Any, bytes]]) -> Any:
        if not remote.is_remote(epath.Path(path)):
            return super().write(path, examples)
        with tempfile.TemporaryDirectory(prefix="jaxdistill-") as folder:
            shard = epath.Path(folder) / epath.Path(path).name
            super().write(shard, examples)
            remote.fetch(shard, epath.Path(path))
