"""FitNets (Romero et al. 2015): the lower part of a thin student first learns a hidden state from the
middle of the teacher, then the whole student the teacher's soft labels; beside one that learns alone.

    jaxdistill train --config=fitnets --config.networks.teacher.init=FOLDER_OR_HUB_NAME \\
        --config.stages.finetune.learning_rate=5e-5 \\
        --config.feeds.task.source=TRAIN.tsv --config.feeds.task.heldout=DEV.tsv --workdir=DIR

The paper has image models, deeper than their teachers, and no settings for text: these are ours. The
student is as deep as the teacher and half as wide."""

from ml_collections import ConfigDict

from jaxdistill import defaults


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "" or "smoke"."""
    defaults.check_variant(variant, "smoke")
    config = defaults.task_recipe("fitnets")
    config.networks.student.model.num_layers = 4
    learning = dict(defaults.LEARNING, learning_rate=1e-3)
    config.stages.hint = defaults.stage(
        "hint", "student", guided_layer=1, hint_layer=1, **{**learning, "epochs": 1.0}
    )
    config.stages.distill = defaults.stage(
        "soft_labels", "student", temperature=2.0, hard_labels=0.5, **learning
    )
    config.order = ("finetune", "hint", "distill", "alone")
    return defaults.smoke(config) if variant == "smoke" else config
