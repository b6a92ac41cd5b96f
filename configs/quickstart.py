"""The paper's story at small scale, on the English documentation installed with Python: no
download.

    jaxdistill train --config=configs/quickstart.py --workdir=/tmp/quickstart

An IB-BERT teacher (4 layers, 128 between blocks, 192 inside), a MobileBERT student (64 inside), a
vocabulary of 4,096 word pieces, rows of 64 tokens. The teacher gets most of the time, the students
few steps: a teacher that has hardly learnt has nothing to teach, and a student with many steps
needs no teacher."""

from typing import Any

from ml_collections import ConfigDict

from jaxdistill import defaults

# Narrow models want wider initial weights than BERT's 0.02: about 1 / sqrt(width). No dropout: one
# or two epochs.
SHAPE: dict[str, Any] = dict(
    num_layers=4,
    hidden_size=128,
    embedding_size=64,
    num_heads=4,
    max_positions=128,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    initializer_range=0.05,
)


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "" or "smoke" (seconds)."""
    defaults.check_variant(variant, "smoke")
    config = defaults.recipe("quickstart")
    config.networks.teacher = defaults.network(
        "ib_bert_large", **SHAPE, bottleneck_size=192, intermediate_size=512
    )
    config.networks.student = defaults.network(
        "mobilebert", start="copy", **SHAPE, bottleneck_size=64, intermediate_size=128, num_ffn=2
    )
    config.networks.random_start = defaults.network(like="student")
    config.networks.copied_start = defaults.network(like="student", start="copy")
    config.data.update({"vocab_size": 4096, "sequence_length": 64, "max_predictions": 10})
    config.stages.teacher = defaults.stage(
        "pretrain",
        "teacher",
        steps=1800,
        batch_size=32,
        optimizer="adamw",
        learning_rate=5e-4,
        warmup_steps=150,
    )
    words = dict(batch_size=32, optimizer="adamw", learning_rate=1e-3, warmup_steps=20)
    config.stages.transfer = defaults.stage(
        "progressive", "student", steps=80, decay="constant", learning_rate=5e-3
    )
    config.stages.distill = defaults.stage("distill", "student", steps=240, **words)
    config.stages.random_start = defaults.stage(
        "pretrain", "random_start", steps=320, baseline=True, **words
    )
    config.stages.copied_start = defaults.stage(
        "pretrain", "copied_start", steps=320, baseline=True, **words
    )
    config.order = ("teacher", "transfer", "distill", "random_start", "copied_start")
    config.log_every = 10
    return defaults.smoke(config) if variant == "smoke" else config
