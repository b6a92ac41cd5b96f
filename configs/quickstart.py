"""The paper's story at small scale, on the English documentation installed with Python: no download.

    jaxdistill train --config=configs/quickstart.py --workdir=/tmp/quickstart
"""

from ml_collections import ConfigDict

from jaxdistill import defaults

WIDTHS = dict(num_layers=4, hidden_size=128, embedding_size=64, num_heads=4, max_positions=128, hidden_dropout=0.0,
              attention_dropout=0.0)


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "" or "smoke" (seconds)."""
    config = defaults.recipe("quickstart")
    config.teacher = defaults.network("ib_bert_large", **WIDTHS, bottleneck_size=192, intermediate_size=768)
    config.student = defaults.network("mobilebert", **WIDTHS, bottleneck_size=64, intermediate_size=128, num_ffn=2)
    config.data.update({"vocab_size": 4096, "sequence_length": 64, "max_predictions": 10})
    student = dict(batch_size=32, learning_rate=2e-3, warmup_steps=20)
    config.stages.teacher = defaults.stage("pretrain", "teacher", steps=2000, batch_size=32, optimizer="adamw", learning_rate=1e-3,
                                           warmup_steps=100)
    config.stages.transfer = defaults.stage("progressive", "student", steps=160, decay="constant", batch_size=32)
    config.stages.distill = defaults.stage("distill", "student", steps=160, **student)
    config.stages.random_start = defaults.stage("pretrain", "random_start", start="random", steps=320, baseline=True, **student)
    config.stages.copied_start = defaults.stage("pretrain", "copied_start", start="copy", steps=320, baseline=True, **student)
    config.order = ("teacher", "transfer", "distill", "random_start", "copied_start")
    return defaults.smoke(config) if variant == "smoke" else config
