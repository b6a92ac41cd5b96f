"""Every command by name: its help, its options, and the function of the package that does it. Called by
cli.

A function here turns options into arguments and the answer into text; no logic lives here. Packages are
imported where they are needed, so that --help is quick."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

from jaxdistill.errors import BadInput, shortened


class Command:
    """One command: its help line, its options (name -> argparse keywords) and the function that
    runs it; `of`: the words of which one stands behind its name, if it takes one."""

    def __init__(
        self, help: str, run: Any, of: tuple[str, ...] = (), **options: dict[str, Any]
    ) -> None:
        self.help, self.run, self.of, self.options = help, run, of, options


def as_json(options: argparse.Namespace, found: Any) -> str:
    """`found` as JSON. JSON has no NaN: numbers that are not finite become null, and the command
    says so and exits with 3."""
    from jaxdistill.report import plain

    bad = sorted(not_finite(found))
    if bad:
        options.warnings.append(
            f"not finite, so null: {', '.join(bad[:10])}{' and more' if len(bad) > 10 else ''}; is the model "
            "whole, and its tokenizer its own?"
        )
        options.code = 3
    return json.dumps(plain(found), indent=2, allow_nan=False)


def not_finite(found: Any, name: str = "") -> Iterator[str]:
    """The names of the numbers in `found` that are not finite."""
    if isinstance(found, float) and not math.isfinite(found):
        yield name
    elif isinstance(found, dict):
        for key, value in found.items():
            yield from not_finite(value, f"{name}.{key}" if name else str(key))
    elif isinstance(found, list | tuple):
        for number, value in enumerate(found):
            yield from not_finite(value, f"{name}[{number}]")


def use_compilation_cache() -> None:
    """A second start of the same recipe need not compile again; JAX_COMPILATION_CACHE_DIR chooses
    another place."""
    import jax

    from jaxdistill.data.files import cache_directory

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))


def _load(options: argparse.Namespace) -> Any:
    from jaxdistill.configuration import load_config

    return load_config(options.config, options.overrides)


def _stored_recipe(workdir: str) -> str:
    """The recipe of the run in a workdir. Raises `BadInput` if there is none."""
    from etils import epath

    file = epath.Path(workdir).expanduser() / "config.json"
    if not file.exists():
        raise BadInput(
            f"train needs --config=FILE: {workdir!r} holds no run yet whose recipe could be continued; see 'jaxdistill "
            "train --help'"
        )
    return os.fspath(file)


def _train(options: argparse.Namespace) -> str | None:
    from jaxdistill import report, run
    from jaxdistill.training import hosts

    options.config = options.config or _stored_recipe(options.workdir)
    hosts.connect(
        options.coordinator, options.num_processes, options.process_id, options.distributed
    )
    use_compilation_cache()
    results = run.train(_load(options), options.workdir, stages=options.stages)
    if not hosts.first():
        return None
    return (
        as_json(options, results)
        if options.json
        else (f"{report.format_table(results)}\nEverything is in {options.workdir}")
    )


def _seeds(options: argparse.Namespace) -> str:
    from jaxdistill import commands

    use_compilation_cache()
    seeds = commands.parse_seeds(options.seeds)
    if any(override.partition("=")[0] == "seed" for override in options.overrides):
        raise BadInput(
            "--config.seed would do nothing here: each run has its own; name them with --seeds=0,1,2"
        )
    found = commands.seeds(_load(options), options.workdir, seeds)
    return as_json(options, found) if options.json else found["table"]


def _prepare(options: argparse.Namespace) -> str:
    from jaxdistill import commands

    return as_json(options, commands.prepare(_load(options), options.workdir, options.beam_options))


def _describe(options: argparse.Namespace) -> str:
    from jaxdistill import commands

    return commands.describe_text(
        options.preset,
        _load(options) if options.config else None,
        options.json,
        options.model or "",
        options.network,
    )


def _search(options: argparse.Namespace) -> str:
    from jaxdistill import commands

    use_compilation_cache()
    found = commands.search_mapping(
        _load(options), options.workdir, budget=options.budget, workers=options.workers
    )
    if options.json:
        return as_json(options, found)
    best = " ".join("-" if layer < 0 else str(layer) for layer in found["best_map"])
    return (
        f"best layer map of stage {found['stage']!r}: ({best}), fitness {found['fitness']:.4f}, of "
        f"{found['evaluations']} in {found['generations']} generations; train it by --config={found['recipe']}"
    )


def _plan(options: argparse.Namespace) -> str:
    from jaxdistill.planning.plan import plan
    from jaxdistill.planning.table import format_plan

    found = plan(
        _load(options),
        options.topology,
        stages=options.stages,
        fit=options.fit,
        show=lambda line: print(line, file=sys.stderr, flush=True),
    )
    return as_json(options, found) if options.json else format_plan(found)


def _export(options: argparse.Namespace) -> str:
    from jaxdistill import conversion

    names = ("format", "network", "layers", "importance_from", "from_tf1", "config", "vocab")
    given = {name: getattr(options, name) for name in names}
    asked = {field: getattr(options, name) for name, field in SMALLER.items()}
    sizes = {field: size for field, size in asked.items() if size is not None}
    if options.importance_from is not None:
        use_compilation_cache()
    line = conversion.export(options.model, options.out, sizes=sizes, **given)
    return as_json(options, line.facts) if options.json else line


def _evaluate(options: argparse.Namespace) -> str:
    from jaxdistill import commands, task_commands

    names = OF_A_TEXT if options.task else OF_A_TASK
    for name in names:  # it would do nothing
        if getattr(options, name) != COMMANDS["evaluate"].options[name]["default"]:
            raise BadInput(
                f"--{name} does not go with {'--task' if options.task else 'text; give --task=NAME too'}; see "
                "'jaxdistill evaluate --help'"
            )
    if options.overrides and not options.task:
        raise BadInput(
            "--task.NAME=VALUE sets a task's setting, and no task is given by --task=NAME"
        )
    if options.task:
        use_compilation_cache()
        given = {name: getattr(options, name) for name in ("sequence_length", "network", "out")}
        return as_json(
            options,
            task_commands.evaluate_task(
                options.model, options.task, options.data, overrides=options.overrides, **given
            ),
        )
    return as_json(
        options,
        commands.evaluate(
            options.model,
            options.source,
            teacher=options.teacher,
            network=options.network,
            split=options.split,
            documents=options.documents,
            sequence_length=options.sequence_length,
            max_examples=options.max_examples,
        ),
    )


def _finetune(options: argparse.Namespace) -> str:
    from jaxdistill import task_commands

    use_compilation_cache()
    settings = {name: getattr(options, name) for name in FINETUNE_SETTINGS}
    own = COMMANDS["finetune"].options
    for several, one in (("grid", "learning_rate"), ("seeds", "seed")):
        if getattr(options, several) and getattr(options, one) != own[one]["default"]:
            raise BadInput(f"--{one} would do nothing beside --{several}; leave one of the two out")
    results = task_commands.finetune(
        options.model, options.data, options.workdir, overrides=options.overrides, **settings
    )
    options.warnings += results["warnings"]
    return as_json(options, results)


def _predict(options: argparse.Namespace) -> str:
    from jaxdistill import prediction

    use_compilation_cache()
    settings = {name: getattr(options, name) for name in PREDICT_SETTINGS}
    return as_json(
        options, prediction.predict(options.model, options.input, options.out, **settings)
    )


def _folder(path: str) -> str:
    if not path:
        raise argparse.ArgumentTypeError(
            "it is empty (a variable that is not set?); expected a folder"
        )
    return path


def _numbers(kind: type) -> Any:
    """What reads "1,2" as numbers of a kind."""

    def numbers(text: str) -> list[Any]:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{shortened(text)!r}; expected numbers with commas between them"
            ) from error

    return numbers


_CONFIG = dict(
    required=True,
    metavar="FILE",
    help="a recipe: a file, or a shipped name such as quickstart or quickstart:smoke",
)
_RECIPE = {**_CONFIG, "required": False, "default": ""}
_STORED = {**_RECIPE, "help": f"{_CONFIG['help']}; default: that of the run in --workdir"}
RECIPES = (_CONFIG, _RECIPE, _STORED)  # options that name a recipe
FIELDS = (
    "Any field of the recipe is changed by --config.FIELD=VALUE, as --config.seed=1 or --config.stages.transfer.steps=100; "
    "the fields are in the recipe's file and in jaxdistill/defaults.py."
)
_WORKDIR = dict(
    required=True, metavar="DIR", type=_folder, help="folder of the run; the same folder resumes"
)
_MODEL = dict(
    required=True,
    metavar="DIR",
    type=_folder,
    help="a Hugging Face folder or Hub name, one of ours, or a run's workdir",
)
_NETWORK = dict(
    default=None,
    metavar="NAME",
    help="of a run's workdir: another network than the student, e.g. teacher",
)
_JSON = dict(action="store_true", help="the answer for a program")
_IS_JSON = dict(action="store_true", help="the answer for a program, as it always is")
_LENGTH = dict(
    type=int,
    default=None,
    metavar="N",
    help="tokens a row (default: 128, or what the model can take)",
)
_TASK = dict(
    default="classification",
    metavar="NAME",
    help="classification, regression, tagging, intent_slots, question_answering, similarity and retrieval "
    "(evaluate alone), or a task of GLUE: cola, sst2, mrpc, qqp, stsb, mnli, mnli_mm, qnli, rte, wnli",
)
OF_A_TASK = ("data", "out")  # options of evaluate
SMALLER = {  # sizes that export may make smaller, and what a model calls them
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "heads": "num_heads",
    "bottleneck_size": "bottleneck_size",
    "embedding_size": "embedding_size",
}
OF_A_TEXT = ("source", "teacher", "split", "documents", "max_examples")
FINETUNE_SETTINGS = (
    "task",
    "heldout",
    "test",
    "text_column",
    "pair_column",
    "label_column",
    "epochs",
    "batch_size",
    "learning_rate",
    "sequence_length",
    "seed",
    "grid",
    "seeds",
    "network",
)
PREDICT_SETTINGS = (
    "head",
    "task",
    "network",
    "batch_size",
    "sequence_length",
    "text_column",
    "pair_column",
    "header",
    "quoting",
    "separator",
    "token_column",
    "stride",
    "question_length",
    "n_best",
    "max_answer_length",
    "null_threshold",
)


def _smaller(what: str) -> dict[str, Any]:
    return dict(type=int, default=None, metavar="N", help=f"a part of the model with {what}")


COMMANDS = {
    "train": Command(
        "run a recipe from text to exported student, or resume it",
        _train,
        workdir=_WORKDIR,
        config=_STORED,
        stages=dict(
            default="",
            metavar="A,B",
            help="only these stages of the recipe, one at a time or several",
        ),
        distributed=dict(
            action="store_true",
            help="one of several processes; the environment (TPU VM, GKE, Slurm) says which",
        ),
        coordinator=dict(
            default="",
            metavar="HOST:PORT",
            help="one of several processes; the address of process 0",
        ),
        num_processes=dict(
            type=int, default=None, metavar="N", help="one of several processes; how many there are"
        ),
        process_id=dict(
            type=int, default=None, metavar="I", help="one of several processes; which one, from 0"
        ),
        json=_JSON,
    ),
    "seeds": Command(
        "run a recipe with several seeds and report the spread",
        _seeds,
        config=_CONFIG,
        workdir=_WORKDIR,
        seeds=dict(
            default="0,1,2", metavar="0,1,2", help="the seeds, one run each below the workdir"
        ),
        json=_JSON,
    ),
    "search": Command(
        "search for the layer map that a student had best be distilled by, or go on with it",
        _search,
        ("mapping",),
        config=_CONFIG,
        workdir=_WORKDIR,
        budget=dict(
            type=int,
            default=None,
            metavar="N",
            help="maps to evaluate at most, those of before among them (default: as the recipe says)",
        ),
        workers=dict(
            type=int,
            default=1,
            metavar="N",
            help="processes that evaluate at a time, each with a GPU or TPU chip of its own",
        ),
        json=_JSON,
    ),
    "prepare": Command(
        "prepare a recipe's text and tokenizer, and no more",
        _prepare,
        config=_CONFIG,
        workdir=_WORKDIR,
        beam_options=dict(
            default=None,
            metavar="A=1,B=2",
            help="with Apache Beam and these pipeline options, e.g. runner=DirectRunner,direct_num_workers=2",
        ),
        json=_IS_JSON,
    ),
    "describe": Command(
        "parameters, FLOPs and taps of a preset, of a recipe's teacher and student, or of a model",
        _describe,
        preset=dict(
            default="", metavar="NAME", help="a published network, as mobilebert or ib_bert_large"
        ),
        config=_RECIPE,
        model={**_MODEL, "required": False},
        network=_NETWORK,
        json=_JSON,
    ),
    "plan": Command(
        "compile a recipe for TPU slices that are not there: does it fit, how fast, how long",
        _plan,
        config=_CONFIG,
        topology=dict(
            required=True,
            action="append",
            metavar="NAME",
            help="a slice, as v5e:16x16; several with commas",
        ),
        stages=dict(default="", metavar="A,B", help="only these stages of the recipe"),
        fit=dict(
            action="store_true",
            help="also find the largest batch that fits: several compilations a stage",
        ),
        json=_JSON,
    ),
    "export": Command(
        "write a run's student, or any model we can read, in any format we write, proved equal",
        _export,
        model={**_MODEL, "required": False},
        out=dict(required=True, metavar="DIR", type=_folder, help="a new folder"),
        format=dict(
            default=None,
            metavar="FORMAT",
            help="huggingface (default where possible), safetensors, msgpack or jaxdistill",
        ),
        network=_NETWORK,
        layers=dict(
            type=_numbers(int),
            default=None,
            metavar="0,2,4",
            help="a model of these layers alone, in this order (default: all)",
        ),
        hidden_size=_smaller("hidden states of this width"),
        intermediate_size=_smaller("this many neurons in each feed-forward network"),
        heads=_smaller("this many attention heads, as wide as its own (default: all, narrower)"),
        bottleneck_size=_smaller("bottlenecks of this width"),
        embedding_size=_smaller("a word table of this width"),
        importance_from=dict(
            default=None,
            metavar="TEXT",
            help="keep the places that matter most to the MLM head's loss on this text (default: places at random)",
        ),
        from_tf1=dict(
            default=None,
            metavar="PREFIX",
            help="in place of --model, a checkpoint of Google's: DIR/bert_model.ckpt, DIR/mobilebert_variables.ckpt",
        ),
        config=dict(
            default=None,
            metavar="FILE",
            help="with --from_tf1: the bert_config.json that came with it",
        ),
        vocab=dict(
            default=None, metavar="FILE", help="with --from_tf1 (default: vocab.txt beside it)"
        ),
        json=_JSON,
    ),
    "evaluate": Command(
        "scores of any model: on a labelled task, or masked-LM and NSP numbers on text",
        _evaluate,
        model=_MODEL,
        network=_NETWORK,
        task={**_TASK, "default": "", "help": f"{_TASK['help']} (default: none, but text)"},
        data=dict(
            default="",
            metavar="FILE",
            help="the task's labelled rows, or hf:NAME, tfds:NAME; of a GLUE task its folder",
        ),
        out=dict(default="", metavar="DIR", help="also write the answers to the task's rows"),
        source=dict(
            default="default:heldout",
            metavar="TEXT",
            help="text: a file, a folder, tfds:NAME or default:heldout",
        ),
        teacher=dict(
            default="",
            metavar="DIR",
            help="also measure agreement with this model; of a run's workdir, its teacher",
        ),
        split=dict(default="all", metavar="PART", help="train, heldout or all of the source"),
        sequence_length=_LENGTH,
        documents=dict(
            default="blank_lines",
            metavar="WHAT",
            help="what separates those of a .txt file: blank_lines or lines",
        ),
        max_examples=dict(
            type=int, default=4096, metavar="N", help="rows at most, a sample of the text's"
        ),
        json=_IS_JSON,
    ),
    "finetune": Command(
        "fine-tune a model on a labelled task",
        _finetune,
        model=_MODEL,
        network=_NETWORK,
        task=_TASK,
        data=dict(
            required=True,
            metavar="FILE",
            help="labelled rows: .tsv, .csv, .jsonl, CoNLL, SQuAD's .json, hf:NAME or tfds:NAME; of a GLUE task its folder",
        ),
        workdir=_WORKDIR,
        heldout=dict(
            default=None,
            metavar="FILE",
            help="rows to choose by (default: a part of the data is kept apart)",
        ),
        test=dict(default=None, metavar="FILE", help="rows to report, of which nothing is chosen"),
        text_column=dict(default=None, metavar="NAME", help="by name or number (default: 0)"),
        pair_column=dict(default=None, metavar="NAME", help="a second text (default: none)"),
        label_column=dict(default=None, metavar="NAME", help="by name or number (default: 1)"),
        epochs=dict(type=float, default=3.0, metavar="X", help="times that the data is read"),
        batch_size=dict(type=int, default=32, metavar="N", help="rows a step"),
        learning_rate=dict(
            type=float, default=1e-4, metavar="X", help="highest rate, after 10%% of the steps"
        ),
        sequence_length=_LENGTH,
        seed=dict(type=int, default=0, metavar="N", help="of the head, the order and dropout"),
        grid=dict(
            type=_numbers(float),
            default=(),
            metavar="X,Y",
            help="learning rates to choose from by the held-out rows",
        ),
        seeds=dict(
            type=_numbers(int),
            default=(),
            metavar="0,1,2",
            help="a run each; their median, lowest and highest score",
        ),
        json=_IS_JSON,
    ),
    "predict": Command(
        "what a model answers to texts without labels: classes, numbers, tags, answers, embeddings",
        _predict,
        model=_MODEL,
        network=_NETWORK,
        input=dict(
            required=True,
            metavar="FILE",
            help="texts, one a line, or .tsv, .csv, .jsonl; of a tagger also CoNLL; questions: SQuAD's .json",
        ),
        out=dict(
            required=True,
            metavar="FILE",
            help="a new file: .tsv, .jsonl, .npy (embeddings, logits), .json (answers to questions)",
        ),
        head=dict(
            default=None,
            metavar="NAME",
            help="sequence_classification, token_classification, question_answering or embedding (default: "
            "the only one that the model has)",
        ),
        task=dict(
            default=None,
            metavar="NAME",
            help="a task of GLUE, its folder as input: answers as the leader board takes them",
        ),
        batch_size=dict(type=int, default=32, metavar="N", help="rows that are run together"),
        sequence_length={
            **_LENGTH,
            "help": "tokens of a row (default: 128, questions 384, or what the model can take)",
        },
        text_column=dict(
            default=None,
            metavar="NAME",
            help="of a table: by name or number from 0 (default: its only one; of .jsonl: text)",
        ),
        pair_column=dict(default=None, metavar="NAME", help="a second text (default: none)"),
        header=dict(default=None, metavar="WHAT", help="of a table: auto (default), yes or no"),
        quoting=dict(default=None, metavar="WHAT", help="of .tsv: auto (default), none or quoted"),
        separator=dict(default=None, metavar="MARK", help="default: by the name of the file"),
        token_column=dict(
            type=int,
            default=None,
            metavar="N",
            help="tags: words in CoNLL's columns, this one (default: words with blanks between them)",
        ),
        stride=dict(
            type=int,
            default=None,
            metavar="N",
            help="questions: tokens between the beginnings of windows (default: 128)",
        ),
        question_length=dict(
            type=int, default=None, metavar="N", help="questions: tokens at most (default: 64)"
        ),
        n_best=dict(type=int, default=None, metavar="N", help="questions: answers (default: 20)"),
        max_answer_length=dict(
            type=int, default=None, metavar="N", help="questions: tokens at most (default: 30)"
        ),
        null_threshold=dict(
            type=float,
            default=None,
            metavar="X",
            help="questions: how much better no answer must be (default: 0; inf: all have one)",
        ),
        json=_IS_JSON,
    ),
}

# What was a command or an option once, and what a call of it is told.
FORMER_COMMANDS = {
    "convert": "'jaxdistill convert' is 'jaxdistill export' now: --to is --format there, and --from=tf1 "
    "--checkpoint=PREFIX is --from_tf1=PREFIX"
}
FORMER_OPTIONS = {("export", "--workdir"): "give the run's workdir by --model"}
