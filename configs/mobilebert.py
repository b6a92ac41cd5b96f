"""The published recipe of MobileBERT (Sun et al. 2020, arXiv 2004.02984), at full size.

IB-BERT_LARGE is pre-trained, MobileBERT takes over its knowledge layer by layer (24 phases of
10,000 steps, lower layers at a tenth of the rate), then distils for 500,000 steps. LAMB, batch
2048, length 512. `:strict` freezes the lower layers instead; `:chip` is the same networks and
stages with the batch and the steps of an hour or two on one TPU chip, on the default corpus;
`:smoke` runs in seconds. (The teacher: batch 4096.)

    jaxdistill train --config=mobilebert --config.data.source=tfds:wikipedia/20230601.en \\
        --config.data.tokenizer=VOCAB_TXT --workdir=gs://BUCKET/mobilebert

Hardware of the authors: 256 TPU v3 chips; 740,000 student steps. Not run here at this size: its
steps are traced in the tests, and compiled for TPU slices by `jaxdistill plan`. The released code
reads data prepared with 20 predictions a row; the teacher's schedule is from the paper. """

from ml_collections import ConfigDict

from jaxdistill import defaults


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "", "strict", "chip" or "smoke"."""
    defaults.check_variant(variant, "strict", "chip", "smoke")
    config = defaults.recipe("mobilebert")
    config.networks.teacher = defaults.network("ib_bert_large", vocab_size=30522, dtype="bfloat16")
    config.networks.student = defaults.network(
        "mobilebert", start="copy", vocab_size=30522, dtype="bfloat16"
    )
    config.data.update(
        {
            "source": "tfds:wikipedia/20230601.en",
            "vocab_size": 30522,
            "sequence_length": 512,
            "max_predictions": 20,
        }
    )
    lamb = dict(optimizer="lamb", learning_rate=1.5e-3, batch_size=2048)
    config.stages.teacher = defaults.stage(
        "pretrain",
        "teacher",
        steps=500_000,
        warmup_steps=10_000,
        dropout=True,
        **{**lamb, "batch_size": 4096},
    )
    config.stages.transfer = defaults.stage(
        "progressive",
        "student",
        steps=240_000,
        decay="constant",
        freezing="strict" if variant == "strict" else "soft",
        **lamb,
    )
    config.stages.distill = defaults.stage(
        "distill", "student", steps=500_000, warmup_steps=10_000, **lamb
    )
    config.order = ("teacher", "transfer", "distill")
    config.evaluation.batch_size = 512  # divides over as many devices as the authors had
    config.checkpoint.every_steps = 5000
    config.log_every = 100
    if variant == "chip":
        config.data.source = "default"
        for name, steps in (("teacher", 6000), ("transfer", 4800), ("distill", 6000)):
            section = config.stages[name]
            # LAMB's rate goes with the square root of the batch.
            section.update(
                {
                    "learning_rate": section.learning_rate * (16 / section.batch_size) ** 0.5,
                    "batch_size": 16,
                    "steps": steps,
                    "warmup_steps": section.warmup_steps and 300,
                }
            )
        config.evaluation.update({"batch_size": 16, "max_examples": 512})
        config.checkpoint.every_steps = 500
        config.log_every = 20
    if variant == "smoke":
        config = defaults.smoke(config)
        config.data.source = "default"
        for section in (config.networks.teacher, config.networks.student):
            section.model.vocab_size = 0
    return config
