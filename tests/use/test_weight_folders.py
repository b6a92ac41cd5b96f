"""Weights as they lie in people's folders, through the command line: read as they are, or refused
in one line that helps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdistill import cli, interop
from jaxdistill.interop import hf_flax
from jaxdistill.models import Model, ModelConfig
from tests.interop.tiny import SHRUNK, random_params

CONFIG = ModelConfig(**SHRUNK)
WORDS = "bert.embeddings.word_embeddings.weight"
State = dict[str, np.ndarray]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT with MLM and NSP, as a Hugging Face folder."""
    interop.save_pretrained(tmp_path / "bert", Model(CONFIG), random_params(CONFIG))
    return tmp_path / "bert"


@pytest.fixture
def export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`jaxdistill export` of a folder: (exit code, what it said on stderr); a refusal leaves
    nothing behind."""

    def run(model: Path, *options: str) -> tuple[int, str]:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        code = cli.main(["export", f"--model={model}", f"--out={out}", *options])
        said = capsys.readouterr().err
        assert out.exists() == (code == 0), said
        assert code in (0, 2) and len(said) < 600 and said.count("\n") == len(said.splitlines())
        return code, said

    return run


def rewrite(folder: Path, change: Callable[[State], Any], to: str = "model.safetensors") -> None:
    """Changes the tensors of a folder."""
    state = load_file(folder / "model.safetensors")
    change(state)
    (folder / "model.safetensors").unlink()
    save_file(state, folder / to, metadata={"format": "pt"})


def config_without(folder: Path, *keys: str, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in values.items() if key not in keys})
    )


def add_msgpack(folder: Path, seed: int) -> None:
    """flax_model.msgpack beside what lies in the folder, of other parameters than 0's unless `seed`
    is 0."""
    interop.save_pretrained(
        folder.parent / f"flax{seed}", Model(CONFIG), random_params(CONFIG, seed), format="msgpack"
    )
    (folder.parent / f"flax{seed}" / "flax_model.msgpack").rename(folder / "flax_model.msgpack")


@pytest.mark.parametrize(
    "to, file",
    [
        ("huggingface", "model.safetensors"),
        ("safetensors", "model.safetensors"),
        ("msgpack", "flax_model.msgpack"),
    ],
)
def test_one_file_of_weights_is_written(
    folder: Path, export: Any, tmp_path: Path, to: str, file: str
) -> None:
    assert export(folder, f"--format={to}")[0] == 0
    out = next(path for path in tmp_path.iterdir() if path.name.startswith("out"))
    assert [path.name for path in out.iterdir() if path.suffix in (".safetensors", ".msgpack")] == [
        file
    ]


def test_two_files_of_weights_must_agree(folder: Path, export: Any) -> None:
    add_msgpack(folder, seed=0)
    assert export(folder)[0] == 0
    add_msgpack(folder, seed=1)
    code, said = export(folder)
    assert (
        code == 2
        and "model.safetensors and flax_model.msgpack hold different weights" in said
        and "delete the one" in said
    )
    (folder / "flax_model.msgpack").unlink()
    assert export(folder)[0] == 0


def test_shards_and_a_whole_file_must_agree(folder: Path, export: Any) -> None:
    """PyTorch leaves model.safetensors there when it saves in shards over it, and the list when it
    saves whole again."""
    state = load_file(folder / "model.safetensors")
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(state)}
    for file in set(files.values()):
        save_file({name: state[name] + 1 for name in state if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    code, said = export(folder)
    assert (
        code == 2
        and "model.safetensors and model.safetensors.index.json hold different weights" in said
    )
    for file in set(files.values()):
        (folder / file).unlink()
    assert export(folder)[0] == 0


@pytest.mark.parametrize("dtype, code", [(np.float16, 0), (np.float32, 2)])
def test_two_files_in_different_precision(folder: Path, export: Any, dtype: Any, code: int) -> None:
    """Rounded to float16 they are the same; as float32 a difference of that size is one."""
    add_msgpack(folder, seed=0)
    rewrite(
        folder,
        lambda state: state.update(
            {name: x.astype(np.float16).astype(dtype) for name, x in state.items()}
        ),
    )
    assert export(folder)[0] == code


def test_numbers_that_are_not_finite(folder: Path, export: Any, tmp_path: Path) -> None:
    def overflow(state: State) -> None:
        state.update({name: x.astype(np.float16) for name, x in state.items()})
        state[WORDS][0, 0] = 1e6

    with np.errstate(over="ignore"):
        rewrite(folder, overflow)
    code, said = export(folder)
    assert (
        code == 2
        and "numbers that are not finite in 1 tensor: embeddings/word" in said
        and "float16" in said
    )
    params = random_params(CONFIG)
    params["pooler"]["dense"]["bias"][0] = np.nan
    interop.save_pretrained(tmp_path / "own", Model(CONFIG), params, format="jaxdistill")
    code, said = export(tmp_path / "own")
    assert code == 2 and "not finite in 1 tensor: pooler/dense/bias" in said


@pytest.mark.parametrize(
    "before", ["module.", "_orig_mod.", "model.", "base_model.model.", "bert."]
)
def test_names_with_something_before_them(folder: Path, export: Any, before: str) -> None:
    rewrite(
        folder,
        lambda state: [state.update({before + name: state.pop(name)}) for name in list(state)],
    )
    code, said = export(folder)
    assert code == 0 and f"begin with {before!r}, which is left out" in said


def test_names_of_another_kind_of_model(folder: Path, export: Any) -> None:
    rewrite(
        folder,
        lambda state: [
            state.update({name.replace("bert.", "roberta."): state.pop(name)})
            for name in list(state)
        ],
    )
    code, said = export(folder)
    assert code == 2 and "names begin with 'roberta.'; expected 'bert.'" in said


def test_two_encoders_in_a_file(folder: Path, export: Any) -> None:
    rewrite(
        folder,
        lambda state: [
            state.update({f"{part}.{name}": state[name] for part in ("query", "doc")})
            or state.pop(name)
            for name in list(state)
        ],
    )
    code, said = export(folder)
    assert code == 2 and "2 word tables, under 'doc.' and 'query.'" in said


def test_what_training_left(folder: Path, export: Any) -> None:
    rewrite(
        folder,
        lambda state: state.update(
            {
                "bert.embeddings.token_type_ids": np.zeros((1, 9), np.int64),
                "bert.embeddings.position_ids": np.arange(9)[None],
            }
        ),
    )
    assert export(folder) == (0, "")
    more = {
        "loss_fct.weight": np.ones(2, np.float32),
        f"{WORDS}.exp_avg": np.ones(2, np.float32),
        "optimizer.step": np.ones(1),
    }
    rewrite(folder, lambda state: state.update(more))
    code, said = export(folder)
    assert code == 0 and "3 tensors: " in said and "loss_fct.weight" in said and "not used" in said
    rewrite(folder, lambda state: state.update({"crf.transitions": np.ones(3, np.float32)}))
    code, said = export(folder)
    assert code == 2 and "1 tensor: crf.transitions" in said and "heads=()" in said


def test_a_config_without_model_type(folder: Path, export: Any) -> None:
    config_without(folder, "model_type")
    assert export(folder)[0] == 0
    config_without(folder, "architectures")
    code, said = export(folder)
    assert (
        code == 2
        and 'has no model_type; if the model is a BERT, add the line "model_type": "bert"' in said
    )
    config_without(folder, architectures=["RobertaForMaskedLM"])
    code, said = export(folder)
    assert code == 2 and "architectures=['RobertaForMaskedLM'], which is not read" in said


def test_another_type_of_model(folder: Path, export: Any) -> None:
    config_without(folder, model_type="roberta")
    code, said = export(folder)
    assert code == 2 and "model_type='roberta'" in said and "'bert' or 'mobilebert'" in said


@pytest.mark.parametrize("rows", [40, 30])
def test_a_word_table_of_another_length_than_the_config_says(
    folder: Path, export: Any, rows: int
) -> None:
    def resize(state: State) -> None:
        for name in (WORDS, "cls.predictions.bias"):
            state[name] = np.resize(state[name], (rows, *state[name].shape[1:]))

    rewrite(folder, resize)
    code, said = export(folder)
    assert (
        code == 2
        and f"has {rows} rows, but config.json says vocab_size=37; set vocab_size to {rows} in config.json"
        in said
    )
    config_without(folder, vocab_size=rows)  # as it says
    assert export(folder)[0] == 0


def test_the_folder_or_file_to_give(folder: Path, export: Any, tmp_path: Path) -> None:
    for name, inside in (
        ("trainer", "checkpoint-500"),
        ("trainer", "checkpoint-1500"),
        ("sentences", "0_Transformer"),
    ):
        interop.save_pretrained(tmp_path / name / inside, Model(CONFIG), random_params(CONFIG))
    (tmp_path / "sentences" / "1_Pooling").mkdir()
    (tmp_path / "sentences" / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_mean_tokens": true}'
    )
    for name, best in (("trainer", "checkpoint-1500"), ("sentences", "0_Transformer")):
        code, said = export(tmp_path / name)
        assert code == 2 and f"Give {tmp_path / name / best}\n" in said
    rewrite(folder, lambda state: None, to="model.fp16.safetensors")
    code, said = export(folder)
    assert code == 2 and "rename it to model.safetensors" in said
    (folder / "model.fp16.safetensors").rename(folder / "adapter_model.safetensors")
    code, said = export(folder)
    assert code == 2 and "merge_and_unload" in said


def vocabulary(folder: Path, size: int) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(size - 5))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")


def test_a_tokenizer_larger_than_the_model(folder: Path, export: Any) -> None:
    """The files of a folder's tokenizer are copied as they are, but not to a model that has no rows
    for them."""
    for size, code in ((37, 0), (40, 2)):
        vocabulary(folder, size)
        assert export(folder)[0] == code
    code, said = export(folder)
    assert f"the tokenizer in {folder} has 40 entries but the model's vocab_size is 37" in said
    vocabulary(folder, 37)
    (folder / "added_tokens.json").write_text('{"[NEW]": 37}')
    assert "has 38 entries" in export(folder)[1]
    (folder / "added_tokens.json").unlink()
    tokens = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 50, "content": "[NEW]"}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    assert "has 51 entries" in export(folder)[1]


def test_flax_classes_see_two_files_too(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what they save over a folder replaces what was there, in any form and any number of
    shards."""
    from jaxdistill.errors import BadInput

    config = CONFIG.replace(norm="no_norm")  # a MobileBERT
    place = tmp_path / "mobile"
    interop.save_pretrained(place, Model(config), random_params(config))
    kind = hf_flax.FlaxMobileBertForPreTraining
    model, params = kind.from_pretrained(place, _do_init=False)  # of PyTorch's file
    np.testing.assert_array_equal(
        params["mobilebert"]["embeddings"]["word_embeddings"]["embedding"],
        load_file(place / "model.safetensors")["mobilebert.embeddings.word_embeddings.weight"],
    )
    model.save_pretrained(place, params=params)  # the same again
    assert {path.name for path in place.glob("*.*")} >= {"model.safetensors", "flax_model.msgpack"}
    kind.from_pretrained(place, _do_init=False)
    rewrite(
        place,
        lambda state: state.update({"cls.predictions.bias": state["cls.predictions.bias"] + 1}),
    )
    with pytest.raises(BadInput, match="hold different weights .1 of "):
        kind.from_pretrained(place, _do_init=False)
    assert not capsys.readouterr().err.count("deleted")
    for options, files in (
        ({"max_shard_size": "3KB"}, "flax_model-*.msgpack"),
        ({"max_shard_size": "6KB"}, "flax_model-*.msgpack"),
        ({}, "flax_model.msgpack"),
        ({"safe_serialization": True}, "model.safetensors"),
    ):
        params["cls"]["predictions"]["bias"] += 2
        model.save_pretrained(place, params=params, **options)
        kept = {
            path.name for path in place.iterdir() if path.suffix in (".safetensors", ".msgpack")
        }
        assert kept == {path.name for path in place.glob(files)}
        listed = place / "flax_model.msgpack.index.json"
        if options.get("max_shard_size"):
            assert kept == set(json.loads(listed.read_text())["weight_map"].values())
        assert listed.exists() == bool(options.get("max_shard_size"))
        np.testing.assert_array_equal(
            interop.from_pretrained(place)[1]["mlm"]["bias"], params["cls"]["predictions"]["bias"]
        )
    assert (
        "model.safetensors held the weights from before and is deleted" in capsys.readouterr().err
    )
    params["cls"]["predictions"]["bias"] = params["cls"]["predictions"]["bias"] * np.inf
    model.save_pretrained(place, params=params)
    with pytest.raises(BadInput, match="not finite in 1 tensor: cls/predictions/bias"):
        kind.from_pretrained(place, _do_init=False)


def test_training_in_flax_without_a_key(folder: Path, tmp_path: Path) -> None:
    from jaxdistill.errors import BadInput

    config = CONFIG.replace(norm="no_norm", hidden_dropout=0.1)
    interop.save_pretrained(tmp_path / "mobile", Model(config), random_params(config))
    model = hf_flax.FlaxMobileBertModel.from_pretrained(tmp_path / "mobile")
    with pytest.raises(BadInput, match="pass dropout_rng"):
        model(np.ones((1, 3), np.int32), train=True)
