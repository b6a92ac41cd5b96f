"""Extract Then Distill (Chen et al. 2021, arXiv 2104.11928): a student cut out of its teacher, then distilled.

    jaxdistill train --config=extract_then_distill --config.networks.teacher.init=FOLDER_OR_HUB_NAME \\
        --config.order="('transfer','words','chance_transfer','chance_words','fresh_transfer','fresh_words')" \\
        --config.data.source=TEXT --workdir=DIR

Three students of one size, which go through the same stages:

    student   its teacher's parts that matter most to the loss of masked words (ETD-Impt)
    chance    parts of it at random (ETD-Rand)
    fresh     random weights (with `:ib_bert` random blocks)

First the last layer's attention scores and hidden states are matched (TinyBERT's losses), then the teacher's
words. Every head is kept and made narrower, as the losses on attention want it. The default fits a laptop
and trains a small teacher first. `:paper` cuts 4 layers of width 312 out of a BERT-base; the paper's sizes, steps and
rates are not public, so those of the stages are its group's AutoTinyBERT, read from its code. `:minilm` matches
relations of the last layer in place of scores. `:ib_bert` narrows what flows inside the blocks of an IB-BERT,
followed by MobileBERT's joint transfer of all layers. The paper was not run here."""

from typing import Any

from ml_collections import ConfigDict

from jaxdistill import defaults


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "", "minilm", "ib_bert", "paper" or "smoke"."""
    defaults.check_variant(variant, "minilm", "ib_bert", "paper", "smoke")
    config = defaults.recipe("extract_then_distill")
    config.data.update({"sequence_length": 128, "max_predictions": 20})
    depth, last = 2, 3
    shape: dict[str, Any] = dict(
        num_layers=4, hidden_size=128, num_heads=4, intermediate_size=512, max_positions=128
    )
    thin: dict[str, Any] = dict(num_layers=depth, hidden_size=64, intermediate_size=256)
    learning: dict[str, Any] = dict(batch_size=32, optimizer="adamw", bias_correction=True)
    transfer = dict(learning, steps=300, learning_rate=1e-3, warmup_ratio=0.05)
    words = dict(learning, steps=300, learning_rate=1e-3, warmup_ratio=0.05, nsp=0.0)
    preset = "bert_base"
    if variant == "paper":
        depth, last, shape = 4, 11, {}
        thin = dict(num_layers=4, hidden_size=312, intermediate_size=1200)
        transfer |= dict(
            steps=200_000, batch_size=256, learning_rate=1e-4, warmup_ratio=0.0, warmup_steps=10_000
        )
        words |= dict(steps=20_000, batch_size=256, learning_rate=1e-4)
    if variant == "ib_bert":
        preset = "ib_bert_large"
        shape |= dict(embedding_size=64, bottleneck_size=192, intermediate_size=768)
        thin = dict(bottleneck_size=64, intermediate_size=256)
    config.networks.teacher = defaults.network(preset, heads=("mlm",), **shape)
    thin["like"] = "teacher"
    config.networks.student = defaults.network(start="extract", importance="text", **thin)
    config.networks.chance = defaults.network(start="extract", **thin)
    # Joint transfer trains blocks alone, so its control has the teacher's embeddings and head.
    config.networks.fresh = defaults.network(
        start="copy" if variant == "ib_bert" else "random", **thin
    )
    config.stages.teacher = defaults.stage(
        "pretrain",
        "teacher",
        nsp=0.0,
        steps=1500,
        batch_size=32,
        optimizer="adamw",
        learning_rate=5e-4,
        warmup_steps=75,
    )
    if variant == "ib_bert":
        kind, settings = "joint", {}
    elif variant == "minilm":
        kind, settings = "relations", dict(teacher_layer=last, relation_heads=4)
    else:
        only_last = (-1,) * (depth - 1) + (last,)
        kind, settings = "intermediate", dict(layer_map=only_last, embedding_mse=0.0)
    order = []
    for name in ("student", "chance", "fresh"):
        prefix, baseline = ("", False) if name == "student" else (f"{name}_", True)
        config.stages[f"{prefix}transfer"] = defaults.stage(
            kind, name, baseline=baseline, **settings, **transfer
        )
        config.stages[f"{prefix}words"] = defaults.stage(
            "distill", name, baseline=baseline, **words
        )
        order += [f"{prefix}transfer", f"{prefix}words"]
    config.order = tuple(order) if variant == "paper" else ("teacher", *order)
    if variant == "smoke":
        config = defaults.smoke(config)
        for name in ("transfer", "chance_transfer", "fresh_transfer"):
            config.stages[name].layer_map = (1,)
    return config
