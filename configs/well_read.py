"""Well-Read Students (Turc et al. 2019, arXiv:1908.08962): a compact student is pre-trained on masked words,
then learns a fine-tuned teacher's classes on texts of the task, labelled or not; beside one of the same
pre-training that is fine-tuned alone.

    jaxdistill train --config=well_read --config.networks.teacher.init=FOLDER_OR_HUB_NAME \\
        --config.stages.finetune.learning_rate=5e-5 \\
        --config.networks.compact.init=PRETRAINED_STUDENT "--config.order=('finetune','distill','alone')" \\
        --config.feeds.task.source=TRAIN.tsv --config.feeds.task.heldout=DEV.tsv \\
        --config.feeds.transfer.unlabelled=MORE.txt --workdir=DIR

Only the teacher's distribution teaches, at T = 1. Without a pre-trained student a small one is made first, on
the installed documentation; without more texts the labelled ones are the transfer set. The paper's teacher is a
BERT-large and its students the 24 BERTs from Tiny on; it was not run here."""

from ml_collections import ConfigDict

from jaxdistill import defaults


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "" or "smoke"."""
    defaults.check_variant(variant, "smoke")
    config = defaults.task_recipe("well_read")
    config.feeds.transfer = defaults.derived("transfer_set", of="task")
    config.networks.compact = config.networks.student
    config.networks.compact.heads = ("mlm",)
    for name in ("student", "alone"):
        config.networks[name] = defaults.network(
            like="compact", start="layers", of="compact", layers=(0, 1), heads=("task",)
        )
    config.stages.compact = defaults.stage(
        "pretrain",
        "compact",
        nsp=0.0,
        steps=1000,
        optimizer="adamw",
        learning_rate=1e-3,
        warmup_steps=100,
    )
    config.stages.distill = defaults.stage(
        "soft_labels",
        "student",
        temperature=1.0,
        hard_labels=0.0,
        learning_rate=1e-3,
        **dict(defaults.LEARNING, feed="transfer"),
    )
    config.order = ("compact", "finetune", "distill", "alone")
    return defaults.smoke(config) if variant == "smoke" else config
