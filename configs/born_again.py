"""Born-again networks (Furlanello et al. 2018): a network of the teacher's own shape learns from it, the
next one from that one; at the end the generations answer together.

    jaxdistill train --config=born_again --config.networks.teacher.init=FOLDER_OR_HUB_NAME \\
        --config.stages.finetune.learning_rate=5e-5 \\
        --config.feeds.task.source=TRAIN.tsv --config.feeds.task.heldout=DEV.tsv --workdir=DIR

Every generation begins as the teacher did, and learns the true labels and its parent's classes in equal
shares. `ensemble` is the mean of their logits. The paper has image models; settings are those of fine-tuning."""

from ml_collections import ConfigDict

from jaxdistill import defaults


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "" or "smoke"."""
    defaults.check_variant(variant, "smoke")
    config = defaults.task_recipe("born_again")
    for name in ("student", "alone"):
        del config.networks[name]
    del config.stages.alone
    config.networks.first = defaults.network(like="teacher", start="like")
    config.networks.second = defaults.network(like="teacher", start="like")
    for name, parent in (("first", "teacher"), ("second", "first")):
        config.stages[name] = defaults.stage(
            "soft_labels",
            name,
            teacher=parent,
            temperature=1.0,
            hard_labels=0.5,
            learning_rate=5e-4,
            **defaults.LEARNING,
        )
    config.ensembles.ensemble = ("first", "second")
    config.order = ("finetune", "first", "second")
    return defaults.smoke(config) if variant == "smoke" else config
