"""XtremeDistilTransformers (Mukherjee et al. 2021, arXiv 2106.04563): a student follows its teacher's topmost states,
then its logits, then the labels, and in the last two is unfrozen from the top down.

    jaxdistill train --config=xtremedistil --config.networks.teacher.init=FOLDER_OR_HUB_NAME \\
        --config.stages.finetune.learning_rate=5e-5 --config.stages.topmost.teacher_layer=11 \\
        --config.feeds.task.source=TRAIN.tsv --config.feeds.task.heldout=DEV.tsv --workdir=DIR

The student begins with its teacher's word table in fewer dimensions (`start="factorise"`). Stages, with g groups
[layers from the last to the first, embeddings]:

    topmost                 hidden states and attention of the teacher's last layers
    soft_0 .. soft_g        squared error of logits: the classifier alone moves, then one more group in each stage
    hard_0 .. hard_g        the labels, likewise

Each hands on its best state by the loss on held-out rows. Not as published: texts are the task's own (the paper has
unlabelled texts of the task or a large corpus: `derived("transfer_set", of="task", ...)`); epochs are few, where the
code has up to 500 with early stopping for each chunk of 100,000 rows; the classifier reads transformers' pooler,
where the code's reads the projected top state. The paper was not run here. `:paper` has its sizes, batch and rate."""

from typing import Any

from ml_collections import ConfigDict

from jaxdistill import defaults

CLASSIFIER = "(pooler|sequence_classification|token_classification|question_answering)/"


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "", "paper" or "smoke"."""
    defaults.check_variant(variant, "paper", "smoke")
    config = defaults.task_recipe("xtremedistil")
    student, depth, last = config.networks.student, 2, 3
    student.start = "factorise"
    student.model.num_heads = config.networks.teacher.model.num_heads
    learning: dict[str, Any] = dict(defaults.LEARNING, learning_rate=1e-3, epochs=1.0)
    if variant == "paper":
        depth, last = 6, 11
        config.networks.teacher = defaults.network("bert_base", heads=("task",))
        wide: dict[str, Any] = dict(hidden_size=384, num_heads=12, intermediate_size=1536)
        config.networks.student = defaults.network(
            "bert_base", start="factorise", heads=("task",), num_layers=depth, **wide
        )
        learning |= dict(learning_rate=3e-5, batch_size=128, decay="constant", warmup_ratio=0.0)
    config.stages.topmost = defaults.stage(
        "topmost",
        "student",
        teacher_layer=last,
        attention_probability_mse=1.0,
        **{**learning, "epochs": 3.0},
    )
    order = ["finetune", "topmost"]
    for prefix, kind, settings in (
        ("soft", "soft_labels", {"distance": "logit_mse", "hard_labels": 0.0}),
        ("hard", "finetune", {}),
    ):
        for group in range(depth + 2):  # the classifier, every layer, embeddings
            moves, layers = (CLASSIFIER,), ()
            if group:
                moves = (CLASSIFIER, "layers/")
                layers = (max(0, depth - group), depth)
            if group == depth + 1:
                moves = (*moves, "embeddings/")
            name = f"{prefix}_{group}"
            config.stages[name] = defaults.stage(
                kind, "student", moves=moves, layers=layers, best="loss", **{**learning, **settings}
            )
            order.append(name)
    config.order = (*order, "alone")
    if variant == "smoke":
        config = defaults.smoke(config)
        config.networks.teacher.model.hidden_size = 48
        config.stages.topmost.teacher_layer = 1
    return config
