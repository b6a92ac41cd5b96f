"""MiniLM (Wang et al. 2020): a small student learns one layer's self-attention, from a teacher assistant
that is as deep as the teacher and as wide as the student, which learns it first.

    jaxdistill train --config=minilm --config.networks.teacher.init=FOLDER_OR_HUB_NAME --config.data.source=TEXT --workdir=DIR

The default fits a laptop: without a model it trains a small teacher first. `--config.stages.distill.teacher=teacher`
leaves the assistant out; `direct`, a baseline, does so at equal steps of the student. `minilm:paper` makes 6
layers of width 384 from a BERT-base: 400,000 steps of 256 rows of 512 tokens, 3e-4. Of the second version
(Wang et al. 2021) the stages are of kind `relations`. The paper was not run here."""

from typing import Any

from ml_collections import ConfigDict

from jaxdistill import defaults


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "", "paper" or "smoke"."""
    defaults.check_variant(variant, "paper", "smoke")
    config = defaults.recipe("minilm")
    config.data.update({"sequence_length": 128, "max_predictions": 20})
    shape: dict[str, Any] = dict(
        num_layers=4, hidden_size=128, num_heads=4, intermediate_size=512, max_positions=128
    )
    thin: dict[str, Any] = dict(hidden_size=64, intermediate_size=256)
    rows: dict[str, Any] = dict(steps=500, batch_size=32, learning_rate=1e-3, warmup_ratio=0.05)
    last, depth = 3, 2
    if variant == "paper":
        shape, thin = {}, dict(hidden_size=384, intermediate_size=1536)
        rows = dict(steps=400_000, batch_size=256, learning_rate=3e-4, warmup_steps=4000)
        config.data.sequence_length = 512
        last, depth = 11, 6
    learning: dict[str, Any] = dict(
        optimizer="adamw", bias_correction=True, dropout=True, teacher_layer=last, **rows
    )
    config.networks.teacher = defaults.network("bert_base", heads=("mlm",), **shape)
    config.networks.assistant = defaults.network("bert_base", heads=(), **{**shape, **thin})
    student = {**shape, **thin, "num_layers": depth}
    config.networks.student = defaults.network("bert_base", heads=(), **student)
    config.networks.direct = defaults.network(like="student")
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
    config.stages.assist = defaults.stage("self_attention", "assistant", **learning)
    config.stages.distill = defaults.stage(
        "self_attention", "student", teacher="assistant", **learning
    )
    config.stages.direct = defaults.stage("self_attention", "direct", baseline=True, **learning)
    config.order = ("assist", "distill", "direct")
    if variant != "paper":
        config.order = ("teacher", *config.order)
    if variant == "smoke":
        config = defaults.smoke(config)
        for name in ("assist", "distill", "direct"):
            config.stages[name].teacher_layer = 1
    return config
