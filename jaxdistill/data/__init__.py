"""Text and task data: sources, tokenizers, preparation, and the loaders that training reads from.

The path of a batch: `sources` -> `tokenizers` -> `prepare` (once, to disk) -> `loader` (`records`, `pairs`, `masking`).
Importing this package is light: TFDS, Grain, tokenizers and transformers are imported where they are used.
"""

from jaxdistill.data.classification import classification_batches, read_classification_tsv, split_examples
from jaxdistill.data.default_corpus import CorpusInfo, default_corpus
from jaxdistill.data.loader import heldout_batches, make_loader
from jaxdistill.data.prepare import PreparedText, load_prepared, prepare
from jaxdistill.data.sources import Document, read_documents, source_digest
from jaxdistill.data.tokenizers import load_tokenizer, tokenizer_digest, train_wordpiece

__all__ = [
    "CorpusInfo",
    "Document",
    "PreparedText",
    "classification_batches",
    "default_corpus",
    "heldout_batches",
    "load_prepared",
    "load_tokenizer",
    "make_loader",
    "prepare",
    "read_classification_tsv",
    "read_documents",
    "source_digest",
    "split_examples",
    "tokenizer_digest",
    "train_wordpiece",
]
