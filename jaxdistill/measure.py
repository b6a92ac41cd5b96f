"""What a run's networks are worth: every one measured on held-out rows, as `results.json` holds it.
Called by run."""

from __future__ import annotations

import functools
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxdistill import health, inputs, report
from jaxdistill.data.feeds import ALONE, Answers, Batch, Feed
from jaxdistill.data.feeds import MANY as WHOLE
from jaxdistill.data.tasks import TEST
from jaxdistill.data.text import NAME as TEXT
from jaxdistill.evaluation import heldout
from jaxdistill.evaluation.details import details, uncertainty
from jaxdistill.evaluation.predictions import predict
from jaxdistill.evaluation.scores import SCORES, metric_of
from jaxdistill.models import Model, Params
from jaxdistill.models.parameters import count, digest
from jaxdistill.readers import Readers
from jaxdistill.recipe import TEACHER
from jaxdistill.resolve import by_label, main_network
from jaxdistill.startup import Start
from jaxdistill.training import hosts
from jaxdistill.training.progress import Progress

FREQUENCY_ROWS = 16_384  # training rows that tell how frequent words are


class Measure:
    """Measures the `networks` that a run has, after the stages that have a page in `pages`."""

    def __init__(
        self,
        start: Start,
        readers: Readers,
        networks: Mapping[str, Params],
        pages: Mapping[str, dict[str, Any]],
    ) -> None:
        self.config, self.folder, self.read, self.recipe = (
            start.config,
            start.folder,
            start.read,
            start.recipe,
        )
        self.fitted, self.bound, self.mesh = start.fitted, start.bound, start.mesh
        self.readers, self.networks, self.pages = readers, networks, pages

    @property
    def ensembles(self) -> dict[str, tuple[str, ...]]:
        """Those whose networks are there, by name."""
        return {
            name: tuple(members)
            for name, members in self.config.ensembles.items()
            if set(members) <= self.networks.keys()
        }

    def reported(self) -> dict[str, Any] | None:
        """What `results.json` holds, if it is of just these networks and stages, measured as the
        recipe asks."""
        found = report.read_results(self.folder.path)
        rows = found.get("networks") or {}
        measured = {name: row.get("sha256") for name, row in rows.items()}
        same = (
            measured == {name: digest(params) for name, params in self.networks.items()}
            and (found.get("stages") or {}).keys() == self.pages.keys()
            and found.get("evaluation") == measured_as(self.config)
            and {
                name: tuple(row["networks"]) for name, row in (found.get("ensembles") or {}).items()
            }
            == self.ensembles
            and found.get("inputs") == self.bound.whole
            and all({*self._feeds_of(name)} <= row.keys() for name, row in rows.items())
            and all(
                self.folder.predictions(feed.name).exists()
                for name in self.networks
                for feed in self.tasks_of(name)
            )
        )
        return found if same else None

    def results(self) -> dict[str, Any]:
        """Measures every network on held-out rows and gathers what `results.json` holds."""
        before = self.reported()
        if not hosts.largest(int(before is None)):  # measured by all processes, or by none
            return before or {}
        config, networks = self.config, dict[str, Any]()
        text = [] if self.read.corpus is None else list(self.readers.heldout(TEXT))
        with Progress(len(self.networks), "evaluating", unit="networks") as bar:
            for name, params in self.networks.items():
                own = [page for page in self.pages.values() if page["network"] == name]
                networks[name] = {
                    **({TEXT: self._measured_on_text(name, text)} if text else {}),
                    **self._measured_on_tasks(name),
                    "parameters": count(params),
                    "steps": sum(p["steps"] for p in own),
                    "seconds": round(sum(p["seconds"] for p in own), 1),
                    "sha256": digest(params),
                }
                if name in self.fitted and self.fitted[name].said:
                    networks[name]["heads"] = self.fitted[name].said
                bar.update(1)
        rows = [row[TEXT].pop("rows") for row in networks.values() if TEXT in row]
        found: dict[str, Any] = {
            "config_name": config.name,
            "seed": config.seed,
            "networks": networks,
            **({"ensembles": together} if (together := self._measured_together()) else {}),
            "stages": self._stage_rows(),
            **({} if self.read.corpus is None else {"corpus": self.read.corpus.describe(config)}),
            **({"tasks": tasks} if (tasks := self._task_rows()) else {}),
            **({"heldout_rows": rows[-1]} if rows else {}),
            **({"unigram_mlm_loss": self._unigram_loss()} if _knows_words(networks) else {}),
            "evaluation": measured_as(config),
            "inputs": self.bound.whole,
            "hardware": inputs.hardware(),
            "versions": inputs.versions(),
        }
        found["warnings"] = self.warnings(networks, found.get("unigram_mlm_loss", math.inf))
        layered = [name for name, page in self.pages.items() if "layers" in page]
        if layered:
            found["transfer"] = {"stage": layered[0], "layers": self.pages[layered[0]]["layers"]}
        main = main_network(config)
        if main in networks:
            found[f"{main}_sha256"] = networks[main]["sha256"]
        return found

    def _measured_on_text(self, name: str, rows: list[Batch]) -> dict[str, Any]:
        """Held-out numbers of a network on text."""
        networks, pair = self.recipe.networks, dict[str, Any]()
        if name != TEACHER and TEACHER in self.networks:
            pair = {"teacher": networks[TEACHER], "teacher_params": self.networks[TEACHER]}
        model, params = networks[name], self.networks[name]
        return heldout.evaluate(model, params, rows, mesh=self.mesh, **pair)

    def _unigram_loss(self) -> float:
        """MLM loss on held-out text of the word frequencies of the training text, or of its first rows."""
        reader, size, of = self.readers.reader(TEXT), 64, self.config.evaluation
        number = max(1, min(FREQUENCY_ROWS, self.recipe.feeds[TEXT].rows) // size)
        model = next(iter(self.recipe.networks.values()))
        return heldout.unigram_loss(
            itertools.islice(reader.train(size, 0, ALONE), number),
            reader.heldout(of.batch_size, of.max_examples, ALONE),
            model.config.vocab_size,
        )

    def _measured_on_tasks(self, name: str) -> dict[str, dict[str, float]]:
        """Scores of a network by the tasks that its classifier is for; its answers are written."""
        found: dict[str, dict[str, float]] = {}
        for feed in self.tasks_of(name):
            own = [(self.recipe.networks[name], self.networks[name])]
            found[feed.name], answers = score_of(feed, own, self.readers, self.mesh)
            more = details(answers, feed)
            if (said := uncertainty(more, feed)) and hosts.first():
                print(f"jaxdistill: network {name!r} on {feed.name!r}: {said}", file=sys.stderr)
            files = {**answers.files, "details.json": json.dumps(report.plain(more), indent=2)}
            write = self.folder.write_predictions
            hosts.together(functools.partial(write, feed.name, name, files))
        return found

    def _measured_together(self) -> dict[str, dict[str, Any]]:
        """Scores of every ensemble: of the mean of its networks' logits."""
        found: dict[str, dict[str, Any]] = {}
        for name, members in self.ensembles.items():
            found[name] = {"networks": list(members)}
            theirs = [{feed.name for feed in self.tasks_of(member)} for member in members[1:]]
            for feed in self.tasks_of(members[0]):
                if not all(feed.name in names for names in theirs):
                    continue
                each = [(self.recipe.networks[m], self.networks[m]) for m in members]
                found[name][feed.name], _ = score_of(feed, each, self.readers, self.mesh)
        return found

    def tasks_of(self, name: str) -> list[Feed]:
        """The tasks that a network can be measured on."""
        feeds = [self.recipe.feeds[task] for task in self._task_rows()]
        labels, heads = self.recipe.labels.get(name), self.recipe.networks[name].config.heads
        return [
            feed
            for feed in feeds
            if feed.head in heads and (feed.labels == labels or not by_label(feed))
        ]

    def _feeds_of(self, name: str) -> list[str]:
        """What a network is measured on."""
        text = [] if self.read.corpus is None else [TEXT]
        return [*text, *(feed.name for feed in self.tasks_of(name))]

    def _task_rows(self) -> dict[str, Any]:
        """What `results.json` says about each task that a stage reads."""
        return {
            name: {
                **dict(feed.tables),
                **({} if name.endswith(TEST) else {"rows": feed.rows}),
                "heldout_rows": feed.heldout_rows,
                "labels": list(feed.labels),
                "metric": metric_of(feed),
                "higher_is_better": metric_of(feed) in SCORES[feed.score].higher,
                "digests": dict(feed.digests),
            }
            for name, feed in self.recipe.feeds.items()
            if name in self.readers.readers and name not in (TEXT, *self.recipe.derived)
        }

    def _stage_rows(self) -> dict[str, Any]:
        """What `results.json` says about each stage that is finished."""
        stages: dict[str, Any] = {}
        for stage in self.recipe.stages:
            if stage.name not in self.pages:
                continue
            page = self.pages[stage.name]
            rate = page["steps"] * stage.batch_size / max(page["seconds"], 1e-9)
            stages[stage.name] = {
                "network": stage.network,
                "steps": page["steps"],
                "seconds": round(page["seconds"], 1),
                "sequences_per_second": round(rate, 1),
                "skipped": page["skipped"],
                "tokens_per_second": round(rate * self.readers.length(stage), 1),
                **{
                    f"{name}_flops": page["steps"] * number
                    for name, number in self.readers.flops(stage).items()
                },
            }
            if "layers" in page:
                stages[stage.name]["layers"] = page["layers"]
        return stages

    def warnings(self, networks: dict[str, Any], unigram_loss: float) -> list[str]:
        """What the numbers say against stages and networks, a line each."""
        found = []
        for name, page in self.pages.items():
            last = page.get("last_loss", 0.0)  # None: it was not finite
            found += health.stage_warnings(
                name,
                steps=page["steps"],
                skipped=page["skipped"],
                moved=page.get("moved", True) or page.get("best") == 0,
                last_loss=math.nan if last is None else last,
            )
        for feed in {feed.name: feed for name in networks for feed in self.tasks_of(name)}.values():
            if feed.losses and feed.digests.get("train", "") == feed.digests.get("heldout"):
                found.append(
                    f"the held-out rows of {feed.name!r} are its training rows: its scores tell what was learned by heart"
                )
        for name, row in networks.items():
            if (loss := row.get(TEXT, {}).get("mlm_loss", 0.0)) >= unigram_loss:
                found.append(
                    f"network {name!r}: the MLM loss on held-out text, {loss:.4f}, is not below that of the frequencies of "
                    f"words alone, {unigram_loss:.4f}"
                )
            for what in self._feeds_of(name):
                if bad := [key for key, value in row[what].items() if _not_finite(value)]:
                    found.append(
                        f"network {name!r}: {', '.join(bad)} on held-out {what} is not finite"
                    )
            for feed in self.tasks_of(name):
                found += health.score_warnings(name, feed.name, row[feed.name], feed.heldout_rows)
        return found


def _knows_words(networks: Mapping[str, Any]) -> bool:
    return any("mlm_loss" in row.get(TEXT, {}) for row in networks.values())


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def score_of(
    feed: Feed, networks: Sequence[tuple[Model, Params]], readers: Readers, mesh: Mesh
) -> tuple[dict[str, float], Answers]:
    """(score, answers) of a network on all held-out rows of a task, or of the mean of several."""
    reader = readers.reader(feed.name)
    assert reader.answers is not None
    each = [
        predict(model, params, readers.heldout(feed.name, WHOLE), feed.head, mesh)
        for model, params in networks
    ]
    outputs = {name: np.mean([of[name] for of in each], axis=0) for name in each[0]}
    answers = reader.answers(outputs)
    return SCORES[feed.score].of(answers, feed), answers


def measured_as(config: ConfigDict) -> dict[str, Any]:
    """The settings that results on held-out text depend on beside the recipe's fixed fields."""
    return config.evaluation.to_dict()
