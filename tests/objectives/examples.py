"""Taps and a padded batch for any loss, and slow references: one loop an index, one number at a
time."""

import numpy as np

from jaxdistill.methods.base import Term
from jaxdistill.models.encoder import MASKED_SCORE
from jaxdistill.objectives import terms

LENGTHS = (6, 4, 1)
HEADS, WIDTH, STATES, WORDS, CLASSES = 2, 5, 4, 7, 3
RELATION_HEADS, TEMPERATURE, TOP = 3, 1.7, 2
OPTIONS = {"heads": RELATION_HEADS, "temperature": TEMPERATURE, "k": TOP, "normalize": True}
LOSSES = {
    name: Term(name, 1.0, options=tuple((option, OPTIONS[option]) for option in row.options))
    for name, row in terms.LOSSES.items()
}
# The distances of words, spans and tags are those of classes, by other weights: one of each is enough.
REPEATED = [
    f"{task}_{distance}"
    for task in ("mlm", "token", "span_start", "span_end", "tagging")
    for distance in ("reverse_kl", "jensen_shannon", "total_variation", "top_k", "logit_mse")
]
PER_LAYER = [name for name, loss in LOSSES.items() if loss.per_layer]
WITH_TEACHER = [name for name, loss in LOSSES.items() if loss.row.teacher is not None]


def batch_of(length=6, seed=0, lengths=LENGTHS):
    """Rows of unlike lengths (1 to `length` tokens), unlike numbers of masked words, one row that
    is only filling."""
    rng = np.random.default_rng(seed)
    rows = len(lengths)
    return {
        "input_ids": np.ones((rows, length), np.int32),
        "attention_mask": (np.arange(length) < np.asarray(lengths)[:, None]).astype(np.int32),
        "mlm_labels": rng.integers(0, WORDS, (rows, 3)).astype(np.int32),
        "mlm_weights": np.asarray([[1, 1, 1], [1, 0, 0], [1, 1, 0]], np.float32)[:rows],
        "nsp_labels": rng.integers(0, 2, rows).astype(np.int32),
        "labels": rng.integers(0, CLASSES, rows).astype(np.int32),
        "example_weights": np.asarray([1, 1, 0], np.float32)[:rows],
        "tags": rng.integers(0, CLASSES, (rows, length)).astype(np.int32),
        "tag_weights": (np.arange(length) % 2 < np.asarray(lengths)[:, None] - 1).astype(
            np.float32
        ),
        "start_positions": np.asarray([2, 3, 0], np.int32)[:rows],
        "end_positions": np.asarray([5, 3, 0], np.int32)[:rows],
        **stored(rows, rng),
    }


def stored(rows, rng):
    """Two likely words of three masked places, as a feed holds them."""
    words = np.argsort(rng.random((rows, 3, WORDS)), axis=-1)[..., :2].astype(np.int32)
    shares = np.sort(rng.uniform(0.05, 0.45, (rows, 3, 2)))[..., ::-1]
    return {
        "stored_words": words,
        "stored_log_probabilities": np.log(shares).astype(np.float32),
        "stored_temperature": np.full((rows, 3), TEMPERATURE, np.float32),
    }


def tap(kind, batch, seed):
    """A random tap of this name, with hidden states whose means and variances differ from token to
    token."""
    rng = np.random.default_rng(seed)
    rows, length = batch["input_ids"].shape
    if kind in ("hidden", "embeddings"):
        x = rng.normal(size=(rows, length, WIDTH)) * rng.uniform(0.5, 2, (rows, length, 1))
        return (x + rng.normal(size=(rows, length, 1))).astype(np.float32)
    if kind == "hidden_moments":
        return rng.uniform(0.1, 2, (STATES, rows, length, 2)).astype(np.float32)
    if kind in ("query", "key", "value"):
        return rng.normal(size=(rows, length, HEADS, 3)).astype(np.float32)
    if kind == "attention_scores":
        pads = MASKED_SCORE * (1 - batch["attention_mask"])[:, None, None, :]
        return (rng.normal(size=(rows, HEADS, length, length)) + pads).astype(np.float32)
    shape = {
        "mlm_logits": (rows, 3, WORDS),
        "token_logits": (rows, length, WORDS),
        "nsp_logits": (rows, 2),
        "logits": (rows, CLASSES),
        "tag_logits": (rows, length, CLASSES),
        "start_logits": (rows, length),
        "end_logits": (rows, length),
    }[kind]
    return rng.normal(size=shape).astype(np.float32)


