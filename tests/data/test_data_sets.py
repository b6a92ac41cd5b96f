"""Labelled sets by name: of the Hub's `datasets` (a small stand-in, and the library itself where it is
installed) and of TFDS, read as the same rows in a file are."""

import errno
import json
import sys
import types

import numpy as np
import pytest

from jaxdistill import defaults
from jaxdistill.data import data_sets, hf_sets
from jaxdistill.data.data_sets import open_table, read_columns, with_split
from jaxdistill.data.found_set import Found, Table
from jaxdistill.data.glue import GLUE
from jaxdistill.data.tasks import open_task
from jaxdistill.errors import BadInput, TrainingStopped

TEXTS = ("a stone", "the river ", "paper, twice", 'a "garden"')
SENTIMENT = ("negative", "positive")


def opened(kind, **settings):
    return open_task("it", defaults.task(kind, **settings), 0)


def refused(*words):
    return pytest.raises(BadInput, match="(?s)" + ".*".join(words))


@pytest.fixture
def sets(monkeypatch):
    """Sets in memory, by name: their splits as (names of classes by column, rows as dictionaries)."""
    known = {}

    def find(source):
        name, _, split = source.removeprefix("hf:").removeprefix("tfds:").partition(":")

        def table(split):
            classes, rows = known[name][split]
            names = {key: tuple(classes.get(key, ())) for key in rows[0]}
            return Table(names, lambda wanted: (tuple(row[w] for w in wanted) for row in rows))

        return Found(split, tuple(known[name]), table)

    monkeypatch.setattr(data_sets, "_find", find)
    return known


def reviews(number=12, classes=SENTIMENT, **more):
    rows = [
        {"sentence": f"{TEXTS[n % 4]} {n}", "label": n % max(len(classes), 2), "idx": n, **more}
        for n in range(number)
    ]
    return {"label": classes}, rows


def glue_set(name, folder):
    """Rows of a GLUE task as TFDS says that both libraries have them, and as its official files do."""
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text

    config = name.removesuffix("_mm")
    kinds = tfds.builder(f"glue/{config}", data_dir=str(folder), try_gcs=False).info.features
    columns = [key for key, kind in kinds.items() if isinstance(kind, tfds.features.Text)]
    classes = tuple(getattr(kinds["label"], "names", ()))
    row = GLUE[name]
    number_of = {label: n for n, label in enumerate(row.labels)}
    number_of |= {label: n for n, label in enumerate(classes) if label in number_of}
    rows, lines = [], []
    for n in range(9):
        label = row.labels[n % len(row.labels)] if row.labels else f"{n / 2:.2f}"
        texts = [f"{TEXTS[n % 4]} {n}", TEXTS[(n + 1) % 4]]
        value = number_of[label] if row.labels else float(np.float32(n / 2))
        rows.append({**dict(zip(columns, texts)), "label": value, "idx": n})
        lines.append({row.text: texts[0], row.pair: texts[1], row.label: label})
    return ({"label": classes}, rows), lines


