"""TinyBERT's general distillation (Jiao et al. 2020, arXiv 1909.10351): 4 narrow layers from an
existing BERT-base.

    jaxdistill train --config=tinybert --config.networks.teacher.init=FOLDER_OR_HUB_NAME --config.data.source=TEXT --workdir=DIR

Embeddings, hidden states (through a learned projection from 312 to 768 numbers) and attention
scores of layers 3, 6, 9 and 12 are matched, nothing is predicted: the student has no head, and is
fine-tuned afterwards (`jaxdistill finetune`). As published: batch 256, length 128, 5e-5 after a
tenth of warm-up, 3 epochs. Not as published: text is masked as for BERT's pre-training, gradients
are clipped together, and pads are left out of the losses. Not run here at this size; `:smoke` runs
in seconds and trains a toy teacher first."""

from ml_collections import ConfigDict

from jaxdistill import defaults


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "" or "smoke"."""
    defaults.check_variant(variant, "smoke")
    config = defaults.recipe("tinybert")
    config.networks.teacher = defaults.network("bert_base")
    config.networks.student = defaults.network(
        "bert_base", num_layers=4, hidden_size=312, intermediate_size=1200, heads=()
    )
    config.data.update({"sequence_length": 128, "max_predictions": 20})
    config.stages.general = defaults.stage(
        "intermediate",
        "student",
        layer_map=(2, 5, 8, 11),
        epochs=3.0,
        batch_size=256,
        optimizer="adamw",
        learning_rate=5e-5,
        warmup_steps=1000,
        dropout=True,
    )
    config.order = ("general",)
    if variant == "smoke":
        config = defaults.smoke(config)
        config.networks.teacher.model.hidden_size = 48
        config.stages.general.layer_map = (0, 1)
        config.stages.teacher = defaults.stage(
            "pretrain", "teacher", steps=4, batch_size=8, warmup_steps=1
        )
        config.order = ("teacher", "general")
    return config
