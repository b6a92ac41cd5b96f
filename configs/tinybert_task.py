"""TinyBERT's task distillation (Jiao et al. 2020): on the task's texts and on copies of them with words
replaced, a narrow student follows the fine-tuned teacher's embeddings, hidden states and attention
scores, then its answers; beside one that learns alone.

    jaxdistill train --config=tinybert_task --config.networks.teacher.init=FOLDER_OR_HUB_NAME \\
        --config.stages.finetune.learning_rate=5e-5 \\
        --config.networks.words.init=FOLDER_WITH_MLM_HEAD --config.feeds.task.source=TRAIN.tsv \\
        --config.feeds.task.heldout=DEV.tsv --workdir=DIR

`words` replaces the words and has an MLM head and the teacher's vocabulary (`word_teachers` makes one); without it
it is a small one, trained first on the installed documentation. The default has 2 copies; `tinybert_task:paper`
20, 20 epochs of the intermediate stage and a student of 4 layers of width 312 that `networks.student.init` gives
(general distillation: the recipe `tinybert`), after layers 3, 6, 9 and 12 of a BERT-base. Not as published: pads are
left out of the losses, near words are those of the word table and not of GloVe, words of a copy are masked
together (context=word: one by one). The paper was not run here."""

from ml_collections import ConfigDict

from jaxdistill import defaults


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "", "paper" or "smoke"."""
    defaults.check_variant(variant, "paper", "smoke")
    config = defaults.task_recipe("tinybert_task")
    config.networks.student.model.num_heads = 4  # scores are compared head by head
    config.networks.words = defaults.network(
        "bert_base",
        heads=("mlm",),
        num_layers=2,
        hidden_size=128,
        num_heads=2,
        intermediate_size=256,
    )
    config.feeds.more = defaults.derived("augmented", of="task", by="words", copies=2)
    learning = dict(defaults.LEARNING, feed="more", learning_rate=1e-3)
    config.stages.words = defaults.stage(
        "pretrain",
        "words",
        nsp=0.0,
        steps=600,
        optimizer="adamw",
        learning_rate=1e-3,
        warmup_steps=60,
    )
    config.stages.intermediate = defaults.stage(
        "intermediate",
        "student",
        layer_map=(1, 3),
        **{**learning, "decay": "constant", "warmup_ratio": 0.0},
    )
    config.stages.distill = defaults.stage(
        "soft_labels", "student", temperature=1.0, hard_labels=0.0, **learning
    )
    config.order = ("words", "finetune", "intermediate", "distill", "alone")
    if variant == "paper":
        config.networks.teacher = defaults.network("bert_base", heads=("task",))
        config.networks.student = defaults.network(
            "bert_base", num_layers=4, hidden_size=312, intermediate_size=1200, heads=("task",)
        )
        config.networks.words = defaults.network("bert_base", heads=("mlm",))
        config.feeds.more.update({"copies": 20, "context": "word"})
        config.stages.intermediate.update(
            {"layer_map": (2, 5, 8, 11), "epochs": 20.0, "learning_rate": 5e-5}
        )
        config.stages.distill.learning_rate = 3e-5
        config.stages.finetune.learning_rate = 5e-5
        config.order = ("finetune", "intermediate", "distill", "alone")
    if variant == "smoke":
        config = defaults.smoke(config)
        config.stages.intermediate.layer_map = (0, 1)
        config.networks.student.model.num_heads = config.networks.teacher.model.num_heads
        config.feeds.more.update({"most": 40, "copies": 1})
    return config
