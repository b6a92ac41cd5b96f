"""What every test shares: a CPU that shows eight devices, a compilation cache, and the smallest
networks and texts that have everything in them (padding, unlike row lengths, two kinds of network).
Set before anything imports jax."""

import os
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# All but the first make compilation five times as fast; an XLA that does not know a flag aborts,
# hence the version.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false" if version("jax").startswith("0.10.") else "",
        os.environ.get("XLA_FLAGS", ""),
    ]
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/jaxdistill-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ["JAXDISTILL_PROGRESS"] = "0"

import contextlib
import ctypes
import functools
import gc
import json
import random
import signal

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill import defaults, registry
from jaxdistill.data.tasks import TASKS
from jaxdistill.evaluation.scores import SCORES
from jaxdistill.forward.scene import At
from jaxdistill.methods.base import Cast
from jaxdistill.methods.kinds import KINDS, build
from jaxdistill.models import Model, preset
from jaxdistill.models.heads import HEADS
from jaxdistill.models.sizes import parameter_shapes
from jaxdistill.objectives.terms import LOSSES
from jaxdistill.training import programs
from jaxdistill.training.step import Given, Split, make_scene, make_step

with contextlib.suppress(ValueError):  # not in the main thread
    # What started the tests may have had these ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Files that take a minute or more: they go first, so that no process is left with one at the end.
LONGEST = (
    "test_hosts.py",
    "test_notebooks.py",
    "test_repository.py",
    "test_remote.py",
    "test_side_by_side.py",
    "test_step.py",
    "test_sharding.py",
    "test_untrusted.py",
    "test_run.py",
    "test_pipeline.py",
    "test_cli.py",
    "test_commands.py",
)

gc.set_threshold(100_000, 20, 20)  # tracing makes millions of objects, hardly any of them garbage
MOST_MEMORY = 3 * 2**30


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist would put files of few tests last


def pytest_collection_modifyitems(items):
    names = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: names.get(item.path.name, len(names)))


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """Programs are shared by the tests of all files, until they take too much of the machine's
    memory."""
    yield
    with contextlib.suppress(OSError, AttributeError), open("/proc/self/statm") as file:
        if int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") > MOST_MEMORY:
            for cache in (
                jitted_step,
                programs.compile_step,
                programs.compile_start,
                programs.compile_losses,
            ):
                cache.cache_clear()
            jax.clear_caches()
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what is free goes back


SMALL = dict(
    vocab_size=19,
    num_layers=3,
    hidden_size=8,
    embedding_size=4,
    num_heads=2,
    intermediate_size=10,
    max_positions=16,
    hidden_dropout=0.1,
    attention_dropout=0.1,
)
TEACHER = Model(preset("ib_bert_large").replace(**SMALL, bottleneck_size=12))
STUDENT = Model(preset("mobilebert").replace(**SMALL, bottleneck_size=4, num_ffn=2))


def shallower(model, num_layers):
    """The same network with fewer layers."""
    return Model(model.config.replace(num_layers=num_layers))


def random_params(model, seed=0):
    """Parameters of which none is 0 or 1: a fresh start has zero biases and hides mistakes."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(model.config)  # traced once

    def draw(path, leaf):
        values = 0.3 * rng.normal(size=leaf.shape)
        return jnp.asarray(values + (path[-1].key == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def pretraining_batch(seed=0, rows=8, length=7, predictions=3, vocab_size=SMALL["vocab_size"]):
    """A batch as `make_loader` gives it: rows of unlike length, unlike numbers of masked words."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, length + 1, rows)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    weights = (np.arange(predictions) < rng.integers(1, predictions + 1, rows)[:, None]).astype(
        np.float32
    )
    ints = weights.astype(np.int32)
    positions = 1 + np.argsort(rng.random((rows, 3)), axis=1)[:, :predictions]
    return {
        "input_ids": (rng.integers(1, vocab_size, (rows, length)) * mask).astype(np.int32),
        "attention_mask": mask,
        "token_type_ids": ((np.arange(length) > 2) * mask).astype(np.int32),
        "mlm_positions": (positions * ints).astype(np.int32),
        "mlm_labels": (rng.integers(0, vocab_size, (rows, predictions)) * ints).astype(np.int32),
        "mlm_weights": weights,
        "nsp_labels": rng.integers(0, 2, rows).astype(np.int32),
        "example_weights": np.ones(rows, np.float32),
    }


def cast_of(stage, model=STUDENT, teacher=TEACHER):
    """A stage with its networks; every network that it reads is `teacher`."""
    return Cast(stage, model, tuple((name, teacher) for name in stage.teachers))


def given(cast, teacher_params, seed=0):
    """What a step is given beside state and batch."""
    return Given({name: teacher_params for name, _ in cast.others}, np.int32(seed))


@functools.lru_cache(64)
def jitted_step(stage, model, teacher):
    """The step of (state, teacher's parameters, batch, seed), jitted once for all tests of a
    process; nothing is donated."""
    cast = cast_of(stage, model, teacher)
    jitted = jax.jit(make_step(cast))

    def step(now, teacher_params, batch, seed=0):
        return jitted(now, given(cast, teacher_params, seed), batch)

    step.programs = jitted._cache_size
    return step


