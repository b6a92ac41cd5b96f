"""`jaxdistill <command>`: parse, call one function, print. No logic lives here; `jaxdistill --help` lists the commands."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from jaxdistill import remote, signals
from jaxdistill.errors import BadInput, JaxDistillError, PreemptedNow, nearest


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code (0 done, 2 bad input, 3 stopped, 75 preempted, 130 interrupted).

    Without `argv` it is the whole process's, and signals are its own from then on.
    """
    undo = signals.listen()
    try:
        return _main(argv)
    finally:
        if argv is not None:
            undo()


def _main(argv: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    try:
        options, rest = parser.parse_known_args(given)
        if options.command is None:
            parser.print_help()
            return 2
        recipe = bool(vars(options).get("config")) and options.command != "convert"
        options.overrides = split_overrides(options.command, rest, recipe)
        for name in ("absl", "asyncio"):  # orbax logs with a traceback what it raises as well
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            result = options.run(options)
        except ImportError as error:  # the package behind gs:// is only missed when a path is first touched
            if (line := remote.lacks(error)) is not None:
                raise line from error
            raise
        except Exception as error:
            if (line := remote.refused(error)) is not None:
                raise line from error
            raise
        if result is not None:
            print(result)
        return 0
    except JaxDistillError as error:
        if error.exit_code in (75, 130) and argv is None:
            signals.ignore()
        signals.say(f"jaxdistill: {' '.join(str(error).split())}")
        _leave_the_others(error.exit_code)
        return error.exit_code
    except BrokenPipeError:  # `jaxdistill describe | head`
        sys.stderr.close()
        return 0
    except (KeyboardInterrupt, Exception) as stop:
        if not isinstance(stop, KeyboardInterrupt) and signals.asked is None:
            raise
        if argv is None:
            signals.ignore()
        # Code below Python, and imports, may have made another error of what the handler raised.
        code = stop.exit_code if isinstance(stop, PreemptedNow) else signals.CODES[signals.asked or signals.signal.SIGINT]
        signals.say(signals.line(code))
        _leave_the_others(code)
        return code


def _leave_the_others(code: int) -> None:
    """One of several processes that fails must not wait for the others at exit, as JAX would have it for minutes."""
    if "jax" in sys.modules:
        import jax

        if jax.distributed.is_initialized() and jax.process_count() > 1:
            sys.stdout.flush()
            if jax.process_index() == 0:
                time.sleep(3)  # it coordinates: without it the others could not end in their own way
            os._exit(code)
    if signals.ignoring:
        signals.leave(code)


def split_overrides(command: str, rest: Sequence[str], has_recipe: bool) -> list[str]:
    """`--config.a.b=1` -> `a.b=1`; anything else left over is an error with the nearest option."""
    overrides = []
    for argument in rest:
        if not argument.startswith("--config.") or "=" not in argument or not has_recipe:
            options = [f"--{name}" for name in COMMANDS[command].options] if command in COMMANDS else []
            advice = "write --config.FIELD=VALUE" if argument.startswith("--config.") and has_recipe else nearest(
                argument.split("=")[0], options)
            raise BadInput(f"argument {argument!r} of 'jaxdistill {command}' is unknown; {advice}")
        overrides.append(argument.removeprefix("--config."))
    return overrides


class Command:
    """One command: its help line, its options (name -> argparse keywords) and the function that runs it."""

    def __init__(self, help: str, run: Any, **options: dict[str, Any]) -> None:
        self.help, self.run, self.options = help, run, options


class OneLineParser(argparse.ArgumentParser):
    """argparse, with its complaints as `BadInput`."""

    def error(self, message: str) -> Any:
        raise BadInput(f"{message}; see '{self.prog} --help'")


def program() -> str:
    """What the user typed: the usage line must work when it is copied."""
    module = os.path.basename(sys.argv[0]) == "__main__.py"
    return "python -m jaxdistill" if module else "jaxdistill"


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog=program(), description="Compress BERT-type encoders with JAX.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=OneLineParser)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help, allow_abbrev=False)
        for option, keywords in command.options.items():
            sub.add_argument(f"--{option}", **keywords)
        sub.set_defaults(run=command.run)
    return parser


def use_compilation_cache() -> None:
    """A second start of the same recipe need not compile again; JAX_COMPILATION_CACHE_DIR chooses another place."""
    import jax

    from jaxdistill.data.files import cache_directory

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))


