"""Where a run's batches come from, by feed; a derived feed is made when it is first read. Called by
run."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from jaxdistill.data import files
from jaxdistill.data.feeds import Batch, Reader, Share
from jaxdistill.data.rows import mean_length, stretch, training_batches
from jaxdistill.data.tasks import TEST
from jaxdistill.errors import BadInput
from jaxdistill.evaluation.derivation import Making
from jaxdistill.evaluation.derived import OF_TEXT
from jaxdistill.evaluation.importance import importance, losses_of
from jaxdistill.evaluation.stored import read_arrays, write_arrays
from jaxdistill.methods.base import Stage
from jaxdistill.models import Params
from jaxdistill.recipe import Begin
from jaxdistill.startup import Start
from jaxdistill.training import hosts
from jaxdistill.training.speed import step_flops


class Readers:
    """The readers of the feeds that stages read. `networks` and `origins` are the run's own: they grow
    with its stages."""

    def __init__(
        self, start: Start, networks: Mapping[str, Params], origins: Mapping[str, dict[str, str]]
    ) -> None:
        self.config, self.folder, self.recipe = start.config, start.folder, start.recipe
        self.bound, self.mesh = start.bound, start.mesh
        self.networks, self.origins = networks, origins
        self.tokenizer = start.read.tokenizer
        bases = {self.recipe.base(name) for stage in self.recipe.stages for name in stage.feeds}
        bases |= {
            self.recipe.base(begin.importance) for begin in self.recipe.extracted.values()
        } - {""}
        bases |= {name + TEST for name in bases if name + TEST in self.recipe.feeds}
        self.readers = {
            name: self.recipe.feeds[name].read(start.read.tokenizer) for name in sorted(bases)
        }
        for name, reader in self.readers.items() if hosts.first() else ():
            for notice in (*self.recipe.feeds[name].notices, *reader.notices):
                print(f"jaxdistill: {notice}", file=sys.stderr, flush=True)
        for name, made in self.recipe.derived.items():
            of_rows = made.kind not in OF_TEXT and made.of in self.readers
            if of_rows and self.readers[made.of].parts is None:
                raise BadInput(
                    f"config.feeds.{name}: the rows of {made.of!r} differ from epoch to epoch, so nothing can be "
                    "stored of them; its reader must have parts, as jaxdistill.data.rows.reader_of makes one"
                )
        self.share = Share(jax.process_index(), jax.process_count())

    def train(self, stage: Stage, first_row: int) -> Iterator[Batch]:
        """Training batches of a stage from global row `first_row` of its feed on; this host's rows."""
        reader = self.reader(stage.feed)
        if stage.rows is None:
            return reader.train(stage.batch_size, first_row, self.share)
        if reader.parts is None:
            raise BadInput(
                f"config.stages.{stage.name}.rows={stage.rows}: the rows of {stage.feed!r} differ from epoch to epoch, so "
                "none can be counted; set it to ()"
            )
        (first, end), order = stage.rows, reader.parts.order
        if first >= (number := reader.parts.train.number):
            raise BadInput(
                f"config.stages.{stage.name}.rows={stage.rows}: {stage.feed!r} has {number:,} rows; begin below that"
            )
        rows = stretch(reader.parts.train, first, end, order.seed)
        return training_batches(rows, order, stage.batch_size, first_row, self.share)

    def length(self, stage: Stage) -> float:
        """Tokens that a row of a stage takes on average, pads included."""
        parts = self.readers[self.recipe.base(stage.feed)].parts
        if parts is None:
            return self.recipe.feed(stage).length
        return mean_length(parts.train, parts.order, stage.batch_size)

    def flops(self, stage: Stage) -> dict[str, float]:
        """Of a step, of `student` and `teacher`."""
        feed, length = self.recipe.feed(stage), round(self.length(stage))
        return step_flops(self.recipe.cast(stage), length, feed.predictions)

    def pads(self, stage: Stage) -> str:
        """A line about the pads of a stage's rows; "" of a feed whose rows are all of one length."""
        feed, parts = self.recipe.feed(stage), self.readers[self.recipe.base(stage.feed)].parts
        if parts is None:
            return ""
        real, padded = float(parts.train.lengths.mean()), self.length(stage)
        shared = f"{feed.packed} of {feed.name!r} share a row; " if feed.packed > 1 else ""
        return (
            f"stage {stage.name!r}: {shared}a text of {feed.name!r} has {real:.1f} tokens on average, and {1 - real / padded:.0%} "
            f"pads in batches of {stage.batch_size} (padded to {feed.length} they would be {1 - real / feed.length:.0%})"
        )

    def heldout(self, feed: str, most: int | None = None) -> Iterator[Batch]:
        """Held-out rows that every network is measured on: all of them, or of many a fixed sample;
        this host's part."""
        config = self.config.evaluation
        return self.reader(feed).heldout(config.batch_size, most or config.max_examples, self.share)

    def reader(self, feed: str) -> Reader:
        """The reader of a feed; a derived one is made at first use."""
        if feed not in self.readers:
            self.readers[feed] = self._made(feed)
        return self.readers[feed]

    def importance(self, begin: Begin) -> dict[str, np.ndarray]:
        """What each place of a network's axes is worth on rows of a feed: as this run has stored it, or
        computed now."""
        feed, size = self.recipe.feeds[begin.importance], self.config.evaluation.batch_size
        of = [self.bound.digest(self.recipe.base(feed.name)), self.origins[begin.of]["sha256"]]
        fingerprint = files.digest_of(
            [*of, feed.name, begin.rows, size, feed.length, self.config.seed]
        )
        path = self.folder.derived(feed.name, f"importance-{begin.of}").with_suffix(".safetensors")
        found = read_arrays(path, fingerprint)
        hosts.wait(f"{path.name} looked for")
        if found is None:
            number, reader = -(-begin.rows // size), self.reader(feed.name)
            found = importance(
                self.recipe.networks[begin.of],
                self.networks[begin.of],
                losses_of(feed),
                itertools.islice(reader.train(size, 0, self.share), number),
                mesh=self.mesh,
                rows=number * size,
            )
            if hosts.first():
                write_arrays(path, found, fingerprint)
            hosts.wait(f"{path.name} written")
        return found

    def _made(self, feed: str) -> Reader:
        """The reader of a derived feed: as this run has stored it, or made now."""
        made = self.recipe.derived[feed]
        base, model = self.recipe.feeds[made.of], self.recipe.networks.get(made.by)
        found = made.derivation(base, model)
        teacher = self.origins[made.by]["sha256"] if made.by else ""
        of = [made.kind, *made.settings, self.bound.digest(made.of), teacher, found.digest]
        making = Making(
            self.networks.get(made.by, {}),
            self.mesh,
            self.config.evaluation.batch_size,
            self.share,
            self.tokenizer,
            functools.partial(self.folder.derived, feed),
            files.digest_of([*of, base.length, self.config.seed]),
        )
        return found.read(self.readers[made.of], making)
