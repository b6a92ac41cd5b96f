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

Each hands on its best state by the loss on held-out rows.

The last state is learned through a projection to the teacher's width that stays (`projected_size`): a classifier of
tokens reads it, and the Hugging Face folder has the product of the two. One of texts reads transformers' pooler. The
paper's reads the projection too: `:projected`, whose first group is the projection, and which is exported in our own
format.

`:chunks` learns the topmost states from a part of the texts after the other, and keeps what the last one learned only if
that made it better: for large sets; `defaults.in_chunks` has their size and number, `best_every` and `patience` an
early end.

One student for several languages is a matter of files, and so is a student that is made on one task and used on others:

    jaxdistill train --config=xtremedistil --config.feeds.task.kind=tagging \\
        --config.feeds.task.source=en.txt,de.txt,fr.txt --config.feeds.task.heldout=en-dev.txt,de-dev.txt,fr-dev.txt ...
    jaxdistill evaluate --model=DIR --task=tagging --data=de-test.txt
    jaxdistill finetune --model=DIR --task=stsb --data=STS-B

Not as published: texts are the task's own (the paper has unlabelled texts of the task or a large corpus:
`derived("transfer_set", of="task", ...)`, or sentences like them, `derived("retrieved", ...)`). The paper was not run
here. `:paper` has its sizes, batch, rate and projection."""

from typing import Any

from ml_collections import ConfigDict

from jaxdistill import defaults
from jaxdistill.methods.xtremedistil import unfrozen


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "", "projected", "chunks", "paper" or "smoke"."""
    defaults.check_variant(variant, "projected", "chunks", "paper", "smoke")
    projected = variant in ("projected", "paper")
    config = defaults.task_recipe("xtremedistil")
    student, last = config.networks.student, 3
    student.model.num_heads = config.networks.teacher.model.num_heads
    learning: dict[str, Any] = dict(defaults.LEARNING, learning_rate=1e-3, epochs=1.0)
    if variant == "paper":
        last = 11
        config.networks.teacher = defaults.network("bert_base", heads=("task",))
        wide: dict[str, Any] = dict(hidden_size=384, num_heads=12, intermediate_size=1536)
        student = defaults.network("bert_base", heads=("task",), num_layers=6, **wide)
        learning |= dict(learning_rate=3e-5, batch_size=128, decay="constant", warmup_ratio=0.0)
    config.networks.student = student
    student.start = "factorise"
    student.model.projected_size = 0  # as wide as the teacher
    if projected:
        student.model.pooler = "none"
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
        for group, moving in enumerate(unfrozen(student.model.num_layers, projected)):
            name = f"{prefix}_{group}"
            config.stages[name] = defaults.stage(
                kind, "student", best="loss", **{**learning, **settings, **moving}
            )
            order.append(name)
    config.order = (*order, "alone")
    if variant == "chunks":
        defaults.in_chunks(config, "topmost", rows=500, chunks=3)
    if variant == "smoke":
        config = defaults.smoke(config)
        config.networks.teacher.model.hidden_size = 48
        config.stages.topmost.teacher_layer = 1
    return config