def run_forward(cast, ours, teacher_params, batch, scales, at=None):
    """(value, raw sums) of a stage's forward. `ours`: (what moves, what is frozen)."""
    others = {name: teacher_params for name, _ in cast.others}
    at = At(jnp.int32(0)) if at is None else at
    return cast.stage.forward(make_scene(cast, Split(*ours), others, batch, scales, at))


def rarely(values, *rare):
    """`values` for `parametrize`, of which those in `rare` are for slow runs: the others go the same
    way."""
    assert set(rare) <= set(values), set(rare) - set(values)
    return [pytest.param(v, marks=pytest.mark.slow) if v in rare else v for v in values]


def make_stage(kind, num_layers=SMALL["num_layers"], network="student", **changes):
    """The stage that a recipe's section would make."""
    section = defaults.stage(kind, network, **{"steps": 9, "batch_size": 8, **changes})
    config = STUDENT.config.replace(num_layers=num_layers)
    return build("it", section, config, ("classification",))


def tiny_config(source):
    """The shape of the quickstart (teacher, transfer, distill, two baselines) in a few steps of toy
    networks."""
    widths = dict(
        num_layers=2,
        hidden_size=16,
        embedding_size=8,
        num_heads=2,
        intermediate_size=16,
        max_positions=32,
    )
    config = defaults.recipe("tiny")
    config.networks.teacher = defaults.network("ib_bert_large", **widths, bottleneck_size=24)
    config.networks.student = defaults.network(
        "mobilebert", start="copy", **widths, bottleneck_size=8, num_ffn=2
    )
    config.networks.random_start = defaults.network(like="student")
    config.networks.copied_start = defaults.network(like="student", start="copy")
    config.data.update(
        {
            "source": str(source),
            "heldout_fraction": 0.25,
            "vocab_size": 120,
            "sequence_length": 24,
            "max_predictions": 4,
        }
    )
    config.stages.teacher = defaults.stage(
        "pretrain", "teacher", steps=6, batch_size=8, dropout=True
    )
    config.stages.transfer = defaults.stage(
        "progressive", "student", steps=6, batch_size=8, decay="constant"
    )
    config.stages.distill = defaults.stage(
        "distill", "student", steps=5, batch_size=8, warmup_steps=2
    )
    config.stages.random_start = defaults.stage(
        "pretrain", "random_start", steps=3, batch_size=8, baseline=True
    )
    config.stages.copied_start = defaults.stage(
        "pretrain", "copied_start", steps=3, batch_size=8, baseline=True
    )
    config.order = ("teacher", "transfer", "distill", "random_start", "copied_start")
    config.evaluation.update({"batch_size": 8, "max_examples": 64})
    config.checkpoint.every_steps = 2
    config.log_every, config.mesh.data, config.export, config.baselines = 1, 1, False, False
    return config


WORDS = (
    "river",
    "stone",
    "engine",
    "winter",
    "paper",
    "garden",
    "signal",
    "copper",
    "market",
    "silver",
    "window",
    "letter",
    "turns",
    "holds",
    "finds",
    "keeps",
    "the",
    "a",
    "old",
    "quiet",
    "bright",
    "under",
    "over",
    "with",
)


def write_text(path, documents=60, seed=0):
    """A text file of short documents of made-up sentences, a blank line between them."""
    rng = random.Random(seed)

    def sentence():
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 9))).capitalize() + "."

    blocks = ["\n".join(sentence() for _ in range(rng.randint(2, 6))) for _ in range(documents)]
    path.write_text("\n\n".join(blocks) + "\n")
    return path


def write_table(path, labels=("dry", "wet"), rows=90, seed=0):
    """A task that any encoder learns: in the sentences of the second label (of the odd rows) there
    is a river."""
    rng = random.Random(seed)
    others = [word for word in WORDS if word != "river"]
    lines = ["text\tlabel"]
    for i in range(rows):
        words = [rng.choice(others) for _ in range(5)] + (["river"] if i % 2 else [])
        lines.append(f"{' '.join(words)}\t{labels[i % 2]}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def text_source(tmp_path):
    """A small text file."""
    return write_text(tmp_path / "text.txt")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished tiny run with its export, to be read only: (config, workdir, results). The test
    processes share one, which the first that asks for it makes."""
    from jaxdistill import run

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    with filelock.FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        if not (folder / "text.txt").exists():
            write_text(folder / "text.txt")
        config = tiny_config(folder / "text.txt")
        config.export = True
        config.order = ("teacher", "transfer", "distill")
        if not (folder / "workdir" / "DONE").exists():
            run.train(config, folder / "workdir")
    return config, folder / "workdir", json.loads((folder / "workdir/results.json").read_text())


@pytest.fixture
def tables(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_added", set())
    held = [
        (table, dict(table), dict(table._owners)) for table in (KINDS, LOSSES, HEADS, TASKS, SCORES)
    ]
    yield
    for table, rows, owners in held:
        table.clear()
        table.update(rows)
        table._owners = owners


@pytest.fixture(scope="session")
def teacher_params():
    return random_params(TEACHER, 1)


@pytest.fixture
def student_params():
    return random_params(STUDENT, 2)
