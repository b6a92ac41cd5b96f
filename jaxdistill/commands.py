"""The commands beside `train`, as functions: prepare, describe, export, evaluate, seeds. Called by cli and by users."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from jaxdistill import binding, conversion, description, inputs, interop, report, run
from jaxdistill.configuration import check_fields
from jaxdistill.data.loader import heldout_batches
from jaxdistill.data.prepare import beam_pipeline
from jaxdistill.data.prepare import prepare as prepare_text
from jaxdistill.data.sources import check as check_source
from jaxdistill.data.tokenizers import load_tokenizer
from jaxdistill.errors import BadInput, shortened
from jaxdistill.evaluation import heldout
from jaxdistill.models import preset
from jaxdistill.resolve import MANY, check_seed, check_text_settings, model_config, resolve
from jaxdistill.training import sharding
from jaxdistill.workdir import Workdir, refuse_links


def prepare(config: ConfigDict, workdir: epath.PathLike, beam_options: str | None = None) -> dict[str, Any]:
    """Prepares text and tokenizer of a recipe, as `train` would first; returns the facts of the corpus.

    `beam_options`: Apache Beam prepares the text, with these pipeline options; the same records come out.
    """
    if beam_options is not None:
        beam_pipeline().parse_options(beam_options)  # before a vocabulary is trained
    check_fields(config)
    check_text_settings(config)
    inputs.check_text(config)
    inputs.check_parts(config)
    folder = Workdir(workdir, config)
    return inputs.load_corpus(config, folder.path, beam_options).describe(config)


def describe_text(preset_name: str, config: ConfigDict | None, as_json: bool = False) -> str:
    """A preset, or a recipe's teacher and student: parameters by part, FLOPs, taps; as text or JSON."""
    if bool(preset_name) == (config is not None):
        raise BadInput("describe needs either --preset=NAME or --config=FILE, and not both")
    if config is None:
        found = {preset_name: description.describe(preset(preset_name))}
    else:
        found = {name: description.describe(
            interop.from_pretrained(config[name].init)[0].config if config[name].init
            else model_config(config[name], config.data.vocab_size)) for name in ("teacher", "student")}
    if as_json:
        return json.dumps(next(iter(found.values())) if config is None else found, indent=2)
    return "\n\n".join(f"{name}\n{description.format_description(facts)}" for name, facts in found.items())


def export(workdir: epath.PathLike, out: epath.PathLike, network: str = "student") -> str:
    """Writes `network` of a run as a complete folder with a model card, verified; returns a line that says what it is."""
    path = epath.Path(workdir).expanduser()
    if not conversion.is_run(path):
        raise BadInput(f"{str(path)!r} is not the workdir of a run (it has no config.json of one); give one that train wrote, or "
                       "convert a model folder with 'jaxdistill convert'")
    return conversion.convert(path, out, network=network)


def evaluate(model_dir: str, source: str = "default:heldout", *, teacher: str = "", split: str = "all",
             documents: str = "blank_lines", sequence_length: int = 128, max_examples: int = 4096, batch_size: int = 32,
             seed: int = 0, cache: epath.PathLike | None = None) -> dict[str, float]:
    """Masked-LM and NSP numbers of any model folder on `source`; with `teacher` also the agreement with that model.

    Rows and masks follow from `seed` alone, so two models with one tokenizer are measured on the same words.
    """
    from jaxdistill.data.files import cache_directory

    for notice in check_source([source], documents):
        print(f"jaxdistill: {notice}", file=sys.stderr, flush=True)
    model, params = interop.from_pretrained(model_dir)
    if not set(model.config.heads) & {"mlm", "nsp"}:
        raise BadInput(f"{model_dir!r} has neither an MLM nor an NSP head (heads: {', '.join(model.config.heads) or 'none'}); "
                       "there is nothing to evaluate on plain text")
    if sequence_length > model.config.max_positions:
        raise BadInput(f"sequence_length={sequence_length} exceeds the model's max_positions={model.config.max_positions}")
    tokenizer = load_tokenizer(interop.locate(model_dir))
    text = prepare_text(source, tokenizer, cache or cache_directory() / "prepared", sequence_length=sequence_length, split=split,
                        documents=documents)
    rows = heldout_batches(text, batch_size=batch_size, seed=seed, max_examples=max_examples,
                           max_predictions=max(1, round(0.15 * sequence_length)))
    pair: dict[str, Any] = {}
    if teacher:
        pair["teacher"], pair["teacher_params"] = interop.from_pretrained(teacher)
        if pair["teacher"].config.vocab_size != model.config.vocab_size:
            raise BadInput(f"{model_dir!r} and {teacher!r} have different vocabularies ({model.config.vocab_size} and "
                           f"{pair['teacher'].config.vocab_size} words); agreement needs one tokenizer")
    return heldout.evaluate(model, params, rows, mesh=sharding.make_mesh(1), **pair)