@pytest.mark.parametrize("name", GLUE)
def test_a_glue_task_by_name_is_that_of_its_files(name, sets, tmp_path):
    """Equal digests: the same texts, and the same numbers for the same names."""
    table, lines = glue_set(name, tmp_path)
    dev = GLUE[name].dev.replace("dev", "validation")
    sets["glue/it"] = {"train": table, dev: table, "test": table}
    header = list(lines[0])
    if name == "cola":
        rows = [["gj04", line["1"], "*", line["3"]] for line in lines]
    else:
        rows = [[column for column in header if column]]
        rows += [[line[column] for column in rows[0]] for line in lines]
    for part in ("train", GLUE[name].dev):
        (tmp_path / f"{part}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    found, theirs = opened(name, source="hf:glue/it"), opened(name, source=str(tmp_path))
    assert found.digests == theirs.digests and found.labels == theirs.labels
    assert found.tables == {"train": "hf:glue/it:train", "heldout": f"hf:glue/it:{dev}"}
    again = opened(name, source="hf:glue/it", heldout="hf:glue/it")
    assert {*again.tables.values()} == {f"hf:glue/it:{dev}"}
    single = opened(name, source="hf:glue/it:train", heldout_fraction=0.5)
    assert {*single.tables.values()} == {"hf:glue/it:train"} and single.rows < 9
    with refused("hf:glue/it", "dev.tsv", "two sets, or two files"):
        opened(name, source="hf:glue/it", heldout="dev.tsv")


def test_a_class_has_its_name_or_the_number_that_is_known(sets):
    sets["r"] = {"train": reviews(), "test": reviews(4)}
    where = dict(text_column="sentence", label_column="label")
    feed = opened("classification", source="hf:r:train", heldout="hf:r:test", **where)
    assert feed.labels == SENTIMENT and (feed.rows, feed.heldout_rows) == (12, 4)
    feed = opened(
        "classification", source="hf:r:train", heldout="hf:r:test", labels=("1", "0"), **where
    )
    assert feed.labels == ("1", "0") and feed.usual == 0
    found = read_columns(["hf:r:train", "hf:r:test"], ["sentence", "label"], label=1)
    assert len(found.cells[0]) == 16 and found.places[12] == ("hf:r:test", 1)
    # Names that look like numbers are names.
    sets["stars"] = {"train": reviews(classes=("1", "0"))}
    found = read_columns(["hf:stars"], ["sentence", "label"], label=1, known_labels=("0", "1"))
    assert found.cells[1][:2] == ("1", "0")


def test_hidden_labels_are_none(sets):
    classes, rows = reviews(6)
    hidden = [{**row, "label": -1} for row in rows]
    sets["r"] = {"test": (classes, hidden), "train": (classes, [*rows, hidden[0]])}
    sets["scores"] = {"test": ({}, [{**row, "label": -1.0} for row in rows])}
    for source in ("hf:r:test", "hf:scores"):
        with refused(source, "no labels", "all of its 6 rows"):
            read_columns([source], ["sentence", "label"], label=1)
    with refused("'hf:r:train' line 7 has no label"):
        read_columns(["hf:r:train"], ["sentence", "label"], label=1)
    kept = read_columns(["hf:r:train"], ["sentence", "label"], label=1, skip_bad_rows=True)
    assert len(kept.places) == 6 and "1 bad row of 'hf:r:train'" in kept.notices[0]


def test_what_a_set_lacks_is_said(sets):
    sets["r"] = {"train": reviews(), "test": reviews()}
    columns = ["sentence", "label"]
    for source, wanted, *words in (
        ("hf:r", columns, "has the splits train, test", "hf:r:train"),
        ("hf:r:tset", columns, "did you mean 'test'"),
        ("hf:r:train", ["0", "1"], "no column '0'", "by their names", "idx, label, sentence"),
        ("hf:r:train", ["sentense", "label"], "did you mean 'sentence'"),
        ("hf:r:train", ["idx", "label"], "line 1 has 0 in column 'idx', expected text"),
        ("hf:r:train", ["label", "label"], "must differ"),
    ):
        with refused(*words):
            read_columns([source], wanted, label=1)
    by_name = dict(text_column="sentence", label_column="label")
    for settings, *words in (
        ({"source": "hf:r:train,x.tsv"}, "hf:r:train, x.tsv", "the one or the other"),
        ({"source": "hf:r:train", "header": "no"}, "header='no' is for files"),
        ({"source": "hf:r:train", "label_source": "labels"}, "label_source='labels' is for files"),
    ):
        with refused(*words):
            opened("classification", **{**by_name, **settings})


def test_words_and_tags(sets, tmp_path):
    tags = ("O", "B-PER", "I-PER")
    rows = [{"tokens": ["Anna", f"w{n}"], "ner_tags": [1, 0], "pos": ["N", "V"]} for n in range(9)]
    rows.append({"tokens": [], "ner_tags": [], "pos": []})
    sets["r"] = {"train": ({"ner_tags": tags}, rows)}
    feed = opened("tagging", source="hf:r", heldout="hf:r:train")
    assert feed.labels == ("O", "B-PER") and feed.heldout_rows == 9 and feed.score == "entities"
    file = tmp_path / "a.txt"
    file.write_text("".join(f"Anna B-PER\nw{n} O\n\n" for n in range(9)))
    assert feed.digests["train"] == opened("tagging", source=str(file), heldout=str(file)).digests["train"]  # fmt: skip
    assert opened("tagging", source="hf:r", tag_column="pos").labels == ("N", "V")
    with refused("no column 'ner'", "valid: ner_tags, pos, tokens"):
        opened("tagging", source="hf:r", tag_column="ner")
    with refused("tag_column='ner'", "columns of a file go by their numbers"):
        opened("tagging", source=str(file), tag_column="ner")
    for wrong in ([1, -1], [1], None, 1):
        rows[4]["ner_tags"] = wrong
        with refused("row 5 has", "a tag for each"):
            opened("tagging", source="hf:r")
    feed = opened("tagging", source="hf:r", heldout="hf:r", skip_bad_rows=True)
    assert feed.heldout_rows == 8 and "1 bad rows were left out" in feed.notices[0]


def test_questions(sets, tmp_path):
    rows = [
        {
            "id": f"q{n}",
            "title": "T",
            "context": "stone river",
            "question": "where?",
            "answers": {"text": ["river"] * (n % 2), "answer_start": [6] * (n % 2)},
        }
        for n in range(6)
    ]
    sets["r"] = {"train": ({}, rows)}
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, theirs = (
        opened("question_answering", source=s, heldout=s) for s in ("hf:r:train", str(file))
    )
    assert found.digests == theirs.digests and found.heldout_rows == 6
    sets["other"] = {"train": reviews()}
    with refused("none of the columns", "sentence"):
        opened("question_answering", source="hf:other", heldout="hf:other")


# The library `datasets`.


class Rows:
    def __init__(self, columns, names):
        self.columns, self.names = columns, names
        feature = types.SimpleNamespace
        self.features = {"sentence": feature(), "label": feature(names=list(SENTIMENT))}
        self.features["tags"] = feature(feature=feature(names=["O"]))

    def select_columns(self, names):
        return Rows(self.columns, names)

    def iter(self, size):
        for at in range(0, 3, 2):
            yield {name: self.columns[name][at : at + 2] for name in self.names}


@pytest.fixture
def library(monkeypatch):
    """What is used of `datasets`, with the sets org/one and, of two configs and no default, org/two. `reached`: whether
    the Hub answers."""
    found = types.SimpleNamespace(__version__="4.5.0", reached=True, kept=True, bars=True)
    found.config = types.SimpleNamespace(HF_HUB_OFFLINE=False)
    configs = {"org/one": ["default", "en"], "org/two": ["sst2", "mnli"]}

    def load_dataset_builder(name, config=None):
        if found.config.HF_HUB_OFFLINE and not found.kept:
            raise ConnectionError("no")
        if name not in configs:
            raise FileNotFoundError(name)
        if config not in (*configs[name], *([] if name == "org/two" else [None])):
            raise ValueError(f"config {config}")
        columns = {"sentence": ["a", "b", "c"], "label": [0, 1, -1], "tags": [[0]] * 3}
        return types.SimpleNamespace(
            info=types.SimpleNamespace(splits={"train": 0, "test": 0}),
            download_and_prepare=lambda: None,
            as_dataset=lambda split: Rows({**columns, "sentence": [split, config, "c"]}, ()),
        )

    found.load_dataset_builder = load_dataset_builder
    found.get_dataset_config_names = lambda name: configs[name]
    found.are_progress_bars_disabled = lambda: not found.bars
    found.disable_progress_bars = lambda: setattr(found, "bars", False)
    found.enable_progress_bars = lambda: setattr(found, "bars", True)

    def dataset_info(self, name, timeout):
        assert timeout <= 10
        if not found.reached:
            raise ConnectionError(name)

    monkeypatch.setitem(sys.modules, "datasets", found)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    return found


def test_one_word_is_a_config_if_there_is_such_a_one(library):
    for source, split, config in (
        ("hf:org/one:train", "train", None),
        ("hf:org/one:default:test", "test", "default"),
        ("hf:org/one:train[:10%]", "train[:10%]", None),
        ("hf:org/two:sst2:train[1:]", "train[1:]", "sst2"),
    ):
        table = open_table(source)
        assert table.classes == {"sentence": (), "label": SENTIMENT, "tags": ("O",)}
        rows = list(table.rows(("sentence", "label")))
        assert rows == [(split, 0), (config, 1), ("c", -1)]
    assert with_split("hf:org/two:mnli", "train") == "hf:org/two:mnli:train"
    assert with_split("hf:org/one:test", "train") == "hf:org/one:test"
    assert with_split("hf:org/one:en", "train") == "hf:org/one:en:train"
    assert library.bars


@pytest.mark.parametrize(
    "source, words",
    [
        ("hf:", ["expected hf:NAME"]),
        ("hf:a:b:c:d", ["expected hf:NAME"]),
        ("hf:./nothing", ["there is no folder './nothing'"]),
        ("hf:../org/one", ["there is no folder"]),
        ("hf:org/two", ["names none of the configs", "mnli, sst2"]),
        ("hf:org/two:sst:train", ["did you mean 'sst2'"]),
        ("hf:org/two:train", ["valid: mnli, sst2"]),
        ("hf:org/two:sst2", ["has the splits train, test", "hf:org/two:sst2:train"]),
        ("hf:org/one:er:train", ["names none of the configs", "valid: default, en"]),
        ("hf:org/one:trian", ["did you mean 'train'"]),
        ("hf:org/three", ["FileNotFoundError: org/three", "or give a file"]),
    ],
)
def test_bad_sources(source, words, library):
    with refused(*words) as error:
        open_table(source)
    assert "\n" not in str(error.value) and library.bars


def test_the_kinds_of_files_of_the_library_are_no_sets(library, monkeypatch):
    """`datasets` would read, and one of them unpickle, what lies in the working directory."""
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: name == "datasets.packaged_modules.pandas"
    )
    with refused("'pandas' is a kind of file"):
        open_table("hf:pandas:train")


