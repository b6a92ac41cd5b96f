"""Fine-tuning on one text classification file: a `classify` stage through the same loop, then accuracy and predictions.

The cheapest proof that one loop serves all. Called by the command line and by users.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from etils import epath

from jaxdistill import defaults, inputs, interop, report
from jaxdistill.data.classification import (
    LabelledText,
    TokenizedTask,
    classification_batches,
    classification_eval_batches,
    read_classification_tsv,
    split_examples,
    tokenize_examples,
)
from jaxdistill.data.tokenizers import load_tokenizer
from jaxdistill.errors import BadInput
from jaxdistill.methods.base import Stage
from jaxdistill.models import Model, Params
from jaxdistill.resolve import build_stage, check_seed, stage_seed
from jaxdistill.students.copying import random_start
from jaxdistill.training import loop, sharding, state
from jaxdistill.training.checkpoints import Checkpoints, disk_errors
from jaxdistill.training.metrics import MetricWriter
from jaxdistill.training.progress import Progress
from jaxdistill.workdir import claim, lock

NAME = "finetune"


def finetune(model_dir: str, task_file: str, workdir: epath.PathLike, *, dev_file: str | None = None,
             text_column: str | int = 0, label_column: str | int = 1, pair_column: str | int | None = None,
             epochs: float = 3.0, batch_size: int = 32, learning_rate: float = 1e-4, sequence_length: int = 128,
             seed: int = 0) -> dict[str, Any]:
    """Fine-tunes the model of `model_dir` on `task_file`; returns accuracies and where everything was written.

    Writes `model/` (a folder with a classification head), `predictions.tsv` (dev rows: label, prediction, text) and
    `results.json`. AdamW, linear decay, 10 % warm-up, clip 1.0 (as MobileBERT's code fine-tunes). Called again on the
    same workdir it resumes. Raises `BadInput` for a file, column or setting that cannot be used.
    """
    settings = {"model": str(model_dir), "task_file": str(task_file), "dev_file": dev_file, "text_column": text_column,
                "label_column": label_column, "pair_column": pair_column, "epochs": epochs, "batch_size": batch_size,
                "learning_rate": learning_rate, "sequence_length": sequence_length, "seed": seed}
    base, base_params = interop.from_pretrained(model_dir, heads=())
    if sequence_length > base.config.max_positions:
        raise BadInput(f"sequence_length={sequence_length} exceeds the model's max_positions={base.config.max_positions}")
    check_seed(seed, "seed")
    if epochs <= 0 or batch_size < 1:
        raise BadInput(f"epochs={epochs}, batch_size={batch_size}: expected both above 0")
    tokenizer = load_tokenizer(interop.locate(model_dir))
    train_text, dev_text = _read(task_file, dev_file, text_column, label_column, pair_column)
    folder = epath.Path(workdir).expanduser()
    claim(folder, settings)
    with lock(folder), disk_errors(folder):
        claim(folder, settings, locked=True)  # another call may have come between
        return _finetune(settings, base, base_params, tokenizer, train_text, dev_text, folder)


def _finetune(settings: dict[str, Any], base: Model, base_params: Params, tokenizer: Any, train_text: LabelledText,
              dev_text: LabelledText, folder: epath.Path) -> dict[str, Any]:
    task_file, batch_size, seed, length = (settings[name] for name in ("task_file", "batch_size", "seed", "sequence_length"))
    names = train_text.label_names
    model = Model(base.config.replace(heads=("sequence_classification",), num_labels=len(names)))
    params = {**random_start(model, seed), **base_params}
    train_task, dev_task = (tokenize_examples(text, tokenizer, length) for text in (train_text, dev_text))
    steps = max(1, round(settings["epochs"] * len(train_task) / batch_size))
    section = defaults.stage("classify", NAME, steps=steps, batch_size=batch_size, optimizer="adamw", dropout=True,
                             learning_rate=settings["learning_rate"], warmup_steps=steps // 10)
    stage = build_stage(NAME, section, len(train_task), model.config.num_layers)
    params, page = _train(stage, model, params, train_task, folder, seed)

    predictions, accuracy = _predict(model, params, dev_task, batch_size)
    _write_predictions(folder, dev_text, predictions)
    results = {"task_file": task_file, "train_examples": len(train_task), "dev_examples": len(dev_task),
               "labels": list(names), "steps": steps, "seconds": round(page["seconds"], 1), "accuracy": accuracy,
               "majority_accuracy": float(np.mean(dev_task.labels == np.bincount(train_task.labels).argmax())),
               "skipped": page["skipped"], "hardware": inputs.hardware(), "versions": inputs.versions(), "seed": seed}
    card = interop.model_card({**results, "config_name": f"{epath.Path(settings['model']).name} on {epath.Path(task_file).name}"},
                              config=model.config, license=None, reason=interop.why_not_huggingface(model.config))
    exported = interop.save_pretrained(folder / "model", model, params, tokenizer, card=card, labels=names, overwrite=True)
    results |= {"model": str(exported.path), "predictions": str(folder / "predictions.tsv")}
    report.write_results(folder, results)
    return results


def _read(task_file: str, dev_file: str | None, text_column: str | int, label_column: str | int,
          pair_column: str | int | None) -> tuple[LabelledText, LabelledText]:
    whole = read_classification_tsv(task_file, text_column, label_column, pair_column)
    if len(whole.label_names) < 2:
        raise BadInput(f"task file {task_file!r} has one label only ({whole.label_names[0]!r}); is label_column="
                       f"{label_column!r} the right column?")
    if dev_file is None:
        return split_examples(whole)
    return whole, read_classification_tsv(dev_file, text_column, label_column, pair_column, whole.label_names)


def _train(stage: Stage, model: Model, params: Params, task: TokenizedTask, folder: epath.Path, seed: int
           ) -> tuple[Params, dict[str, Any]]:
    mesh = sharding.make_mesh(1 if stage.batch_size % len(jax.devices()) else -1)
    checkpoints = Checkpoints(folder / "checkpoints" / stage.name)
    train_state, page = state.create(stage, params), {"seconds": 0.0}
    if checkpoints.latest() is not None:
        train_state, held = checkpoints.restore(train_state, mesh)
        page["seconds"] = held["seconds"]
    done = int(train_state.step)
    batches = classification_batches(task, batch_size=stage.batch_size, seed=seed, start_example=done * stage.batch_size,
                                     process_index=jax.process_index(), process_count=jax.process_count())
    with MetricWriter(folder) as writer, Progress(stage.steps, stage.name, initial=done) as bar:
        writer.rewind(stage.name, done, stage.network)
        reporting = loop.Reporting(
            write=lambda step, scalars: writer.write(stage.name, step, scalars, stage.network),
            show=lambda step, scalars: bar.reach(step, loss=scalars["loss"]), flush=writer.flush)
        try:
            train_state = loop.run_stage(
                stage, model, train_state, None, {}, batches, mesh=mesh, seed=stage_seed(seed, stage.name),
                checkpoints=checkpoints, page=page, reporting=reporting,
                limits=loop.Limits(checkpoint_seconds=600, hang_seconds=1800))
        except BaseException:  # Ctrl-C too: saves under way must end before Python does
            checkpoints.close()
            raise
    checkpoints.save(train_state, page, wait=True)  # what a second call on this workdir finds
    checkpoints.close()
    return jax.device_get(train_state.params), {**page, "skipped": int(train_state.skipped)}


def _predict(model: Model, params: Params, task: TokenizedTask, batch_size: int) -> tuple[np.ndarray, float]:
    logits = jax.jit(lambda p, b: model.apply(p, b)[0]["logits"])
    found, kept = [], []
    for batch in classification_eval_batches(task, batch_size=batch_size):
        found.append(np.argmax(jax.device_get(logits(params, batch)), -1))
        kept.append(batch["example_weights"] > 0)
    predictions = np.concatenate(found)[np.concatenate(kept)]
    return predictions, float(np.mean(predictions == task.labels))


def _write_predictions(folder: epath.Path, text: LabelledText, predictions: np.ndarray) -> None:
    lines = ["label\tprediction\ttext"]
    for label, predicted, sentence in zip(text.labels, predictions, text.texts):
        lines.append(f"{text.label_names[label]}\t{text.label_names[predicted]}\t{sentence}")
    (folder / "predictions.tsv").write_text("\n".join(lines) + "\n")

