"""WordPiece tokenizers: trained here, or loaded from a Hugging Face folder or a vocab.txt; always
checked.

A tokenizer is a `transformers.BertTokenizerFast`, so that saving it writes what Hugging Face
expects. Special tokens are found by name, never by number. Text is encoded through the Rust backend
in batches, without special tokens, and with the literal strings "[MASK]", "[SEP]", … in a text read
as ordinary text: documentation about BERT holds many."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from jaxdistill import remote
from jaxdistill.data import files
from jaxdistill.data.documents import Document, split_sentences
from jaxdistill.data.pairs import SpecialIds
from jaxdistill.errors import BadInput

# Words as BertPreTokenizer splits them (but for rare symbols), at many times the speed of asking it
# from Python.
_WORD = re.compile(r"[^\W_]+|_|[^\w\s]")
_LARGEST_ALPHABET = 1000
_LONGEST_WORD = 100
_MOST_TRAINING_WORDS = 20_000_000
_CHARACTERS_A_BATCH = 1_000_000
_LARGEST_VOCABULARY = 2**24
_LARGEST_FILE = 2**26  # bytes; a tokenizer.json of 250,000 tokens has 17 MB
# What transformers 5 calls a tokenizer that is its tokenizer.json and nothing more.
_BACKEND_CLASS = "TokenizersBackend"
# Classes of transformers 4 that set the normaliser of tokenizer.json anew from
# tokenizer_config.json.
_BERT_CLASSES = (
    "BertTokenizer",
    "BertTokenizerFast",
    "MobileBertTokenizer",
    "MobileBertTokenizerFast",
)
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What the data room needs to know of a tokenizer. `special_ids` are all special ids,
    ascending."""

    size: int
    special: SpecialIds
    special_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]


def train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool = True) -> Any:
    """Trains a WordPiece vocabulary, [PAD] = 0 to [MASK] = 4. The same texts give the same
    vocabulary.

    Args:
        texts: any number of texts, read once.
        vocab_size: how many entries at most; small texts may give fewer.
        lowercase: whether to fold case and strip accents, as `bert-base-uncased` does.

    Returns:
        A `transformers.BertTokenizerFast`.

    Raises:
        BadInput: vocab_size is too small, or the texts are empty.
    """
    check_size(vocab_size)
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    words: Counter[str] = Counter()
    for text in texts:
        words.update(_WORD.findall(normalizer.normalize_str(text)))
    if not words:
        raise BadInput("cannot train a vocabulary: the texts hold no words; give more text")
    alphabet = _alphabet(words)
    known = {letter.removeprefix("##") for letter in alphabet}
    learnt = {
        word: count
        for word, count in words.items()
        if known.issuperset(word) and len(word) <= _LONGEST_WORD
    }

    # The trainer numbers the letters inside words in the order of a randomly seeded hash map and
    # breaks ties between merges by those numbers: the same texts would give another vocabulary
    # every time. Letters that are handed in as "special tokens" keep the numbers given here, which
    # leaves nothing to chance (a test trains twice).
    model = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    first = [*SPECIAL_TOKENS, *alphabet]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size, len(first)), special_tokens=first, show_progress=False
    )
    model.train_from_iterator(_repeated(learnt), trainer)
    vocab = model.get_vocab()
    return _from_vocabulary(sorted(vocab, key=lambda token: vocab[token])[:vocab_size], lowercase)


def check_size(vocab_size: int, shown: str = "vocab_size") -> None:
    """Raises BadInput unless a vocabulary of that size can be trained; the trainer makes room for
    all of it at once."""
    if not 100 <= vocab_size <= _LARGEST_VOCABULARY:
        raise BadInput(
            f"{shown}={vocab_size}; expected 100 to {_LARGEST_VOCABULARY} words (BERT: 30522)"
        )


def _alphabet(words: Counter[str]) -> list[str]:
    """The letters words begin with, and those inside words as '##x', ordered; rare letters of large
    scripts go."""
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in set(word):
            letters[letter] += count
    kept = {
        letter
        for letter, _ in sorted(letters.items(), key=lambda item: (-item[1], item[0]))[
            :_LARGEST_ALPHABET
        ]
    }
    initial = {word[0] for word in words}
    inside = {letter for word in words for letter in word[1:]}
    return sorted(initial & kept) + [f"##{letter}" for letter in sorted(inside & kept)]


