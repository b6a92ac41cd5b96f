"""Knowledge distillation (Hinton et al. 2015): a thin student learns a task from the soft labels of a
fine-tuned teacher, beside a student of the same start that sees the true labels alone.

    jaxdistill train --config=soft_labels --config.networks.teacher.init=FOLDER_OR_HUB_NAME \\
        --config.stages.finetune.learning_rate=5e-5 \\
        --config.feeds.task.source=TRAIN.tsv --config.feeds.task.heldout=DEV.tsv --workdir=DIR

Another task is `--config.feeds.task.kind=tagging` or the like, another distance than KL
`--config.stages.distill.distance=reverse_kl`. The teacher is fine-tuned first. Without a model and a
file it runs on what `finetune` runs on: 1,440 paragraphs, three classes, all networks from a random
start. That takes 7 minutes on two CPU cores (AMD EPYC, family 25, model 1) and gives accuracies of 70.3 %
(teacher), 62.8 % (student) and 62.8 % (alone) on 360 held-out rows, seed 0: the student takes nothing
from its teacher there."""

from ml_collections import ConfigDict

from jaxdistill import defaults


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "" or "smoke"."""
    defaults.check_variant(variant, "smoke")
    config = defaults.task_recipe("soft_labels")
    config.stages.distill = defaults.stage(
        "soft_labels",
        "student",
        temperature=2.0,
        hard_labels=0.5,
        learning_rate=1e-3,
        **defaults.LEARNING,
    )
    config.order = ("finetune", "distill", "alone")
    return defaults.smoke(config) if variant == "smoke" else config
