"""One TinyBERT-type step here and in other libraries, on equal weights and batches, by turns in one
run.

    python benchmarks/peers.py [--rounds=10] [--json=PATH]          # pip install -e '.[peers]'

BERT-base teaches 4 layers of width 312: embeddings and hidden states through a learned projection,
attention scores of layers 3, 6, 9, 12; 16 rows of 128 tokens, a part of them pads; AdamW; no
dropout, so that losses can be compared: those of the first step must be equal to 1e-4 (in bfloat16
to 2e-2) or nothing is timed. TextBrewer holds one projection for each pair of states, five in all;
here, as in TinyBERT's own code, one serves all. On a CPU the peer is TextBrewer (PyTorch, float32,
two threads); on an NVIDIA GPU it is the same step written in plain PyTorch, eager and through
torch.compile, under bfloat16 autocast. `--peers=textbrewer,eager,compile` and `--dtype` choose
otherwise. A round is `--steps` steps of each; the ratio is the median over rounds, with the range.
`share of peak`: FLOPs of the matrix products over what this machine reaches in one large product
(CPU, measured here) or its data sheet (GPU)."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

TEACHER_LAYERS = (2, 5, 8, 11)
WIDTH, LAYERS, NEURONS = 312, 4, 1200


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers", default="", help="textbrewer, eager, compile; default: by device"
    )
    parser.add_argument("--dtype", default="", help="float32 or bfloat16; default: by device")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="steps of each in a round")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--vocab_size", type=int, default=30522)
    parser.add_argument("--threads", type=int, default=2, help="cores and threads of a CPU run")
    parser.add_argument(
        "--fused",
        default="",
        choices=("", "True", "False"),
        help="our losses; default: as in training",
    )
    parser.add_argument("--json", default="", help="write the numbers here")
    return parser.parse_args()


# Cores are chosen before either library starts its threads.
ARGUMENTS = parse() if __name__ == "__main__" else argparse.Namespace(threads=0)
if ARGUMENTS.threads and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: ARGUMENTS.threads])
os.environ.setdefault(
    "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
)  # PyTorch wants memory of the same device

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402
from transformers.models.bert import modeling_bert  # noqa: E402

from jaxdistill import allocation, defaults, inputs  # noqa: E402
from jaxdistill.interop import convert  # noqa: E402
from jaxdistill.methods.base import Cast  # noqa: E402
from jaxdistill.models import Model, Params, preset  # noqa: E402
from jaxdistill.models.encoder import in_compute_dtype  # noqa: E402
from jaxdistill.objectives import projections  # noqa: E402
from jaxdistill.resolve import build_stage, choose_fused  # noqa: E402
from jaxdistill.training import programs, sharding, state  # noqa: E402
from jaxdistill.training.speed import peak_flops, step_flops  # noqa: E402
from jaxdistill.training.step import Given  # noqa: E402

Batch = dict[str, np.ndarray]
Losses = dict[str, float]
# One step: a batch in, the losses out (read by the host, as a training loop does).
Step = Callable[[Batch], Losses]


class Attention(modeling_bert.BertSelfAttention):
    """BERT's attention that returns its scores before the softmax, which is what TinyBERT
    compares."""

    def forward(
        self, hidden_states: Any, attention_mask: Any = None, *_: Any, **__: Any
    ) -> tuple[Any, Any]:
        rows, length, _width = hidden_states.shape
        query, key, value = (
            dense(hidden_states).view(rows, length, self.num_attention_heads, -1).transpose(1, 2)
            for dense in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) * self.attention_head_size**-0.5 + attention_mask
        context = (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, length, -1)
        return context, scores


def torch_model(config: transformers.BertConfig, seed: int) -> torch.nn.Module:
    """A Hugging Face BERT with random weights whose `attentions` are scores."""
    torch.manual_seed(seed)
    model = transformers.BertModel(config, add_pooling_layer=False)
    layers: Any = model.encoder.layer
    for layer in layers:
        attention = Attention(config)
        attention.load_state_dict(layer.attention.self.state_dict())
        layer.attention.self = attention
    return model


def torch_models(arguments: argparse.Namespace) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(teacher, student)."""
    shared = dict(
        vocab_size=arguments.vocab_size,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
        max_position_embeddings=max(512, arguments.length),
    )
    teacher = transformers.BertConfig(**shared)
    student = transformers.BertConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, intermediate_size=NEURONS, **shared
    )
    return torch_model(teacher, 0), torch_model(student, 1)


def our_params(model: Model, theirs: torch.nn.Module) -> Params:
    """The same weights as our parameters."""
    weights = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    return convert.from_state(model.config, convert.strip_prefix(weights), "the peer's model")


