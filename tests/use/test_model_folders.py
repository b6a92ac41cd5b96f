"""Other people's model folders, through the command line: what they say is read, written again, or
refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdistill import cli, interop
from jaxdistill.data.tokenizers import load_tokenizer, train_wordpiece
from jaxdistill.errors import BadInput
from jaxdistill.models import Model, ModelConfig
from tests.conftest import WORDS
from tests.interop.tiny import SHRUNK, random_params

TEXTS = ["River stone engine winter holds the old quiet signal", "paper garden", "a"]
POOLING, DENSE = "1_Pooling/config.json", "2_Dense/config.json"


def export(source: Path, out: Path, *more: str) -> Path:
    assert cli.main(["export", f"--model={source}", f"--out={out}", *more]) == 0
    return out


def refusal(capsys: pytest.CaptureFixture[str], source: Path) -> str:
    """The one line with which `export` refuses a folder; nothing is left behind."""
    out = source.parent / "never"
    capsys.readouterr()
    assert cli.main(["export", f"--model={source}", f"--out={out}"]) == 2
    line = capsys.readouterr().err
    assert (
        line.count("\n") == 1 and "Traceback" not in line and len(line) < 600 and not out.exists()
    )
    return line


def edit(file: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; None takes one away."""
    values = {**json.loads(file.read_text()), **changes} if file.exists() else changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def embeddings(folder: Path) -> np.ndarray:
    """What we make of the texts."""
    model, params = interop.from_pretrained(folder)
    tokens = load_tokenizer(folder)(TEXTS, padding=True, truncation=True, return_tensors="np")
    return np.asarray(model.apply(params, dict(tokens))[0]["embedding"])


def in_sentence_transformers(folder: Path) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_wordpiece([" ".join(WORDS)], 120)


def save(folder: Path, tokenizer: Any, **changes: Any) -> Path:
    """A folder of a tiny BERT of random numbers."""
    config = ModelConfig(
        **{
            **SHRUNK,
            "vocab_size": len(tokenizer),
            "max_positions": 16,
            "heads": ("embedding",),
            **changes,
        }
    )
    interop.save_pretrained(folder, Model(config), random_params(config), tokenizer)
    return folder


