"""Patient knowledge distillation (Sun et al. 2019): a student of the teacher's lower layers learns a task
from its classes and from the first token of its hidden states, beside one that learns alone.

    jaxdistill train --config=pkd --config.networks.teacher.init=FOLDER_OR_HUB_NAME \\
        --config.stages.finetune.learning_rate=5e-5 \\
        --config.feeds.task.source=TRAIN.tsv --config.feeds.task.heldout=DEV.tsv --workdir=DIR

The default fits a laptop and begins at random. `pkd:paper` is PKD-Skip with a BERT-base given by
`teacher.init` and 6 layers, as it did best on SST-2: T = 10, alpha = 0.5, its beta of 100 (a mean over
layers and width, 0.026 as a sum); its students begin as layers of the model before it is fine-tuned.
The paper was not run here."""

from ml_collections import ConfigDict

from jaxdistill import defaults


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "", "paper" or "smoke"."""
    defaults.check_variant(variant, "paper", "smoke")
    config = defaults.task_recipe("pkd")
    layers, followed, settings = (0, 1), (1, -1), dict(defaults.LEARNING, learning_rate=5e-4)
    if variant == "paper":
        layers, followed = tuple(range(6)), (1, 3, 5, 7, 9, -1)
        settings.update({"epochs": 4.0, "learning_rate": 5e-5})
        config.stages.finetune.learning_rate = 5e-5
        config.networks.teacher = defaults.network("bert_base", heads=("task",))
    of = "teacher"
    if variant == "paper":
        config.networks.pretrained, of = (
            defaults.network(like="teacher", start="like"),
            "pretrained",
        )
    for name in ("student", "alone"):
        config.networks[name] = defaults.network(
            like="teacher", start="layers", of=of, layers=layers
        )
    config.stages.distill = defaults.stage(
        "patient",
        "student",
        layer_map=followed,
        hard_labels=0.5,
        temperature=10.0,
        first_token_mse=0.026,
        **settings,
    )
    config.stages.alone.learning_rate = settings["learning_rate"]
    config.order = ("finetune", "distill", "alone")
    if variant == "smoke":
        config = defaults.smoke(config)
        for name in ("student", "alone"):
            config.networks[name].layers = (0,)
        config.stages.distill.layer_map = (1,)
    return config