def example(name, length=6, seed=0):
    """(student tap, teacher tap or None, batch) for the loss `name`."""
    batch, loss = batch_of(length, seed), LOSSES[name]
    reads = "tag_logits" if name.startswith("tagging") else loss.row.student
    student = tap(reads, batch, seed + 1)
    if name == "regression":
        student, batch["labels"] = student[:, :1], batch["labels"].astype(np.float32) / 2
    return (
        student,
        None
        if loss.row.teacher is None
        else tap(reads if loss.head else loss.row.teacher, batch, seed + 2),
        batch,
    )


def real(batch):
    """(row, position) of every token that is not padding."""
    return [
        (b, l)
        for b, l in np.ndindex(batch["attention_mask"].shape)
        if batch["attention_mask"][b, l]
    ]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def log_softmax(x):
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def layer_norm(x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-12)


def _cross_entropy(name):
    labels, weights = {
        "mlm": ("mlm_labels", "mlm_weights"),
        "nsp": ("nsp_labels", "example_weights"),
        "classification": ("labels", "example_weights"),
        "tagging": ("tags", "tag_weights"),
    }[name]

    def loop(student, _, batch):
        return sum(
            -batch[weights][i] * log_softmax(student[i])[batch[labels][i]]
            for i in np.ndindex(batch[labels].shape)
        )

    return loop


def _mlm_distillation(student, teacher, batch):
    total = 0.0
    for i in np.ndindex(batch["mlm_labels"].shape):
        target, ours = softmax(teacher[i]), log_softmax(student[i])
        total += batch["mlm_weights"][i] * sum(-target[v] * ours[v] for v in range(WORDS))
    return total


def _kl(p, q):
    return sum(p[c] * np.log(p[c] / q[c]) for c in range(len(p)))


def _top(ours, theirs):
    """The teacher's likeliest classes one by one, and the others as one."""
    best = np.argsort(-theirs)[:TOP]
    ours, theirs = ([*p[best], 1 - p[best].sum()] for p in (ours, theirs))
    return _kl(theirs, ours)


ROWWISE = {  # of the student's and the teacher's probabilities in one row
    "kl": lambda ours, theirs: _kl(theirs, ours),
    "reverse_kl": lambda ours, theirs: _kl(ours, theirs),
    "jensen_shannon": lambda ours, theirs: (
        _kl(theirs, (ours + theirs) / 2) / 2 + _kl(ours, (ours + theirs) / 2) / 2
    ),
    "total_variation": lambda ours, theirs: sum(abs(ours - theirs)) / 2,
    "top_k": _top,
}


def _probabilities(logits):
    return softmax(logits / TEMPERATURE)


def _distance(name, weights):
    """Over the rows that `weights` names, one at a time."""

    def loop(student, teacher, batch):
        rows = list(np.ndindex(batch[weights].shape))
        ours, theirs = ([_probabilities(x[i]) for i in rows] for x in (student, teacher))
        total = sum(batch[weights][i] * ROWWISE[name](p, q) for i, p, q in zip(rows, ours, theirs))
        return TEMPERATURE**2 * total

    return loop


def _logit_mse(weights):
    def loop(student, teacher, batch):
        rows = np.ndindex(batch[weights].shape)
        return sum(batch[weights][i] * np.mean((student[i] - teacher[i]) ** 2) for i in rows)

    return loop


def _span_logit_mse(student, teacher, batch):
    total = 0.0
    for row, weight in enumerate(batch["example_weights"]):
        places = [l for b, l in real(batch) if b == row]
        if weight:
            total += weight * np.mean((student[row][places] - teacher[row][places]) ** 2)
    return total


