"""What each contestant of task.py does: one distillation on a task, from reading the table to the last score, in this
package, in a plain PyTorch loop and in TextBrewer. Run by task.py, each as a process of its own."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxdistill import allocation, conversion, defaults, run
from jaxdistill.data.feeds import Order, Rows
from jaxdistill.data.rows import training_batches
from jaxdistill.data.tasks import open_task
from jaxdistill.methods import kinds
from jaxdistill.methods.base import Facts, Objective
from jaxdistill.objectives import projections
from jaxdistill.objectives.terms import Term
from jaxdistill.resolve import stage_seed
from jaxdistill.training.schedules import learning_rate

ORDERS = {
    "packed": "any",
    "stored": "any",
    "textbrewer": "any",
    "dynamic": "any",
    "buckets": "grouped",
    "group_by_length": "grouped",
}
OURS = ("packed", "stored", "buckets")
LAYERS, WIDTH, HEADS = 3, 192, 6
FOLLOWS = (1, 3, 5)  # layers of the teacher, from 0
TEMPERATURE, LEARNING_RATE, BATCH, LENGTH, PACKED = 2.0, 5e-4, 32, 128, 4
EVERY = 500  # steps from one score on the dev rows to the next
TOLD = 10  # steps from one line about the losses to the next


def files(options: argparse.Namespace) -> dict[str, str]:
    """Of GLUE's SST-2, packed or not: settings of the task."""

    def file(name: str) -> str:
        return str(next(path for path in sorted(options.data.glob(f"{name}.tsv*"))))

    return {"source": file("train"), "heldout": file("dev")}


# The contestants of this package


@kinds.register
def logits_and_states(facts: Facts) -> Objective:
    """The losses; each layer has its own projection, as in TextBrewer."""
    states = [
        Term(
            "hidden_mse",
            1.0,
            tuple(at if i == layer else -1 for i in range(facts.num_layers)),
            projection=f"of_layer_{layer}",
            name=f"hidden_{layer}",
        )
        for layer, at in enumerate(FOLLOWS)
    ]
    soft = Term("classification_kl", 1.0, options=(("temperature", TEMPERATURE),))
    return Objective((Term("classification", 1.0), soft, *states))


def recipe(name: str, seed: int, options: argparse.Namespace) -> Any:
    """The recipe of one of this package's contestants."""
    config = defaults.recipe(f"task_{name}")
    config.seed, config.log_every = seed, TOLD
    config.watchdog_minutes, config.checkpoint.every_minutes = 0.0, 0.0
    packed = 1 if name == "buckets" else PACKED
    config.feeds.task = defaults.task(
        "sst2", sequence_length=LENGTH, packed=packed, **files(options)
    )
    config.networks.teacher = defaults.network(init=str(options.teacher))
    config.networks.student = defaults.network(init=str(options.workdir / "student"))
    steps = round(options.epochs * open_task("task", config.feeds.task, 0).rows / BATCH)
    config.stages.distill = defaults.stage(
        "logits_and_states",
        "student",
        feed="task",
        steps=steps,
        warmup_steps=steps // 10,
        batch_size=BATCH,
        optimizer="adamw",
        bias_correction=True,
        clip_norm=0.0,
        learning_rate=LEARNING_RATE,
        dropout=False,
        best="accuracy",
        best_every=EVERY,
        best_on="task",
    )
    if name == "stored":
        config.feeds.answers = defaults.derived(
            "outputs", of="task", by="teacher", taps=("hidden",), layers=FOLLOWS
        )
        config.stages.distill.update({"feed": "answers", "teacher": "batch"})
    config.order = ("distill",)
    return config


def run_ours(name: str, seed: int, options: argparse.Namespace) -> None:
    """The whole job, as `jaxdistill train` does it; what was compiled is told apart."""
    compiled: list[float] = []

    def heard(event: str, duration_secs: float, **_: Any) -> None:
        if "/compile/" in event:
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(heard)
    jax.config.update("jax_enable_compilation_cache", False)
    folder = options.workdir / f"{name}-{seed}"
    run.train(recipe(name, seed, options), folder / "run")
    (folder / "compile.json").write_text(json.dumps(sum(compiled)))


# The contestants in PyTorch, which is imported where it is needed


class Progress:
    """What a contestant says while it runs, in the form of `metrics.jsonl`."""

    def __init__(self, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "metrics.jsonl").open("w", buffering=1)

    def write(self, step: int, **values: float) -> None:
        self.file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")