def _repeated(words: dict[str, int]) -> Iterator[str]:
    """Each word as often as it occurs, scaled down where that would be very often: the trainer
    counts them again."""
    scale = max(1.0, sum(words.values()) / _MOST_TRAINING_WORDS)
    for word, count in sorted(words.items()):
        times = round(count / scale)
        for begin in range(0, times, 1000):
            yield " ".join([word] * min(1000, times - begin))


def _from_vocabulary(tokens: list[str], lowercase: bool) -> Any:
    """A tokenizer with exactly these tokens, numbered in order."""
    from transformers import BertTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        path = epath.Path(folder) / "vocab.txt"
        path.write_text("\n".join(tokens) + "\n")
        # [CLS] and [SEP] are looked up by name; nothing assumes a number.
        return BertTokenizerFast(
            vocab_file=os.fspath(path), do_lower_case=lowercase, model_max_length=512
        )


def load_tokenizer(path: epath.PathLike, lowercase: bool = True) -> Any:
    """Loads a Hugging Face tokenizer folder, or a vocab.txt (one token a line), and checks it.

    Args:
        path: the folder or the file.
        lowercase: only for a bare vocab.txt, which does not say; a folder's own configuration decides otherwise.

    Raises:
        BadInput: nothing there, not readable, a special token missing, a token twice, or files that disagree.
    """
    place = epath.Path(path).expanduser()
    shown = os.fspath(place)
    if not place.exists():
        raise BadInput(f"tokenizer {shown!r} does not exist; {files.nearest_beside(place)}")
    if place.is_dir() and not any(
        (place / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")
    ):
        place = place / "vocab.txt"
        if not place.exists():
            raise BadInput(
                f"tokenizer folder {shown!r} holds neither tokenizer.json nor vocab.txt; give a folder with one"
            )
    if not place.is_dir():
        return _from_vocabulary(_read_vocabulary(place), lowercase)
    vocab_file = place / "vocab.txt"
    listed = _read_vocabulary(vocab_file) if vocab_file.exists() else None
    _check_files(place)
    mended = mended_settings(place)
    from transformers import AutoTokenizer

    try:
        with remote.local(place) as folder, _with_settings(epath.Path(folder), mended) as readable:
            # Not even asked for: left out, transformers would ask on the terminal whether to run a
            # folder's code.
            tokenizer = AutoTokenizer.from_pretrained(
                os.fspath(readable), use_fast=True, local_files_only=True, trust_remote_code=False
            )
    except BaseException as error:  # a JSON error, a KeyError: whatever a damaged file leads to
        if (
            not isinstance(error, Exception) and type(error).__name__ != "PanicException"
        ):  # Rust's; no Exception
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(
            f"tokenizer folder {shown!r} cannot be read ({reason[:200]}): save the tokenizer again"
        ) from error
    vocabulary = describe(tokenizer, shown)
    if listed is not None and len(listed) > vocabulary.size:
        raise BadInput(
            f"tokenizer folder {shown!r}: vocab.txt has {len(listed)} tokens but tokenizer.json {vocabulary.size}; "
            "save the tokenizer again"
        )
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: epath.Path) -> None:
    """Writes its files, vocab.txt last; transformers itself writes to local folders only."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as local:
        tokenizer.save_pretrained(local)
        for path in sorted(
            files.walk(epath.Path(local)), key=lambda path: path.name == "vocab.txt"
        ):
            files.write_whole(
                folder / path.relative_to(local), path.read_bytes()
            )  # SentencePiece's model is no text


def _check_files(folder: epath.Path) -> None:
    """Raises BadInput for a folder whose files are too large, or name a class that is no tokenizer
    with a Rust backend: transformers finds any class of its own by that name, and some of the slow
    ones unpickle files."""
    import transformers

    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "config.json",
    ):
        if (folder / name).exists() and (size := (folder / name).stat().length) > _LARGEST_FILE:
            raise BadInput(
                f"tokenizer folder {os.fspath(folder)!r}: {name} has {size:,} bytes, at most {_LARGEST_FILE:,} are "
                "read: save the tokenizer again"
            )
    name, given = _class_name(folder)
    if given is None or given == _BACKEND_CLASS:
        return
    found = getattr(transformers, f"{str(given).removesuffix('Fast')}Fast", None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerFast)):
        raise BadInput(
            f"tokenizer folder {os.fspath(folder)!r}: {name} names the class {given!r}, expected one of "
            "transformers with a Rust backend, e.g. 'BertTokenizerFast'"
        )


def _class_name(folder: epath.Path) -> tuple[str, Any]:
    """(the file that names the tokenizer's class, that name); ("", None) if none does."""
    for name in ("tokenizer_config.json", "config.json"):
        given = _read_json(folder, name).get("tokenizer_class")
        if given is not None:
            return name, given
    return "", None


def _read_json(folder: epath.Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of the folder, empty if there is no such file. Raises BadInput for
    anything else."""
    if not (folder / name).exists():
        return {}
    try:
        values = json.loads((folder / name).read_text())
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"tokenizer folder {os.fspath(folder)!r} cannot be read ({name}: {error}): save the tokenizer "
            "again"
        ) from error
    if not isinstance(values, dict):
        raise BadInput(
            f"tokenizer folder {os.fspath(folder)!r} cannot be read ({name} holds no JSON object): save the "
            "tokenizer again"
        )
    return values


def mended_settings(folder: epath.Path) -> dict[str, Any] | None:
    """The tokenizer_config.json that transformers 4 needs beside the folder's other files, where
    its own does not do.

    None if it does. It does not where transformers 5 wrote "TokenizersBackend" or a list of extra
    special tokens, where nothing names a class, and where it is silent about case: transformers 4
    then folds case whatever tokenizer.json says. sentence-transformers folds case (and keeps
    accents) if its own file says so.

    Raises:
        BadInput: a file cannot be read, or there is nothing to load.
    """
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    settings, (_, given) = _read_json(folder, "tokenizer_config.json"), _class_name(folder)
    backend = _read_json(folder, "tokenizer.json")
    parts = {
        name: part if isinstance(part := backend.get(name), dict) else {}
        for name in ("model", "normalizer")
    }
    model, normalizer = parts["model"], parts["normalizer"]
    changes: dict[str, Any] = {}
    bert = not backend or (model.get("type"), normalizer.get("type")) == (
        "WordPiece",
        "BertNormalizer",
    )
    known_model = (
        str(_read_json(folder, "config.json").get("model_type")) in TOKENIZER_MAPPING_NAMES
    )
    if (
        given == _BACKEND_CLASS
        or (given is None and not known_model)
        or (backend and not normalizer and given in _BERT_CLASSES)
    ):
        if not backend and not (folder / "vocab.txt").exists():
            raise BadInput(
                f"tokenizer folder {os.fspath(folder)!r} holds neither tokenizer.json nor vocab.txt; give a folder "
                "with one"
            )
        changes["tokenizer_class"] = given = "BertTokenizer" if bert else "PreTrainedTokenizerFast"
        vocabulary = model.get("vocab")
        for token in SPECIAL_TOKENS:
            if (
                isinstance(vocabulary, dict)
                and token in vocabulary
                and settings.get(f"{token[1:-1].lower()}_token") is None
            ):
                changes[f"{token[1:-1].lower()}_token"] = token
    if isinstance(extra := settings.get("extra_special_tokens"), list):
        changes |= {"extra_special_tokens": {}, "additional_special_tokens": extra}
    if backend and bert and given in (None, *_BERT_CLASSES):
        flags = {
            "do_lower_case": ("lowercase", True),
            "strip_accents": ("strip_accents", None),
            "tokenize_chinese_chars": ("handle_chinese_chars", True),
        }
        changes |= {
            flag: normalizer[key]
            for flag, (key, default) in flags.items()
            if flag not in settings and normalizer.get(key, default) != default
        }
    folds = settings.get("do_lower_case", normalizer.get("lowercase", True))
    if (
        bert
        and not folds
        and _read_json(folder, "sentence_bert_config.json").get("do_lower_case") is True
    ):
        changes |= {"do_lower_case": True, "strip_accents": bool(normalizer.get("strip_accents"))}
    if changes and given is None:
        changes["tokenizer_class"] = "BertTokenizer" if bert else "PreTrainedTokenizerFast"
    return {**settings, **changes} if changes else None


@contextlib.contextmanager
def _with_settings(folder: epath.Path, settings: dict[str, Any] | None) -> Iterator[epath.Path]:
    """The folder, or with `settings` a copy of its tokenizer's files in which they are
    tokenizer_config.json."""
    if settings is None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        for name in ("tokenizer.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json"):
            if (folder / name).exists():
                (folder / name).copy(epath.Path(copy) / name)
        (epath.Path(copy) / "tokenizer_config.json").write_text(json.dumps(settings))
        yield epath.Path(copy)


def _read_vocabulary(path: epath.Path) -> list[str]:
    """The tokens of a vocab.txt, checked."""
    shown = os.fspath(path)
    with files.clear_errors("reading the vocabulary", path):
        content = path.read_bytes()
    try:
        tokens = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"vocabulary {shown!r} is not UTF-8 at byte {error.start}: give a vocab.txt, one token a line"
        ) from error
    tokens = [token.removesuffix("\r") for token in tokens]
    if tokens and not tokens[-1]:
        tokens.pop()
    if not tokens:
        raise BadInput(f"vocabulary {shown!r} is empty: give a vocab.txt, one token a line")
    for number, (token, count) in enumerate(zip(tokens, _occurrence(tokens)), start=1):
        if count:
            raise BadInput(
                f"vocabulary {shown!r} line {number}: {token!r} stands there a second time; remove one"
            )
    _check_special(tokens, shown)
    return tokens


def _occurrence(tokens: list[str]) -> Iterator[int]:
    """How often each token stood there before."""
    seen: Counter[str] = Counter()
    for token in tokens:
        yield seen[token]
        seen[token] += 1


def _check_special(tokens: Collection[str], shown: str) -> None:
    missing = [token for token in SPECIAL_TOKENS if token not in set(tokens)]
    if missing:
        raise BadInput(
            f"vocabulary {shown!r} lacks {', '.join(missing)}: expected a complete BERT vocabulary with "
            f"{', '.join(SPECIAL_TOKENS)}; is it truncated, or of another kind of model?"
        )
    if not set(tokens) - set(SPECIAL_TOKENS):
        raise BadInput(
            f"vocabulary {shown!r} has no words beside {', '.join(SPECIAL_TOKENS)}; is it truncated?"
        )


def describe(tokenizer: Any, shown: str = "the tokenizer") -> Vocabulary:
    """The sizes and ids that batches are made with.

    Raises:
        BadInput: a special token is missing, an id is absurd, or it is not a fast tokenizer.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise BadInput(
            f"{shown} is a {type(tokenizer).__name__} without a Rust backend: use the Fast class"
        )
    vocab: dict[str, int] = tokenizer.get_vocab()
    _check_special(vocab, shown)
    special = SpecialIds(*(vocab[token] for token in SPECIAL_TOKENS))
    size = max(vocab.values()) + 1
    if size > _LARGEST_VOCABULARY:
        raise BadInput(
            f"{shown} has the token id {size - 1:,}, expected less than {_LARGEST_VOCABULARY:,}: save it again"
        )
    return Vocabulary(
        size=size,
        special=special,
        special_ids=tuple(sorted({*dataclasses.astuple(special), *tokenizer.all_special_ids})),
        continuation_ids=tuple(
            sorted(number for token, number in vocab.items() if token.startswith("##"))
        ),
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """A digest of all that decides which ids a text gets: the vocabulary, the normaliser, the
    splitter, the model."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    kept = {key: backend[key] for key in ("normalizer", "pre_tokenizer")}
    kept["special"] = sorted((token["id"], token["content"]) for token in backend["added_tokens"])
    kept["model"] = {key: value for key, value in model.items() if key != "vocab"}
    kept["vocab"] = (
        sorted(model["vocab"].items()) if isinstance(model["vocab"], dict) else model["vocab"]
    )
    return files.digest_of(kept)


def plain_backend(tokenizer: Any) -> Any:
    """A copy of the Rust tokenizer without padding or truncation, to which special tokens in a text
    are just text."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    return backend


def encode_documents(
    tokenizer: Any, documents: Iterable[Document]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokenises documents, many at a time: for each, its tokens int32 [N] and bool [N], true where
    a sentence starts.

    Documents come out in order; one without any token comes out with N = 0.
    """
    backend = plain_backend(tokenizer)
    for batch in by_size(documents):
        yield from encode_batch(backend, [document.text for document in batch])


def encode_batch(backend: Any, texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokenises the texts of documents at once, as `encode_documents`. `backend`: from
    `plain_backend`."""
    sentences = [split_sentences(text) for text in texts]
    encodings = iter(
        backend.encode_batch_fast(list(itertools.chain(*sentences)), add_special_tokens=False)
    )
    for parts in sentences:
        ids = [encoding.ids for encoding in itertools.islice(encodings, len(parts))]
        starts = np.cumsum([0, *map(len, ids)])
        is_start = np.zeros(starts[-1] + 1, bool)
        is_start[starts] = True
        yield np.array(list(itertools.chain(*ids)), np.int32), is_start[:-1]


def by_size(
    documents: Iterable[Document], characters: int = _CHARACTERS_A_BATCH
) -> Iterator[list[Document]]:
    """Documents in lists of about so many characters: what is tokenised at once."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