def batches(arguments: argparse.Namespace) -> Iterator[Batch]:
    """Random words; rows of half to all of the length."""
    rng = np.random.default_rng(0)
    while True:
        lengths = rng.integers(arguments.length // 2, arguments.length + 1, arguments.rows)
        mask = (np.arange(arguments.length) < lengths[:, None]).astype(np.int32)
        ids = (
            rng.integers(0, arguments.vocab_size, (arguments.rows, arguments.length)).astype(
                np.int32
            )
            * mask
        )
        yield {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def ours(
    arguments: argparse.Namespace,
    teacher_weights: torch.nn.Module,
    student_weights: torch.nn.Module,
    projection: torch.nn.Linear,
) -> tuple[Step, dict[str, float]]:
    """(our step, its FLOPs), from the peers' weights, as `jaxdistill train` runs it."""
    shape: dict[str, Any] = dict(
        vocab_size=arguments.vocab_size,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        heads=(),
        pooler="none",
        dtype=arguments.dtype,
        max_positions=max(512, arguments.length),
    )
    teacher = Model(preset("bert_base").replace(**shape))
    student = Model(
        preset("bert_base").replace(
            **shape, hidden_size=WIDTH, num_layers=LAYERS, intermediate_size=NEURONS
        )
    )
    section = defaults.stage(
        "intermediate",
        "student",
        layer_map=TEACHER_LAYERS,
        steps=10**6,
        batch_size=arguments.rows,
        optimizer="adamw",
        learning_rate=1e-4,
        decay="constant",
        bias_correction=True,
        clip_norm=0.0,
    )
    stage = build_stage("transfer", section, 0, student.config)
    mesh = sharding.make_mesh(1)
    recipe = defaults.recipe("peers")
    recipe.objectives.fused = {"": None, "True": True, "False": False}[arguments.fused]
    cast = Cast(stage, student, (("teacher", teacher),))
    stage = dataclasses.replace(stage, fused=choose_fused(recipe, mesh, cast))
    cast = dataclasses.replace(cast, stage=stage)
    now = state.create(cast, our_params(student, student_weights), jax.random.key(0))
    same = {
        "kernel": projection.weight.detach().numpy().T.copy(),
        "bias": projection.bias.detach().numpy().copy(),
    }
    now = dataclasses.replace(
        now, params={**now.params, projections.NAME: {stage.projections[0]: same}}
    )
    now = sharding.place(mesh, jax.tree.map(np.asarray, now))
    theirs = in_compute_dtype(teacher.config, our_params(teacher, teacher_weights))
    given = sharding.place(mesh, Given({"teacher": theirs}, np.int32(0)))
    step_fn = programs.compile_step(cast, mesh)
    held = [now]

    def step(batch: Batch) -> Losses:
        held[0], metrics = step_fn(held[0], given, sharding.put_batch(mesh, batch))
        return {name: float(value) for name, value in jax.device_get(metrics).items()}

    return step, step_flops(cast, arguments.length, 0)


def optimizer_of(*modules: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW as BERT is trained with: biases and norms are not decayed."""
    named = [item for module in modules for item in module.named_parameters()]
    plain = [value for name, value in named if name.endswith("bias") or "LayerNorm" in name]
    decayed = [value for name, value in named if not (name.endswith("bias") or "LayerNorm" in name)]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-4, eps=1e-6, fused=torch.cuda.is_available() or None)


def plain_torch(
    arguments: argparse.Namespace,
    teacher: torch.nn.Module,
    student: torch.nn.Module,
    projection: torch.nn.Linear,
    compiled: bool,
) -> Step:
    """The step in plain PyTorch, as one would write it: eager, or teacher, student and losses
    compiled together."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher, student, projection = (
        teacher.to(device).eval(),
        student.to(device).train(),
        projection.to(device),
    )
    optimizer = optimizer_of(student, projection)
    half = arguments.dtype == "bfloat16"

    def losses(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        reads = dict(output_hidden_states=True, output_attentions=True)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            with torch.no_grad():
                theirs = teacher(**batch, **reads)
            mine = student(**batch, **reads)
            states = [projection(x) for x in mine.hidden_states]
        mask = batch["attention_mask"].float()
        tokens, pairs = mask.sum(), (mask.sum(1) ** 2).sum()

        def hidden(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (
                F.mse_loss(a.float(), b.float(), reduction="none").mean(-1) * mask
            ).sum() / tokens

        def scores(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            both = (mask[:, None, :, None] * mask[:, None, None, :]) > 0
            squares = F.mse_loss(
                a.float().where(both, 0.0), b.float().where(both, 0.0), reduction="none"
            )
            return squares.mean(1).sum() / pairs

        return {
            "raw/embedding_mse": hidden(states[0], theirs.hidden_states[0]),
            "raw/hidden_mse": torch.stack(
                [
                    hidden(states[i + 1], theirs.hidden_states[at + 1])
                    for i, at in enumerate(TEACHER_LAYERS)
                ]
            ).sum(),
            "raw/attention_mse": torch.stack(
                [
                    scores(mine.attentions[i], theirs.attentions[at])
                    for i, at in enumerate(TEACHER_LAYERS)
                ]
            ).sum(),
        }

    run = torch.compile(losses) if compiled else losses

    def step(batch: Batch) -> Losses:
        found = run(
            {
                name: torch.as_tensor(value, dtype=torch.long).to(device)
                for name, value in batch.items()
            }
        )
        total = torch.stack(list(found.values())).sum()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        return {
            "loss": float(total.detach()),
            **{name: float(value.detach()) for name, value in found.items()},
        }

    return step


def textbrewer_matches() -> list[dict[str, Any]]:
    """TextBrewer's list of what is compared: every pair of states has a projection of its own
    there."""
    widen = ["linear", WIDTH, 768, {}]
    pairs = [(0, 0), *((at + 1, i + 1) for i, at in enumerate(TEACHER_LAYERS))]
    states = [
        dict(layer_T=t, layer_S=s, feature="hidden", loss="hidden_mse", weight=1, proj=widen)
        for t, s in pairs
    ]
    scores = [
        dict(layer_T=at, layer_S=i, feature="attention", loss="attention_mse", weight=1)
        for i, at in enumerate(TEACHER_LAYERS)
    ]
    return states + scores


def textbrewer(
    arguments: argparse.Namespace,
    teacher: torch.nn.Module,
    student: torch.nn.Module,
    projection: torch.nn.Linear,
    feed: Callable[[], Iterator[Batch]],
    told: list[Losses],
) -> Callable[[int], None]:
    """TextBrewer's own training loop over `feed`; what it reports of each step is appended to
    `told`."""
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {
            "hidden": outputs.hidden_states,
            "attention": outputs.attentions,
            "inputs_mask": batch["attention_mask"],
        }

    distiller = GeneralDistiller(
        TrainingConfig(device="cpu", output_dir=tempfile.mkdtemp(), log_dir=None, ckpt_steps=10**9),
        DistillationConfig(intermediate_matches=textbrewer_matches()),
        teacher,
        student,
        adaptor,
        adaptor,
    )
    for own in distiller.projs:
        if own is not None:
            own.load_state_dict(projection.state_dict())

    def write(total: torch.Tensor, _: int, parts: dict[str, torch.Tensor] | None = None) -> None:
        by_name = {name: float(value) for name, value in (parts or {}).items()}
        told.append(
            {
                "loss": float(total),
                "raw/embedding_mse": by_name["unweighted_hidden_hidden_mse_0_0"],
                "raw/hidden_mse": sum(
                    x
                    for name, x in by_name.items()
                    if "hidden_mse" in name and not name.endswith("_0_0")
                ),
                "raw/attention_mse": sum(
                    x for name, x in by_name.items() if "attention_mse" in name
                ),
            }
        )

    distiller.write_loss = write
    distiller.save_and_callback = lambda *_: None

    class Loader:
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            for batch in feed():
                yield {
                    name: torch.as_tensor(value, dtype=torch.long) for name, value in batch.items()
                }

    def train(steps: int) -> None:
        with distiller, open(os.devnull, "w") as quiet, contextlib.redirect_stderr(quiet):
            distiller.train(
                optimizer_of(student),
                Loader(),
                num_steps=steps,
                output_hidden_states=True,
                output_attentions=True,
            )

    return train


def timed(step: Step, source: Iterator[Batch], steps: int) -> list[float]:
    """Seconds of each of `steps` steps."""
    found = []
    for _ in range(steps):
        batch = next(source)
        begin = time.perf_counter()
        step(batch)
        found.append(time.perf_counter() - begin)
    return found


def must_agree(mine: Losses, theirs: Losses, dtype: str) -> None:
    """Exits unless the first losses, on equal weights, are equal."""
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    for name, value in theirs.items():
        if not abs(mine[name] - value) <= tolerance * abs(value):
            sys.exit(
                f"{name} is {mine[name]:.6f} here and {value:.6f} there: not the same step, so nothing was timed"
            )


def against_textbrewer(
    arguments: argparse.Namespace,
    step: Step,
    models: tuple[torch.nn.Module, torch.nn.Module],
    projection: torch.nn.Linear,
) -> tuple[list[float], list[float], Losses, Losses]:
    """(our seconds a step by round, theirs, our first losses, theirs): its loop asks for batches,
    and while it waits for the first of a round, we run ours."""
    rounds: tuple[list[float], list[float]] = ([], [])
    told: list[Losses] = []
    first: list[Losses] = []

    def feed() -> Iterator[Batch]:
        mine, shared = batches(arguments), batches(arguments)
        same = next(mine)
        first.append(step(same))
        yield next(shared)  # the same first batch
        must_agree(first[0], told[0], arguments.dtype)
        timed(step, mine, 2)
        for _ in range(2):
            yield next(shared)
        for _ in range(arguments.rounds):
            rounds[0].append(statistics.median(timed(step, mine, arguments.steps)))
            seconds = []
            for _ in range(arguments.steps):
                batch = next(shared)
                begin = time.perf_counter()
                yield batch
                seconds.append(time.perf_counter() - begin)
            rounds[1].append(statistics.median(seconds))
        yield next(shared)  # TextBrewer stops after the step, not before the next

    textbrewer(arguments, *models, projection, feed, told)(
        3 + arguments.rounds * arguments.steps + 1
    )
    return *rounds, first[0], told[0]


def against_plain(
    arguments: argparse.Namespace, step: Step, peer: Step
) -> tuple[list[float], list[float], Losses, Losses]:
    """The same for a step that we can call."""
    mine, shared = batches(arguments), batches(arguments)
    first = step(next(mine)), peer(next(shared))
    must_agree(*first, arguments.dtype)
    timed(step, mine, 2), timed(peer, shared, 2)
    rounds: tuple[list[float], list[float]] = ([], [])
    for _ in range(arguments.rounds):
        rounds[0].append(statistics.median(timed(step, mine, arguments.steps)))
        rounds[1].append(statistics.median(timed(peer, shared, arguments.steps)))
    return *rounds, *first


def main() -> None:
    arguments = ARGUMENTS
    allocation.reuse_freed_memory()  # as this package's command does; the peer has it too
    on_gpu = jax.default_backend() == "gpu"
    arguments.dtype = arguments.dtype or ("bfloat16" if on_gpu else "float32")
    peers = (arguments.peers or ("eager,compile" if on_gpu else "textbrewer")).split(",")
    if "textbrewer" in peers and (on_gpu or arguments.dtype != "float32"):
        sys.exit(
            "TextBrewer is run on a CPU in float32: set JAX_PLATFORMS=cpu and --dtype=float32, or --peers=eager,compile"
        )
    if not on_gpu:
        torch.set_num_threads(arguments.threads)
    lines = []
    peak = peak_flops(jax.devices()[0].device_kind)
    print(
        f"{inputs.hardware()}; {arguments.rows} x {arguments.length}, {arguments.dtype}; jax {jax.__version__}, "
        f"torch {torch.__version__}" + (f"; peak {peak / 1e9:,.0f} GFLOP/s" if peak else "")
    )
    print(
        f"{'peer':>12} {'ms here':>9} {'ms there':>9} {'ratio':>6} {'range':>12} {'share of peak here':>19} {'there':>7}"
    )
    for name in peers:
        models = torch_models(arguments)
        projection = torch.nn.Linear(WIDTH, 768)
        step, flops = ours(arguments, *models, projection)
        if name == "textbrewer":
            found = against_textbrewer(arguments, step, models, projection)
        elif name in ("eager", "compile"):
            found = against_plain(
                arguments, step, plain_torch(arguments, *models, projection, name == "compile")
            )
        else:
            sys.exit(f"--peers={name}: unknown; valid: textbrewer, eager, compile")
        here, there, first, told = found
        ratios = [b / a for a, b in zip(here, there)]
        total = sum(flops.values())
        shares = [
            total / statistics.median(times) / peak if peak else None for times in (here, there)
        ]
        low, high = min(ratios), max(ratios)
        print(
            f"{name:>12} {1e3 * statistics.median(here):>9.1f} {1e3 * statistics.median(there):>9.1f} "
            f"{statistics.median(ratios):>6.2f} {f'{low:.2f}-{high:.2f}':>12} {shares[0] or 0:>19.1%} {shares[1] or 0:>7.1%}",
            flush=True,
        )
        lines.append(
            {
                "peer": name,
                "seconds_here": here,
                "seconds_there": there,
                "ratio": statistics.median(ratios),
                "ratio_range": [low, high],
                "sequences_per_second_here": arguments.rows / statistics.median(here),
                "sequences_per_second_there": arguments.rows / statistics.median(there),
                "GFLOP": total / 1e9,
                "share_of_peak_here": shares[0],
                "share_of_peak_there": shares[1],
                "first_losses_here": {name: first[name] for name in told},
                "first_losses_there": told,
            }
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(
                {
                    "arguments": vars(arguments),
                    "hardware": inputs.hardware(),
                    "versions": {**inputs.versions(), "torch": torch.__version__},
                    "peers": lines,
                },
                file,
                indent=1,
            )


if __name__ == "__main__":
    main()