def _load(options: argparse.Namespace) -> Any:
    from jaxdistill.configuration import load_config

    return load_config(options.config, options.overrides)


def _train(options: argparse.Namespace) -> str | None:
    from jaxdistill import report, run
    from jaxdistill.training import hosts

    hosts.connect(options.coordinator, options.num_processes, options.process_id, options.distributed)
    use_compilation_cache()
    stages = options.stages.split(",") if options.stages else None
    results = run.train(_load(options), options.workdir, stages=stages)
    return report.format_table(results) + f"\nEverything is in {options.workdir}" if hosts.first() else None


def _seeds(options: argparse.Namespace) -> str:
    from jaxdistill import commands

    use_compilation_cache()
    seeds = commands.parse_seeds(options.seeds)
    return commands.seeds(_load(options), options.workdir, seeds)["table"]


def _prepare(options: argparse.Namespace) -> str:
    from jaxdistill import commands

    return json.dumps(commands.prepare(_load(options), options.workdir, options.beam_options), indent=2)


def _describe(options: argparse.Namespace) -> str:
    from jaxdistill import commands

    return commands.describe_text(options.preset, _load(options) if options.config else None, options.json)


def _plan(options: argparse.Namespace) -> str:
    from jaxdistill.planning.plan import plan
    from jaxdistill.planning.table import format_plan

    stages = options.stages.split(",") if options.stages else None
    found = plan(_load(options), options.topology, stages=stages, fit=options.fit,
                 show=lambda line: print(line, file=sys.stderr, flush=True))
    return json.dumps(found, indent=2) if options.json else format_plan(found)


def _export(options: argparse.Namespace) -> str:
    from jaxdistill import commands

    return commands.export(options.workdir, options.out, options.network)


def _convert(options: argparse.Namespace) -> str:
    from jaxdistill import conversion

    given = {name: value for name in ("model", "network", "checkpoint", "config", "vocab") if (value := getattr(options, name))}
    kind = getattr(options, "from")
    needed, optional = (("checkpoint", "config"), ("vocab",)) if kind == "tf1" else (("model",), ("network",))
    for name in needed:
        if name not in given:
            raise BadInput(f"convert{' --from=tf1' if kind == 'tf1' else ''} needs --{name}=…; see 'jaxdistill convert --help'")
    for name in given.keys() - {*needed, *optional}:
        raise BadInput(f"--{name} does not go with --from={kind}; see 'jaxdistill convert --help'")
    return (conversion.convert_tf1 if kind == "tf1" else conversion.convert)(out=options.out, to=options.to, **given)


def _evaluate(options: argparse.Namespace) -> str:
    from jaxdistill import commands

    numbers = commands.evaluate(options.model, options.source, teacher=options.teacher, split=options.split,
                                sequence_length=options.sequence_length, max_examples=options.max_examples)
    return json.dumps(numbers, indent=2)


def _finetune(options: argparse.Namespace) -> str:
    from jaxdistill import finetuning

    use_compilation_cache()
    settings = {name: value for name, value in vars(options).items() if name in FINETUNE_SETTINGS and value is not None}
    results = finetuning.finetune(options.model, options.task_file, options.workdir, **settings)
    return json.dumps(results, indent=2)


def _folder(path: str) -> str:
    if not path:
        raise argparse.ArgumentTypeError("it is empty (a variable that is not set?); expected a folder")
    return path


_CONFIG = dict(required=True, metavar="FILE", help="a recipe: a file, or a shipped name such as quickstart or quickstart:smoke")
_WORKDIR = dict(required=True, metavar="DIR", type=_folder, help="folder of the run; the same folder resumes")
FINETUNE_SETTINGS = ("dev_file", "text_column", "pair_column", "label_column", "epochs", "batch_size", "learning_rate",
                     "sequence_length", "seed")