def test_without_a_network_what_was_fetched_is_read_and_else_one_line_is_said(library):
    library.reached = False
    assert with_split("hf:org/one", "train") == "hf:org/one:train"
    assert not library.config.HF_HUB_OFFLINE
    library.kept = False
    with refused("the Hub does not give 'org/one'", "ConnectionError", "or give a file"):
        open_table("hf:org/one:train")
    assert not library.config.HF_HUB_OFFLINE


def test_a_full_disk_is_no_fault_of_the_network(library, monkeypatch):
    def full(*_):
        raise ValueError("while generating") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(library, "get_dataset_config_names", full)
    with pytest.raises(TrainingStopped, match="make room"):
        open_table("hf:org/two:train")


@pytest.mark.parametrize("version", [None, "3.6.0"])
def test_without_the_library_or_with_one_that_runs_code_it_is_named(version, monkeypatch):
    old = version and types.SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "datasets", old)
    with refused(r"pip install 'datasets>=4'"):
        open_table("hf:org/one:train")


def test_folders_as_the_library_itself_reads_them(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", "4")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    kinds = {
        "sentence": datasets.Value("string"),
        "label": datasets.ClassLabel(names=list(SENTIMENT)),
        "score": datasets.Value("float32"),
        "tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-X"])),
    }
    rows = {"sentence": list(TEXTS), "label": [0, 1, 1, -1], "score": [0.1, 3.8, 2, 1e-9]}
    rows["tags"] = [[0, 1]] * 4
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    both = datasets.DatasetDict(train=table, test=table.select([1, 2]))
    both.save_to_disk(tmp_path / "saved")
    # Who works with a saved set leaves other files beside its rows.
    datasets.load_from_disk(str(tmp_path / "saved"))["train"].map(lambda row: row)
    for split, part in both.items():
        part.to_parquet(tmp_path / "files" / "data" / f"{split}-00000-of-00001.parquet")
    for name in ("saved", "files"):
        source = f"hf:{tmp_path / name}"
        found = read_columns(
            [f"{source}:train"], ["sentence", "label"], label=1, skip_bad_rows=True
        )
        assert found.cells == (TEXTS[:3], ("negative", "positive", "positive"))
        scores = read_columns([f"{source}:train"], ["sentence", "score"], label=1).cells[1]
        assert scores == ("0.1", "3.8", "2.0", "1e-09")
        assert open_table(f"{source}:test").classes["tags"] == ("O", "B-X")
        with refused("has the splits train, test"):
            open_table(source)
    assert len(list(open_table(f"{source}:train[:2]").rows(["label"]))) == 2
    (tmp_path / "files" / "files.py").write_text("raise SystemExit")
    with refused("scripts are no longer supported"):
        open_table(f"{source}:train")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for kind in ("pandas", "csv"):
        with refused(f"'{kind}' is a kind of file"):
            hf_sets.find(f"hf:{kind}")


