"""DistilBERT (Sanh et al. 2019): half the layers of a masked language model, learned from its
distribution over the vocabulary, from masked words, and from the direction of its last hidden state.

    jaxdistill train --config=distilbert --config.networks.teacher.init=FOLDER_OR_HUB_NAME --config.data.source=TEXT --workdir=DIR

`teacher.init` is a BERT with its MLM head. The default fits a laptop: without a model it trains a small
teacher first; with a deeper one give `--config.networks.student.layers` and
`--config.stages.distill.teacher_layer`. `distilbert:paper` halves a BERT-base: layers 0, 2, 4, 7, 9
and 11, distributions compared at all tokens, weights 5, 2 and 1, 3 epochs of 4,000 rows. Not as
published: words to mask are drawn evenly, and token types and pooler stay. The paper was not run here."""

from ml_collections import ConfigDict

from jaxdistill import defaults


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "", "paper" or "smoke"."""
    defaults.check_variant(variant, "paper", "smoke")
    config = defaults.recipe("distilbert")
    config.data.update({"sequence_length": 128, "max_predictions": 20})
    config.networks.teacher = defaults.network(
        "bert_base",
        heads=("mlm",),
        num_layers=4,
        hidden_size=128,
        num_heads=4,
        intermediate_size=512,
        max_positions=128,
        initializer_range=0.05,
    )
    config.networks.student = defaults.network(like="teacher", start="layers", layers=(0, 2))
    words = dict(batch_size=32, optimizer="adamw", learning_rate=5e-4, warmup_ratio=0.05)
    config.stages.teacher = defaults.stage("pretrain", "teacher", nsp=0.0, steps=1500, **words)
    config.stages.distill = defaults.stage(
        "distilbert", "student", teacher_layer=3, steps=500, dropout=True, **words
    )
    config.order = ("teacher", "distill")
    if variant == "paper":
        config.networks.teacher = defaults.network("bert_base", heads=("mlm",))
        config.networks.student.layers = (0, 2, 4, 7, 9, 11)
        config.data.update({"sequence_length": 512, "max_predictions": 77})
        config.stages.distill = defaults.stage(
            "distilbert",
            "student",
            teacher_layer=11,
            distilled="all",
            epochs=3.0,
            batch_size=4000,
            accumulation=50,
            optimizer="adamw",
            bias_correction=True,
            learning_rate=5e-4,
            weight_decay=0.0,
            clip_norm=5.0,
            warmup_ratio=0.05,
            dropout=True,
        )
        config.order = ("distill",)
    if variant == "smoke":
        config = defaults.smoke(config)
        config.networks.student.layers = (1,)
        config.stages.distill.teacher_layer = 1
    return config
