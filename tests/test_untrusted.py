"""Files from strangers: no code in them runs, none of them fills the memory, and nothing is written
out of a workdir.

Every case ends in one line and exit code 2. The payloads would each make a file, which must not be
there."""

from __future__ import annotations

import functools
import gzip
import json
import lzma
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdistill import cli, commands, conversion, interop
from jaxdistill.data.loader import packing_plan
from jaxdistill.data.prepare import prepare
from jaxdistill.data.records import open_reader, record_sizes
from jaxdistill.data.tokenizers import load_tokenizer, train_wordpiece
from jaxdistill.errors import BadInput
from jaxdistill.interop.convert import largest_bytes
from jaxdistill.models import Model, preset
from jaxdistill.training import sharding
from jaxdistill.training.checkpoints import Checkpoints
from jaxdistill.workdir import claim
from tests.conftest import tiny_config, write_text
from tests.interop.tiny import SHRUNK, random_params
from tests.training.test_checkpoints import example, like

MODEL = Model(preset("bert_base").replace(**{**SHRUNK, "vocab_size": 120}, heads=("mlm", "nsp")))


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.marker, "w")


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists(), "code in the file was run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a task file and a good model with its tokenizer."""
    folder = tmp_path_factory.mktemp("good")
    text = write_text(folder / "text.txt").read_text()
    (folder / "task.tsv").write_text("".join(f"sentence {n} of it\t{n % 2}\n" for n in range(40)))
    interop.save_pretrained(
        folder / "model", MODEL, random_params(MODEL.config), train_wordpiece([text], 120)
    )
    return folder


@pytest.fixture
def good(whole: Path, tmp_path: Path) -> Path:
    """A copy of the model folder, to be spoiled."""
    target = tmp_path / "model"
    target.mkdir()
    for path in (whole / "model").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end in one line and exit code 2; gives the line."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert cli.main(arguments) == 2, arguments
        written = capsys.readouterr()
        lines = [line for line in written.err.splitlines() if line.startswith("jaxdistill: ")]
        assert len(lines) == 1 and "Traceback" not in written.err and not written.out, written
        return lines[0]

    return run


def evaluate(model: Path, whole: Path) -> tuple[str, ...]:
    return ("evaluate", f"--model={model}", f"--source={whole / 'text.txt'}", "--sequence_length=8")


def as_torch(content: bytes) -> bytes:
    """A pickle as torch.save packs it."""
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pkl", "model.safetensors", "flax_model.msgpack"]
)
@pytest.mark.parametrize("packed", [bytes, as_torch], ids=["pickle", "torch"])
def test_weights_that_are_a_pickle(
    name: str,
    packed: Callable[[bytes], bytes],
    good: Path,
    whole: Path,
    marker: Path,
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    (good / "model.safetensors").unlink()
    (good / name).write_bytes(packed(pickle.dumps(Payload(marker))))
    with pytest.raises(BadInput):
        interop.from_pretrained(good)
    refused(*evaluate(good, whole))
    refused("export", f"--model={good}", f"--out={tmp_path / 'out'}")
    refused(
        "finetune",
        f"--model={good}",
        f"--data={whole / 'task.tsv'}",
        f"--workdir={tmp_path / 'tuned'}",
    )
    refused(
        "train",
        "--config=from_hf:smoke",
        f"--config.networks.teacher.init={good}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.source={whole / 'text.txt'}",
        "--config.data.sequence_length=8",
    )
    assert not (tmp_path / "out").exists()


def test_unpickling_is_what_the_payload_waits_for(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "here"))).close()
    assert (tmp_path / "here").exists()


EVIL = "open({marker!r}, 'w').close()\nclass EvilTokenizer: pass\nclass EvilConfig: pass\n"