# TFDS.


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder of TFDS with one labelled set of two splits."""
    import tensorflow_datasets as tfds

    kinds = tfds.features
    classes = kinds.ClassLabel(names=list(SENTIMENT))

    class LittleReviews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        url_infos: dict = {}
        name = "little_reviews"

        def _info(self):
            features = kinds.FeaturesDict(
                {
                    "sentence": kinds.Text(),
                    "label": classes,
                    "score": np.float32,
                    "tokens": kinds.Sequence(kinds.Text()),
                    "ner": kinds.Sequence(kinds.ClassLabel(names=["O", "B-X"])),
                    "answers": kinds.Sequence({"text": kinds.Text(), "answer_start": np.int32}),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(7), "validation": self._generate_examples(3)}

        def _generate_examples(self, count=0):
            for n in range(count):
                yield (
                    n,
                    {
                        "sentence": f"süß {n}",
                        "label": n % 2,
                        "score": n + 0.8,
                        "tokens": ["süß", str(n)],
                        "ner": [1, 0],
                        "answers": [{"text": "ü", "answer_start": 1}] * (n % 2),
                    },
                )

    folder = tmp_path_factory.mktemp("tfds")
    LittleReviews(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


def test_a_set_of_tfds(data_dir, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(data_dir))
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    name = "tfds:little_reviews"
    feed = opened("sst2", source=name)
    assert (feed.rows, feed.heldout_rows, feed.labels) == (7, 3, ("0", "1"))
    found = read_columns([f"{name}:train[2:4]"], ["sentence", "label"], label=1)
    assert found.cells == (("süß 2", "süß 3"), SENTIMENT)
    assert read_columns([f"{name}:train[:1]"], ["sentence", "score"], label=1).cells[1] == ("0.8",)
    feed = opened(
        "tagging", source=f"{name}:train", heldout=f"{name}:1.0.0:validation", tag_column="ner"
    )
    assert feed.labels == ("O", "B-X") and feed.heldout_rows == 3
    answers = [row["answers"] for _, row in data_sets.records(f"{name}:validation", ["answers"])]
    assert answers[1] == {"text": ["ü"], "answer_start": [1]} and answers[0]["text"] == []
    for source, *words in (
        (name, "has the splits train, validation"),
        (f"{name}:test", "no split 'test'"),
        (f"{name}:train[:x]", "TFDS cannot read it"),
        ("tfds:../elsewhere", "expected tfds:NAME"),
    ):
        with refused(*words):
            open_table(source)


def test_tfds_soon_says_that_there_is_no_network(data_dir, monkeypatch):
    """Of its own it would ask for over three minutes."""
    from tensorflow_datasets.core.download import downloader

    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    tried = []

    def prepare(*_, **__):
        tried.append(sum(0.2 * 2**n for n in range(1, downloader.MAX_RETRIES)))
        raise ConnectionError("no network")

    monkeypatch.setattr("tensorflow_datasets.core.DatasetBuilder.download_and_prepare", prepare)
    with refused("TFDS could not download and prepare it: no network"):
        open_table("tfds:glue/sst2:train")
    assert tried[0] < 20 and downloader.MAX_RETRIES == 10


def test_pairs_of_a_search_by_name_are_those_of_a_file(sets, tmp_path):
    pairs = [(f"which {n % 3}", TEXTS[n % 4]) for n in range(8)]
    rows = [{"query": query, "answer": answer} for query, answer in pairs]
    sets["nq"] = {"train": ({}, rows)}
    (tmp_path / "nq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = dict(query_column="query", document_column="answer")
    found = opened("retrieval", source="hf:nq", **where)
    assert found.digests == opened("retrieval", source=str(tmp_path / "nq.jsonl"), **where).digests
    assert found.heldout_rows == 3 and found.tables["heldout"] == "hf:nq"
    with refused("header='no' would do nothing beside source='hf:nq'"):
        opened("retrieval", source="hf:nq", header="no", **where)
    with refused("no column '0'", "by their names"):
        opened("retrieval", source="hf:nq")
    rows[2]["answer"] = None
    with refused("line 3 has None in column 'answer', expected text"):
        opened("retrieval", source="hf:nq", **where)