class TorchJob:
    """What both loops in PyTorch share. Rows are tokenised once, and those of a step are known by
    number: as this package draws them."""

    def __init__(self, name: str, seed: int, options: argparse.Namespace) -> None:
        import torch
        import transformers

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.name, self.seed, self.folder = name, seed, options.workdir / f"{name}-{seed}"
        self.progress = Progress(self.folder)
        config = recipe("buckets" if ORDERS[name] == "grouped" else "packed", seed, options)
        self.steps = config.stages.distill.steps
        tokenizer = transformers.AutoTokenizer.from_pretrained(options.teacher)
        parts = open_task("task", config.feeds.task, seed).read(tokenizer).parts
        assert parts is not None
        self.parts = parts
        load = transformers.AutoModelForSequenceClassification.from_pretrained
        self.teacher = load(options.teacher).eval()
        self.student = load(options.workdir / "student").train()
        self.width = self.teacher.config.hidden_size
        self.maps = torch.nn.ModuleList(torch.nn.Linear(WIDTH, self.width) for _ in range(LAYERS))
        for own, kernel in zip(self.maps, projection_kernels(seed, options)):
            own.weight.data.copy_(torch.tensor(kernel.T))
            torch.nn.init.zeros_(own.bias)
        student = conversion.load(str(options.workdir / "student"))[0].config
        stage = kinds.build("distill", config.stages.distill, student, ("classification",))
        rates = jax.vmap(functools.partial(learning_rate, stage))(jax.numpy.arange(self.steps + 1))
        self.rates = np.asarray(rates) / LEARNING_RATE

    def tensors(self, rows: Rows, numbers: Any, length: int) -> dict[str, Any]:
        """The rows of these numbers, padded to `length`."""
        import torch

        batch = rows.fetch(numbers, length)
        names = ("input_ids", "attention_mask", "token_type_ids", "labels")
        return {name: torch.as_tensor(batch[name], dtype=torch.long) for name in names}

    def batches(self) -> Iterator[dict[str, Any]]:
        """Those of every step."""
        lengths = self.parts.train.lengths
        numbered = Rows(lengths, lambda numbers, _: {"numbers": numbers})
        order = Order(self.seed, LENGTH, buckets=ORDERS[self.name] == "grouped")
        for batch in training_batches(numbered, order, BATCH):
            numbers = batch["numbers"]
            length = LENGTH if self.name == "textbrewer" else int(lengths[numbers].max())
            yield self.tensors(self.parts.train, numbers, length)

    def score(self, step: int) -> None:
        """On the dev rows, the short ones first."""
        import torch

        rows = self.parts.heldout
        self.student.eval()
        right, turn = 0, np.argsort(rows.lengths)
        with torch.no_grad():
            for begin in range(0, len(turn), 64):
                numbers = turn[begin : begin + 64]
                batch = self.tensors(rows, numbers, int(rows.lengths[numbers].max()))
                labels = batch.pop("labels")
                right += int((self.student(**batch).logits.argmax(-1) == labels).sum())
        self.student.train()
        self.progress.write(step, accuracy=right / len(turn))

    def optimizer(self, *more: dict[str, Any]) -> Any:
        """AdamW as BERT is trained with: biases and norms are not decayed."""
        import torch

        decayed: list[Any] = []
        plain: list[Any] = []
        for name, value in self.student.named_parameters():
            (plain if name.endswith("bias") or "LayerNorm" in name else decayed).append(value)
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW([*groups, *more], lr=LEARNING_RATE, eps=1e-6, fused=True)


def schedule(optimizer: Any, rates_of: np.ndarray) -> Any:
    """This package's learning rates, as fractions of the peak by step."""
    import torch

    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(rates_of[step]))