def _dist(weights):
    """numpy's own correlation: of the classes in each row, and of the rows that count in each class."""

    def loop(student, teacher, batch):
        rows = [i for i in np.ndindex(batch[weights].shape) if batch[weights][i]]
        ours, theirs = (np.array([_probabilities(x[i]) for i in rows]) for x in (student, teacher))
        within = sum(1 - np.corrcoef(p, q)[0, 1] for p, q in zip(ours, theirs))
        between = np.mean([1 - np.corrcoef(p, q)[0, 1] for p, q in zip(ours.T, theirs.T)])
        return TEMPERATURE**2 * (within + len(rows) * between)

    return loop


def _span(positions):
    """The place of one end, among the real tokens of its row."""

    def loop(student, _, batch):
        total = 0.0
        for row, weight in enumerate(batch["example_weights"]):
            places = [l for b, l in real(batch) if b == row]
            chosen = places.index(batch[positions][row])
            total -= weight * log_softmax(student[row][places])[chosen]
        return total

    return loop


def _stored_words(student, _, batch):
    total = 0.0
    for i in np.ndindex(batch["mlm_weights"].shape):
        ours, words = _probabilities(student[i]), batch["stored_words"][i]
        theirs = np.exp(batch["stored_log_probabilities"][i].astype(np.float64))
        q = np.array([*ours[words], 1 - ours[words].sum()])
        total += batch["mlm_weights"][i] * _kl(np.array([*theirs, 1 - theirs.sum()]), q)
    return TEMPERATURE**2 * total


def _span_distance(name):
    """Among the real tokens of each row."""

    def loop(student, teacher, batch):
        total = 0.0
        for row, weight in enumerate(batch["example_weights"]):
            places = [l for b, l in real(batch) if b == row]
            if weight:
                ours, theirs = (_probabilities(x[row][places]) for x in (student, teacher))
                total += weight * ROWWISE[name](ours, theirs)
        return TEMPERATURE**2 * total

    return loop


def _regression(student, _, batch):
    return sum(
        w * (x[0] - y) ** 2 for x, y, w in zip(student, batch["labels"], batch["example_weights"])
    )


def _feature_map(student, teacher, batch):
    return sum(
        np.mean([(t - s) ** 2 for t, s in zip(layer_norm(teacher[i]), layer_norm(student[i]))])
        for i in real(batch)
    )


def _squared_error(student, teacher, batch):
    return sum(np.mean([(t - s) ** 2 for t, s in zip(teacher[i], student[i])]) for i in real(batch))


def _cosine(student, teacher, batch):
    return sum(
        1 - teacher[i] @ student[i] / np.linalg.norm(teacher[i]) / np.linalg.norm(student[i])
        for i in real(batch)
    )


def _first_token_mse(student, teacher, batch):
    total = 0.0
    for row, weight in enumerate(batch["example_weights"]):
        ours, theirs = (x[row, 0] / np.linalg.norm(x[row, 0]) for x in (student, teacher))
        total += weight * sum((ours - theirs) ** 2)
    return total


def _attention_mse(student, teacher, batch):
    return sum(
        (teacher[b, head, q, k] - student[b, head, q, k]) ** 2 / HEADS
        for b, q in real(batch)
        for row, k in real(batch)
        if row == b
        for head in range(HEADS)
    )


def _attention_probability_mse(student, teacher, batch):
    total = 0.0
    for b, query in real(batch):
        for head in range(HEADS):
            ours, theirs = (softmax(x[b, head, query]) for x in (student, teacher))
            total += sum((theirs[key] - ours[key]) ** 2 for row, key in real(batch) if row == b)
    return total / HEADS


def _mean(student, teacher, batch):
    return sum((teacher[i].mean() - student[i].mean()) ** 2 for i in real(batch))


def _variance(student, teacher, batch):
    return sum(abs(teacher[i].var() - student[i].var()) for i in real(batch))


def _mean_tf1(student, moments, batch):
    return (
        sum(
            (moments[(n, *i, 0)] - student[i].mean()) ** 2
            for i in real(batch)
            for n in range(STATES)
        )
        / STATES
    )


def _variance_tf1(student, moments, batch):
    return (
        sum(abs(moments[(n, *i, 1)] - student[i].var()) for i in real(batch) for n in range(STATES))
        / STATES
    )