def parse_seeds(text: str) -> tuple[int, ...]:
    """ "0,1,2" -> (0, 1, 2)."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise BadInput(f"--seeds={text!r}; expected whole numbers with commas, e.g. --seeds=0,1,2") from error
    for seed in found:
        check_seed(seed, f"--seeds={shortened(text)!r}: seed")
    if len(set(found)) != len(found):
        raise BadInput(f"--seeds={text!r} names a seed twice; one run a seed")
    return found


def check_same_text(config: ConfigDict, first: epath.Path, folder: epath.Path, first_seed: int, seed: int) -> None:
    """Raises `BadInput` if the run in `folder` read, or would read, another text than the `first` one: margins are paired."""
    before, own = binding.read(first), binding.read(folder)
    for split, source in inputs.named_sources(config).items() if before is not None else ():
        assert before is not None
        held = before.text[split]
        differs = own.text[split].source_digest != held.source_digest if own else inputs.changes(source, held, before.documentation)
        if differs:
            raise BadInput(f"seed {seed} would read another text than seed {first_seed} did: {source!r} has changed since; bring "
                           "back the old text, or give a new workdir")


def seeds(config: ConfigDict, workdir: epath.PathLike, numbers: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """Runs the recipe once a seed below `workdir` (resuming what is there) and measures the spread.

    Writes `seeds.json`: for every network the held-out MLM loss by seed, mean and range; for every baseline the margin
    student - baseline by seed (paired: one seed has one teacher, one data order and the same held-out rows).
    """
    refuse_links(epath.Path(workdir).expanduser())
    resolve(config, vocab_size=config.data.vocab_size, num_records=MANY, mesh=sharding.make_mesh(**config.mesh))
    losses: dict[str, list[float]] = {}
    folders = [epath.Path(workdir).expanduser() / f"seed-{seed}" for seed in numbers]
    for seed, folder in zip(numbers, folders):
        check_same_text(config, folders[0], folder, numbers[0], seed)
        seeded = config.copy_and_resolve_references()
        seeded.seed = seed
        results = run.train(seeded, folder)
        for name, row in results["networks"].items():
            losses.setdefault(name, []).append(row["mlm_loss"])
    found: dict[str, Any] = {"seeds": list(numbers), "mlm_loss": losses, "spread": {}, "margin": {}}
    lines = [f"held-out MLM loss over seeds {', '.join(map(str, numbers))}"]
    for name, values in losses.items():
        found["spread"][name] = {"mean": statistics.mean(values), "range": max(values) - min(values)}
        lines.append(f"  {name:<14} mean {statistics.mean(values):.4f}, range {max(values) - min(values):.4f}, by seed "
                     + ", ".join(f"{value:.4f}" for value in values))
    for name, values in losses.items():
        if name in ("teacher", "student") or "student" not in losses:
            continue
        margins = [base - own for base, own in zip(values, losses["student"])]
        widest = max(found["spread"][name]["range"], found["spread"]["student"]["range"])
        found["margin"][name] = {"by_seed": margins, "smallest": min(margins), "beyond_spread": min(margins) > widest}
        verdict = "beyond" if min(margins) > widest else "not beyond"
        lines.append(f"  student against {name}: lower by {min(margins):.4f} to {max(margins):.4f}, {verdict} the spread "
                     f"over seeds ({widest:.4f})")
    found["table"] = "\n".join(lines)
    report.write_results(workdir, found, "seeds.json")
    return found