def run_loop(job: TorchJob) -> None:
    """A plain loop, as Hugging Face's Trainer has it."""
    import torch
    import torch.nn.functional as F

    optimizer = job.optimizer({"params": job.maps.parameters(), "weight_decay": 0.01})
    scheduler = schedule(optimizer, job.rates)
    for step, batch in enumerate(itertools.islice(job.batches(), job.steps), 1):
        labels = batch.pop("labels")
        with torch.no_grad():
            theirs = job.teacher(**batch, output_hidden_states=True)
        mine = job.student(**batch, output_hidden_states=True)
        mask = batch["attention_mask"].unsqueeze(-1).float()
        hard = F.cross_entropy(mine.logits, labels)
        soft = TEMPERATURE**2 * F.kl_div(
            F.log_softmax(mine.logits / TEMPERATURE, -1),
            F.log_softmax(theirs.logits / TEMPERATURE, -1),
            reduction="batchmean",
            log_target=True,
        )
        states = [
            ((project(mine.hidden_states[i + 1]) - theirs.hidden_states[at + 1]) ** 2 * mask).sum()
            / (mask.sum() * job.width)
            for i, (project, at) in enumerate(zip(job.maps, FOLLOWS))
        ]
        loss = hard + soft + sum(states)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % TOLD == 0:
            told = {f"raw/hidden_{i}": float(x.detach()) for i, x in enumerate(states)}
            job.progress.write(step, loss=float(loss.detach()), **told)
        if step % EVERY == 0 or step == job.steps:
            job.score(step)


def run_textbrewer(job: TorchJob) -> None:
    """TextBrewer's own loop."""
    import textbrewer
    import torch

    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {
            "logits": outputs.logits,
            "hidden": outputs.hidden_states,
            "inputs_mask": batch["attention_mask"],
            "losses": outputs.loss,
        }

    widen = ["linear", WIDTH, job.width, {}]
    matches = [
        dict(
            layer_T=at + 1, layer_S=i + 1, feature="hidden", loss="hidden_mse", weight=1, proj=widen
        )
        for i, at in enumerate(FOLLOWS)
    ]
    distiller = textbrewer.GeneralDistiller(
        textbrewer.TrainingConfig(
            device="cpu", output_dir=str(job.folder / "out"), log_dir=None, ckpt_steps=EVERY
        ),
        textbrewer.DistillationConfig(
            temperature=TEMPERATURE,
            kd_loss_weight=TEMPERATURE**2,  # its cross-entropy lacks the square
            hard_label_weight=1.0,
            intermediate_matches=matches,
        ),
        job.teacher,
        job.student,
        adaptor,
        adaptor,
    )
    for own, ours in zip(distiller.projs, job.maps):
        own.load_state_dict(ours.state_dict())
    steps = itertools.count(1)

    def told(total: torch.Tensor, _: int, parts: dict[str, torch.Tensor] | None = None) -> None:
        if (step := next(steps)) % TOLD == 0:
            states = {
                f"raw/hidden_{i}": float(value.detach())
                for i, at in enumerate(FOLLOWS)
                for name, value in (parts or {}).items()
                if name.endswith(f"hidden_mse_{i + 1}_{at + 1}")
            }
            job.progress.write(step, loss=float(total.detach()), **states)

    distiller.write_loss = told
    distiller.save_and_callback = lambda step, *_: job.score(step)
    with distiller:
        distiller.train(
            job.optimizer(),
            job.batches(),
            num_steps=job.steps,
            scheduler_class=schedule,
            scheduler_args={"rates_of": job.rates},
            output_hidden_states=True,
        )


def projection_kernels(seed: int, options: argparse.Namespace) -> list[Any]:
    """Those that this package's stage begins with, by layer."""
    folders = (options.workdir / "student", options.teacher)
    student, teacher = (conversion.load(str(folder))[0].config for folder in folders)
    widths = {f"of_layer_{layer}": teacher.hidden_size for layer in range(LAYERS)}
    found = projections.start(widths, student, jax.random.key(stage_seed(seed, "distill")))
    return [np.asarray(found[f"of_layer_{layer}"]["kernel"]) for layer in range(LAYERS)]


def make_student(options: argparse.Namespace) -> None:
    """The student that all begin with, as a folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    teacher = transformers.AutoConfig.from_pretrained(options.teacher)
    config = transformers.BertConfig(
        vocab_size=teacher.vocab_size,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=teacher.id2label,
        label2id=teacher.label2id,
    )
    folder = options.workdir / "student"
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(options.teacher).save_pretrained(folder)


def compete(spelled: str, options: argparse.Namespace) -> None:
    """The whole job of the contestant NAME:SEED."""
    allocation.reuse_freed_memory()  # as this package's command does; the others are given it too
    name, _, seed = spelled.partition(":")
    if name in OURS:
        return run_ours(name, int(seed), options)
    job = TorchJob(name, int(seed), options)
    return run_textbrewer(job) if name == "textbrewer" else run_loop(job)
