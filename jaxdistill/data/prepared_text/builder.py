"""The TFDS builder of the prepared text. Imports tensorflow_datasets: only `prepare` imports it, in a function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


class PreparedText(tfds.core.GeneratorBasedBuilder):
    """Tokenised spans of documents, in document order, one ArrayRecord split named `text`."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos: dict[str, Any] = {}  # nothing to download: TFDS need not look for checksums beside the code

    def __init__(self, *, records: Iterable[Mapping[str, Any]], token_dtype: str, **kwargs: Any) -> None:
        """`records`: mappings with `tokens`, `breaks`, `document`; iterated once. `token_dtype`: uint16 or int32."""
        self._records = records
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
        return tfds.core.DatasetInfo(builder=self, description=description, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {"text": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        yield from enumerate(self._records)