@pytest.fixture(scope="module")
def sentence_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that sentence-transformers itself has saved, with all that we can read in it."""
    from sentence_transformers import SentenceTransformer, models

    folder = tmp_path_factory.mktemp("sentences")
    transformer = models.Transformer(str(save(folder / "start", tokenizer)), max_seq_length=7)
    pooling = models.Pooling(12, pooling_mode=("cls", "mean"), include_prompt=False)
    network = SentenceTransformer(
        modules=[transformer, pooling, models.Dense(24, 5), models.Normalize()],
        device="cpu",
        prompts={"query": "quiet: "},
        similarity_fn_name="dot",
    )
    network.save(str(folder / "saved"))
    return folder / "saved"


def test_a_folder_of_sentence_transformers_and_back(sentence_folder: Path, tmp_path: Path) -> None:
    """Its head is read, its vectors are ours, and through every format it comes back with all that
    it said."""
    from sentence_transformers import SentenceTransformer

    config = interop.from_pretrained(sentence_folder)[0].config
    assert (config.embedding_pooling, config.embedding_features) == (
        "first_token+mean",
        5,
    ) and config.normalize_embedding
    theirs = in_sentence_transformers(sentence_folder)
    np.testing.assert_allclose(embeddings(sentence_folder), theirs, atol=1e-5)
    here = sentence_folder
    for number, to in enumerate(("safetensors", "jaxdistill", "huggingface")):
        here = export(here, tmp_path / str(number), f"--format={to}")
        assert interop.from_pretrained(here)[0].config == config
    np.testing.assert_allclose(embeddings(here), theirs, atol=1e-5)
    again = SentenceTransformer(str(here), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS), theirs, atol=1e-6)
    assert [type(module).__name__ for module in again] == [
        "Transformer",
        "Pooling",
        "Dense",
        "Normalize",
    ]
    assert (
        again.max_seq_length == 7
        and again.similarity_fn_name == "dot"
        and again.prompts["query"] == "quiet: "
    )
    assert again[1].include_prompt is False


def test_a_cross_encoder_keeps_its_settings(tokenizer: Any, tmp_path: Path) -> None:
    """One module, and a classifier: nothing to pool, and nothing lost."""
    folder = save(tmp_path / "x", tokenizer, heads=("sequence_classification",))
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": 0,
                    "name": "0",
                    "path": "",
                    "type": "sentence_transformers.base.modules.transformer.Transformer",
                }
            ]
        )
    )
    edit(folder / "sentence_bert_config.json", transformer_task="sequence-classification")
    edit(
        folder / "config_sentence_transformers.json",
        model_type="CrossEncoder",
        activation_fn="torch.nn.modules.linear.Identity",
    )
    out = export(folder, tmp_path / "y")
    assert interop.from_pretrained(out)[0].config.heads == ("sequence_classification",)
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        assert json.loads((out / name).read_text()) == json.loads((folder / name).read_text())


@pytest.mark.parametrize("pooling, normalize", [("mean", True), ("first_token", False)])
def test_our_export_in_sentence_transformers(
    tokenizer: Any, tmp_path: Path, pooling: str, normalize: bool
) -> None:
    save(tmp_path / "ours", tokenizer, embedding_pooling=pooling, normalize_embedding=normalize)
    folder = export(tmp_path / "ours", tmp_path / "out")
    np.testing.assert_allclose(in_sentence_transformers(folder), embeddings(folder), atol=1e-5)


NEW = {"embedding_dimension": 12, "pooling_mode": "max", "include_prompt": True}
OLD = {
    "word_embedding_dimension": 12,
    "pooling_mode_cls_token": False,
    "pooling_mode_max_tokens": False,
}


@pytest.mark.parametrize(
    "module, values, pooling",
    [
        ("sentence_transformer.modules.pooling", NEW, "max"),
        (
            "sentence_transformer.modules.pooling",
            {**NEW, "pooling_mode": "weightedmean"},
            "weighted_mean",
        ),
        (
            "sentence_transformer.modules.pooling",
            {**NEW, "pooling_mode": ["mean", "max"]},
            "mean+max",
        ),
        ("models", {**OLD, "pooling_mode_mean_tokens": True}, "mean"),
        (
            "models",
            {**OLD, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "first_token+mean",
        ),
        ("models", {**OLD, "pooling_mode_lasttoken": True}, "last_token"),
        ("models", {**OLD, "pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_length"),
    ],
)
def test_layouts_old_and_new(
    tokenizer: Any, tmp_path: Path, module: str, values: dict[str, Any], pooling: str
) -> None:
    """What is read is written so that it is read the same again."""
    folder = save(tmp_path / "x", tokenizer, normalize_embedding=False)
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = f"sentence_transformers.{module}.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / POOLING).write_text(json.dumps(values))
    model, params = interop.from_pretrained(folder)
    config = model.config
    assert (config.embedding_pooling, config.normalize_embedding, config.heads) == (
        pooling,
        False,
        ("embedding",),
    )
    interop.save_pretrained(tmp_path / "y", model, params)
    assert interop.from_pretrained(tmp_path / "y")[0].config == config


def test_a_transformer_in_a_folder_of_its_own(tokenizer: Any, tmp_path: Path) -> None:
    """`0_Transformer/` of old versions: the pooling is described beside it."""
    save(tmp_path / "x" / "0_Transformer", tokenizer, embedding_pooling="first_token")
    below = tmp_path / "x" / "0_Transformer"
    edit(below / "sentence_bert_config.json", max_seq_length=9, do_lower_case=False)
    modules = json.loads((below / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (below / "modules.json").unlink()
    (below.parent / "modules.json").write_text(json.dumps(modules))
    shutil.move(below / "1_Pooling", below.parent / "1_Pooling")
    out = export(below, tmp_path / "out")
    assert interop.from_pretrained(out)[0].config.embedding_pooling == "first_token"
    assert json.loads((out / "sentence_bert_config.json").read_text())["max_seq_length"] == 9


def rename(kind: str, position: int = 1) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        modules[position]["type"] = kind
        (folder / "modules.json").write_text(json.dumps(modules))

    return change


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    "change, words",
    [
        (
            rename("sentence_transformers.models.LSTM"),
            ["Transformer, LSTM, Dense", "expected Transformer, Pooling"],
        ),
        (rename("custom_pooling.Pooling"), ["custom_pooling.Pooling"]),
        (rename("sentence_transformers.models.LayerNorm", 3), ["Dense, LayerNorm"]),
        (
            lambda folder: edit(folder / POOLING, pooling_mode="attention"),
            ["pooling is 'attention'", "weightedmean"],
        ),
        (
            lambda folder: edit(folder / POOLING, pooling_mode=None, pooling_mode_attention=True),
            ["pooling_mode_attention"],
        ),
        (lambda folder: edit(folder / POOLING, embedding_dimension=768), ["768", "12"]),
        (drop(POOLING), ["no 1_Pooling/config.json"]),
        (drop("2_Dense/model.safetensors"), ["no 2_Dense/model.safetensors", "pickle"]),
        (
            lambda folder: edit(
                folder / DENSE, activation_function="torch.nn.modules.activation.SiLU"
            ),
            ["SiLU", "Tanh"],
        ),
        (lambda folder: edit(folder / DENSE, activation_function=["Tanh"]), ["['Tanh']", "ReLU"]),
        (
            lambda folder: edit(folder / DENSE, module_input_name="token_embeddings"),
            ["module_input_name='token_embeddings'"],
        ),
        (
            lambda folder: edit(folder / "sentence_bert_config.json", transformer_task="fill-mask"),
            ["'fill-mask'"],
        ),
        (
            lambda folder: (folder / "modules.json").write_text('{"a": 1}'),
            ["modules.json", "cannot be read"],
        ),
        (lambda folder: (folder / "modules.json").write_text("[]"), ["modules are none"]),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    sentence_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    words: list[str],
) -> None:
    folder = tmp_path / "x"
    shutil.copytree(sentence_folder, folder)
    change(folder)
    line = refusal(capsys, folder)
    assert all(word in line for word in (*words, "modules.json", "heads=()")), line
    assert interop.from_pretrained(folder, heads=())[0].config.heads == ()
    (folder / "modules.json").unlink()  # as the line says
    assert interop.from_pretrained(folder)[0].config.heads == ()


def test_a_dense_layer_of_other_shape_is_refused(
    sentence_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sentence_folder, tmp_path / "x")
    file = tmp_path / "x" / "2_Dense" / "model.safetensors"
    save_file(
        {
            name: array[:, :9] if array.ndim == 2 else array
            for name, array in load_file(file).items()
        },
        file,
    )
    assert "2_Dense.linear.weight has shape [5, 9] but the config says [5, 24]" in refusal(
        capsys, tmp_path / "x"
    )


def test_config_keys_and_names_of_classes_are_kept(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model without classifier too, and by way of our own format; but no code that the folder
    does not hold."""
    folder = save(tmp_path / "x", tokenizer, heads=("mlm",))
    names = {
        "id2label": {"0": "apple", "1": "pear", "2": "plum"},
        "label2id": {"apple": 0, "pear": 1, "plum": 2},
    }
    edit(
        folder / "config.json",
        **names,
        gradient_checkpointing=True,
        licence={"by": ["a", 1]},
        bos_token_id=3,
        transformers_version="4.1",
        torch_dtype="float16",
        auto_map={"AutoModel": "code.Model"},
        num_ffn=9,
    )
    own = export(folder, tmp_path / "own", "--format=jaxdistill")
    assert "without auto_map" in capsys.readouterr().out
    for out in (export(folder, tmp_path / "y"), export(own, tmp_path / "z")):
        values = json.loads((out / "config.json").read_text())
        assert {key: values[key] for key in names} == names
        assert (
            values["licence"] == {"by": ["a", 1]}
            and values["gradient_checkpointing"] is True
            and values["bos_token_id"] == 3
        )
        assert values["torch_dtype"] == "float32" and not {
            "auto_map",
            "transformers_version",
        } & set(values)


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"id2label": None, "label2id": {"no": 0, "yes": 1, "maybe": 2}}, ["no", "yes", "maybe"]),
        (
            {"id2label": None, "label2id": {"no": "0", "nay": "0", "yes": "1", "maybe": "2"}},
            ["no", "yes", "maybe"],
        ),
        ({"id2label": {"0": 1, "1": 2.5, "2": True}, "label2id": None}, ["1", "2.5", "true"]),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": {"x": 0, "y": 1, "z": 2}}, ["x", "y", "z"]),
        ({"id2label": ["a", "b", "c"], "label2id": None}, ["a", "b", "c"]),
    ],
)
def test_names_of_classes_in_every_spelling(
    tokenizer: Any, tmp_path: Path, given: dict[str, Any], expected: list[str]
) -> None:
    folder = save(tmp_path / "x", tokenizer, heads=("sequence_classification",), num_labels=3)
    edit(folder / "config.json", **given)
    values = json.loads((export(folder, tmp_path / "y") / "config.json").read_text())
    assert list(values["id2label"].values()) == expected == list(values["label2id"])