def _attention(student, teacher, batch, entropy=False):
    total = 0.0
    for b, query in real(batch):
        for head in range(HEADS):
            target, ours = softmax(teacher[b, head, query]), log_softmax(student[b, head, query])
            for key in range(len(target)):
                if target[key] > 0:
                    total += target[key] * ((np.log(target[key]) if entropy else 0.0) - ours[key])
    return total / HEADS


def _relation(student, teacher, batch):
    """Every relation head by itself: the vectors of all attention heads one after the other, cut
    into three."""
    total = 0.0
    width = HEADS * 3 // RELATION_HEADS
    for b, query in real(batch):
        keys = [key for row, key in real(batch) if row == b]
        for head in range(RELATION_HEADS):
            theirs, ours = (
                x[b].reshape(len(x[b]), -1)[:, head * width : (head + 1) * width]
                for x in (teacher, student)
            )
            log_p, log_q = (
                log_softmax(np.array([x[query] @ x[key] / np.sqrt(width) for key in keys]))
                for x in (theirs, ours)
            )
            total += sum(np.exp(log_p) * (log_p - log_q)) / RELATION_HEADS
    return total


REFERENCES = {
    "mlm": _cross_entropy("mlm"),
    "nsp": _cross_entropy("nsp"),
    "classification": _cross_entropy("classification"),
    **{f"classification_{name}": _distance(name, "example_weights") for name in ROWWISE},
    **{f"tagging_{name}": _distance(name, "tag_weights") for name in ROWWISE},
    **{f"mlm_{name}": _distance(name, "mlm_weights") for name in ROWWISE},
    **{f"token_{name}": _distance(name, "attention_mask") for name in ROWWISE},
    **{f"span_{end}_{name}": _span_distance(name) for end in ("start", "end") for name in ROWWISE},
    **{
        f"{task}_logit_mse": _logit_mse(weights)
        for task, weights in (
            ("classification", "example_weights"),
            ("tagging", "tag_weights"),
            ("mlm", "mlm_weights"),
            ("token", "attention_mask"),
        )
    },
    "span_start_logit_mse": _span_logit_mse,
    "span_end_logit_mse": _span_logit_mse,
    "classification_dist": _dist("example_weights"),
    "tagging_dist": _dist("tag_weights"),
    "tagging": _cross_entropy("tagging"),
    "span_start": _span("start_positions"),
    "span_end": _span("end_positions"),
    "regression_distillation": lambda student, teacher, batch: sum(
        w * (x[0] - y[0]) ** 2 for x, y, w in zip(student, teacher, batch["example_weights"])
    ),
    "mlm_distillation": _mlm_distillation,
    "mlm_stored": _stored_words,
    "regression": _regression,
    "feature_map": _feature_map,
    "mean": _mean,
    "variance": _variance,
    "mean_tf1": _mean_tf1,
    "variance_tf1": _variance_tf1,
    "hidden_mse": _squared_error,
    "embedding_mse": _squared_error,
    "embedding_hidden_mse": _squared_error,
    "hidden_cosine": _cosine,
    "first_token_mse": _first_token_mse,
    "attention_mse": _attention_mse,
    "attention_probability_mse": _attention_probability_mse,
    "attention": _attention,
    "query_relation": _relation,
    "key_relation": _relation,
    "value_relation": _relation,
    "attention_kl": lambda *args: _attention(*args, entropy=True),
}
COUNTS = {
    **{
        name: lambda batch, weights=weights: sum(batch[weights].ravel())
        for start, weights in {
            "mlm": "mlm_weights",
            "token": "attention_mask",
            "nsp": "example_weights",
            "classification": "example_weights",
            "regression": "example_weights",
            "span": "example_weights",
            "tagging": "tag_weights",
        }.items()
        for name in LOSSES
        if name.startswith(start)
    },
    **{
        name: lambda batch: len(real(batch))
        for name in (*PER_LAYER, "embedding_mse", "embedding_hidden_mse")
    },
    "first_token_mse": lambda batch: sum(batch["example_weights"]),
    **{
        name: lambda batch: sum(
            len([k for row, k in real(batch) if row == b]) for b, _ in real(batch)
        )
        for name in ("attention_mse", "attention_probability_mse")
    },
}


def float64(x):
    return None if x is None else np.asarray(x, np.float64)
