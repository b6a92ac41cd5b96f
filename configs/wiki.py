"""Which transfer pays? Progressive, joint, auxiliary and none, from one teacher, at equal student
steps, on Wikipedia.

    jaxdistill train --config=wiki --config.data.source=WIKI_FOLDER --config.data.heldout=HELDOUT_FILE --workdir=DIR

WIKI_FOLDER: text files, one paragraph a line, a blank line between articles. HELDOUT_FILE: text of
other articles. Two CPU cores: 76 minutes, 57 of them the teacher's; README has the numbers. Every
student has the same architecture, random blocks, data order and number of steps; what differs is
the method:

    student         progressive transfer (300 steps), then distillation (500)
    joint           joint transfer (300 steps), then distillation (500)
    auxiliary       distillation and every layer's transfer in one stage
    distilled       distillation alone, from the copied start
    copied_start    masked words and NSP alone, from the teacher's embeddings and heads
    random_start    masked words and NSP alone, from random weights
"""

from typing import Any

from ml_collections import ConfigDict

from jaxdistill import defaults

# Narrow models want wider initial weights than BERT's 0.02: about 1 / sqrt(width).
SHAPE: dict[str, Any] = dict(
    num_layers=6,
    hidden_size=128,
    embedding_size=64,
    num_heads=4,
    max_positions=128,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    initializer_range=0.05,
)


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "" or "smoke"."""
    defaults.check_variant(variant, "smoke")
    config = defaults.recipe("wiki")
    config.networks.teacher = defaults.network(
        "ib_bert_large", **SHAPE, bottleneck_size=192, intermediate_size=768
    )
    config.networks.student = defaults.network(
        "mobilebert", start="copy", **SHAPE, bottleneck_size=64, intermediate_size=256, num_ffn=2
    )
    for name in ("joint", "auxiliary", "distilled", "copied_start"):
        config.networks[name] = defaults.network(like="student", start="copy")
    config.networks.random_start = defaults.network(like="student")
    config.data.update({"vocab_size": 8192, "sequence_length": 128, "max_predictions": 20})
    config.stages.teacher = defaults.stage(
        "pretrain",
        "teacher",
        steps=10_000,
        batch_size=16,
        optimizer="adamw",
        learning_rate=5e-4,
        warmup_steps=500,
    )
    layers = dict(batch_size=16, decay="constant", learning_rate=5e-3, steps=300)
    words = dict(batch_size=16, optimizer="adamw", learning_rate=1e-3, warmup_steps=40)
    config.stages.transfer = defaults.stage("progressive", "student", **layers)
    config.stages.distill = defaults.stage("distill", "student", steps=500, **words)
    config.stages.joint_transfer = defaults.stage("joint", "joint", **layers)
    config.stages.joint_distill = defaults.stage("distill", "joint", steps=500, **words)
    config.stages.auxiliary = defaults.stage("auxiliary", "auxiliary", steps=800, **words)
    config.stages.distilled = defaults.stage("distill", "distilled", steps=800, **words)
    config.stages.copied_start = defaults.stage(
        "pretrain", "copied_start", steps=800, baseline=True, **words
    )
    config.stages.random_start = defaults.stage(
        "pretrain", "random_start", steps=800, baseline=True, **words
    )
    config.order = (
        "teacher",
        "transfer",
        "distill",
        "joint_transfer",
        "joint_distill",
        "auxiliary",
        "distilled",
        "copied_start",
        "random_start",
    )
    config.evaluation.max_examples = 2048
    return defaults.smoke(config) if variant == "smoke" else config