def test_names_that_do_not_fit_are_left_out_with_a_word(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "x", tokenizer, heads=("sequence_classification",), num_labels=3)
    edit(folder / "config.json", id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    values = json.loads((export(folder, tmp_path / "y") / "config.json").read_text())
    assert list(values["label2id"]) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert "without the names of classes" in capsys.readouterr().out


def as_transformers_5_saves(
    folder: Path, tokenizer: Any, lowercase: bool = True, **changes: Any
) -> None:
    """The two files of a tokenizer that has no class of its own in transformers 5."""
    for file in ("vocab.txt", "special_tokens_map.json", "tokenizer_config.json"):
        (folder / file).unlink()
    backend = json.loads((folder / "tokenizer.json").read_text())
    backend["normalizer"]["lowercase"] = lowercase
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "mask", "unk")}
    edit(
        folder / "tokenizer_config.json",
        backend="tokenizers",
        is_local=False,
        model_max_length=16,
        extra_special_tokens=[],
        tokenizer_class="TokenizersBackend",
        **tokens,
        **changes,
    )


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize(
    "kind", ["transformers 5", "tokenizer.json alone", "no class and no model_type"]
)
def test_a_complete_tokenizer_is_read_and_exported_for_transformers_4(
    tokenizer: Any, tmp_path: Path, kind: str, lowercase: bool
) -> None:
    """Case is folded only where tokenizer.json says so."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    folder = save(tmp_path / "x", tokenizer)
    as_transformers_5_saves(folder, tokenizer, lowercase)
    if kind == "tokenizer.json alone":
        (folder / "tokenizer_config.json").unlink()
        shutil.move(folder / "tokenizer.json", tmp_path)
        first = load_tokenizer(tmp_path)(TEXTS[0])["input_ids"][1]
        assert tokenizer.convert_ids_to_tokens(first) == ("river" if lowercase else "[UNK]")
        shutil.move(tmp_path / "tokenizer.json", folder)
    elif kind == "no class and no model_type":
        edit(folder / "tokenizer_config.json", tokenizer_class=None)
    exported = AutoTokenizer.from_pretrained(export(folder, tmp_path / "out"))
    for loaded in (load_tokenizer(folder), exported):
        expected = "river stone" if lowercase else "[UNK] stone"
        assert loaded.decode(loaded("River stone")["input_ids"]) == f"[CLS] {expected} [SEP]"
        assert loaded(["a", "river stone"], padding=True)["attention_mask"][0] == [1, 1, 1, 0]


def test_case_is_folded_where_sentence_transformers_folds_it(
    tokenizer: Any, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = save(tmp_path / "x", tokenizer)
    as_transformers_5_saves(folder, tokenizer, lowercase=False)
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="BertTokenizer",
        do_lower_case=False,
        extra_special_tokens=None,
    )
    edit(folder / "sentence_bert_config.json", max_seq_length=16, do_lower_case=True)
    out = export(folder, tmp_path / "out")
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(embeddings(folder), theirs, atol=1e-5)
    np.testing.assert_allclose(in_sentence_transformers(out), theirs, atol=1e-5)


def test_a_tokenizer_beside_a_config_without_model_type(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    edit(tmp_path / "config.json", hidden_size=12)
    edit(tmp_path / "tokenizer_config.json", tokenizer_class=None)
    assert load_tokenizer(tmp_path)("river")["input_ids"] == tokenizer("river")["input_ids"]


def test_a_class_without_its_files_is_one_short_line(tmp_path: Path) -> None:
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    with pytest.raises(BadInput, match="holds neither tokenizer.json nor vocab.txt; give a folder"):
        load_tokenizer(tmp_path)


def test_the_card_registers_before_it_loads(tokenizer: Any, tmp_path: Path) -> None:
    """FlaxAutoModel knows our classes only then, and what the card says works."""
    folder = save(tmp_path / "x", tokenizer, norm="no_norm", heads=("mlm", "nsp"))
    (folder / "README.md").unlink()
    out = export(folder, tmp_path / "out")
    code = (out / "README.md").read_text().split("```python")[1].split("```")[0]
    assert code.index("register_with_transformers()") < code.index(
        "FlaxAutoModelForPreTraining.from_pretrained"
    )
    exec(code.replace("THIS_FOLDER", str(out)), {})