@pytest.mark.parametrize(
    "settings",
    [
        {
            "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]},
            "tokenizer_class": "EvilTokenizer",
        },
        {"auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}},
        {"tokenizer_class": "TransfoXLTokenizer", "pretrained_vocab_file": "vocab.pkl"},
        {"tokenizer_class": "AutoModel"},
        {"tokenizer_class": ["BertTokenizer"]},
    ],
    ids=lambda settings: str(settings)[:40],
)
@pytest.mark.parametrize("with_class_in_config", [False, True])
def test_tokenizers_that_bring_code(
    settings: dict[str, Any],
    with_class_in_config: bool,
    good: Path,
    whole: Path,
    marker: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where transformers would ask whether it may run a folder's code, the answer here would be
    yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("TRUST_REMOTE_CODE", "True")
    (good / "evil.py").write_text(EVIL.format(marker=str(marker)))
    (good / "vocab.pkl").write_bytes(pickle.dumps(Payload(marker)))
    (good / "tokenizer_config.json").write_text(
        json.dumps({} if with_class_in_config else settings)
    )
    config = json.loads((good / "config.json").read_text())
    if with_class_in_config:
        config |= settings
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", **settings.get("auto_map", {})}
    (good / "config.json").write_text(json.dumps(config))
    if "tokenizer_class" in settings:
        assert "names the class" in refused(*evaluate(good, whole))
    else:  # the model's own type says which class of transformers it is
        assert type(load_tokenizer(good)).__name__ == "BertTokenizerFast"
        (good / "config.json").write_text(json.dumps({**config, "model_type": "evil"}))
        assert (
            load_tokenizer(good).is_fast and not marker.exists()
        )  # its tokenizer.json is complete: no class is asked for


def test_odd_tokenizer_files(good: Path, whole: Path, refused: Callable[..., str]) -> None:
    held = json.loads((good / "tokenizer.json").read_text())
    for content in (
        b"",
        b"[" * 100_000,
        b"{}",
        b"\x80\x04K\x01.",
        json.dumps({**held, "model": {"type": "Evil"}}).encode(),
        json.dumps(
            {**held, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}}
        ).encode(),
        json.dumps(
            {**held, "normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}}
        ).encode(),
        json.dumps(
            {
                **held,
                "model": {**held["model"], "vocab": {**held["model"]["vocab"], "##q": 2**32 - 1}},
            }
        ).encode(),
    ):
        (good / "tokenizer.json").write_bytes(content)
        assert "tokenizer" in refused(*evaluate(good, whole)), content[:50]
    with (good / "tokenizer.json").open("wb") as file:
        file.truncate(2**33)
    assert "8,589,934,592 bytes" in refused(*evaluate(good, whole))


class TestBombs:
    """All in one process that has a gibibyte left beside what it holds when everything is imported.
    A table may have more."""

    CODE = """
import io, contextlib, json, resource, sys, time
from jaxdistill import cli, interop
from tests.test_untrusted import *
from jaxdistill.data import table_text as tables
tables.LARGEST_TABLE = 2**26
commands = json.load(sys.stdin)
interop.from_pretrained(commands["good"]); load_tokenizer(commands["good"])
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 2**30, held + 2**30))
found = {}
for name, arguments in commands["bombs"].items():
    said, begun = io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(said):
        try:
            code = cli.main(arguments)
        except BaseException as error:
            code = repr(error)
    found[name] = [code, said.getvalue(), time.monotonic() - begun]
print(json.dumps(found))
"""

    REASONS = {
        "msgpack-empty": "more than 1,000,000 entries",
        "msgpack-keys": "more than 1,000,000 entries",
        "msgpack-in-array": "max_array_len",
        "msgpack-array": "max_array_len",
        "document.txt.xz": "67,108,864 characters",
        "rows.tsv.xz": "67,108,864 bytes of memory",
    }

    @pytest.fixture(scope="class")
    def found(self, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
        folder = tmp_path_factory.mktemp("bombs")
        bombs = {}
        for name, (file, content) in weights().items():
            model = folder / name
            model.mkdir()
            (model / "config.json").write_bytes((whole / "model" / "config.json").read_bytes())
            with (model / file).open("wb") as stream:
                stream.write(content[: 2**25])
                if isinstance(content, Sparse):
                    stream.truncate(content.size)
            bombs[name] = [*evaluate(model, whole)]
        for name, content in texts().items():
            (folder / name).write_bytes(content)
            bombs[name] = [
                *evaluate(whole / "model", whole)[:2],
                f"--source={folder / name}",
                "--sequence_length=8",
            ]
        for name, content in tables().items():
            (folder / name).write_bytes(content)
            bombs[name] = [
                "finetune",
                f"--model={whole / 'model'}",
                f"--data={folder / name}",
                f"--workdir={folder / 'tuned'}",
                "--sequence_length=8",
            ]
        asked = json.dumps({"good": str(whole / "model"), "bombs": bombs})
        env = {
            **os.environ,
            "JAXDISTILL_CACHE": str(folder / "cache"),
            "PYTHONPATH": str(Path(cli.__file__).parents[1]),
        }
        done = subprocess.run(
            [sys.executable, "-c", self.CODE], input=asked, capture_output=True, text=True, env=env
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    @pytest.mark.parametrize("name", [
        "safetensors-header", "safetensors-header-spaces", "safetensors-large", "safetensors-offsets", "config-deep",
        "config-large", "index-deep", "msgpack-deep", "msgpack-array", "msgpack-ext", "msgpack-empty", "msgpack-in-array",
        "msgpack-keys", "line.txt.xz", "line.txt.gz", "document.txt.xz", "deep.jsonl", "line.jsonl.xz", "line.tsv.xz",
        "rows.tsv.xz",
    ])  # fmt: skip
    def test_ends_in_one_line(self, name: str, found: dict[str, list[Any]]) -> None:
        code, said, seconds = found[name]
        assert code == 2 and said.startswith("jaxdistill: ") and said.count("\n") == 1, (
            code,
            said[-2000:],
        )
        assert name.split(".")[0].split("-")[0] in said, said  # it is about that file
        assert self.REASONS.get(name, "") in said, (
            said
        )  # and ends before memory does, which would also be caught
        assert seconds < 60

    def test_none_is_left_out(self, found: dict[str, list[Any]]) -> None:
        (mark,) = [
            mark
            for mark in type(self).test_ends_in_one_line.pytestmark
            if mark.name == "parametrize"
        ]
        assert set(mark.args[1]) == set(found)


class Sparse(bytes):
    """The beginning of a file that goes on with `size` bytes of nothing."""

    size = 2**40


def weights() -> dict[str, tuple[str, bytes]]:
    """name -> (file of a model folder, its content)."""
    header = json.dumps(
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ).encode()
    room = largest_bytes(MODEL.config) - 10_000  # what passes the check of sizes
    lists = min(room // 4099 - 1, 4096)
    nodes = b"\x81\xa1a\xdd" + lists.to_bytes(4, "big") + (b"\xdc\x10\x00" + b"\x80" * 4096) * lists
    inner = (
        b"\x93\xdd"
        + (room - 100).to_bytes(4, "big")
        + b"\x90" * (room - 100)
        + b"\xa7float32\xc4\x00"
    )
    keys = b"".join(b"\xa4" + f"{n:04x}".encode() + b"\x80" for n in range(4096))
    return {
        "safetensors-header": ("model.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
        "safetensors-header-spaces": (
            "model.safetensors",
            (2**24).to_bytes(8, "little") + b" " * 2**24,
        ),
        "safetensors-large": (
            "model.safetensors",
            Sparse(len(header).to_bytes(8, "little") + header),
        ),
        "safetensors-offsets": (
            "model.safetensors",
            len(header).to_bytes(8, "little") + header + b"1234",
        ),
        "config-deep": ("config.json", b'{"a":' * 100_000),
        "config-large": ("config.json", Sparse(b"{")),
        "index-deep": ("model.safetensors.index.json", b"[" * 100_000),
        "msgpack-deep": ("flax_model.msgpack", b"\x81\xa1a" * 100_000 + b"\xc0"),
        "msgpack-array": ("flax_model.msgpack", b"\x81\xa1a\xdd\xff\xff\xff\xff"),
        "msgpack-ext": ("flax_model.msgpack", b"\x81\xa1a\xc9\x7f\xff\xff\xff\x01"),
        "msgpack-empty": ("flax_model.msgpack", nodes),
        "msgpack-in-array": (
            "flax_model.msgpack",
            b"\x81\xa1a\xc9" + len(inner).to_bytes(4, "big") + b"\x01" + inner,
        ),
        "msgpack-keys": (
            "flax_model.msgpack",
            b"\x81\xa1a\xdc" + (600).to_bytes(2, "big") + (b"\xde\x10\x00" + keys) * 600,
        ),
    }


@functools.cache
def unpacked(block: bytes, packed: Callable[[bytes], bytes], times: int = 640) -> bytes:
    """A few megabytes that unpack to 10 GiB: both formats may be written one after another."""
    return packed(block * (2**24 // len(block))) * times


fast_xz = functools.partial(lzma.compress, preset=0)


def texts() -> dict[str, bytes]:
    return {
        "line.txt.xz": unpacked(b"\0", fast_xz),
        "line.txt.gz": unpacked(b"\0", gzip.compress),
        "document.txt.xz": unpacked(b"a word of it\n", fast_xz),
        "deep.jsonl": b"[" * 100_000 + b"\n",
        "line.jsonl.xz": unpacked(b"\0", fast_xz),
    }


def tables() -> dict[str, bytes]:
    return {
        "line.tsv.xz": unpacked(b"\0", fast_xz),
        "rows.tsv.xz": unpacked(b"a sentence of it\t1\n", fast_xz),
    }


def test_prepared_text_runs_nothing(
    whole: Path, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(
        str(whole / "text.txt"),
        load_tokenizer(whole / "model"),
        tmp_path,
        sequence_length=16,
        split="all",
    )
    sizes = Path(prepared.records_path) / "record_sizes.npy"
    array = np.load(sizes)
    np.save(sizes, np.array([Payload(marker)], object), allow_pickle=True)
    with pytest.raises(BadInput, match="record_sizes.npy' is damaged"):
        packing_plan(prepared, seed=0)
    for content in (
        pickle.dumps(Payload(marker)),
        as_torch(b""),
        b"\x93NUMPY\x01\x00v\x00{'descr': '<i4', 'fortran_order': "
        b"False, 'shape': (1099511627776,), }".ljust(127)
        + b"\n",
    ):
        sizes.write_bytes(content)
        with pytest.raises(BadInput, match="record_sizes.npy"):
            record_sizes(prepared)
    np.save(sizes, array)

    (tmp_path / "evil_features.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    features = Path(prepared.records_path) / "features.json"
    good = features.read_text()
    for content in (
        good.replace("tensorflow_datasets.core.features.tensor_feature", "evil_features"),
        json.dumps({"type": "evil_features.Tensor", "content": {}}),
        "[" * 100_000,
    ):
        features.write_text(content)
        with pytest.raises(BadInput, match="features.json"):
            open_reader(prepared)
    features.write_text(good)
    open_reader(prepared)


def test_nothing_that_we_write_is_read_by_unpickling(
    finished: Any, whole: Path, tmp_path: Path
) -> None:
    """Python tells of every name that an unpickler looks up; there is none in models, workdirs,
    checkpoints, prepared text."""
    _, workdir, _ = finished
    names, listening = [], [True]
    sys.addaudithook(
        lambda event, given: (
            names.append(given) if event == "pickle.find_class" and listening else None
        )
    )
    try:
        pickle.loads(pickle.dumps(Path))
        assert names.pop(), "it does not tell"
        conversion.export(workdir, tmp_path / "out")
        commands.evaluate(
            str(tmp_path / "out"),
            str(whole / "text.txt"),
            sequence_length=16,
            cache=tmp_path / "cache",
        )
        interop.save_pretrained(
            tmp_path / "flax", *interop.from_pretrained(tmp_path / "out"), format="msgpack"
        )
        interop.from_pretrained(tmp_path / "flax")
        interop.from_pretrained(Path(workdir) / "stages" / "teacher")
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        checkpoints.save(example(1), {}, wait=True)
        checkpoints.close()
        Checkpoints(tmp_path / "checkpoints").restore(like(), sharding.make_mesh(1))
        assert not names
    finally:
        listening.clear()


@pytest.mark.parametrize(
    "planted",
    [
        "metrics.jsonl",
        "results.json.tmp",
        ".lock",
        "student",
        "stages/teacher",
        "stages/teacher/config.json",
        "checkpoints",
        "tensorboard",
        "data",
    ],
)
def test_links_that_lead_out_of_a_workdir(
    planted: str, whole: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    outside, workdir = tmp_path / "outside", tmp_path / "w"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    config = tiny_config(whole / "text.txt")
    claim(workdir, config.to_dict())
    link = workdir / planted
    link.parent.mkdir(parents=True, exist_ok=True)
    is_file = "." in planted.rsplit("/", 1)[-1]
    link.unlink(missing_ok=True)  # the lock is there already
    link.symlink_to(outside / "precious" if is_file else outside)
    with pytest.raises(BadInput, match="symbolic link") as raised:
        commands.prepare(config, workdir)
    assert repr(planted) in str(raised.value) and "\n" not in str(raised.value)
    line = refused(
        "finetune",
        f"--model={whole / 'model'}",
        f"--data={whole / 'task.tsv'}",
        f"--workdir={workdir}",
        "--sequence_length=8",
    )
    assert repr(planted) in line
    assert [path.name for path in outside.iterdir()] == ["precious"] and (
        outside / "precious"
    ).read_text() == "kept"


def test_a_workdir_that_is_a_link_and_links_within_it(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "w").symlink_to(tmp_path / "disk")
    config = tiny_config(whole / "text.txt")
    commands.prepare(config, tmp_path / "w")
    (tmp_path / "disk" / "latest").symlink_to("data")
    commands.prepare(config, tmp_path / "w")
    assert (tmp_path / "disk" / "config.json").exists() and (tmp_path / "w").is_symlink()


def test_links_in_a_model_folder_are_read_and_a_written_one_replaces_none(
    whole: Path, good: Path, tmp_path: Path
) -> None:
    """Hub caches are folders of links. Files are written into a new folder, which then takes the
    old one's place."""
    precious = tmp_path / "precious"
    (good / "model.safetensors").rename(precious)
    (good / "model.safetensors").symlink_to(precious)
    held = precious.read_bytes()
    model, params = interop.from_pretrained(good)
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    interop.save_pretrained(good, model, other, whole / "model", overwrite=True)
    assert precious.read_bytes() == held and not (good / "model.safetensors").is_symlink()


def test_shards_of_elsewhere(good: Path, tmp_path: Path) -> None:
    (good / "model.safetensors").rename(tmp_path / "model.safetensors")
    for name in ("../model.safetensors", str(tmp_path / "model.safetensors")):
        (good / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(BadInput, match="expected a .safetensors file beside it"):
            interop.from_pretrained(good)


def test_a_good_folder_passes_all_guards(good: Path) -> None:
    model, params = interop.from_pretrained(good)
    interop.save_pretrained(good.parent / "flax", model, params, format="msgpack")
    assert jax.tree.leaves(interop.from_pretrained(good.parent / "flax")[1])
    load_tokenizer(good)
