"""How many training sequences a second the loader delivers on one host, beside what a training step
may want.

    python benchmarks/loader.py [--source=default] [--vocab_size=8000] [--seconds=3] [--json=PATH]

The corpus is prepared in a temporary folder (or below --out_dir, to be kept) and read with
next-sentence pairs and dynamic masking, at lengths 128 and 512, with and without whole-word
masking, from memory and from disk; then packed. Padding is the share of positions that hold no
token; a packed row holds several sequences."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import tempfile
import time
from typing import Any

from etils import epath

from jaxdistill.data.loader import make_loader
from jaxdistill.data.prepare import prepare
from jaxdistill.data.prepared import PreparedText
from jaxdistill.data.sources import read_documents
from jaxdistill.data.tokenizers import train_wordpiece

LENGTHS = {128: 20, 512: 76}  # sequence length: predictions a row


def measure(
    prepared: PreparedText, *, batch_size: int, seconds: float, **options: Any
) -> dict[str, float]:
    """Seconds until the first batch; after it rows, sequences and tokens a second, and the share of
    padding."""
    begin = time.perf_counter()
    loader = make_loader(prepared, batch_size=batch_size, seed=0, **options)
    next(loader)
    opened = time.perf_counter()
    batches, sequences, tokens = 0, 0.0, 0
    while time.perf_counter() - opened < seconds:
        batch = next(loader)
        batches += 1
        sequences += float(batch["example_weights"].sum())
        tokens += int(batch["attention_mask"].sum())
    passed = time.perf_counter() - opened
    return {
        "seconds_to_first_batch": round(opened - begin, 3),
        "rows_a_second": round(batches * batch_size / passed),
        "sequences_a_second": round(sequences / passed),
        "tokens_a_second": round(tokens / passed),
        "padding": 1 - tokens / (batches * batch_size * prepared.sequence_length),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default="default", help="as `data.source` in a config")
    parser.add_argument("--vocab_size", type=int, default=8000)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure each line")
    parser.add_argument("--out_dir", default="", help="keep the prepared text here")
    parser.add_argument("--json", default="", help="write the numbers here")
    arguments = parser.parse_args()

    begin = time.perf_counter()
    tokenizer = train_wordpiece(
        (d.text for d in read_documents(arguments.source, "train")), arguments.vocab_size
    )
    print(
        f"tokenizer: {len(tokenizer)} pieces, {time.perf_counter() - begin:.1f} s with reading the source"
    )
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for length, predictions in LENGTHS.items():
            begin = time.perf_counter()
            prepared = prepare(
                arguments.source, tokenizer, arguments.out_dir or temporary, sequence_length=length
            )
            print(
                f"length {length}: {prepared.num_records} records, {prepared.num_tokens} tokens, "
                f"prepared in {time.perf_counter() - begin:.1f} s"
            )
            for pack, in_memory, whole_word in itertools.product(
                (False, True), (True, False), (False, True)
            ):
                settings = {
                    "max_predictions": predictions,
                    "whole_word": whole_word,
                    "in_memory": in_memory,
                    "pack": pack,
                }
                numbers = measure(
                    prepared, batch_size=arguments.batch_size, seconds=arguments.seconds, **settings
                )
                lines.append({"length": length, **settings, **numbers})
    print(
        f"\n{'length':>6} {'rows':>6} {'from':>6} {'masks':>6} {'first batch s':>14} {'rows/s':>9} {'sequences/s':>12} "
        f"{'tokens/s':>12} {'padding':>8}"
    )
    for line in lines:
        source, masks = (
            "memory" if line["in_memory"] else "disk",
            "words" if line["whole_word"] else "tokens",
        )
        print(
            f"{line['length']:>6} {'packed' if line['pack'] else 'plain':>6} {source:>6} {masks:>6} "
            f"{line['seconds_to_first_batch']:>14.2f} {line['rows_a_second']:>9,} {line['sequences_a_second']:>12,} "
            f"{line['tokens_a_second']:>12,} {line['padding']:>8.1%}"
        )
    if arguments.json:
        report = {
            "source": arguments.source,
            "batch_size": arguments.batch_size,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "rows": lines,
        }
        epath.Path(arguments.json).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
