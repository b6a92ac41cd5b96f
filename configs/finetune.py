"""Fine-tuning on one text classification task: AdamW, linear decay, a tenth of warm-up, and the bias
correction that BERT's and MobileBERT's code lacks. Without it runs on small tasks fail (Mosbach et al.
2021, arXiv:2006.04884; docs/log.md).

    jaxdistill train --config=finetune --config.networks.model.init=FOLDER_OR_HUB_NAME \\
        --config.stages.finetune.learning_rate=5e-5 \\
        --config.feeds.task.source=TRAIN.tsv --config.feeds.task.heldout=DEV.tsv --workdir=DIR

`jaxdistill finetune` is this recipe with shorter options. Without a model it trains a small BERT from
a random start, and without a file it learns which package a paragraph of the installed documentation
is from: enough to see it work, not to judge it."""

from ml_collections import ConfigDict

from jaxdistill import defaults


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "" or "smoke"."""
    defaults.check_variant(variant, "smoke")
    config = defaults.recipe("finetune")
    config.feeds.task = defaults.task("classification", source="default", sequence_length=128)
    config.networks.model = defaults.network(
        "bert_base",
        heads=("sequence_classification",),
        num_layers=4,
        hidden_size=128,
        num_heads=4,
        intermediate_size=512,
    )
    config.stages.finetune = defaults.stage(
        "finetune",
        "model",
        feed="task",
        epochs=3.0,
        batch_size=32,
        optimizer="adamw",
        bias_correction=True,
        learning_rate=5e-4,
        warmup_ratio=0.1,
        dropout=True,
    )
    config.order = ("finetune",)
    return defaults.smoke(config) if variant == "smoke" else config