COMMANDS = {
    "train": Command(
        "run a recipe from text to exported student, or resume it", _train, config=_CONFIG, workdir=_WORKDIR,
        stages=dict(default="", metavar="A,B", help="only these stages of the recipe, one at a time or several"),
        distributed=dict(action="store_true", help="one of several processes; the environment (TPU VM, GKE, Slurm) says which"),
        coordinator=dict(default="", metavar="HOST:PORT", help="one of several processes; the address of process 0"),
        num_processes=dict(type=int, default=None), process_id=dict(type=int, default=None)),
    "seeds": Command(
        "run a recipe with several seeds and report the spread", _seeds, config=_CONFIG, workdir=_WORKDIR,
        seeds=dict(default="0,1,2", metavar="0,1,2", help="the seeds, one run each below the workdir")),
    "prepare": Command(
        "prepare a recipe's text and tokenizer, and no more", _prepare, config=_CONFIG, workdir=_WORKDIR,
        beam_options=dict(default=None, metavar="A=1,B=2",
                          help="with Apache Beam and these pipeline options, e.g. runner=DirectRunner,direct_num_workers=2")),
    "describe": Command(
        "parameters, FLOPs and taps of a preset, or of a recipe's teacher and student", _describe,
        preset=dict(default="", metavar="NAME"), config=dict(default="", metavar="FILE"),
        json=dict(action="store_true", help="machine-readable")),
    "plan": Command(
        "compile a recipe for TPU slices that are not there: does it fit, how fast, how long", _plan, config=_CONFIG,
        topology=dict(required=True, action="append", metavar="NAME", help="a slice, as v5e:16x16; several with commas"),
        stages=dict(default="", metavar="A,B", help="only these stages of the recipe"),
        fit=dict(action="store_true", help="also find the largest batch that fits: several compilations a stage"),
        json=dict(action="store_true", help="machine-readable")),
    "export": Command(
        "write a finished run's student as a Hugging Face folder", _export, workdir=_WORKDIR,
        out=dict(required=True, metavar="DIR", type=_folder),
        network=dict(default="student", metavar="NAME", help="another network of the run, e.g. teacher")),
    "convert": Command(
        "write any model we can read in any format we can write, and prove them equal", _convert,
        model=dict(default=None, metavar="DIR", help="a Hugging Face folder or Hub name, one of ours, or a run's workdir"),
        out=dict(required=True, metavar="DIR", type=_folder, help="a new folder"),
        to=dict(default=None, metavar="FORMAT", help="huggingface (default where possible), safetensors, msgpack or jaxdistill"),
        network=dict(default=None, metavar="NAME", help="of a workdir: another network than the student, e.g. teacher"),
        **{"from": dict(default="folder", choices=("folder", "tf1"), help="folder, or tf1: a checkpoint of Google's")},
        checkpoint=dict(default=None, metavar="PREFIX", help="tf1: DIR/bert_model.ckpt, DIR/mobilebert_variables.ckpt"),
        config=dict(default=None, metavar="FILE", help="tf1: the bert_config.json that came with it"),
        vocab=dict(default=None, metavar="FILE", help="tf1: default is vocab.txt beside it")),
    "evaluate": Command(
        "held-out masked-LM and NSP numbers of any model folder", _evaluate,
        model=dict(required=True, metavar="DIR", help="a Hugging Face folder or one of ours"),
        source=dict(default="default:heldout", help="text: a file, a folder, tfds:NAME or default:heldout"),
        teacher=dict(default="", metavar="DIR", help="also measure agreement with this model"),
        split=dict(default="all", help="train, heldout or all of the source"),
        sequence_length=dict(type=int, default=128), max_examples=dict(type=int, default=4096)),
    "finetune": Command(
        "fine-tune a model folder on one text classification file", _finetune,
        model=dict(required=True, metavar="DIR"), task_file=dict(required=True, metavar="TSV"), workdir=_WORKDIR,
        dev_file=dict(default=None, metavar="TSV", help="default: a part of the task file is kept apart"),
        text_column=dict(default=None), pair_column=dict(default=None), label_column=dict(default=None),
        epochs=dict(type=float, default=None), batch_size=dict(type=int, default=None),
        learning_rate=dict(type=float, default=None), sequence_length=dict(type=int, default=None),
        seed=dict(type=int, default=None)),
}

if __name__ == "__main__":
    sys.exit(main())
