"""A student whose word table is its teacher's in fewer dimensions: the principal components of its rows
(XtremeDistil, Mukherjee & Awadallah 2020, arXiv 2004.05686, section 3.1; its code drops the mean).

All else begins at random: a table of this width fits no other part of the teacher."""

from __future__ import annotations

import numpy as np

from jaxdistill.errors import BadInput
from jaxdistill.models import ModelConfig, Params

WORDS = "embeddings/word"


def factorised(words_VxE: np.ndarray, width: int) -> np.ndarray:
    """The rows of a table [V, E], without their mean, along its first `width` principal components,
    float32[V, width]. The sign of a component is such that its largest entry is positive."""
    rows_VxE = np.asarray(words_VxE, np.float64)
    rows_VxE = rows_VxE - rows_VxE.mean(axis=0)
    _, components_ExE = np.linalg.eigh(rows_VxE.T @ rows_VxE)
    kept_ExW = components_ExE[:, ::-1][:, :width]
    largest_W = kept_ExW[np.abs(kept_ExW).argmax(axis=0), np.arange(kept_ExW.shape[1])]
    return (rows_VxE @ (kept_ExW * np.sign(largest_W))).astype(np.float32)


def with_words(params: Params, teacher_params: Params, width: int) -> Params:
    """`params` with the teacher's word table in `width` dimensions."""
    words = factorised(teacher_params["embeddings"]["word"], width)
    return {**params, "embeddings": {**params["embeddings"], "word": words}}


def check(student: ModelConfig, teacher: ModelConfig, where: str) -> None:
    """Raises `BadInput` unless the teacher's table can be that of the student, in no more dimensions."""
    if student.vocab_size != teacher.vocab_size or student.word_size > teacher.word_size:
        raise BadInput(
            f"{where}.start='factorise': the teacher's word table is {teacher.vocab_size} x {teacher.word_size} and the "
            f"student's {student.vocab_size} x {student.word_size}; take the same vocabulary, and no more dimensions"
        )
