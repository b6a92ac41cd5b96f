"""stub"""
from typing import Any
classification_batches: Any=None
read_classification_tsv: Any=None
split_examples: Any=None
