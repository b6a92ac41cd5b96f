"""A thin student learns a text classification task from a fine-tuned teacher's soft labels (Hinton et
al. 2015), beside a student of the same start that sees the true labels alone.

    jaxdistill train --config=soft_labels --config.networks.teacher.init=FOLDER_OR_HUB_NAME \\
        --config.feeds.task.source=TRAIN.tsv --config.feeds.task.heldout=DEV.tsv --workdir=DIR

The teacher is fine-tuned first. Without a model and a file it runs on what `finetune` runs on: 1,440
paragraphs, three classes, all networks from a random start. That takes 4.5 minutes on two CPU cores and
gives accuracies of 62.2 % (teacher), 60.0 % (student) and 62.5 % (alone) on 360 held-out rows, seed 0:
a teacher that has learnt no more than its student has nothing to give."""

from typing import Any

from ml_collections import ConfigDict

from jaxdistill import defaults

HEADS = ("sequence_classification",)


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "" or "smoke"."""
    defaults.check_variant(variant, "smoke")
    config = defaults.recipe("soft_labels")
    config.feeds.task = defaults.task("classification", source="default", sequence_length=128)
    wide: dict[str, Any] = dict(num_layers=4, hidden_size=128, num_heads=4, intermediate_size=512)
    thin: dict[str, Any] = dict(num_layers=2, hidden_size=64, num_heads=2, intermediate_size=256)
    config.networks.teacher = defaults.network("bert_base", heads=HEADS, **wide)
    config.networks.student = defaults.network("bert_base", heads=HEADS, **thin)
    config.networks.alone = defaults.network(like="student")
    learning: dict[str, Any] = dict(
        feed="task",
        epochs=3.0,
        batch_size=32,
        optimizer="adamw",
        learning_rate=1e-4,
        warmup_ratio=0.1,
        dropout=True,
    )
    thin_learning = {**learning, "learning_rate": 3e-4}
    config.stages.finetune = defaults.stage("finetune", "teacher", **learning)
    config.stages.distill = defaults.stage(
        "soft_labels", "student", temperature=2.0, hard_labels=0.5, **thin_learning
    )
    config.stages.alone = defaults.stage("finetune", "alone", baseline=True, **thin_learning)
    config.order = ("finetune", "distill", "alone")
    return defaults.smoke(config) if variant == "smoke" else config
