"""Whether two commits compute the same numbers, to the bit: short runs of every kind of stage, on
this machine.

    python benchmarks/digests.py --old=COMMIT [--new=COMMIT] [--only=8-fused-2,packed] [--json=PATH]

Left out, `--new` is the working tree. A case is what all its stages share: how many devices (1 or
8, shown by the CPU), plain or fused losses, how many micro-batches; beside those eight there are
parameters split over a mesh and bfloat16, packed rows, a student of another width, and fine-tuning.
A case runs in a process of its own for each commit, both at once; they read one text, made here.
Compared are the parameters after each stage, all metrics of each step, and the results on held-out
text. CPUs differ, so nothing is stored: a digest means something only beside another one of the
same run. Programs are compiled with hardly any optimisation, which saves most of the time. Exit
code 1 if anything differs."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CASES = (
    *(
        f"{devices}-{losses}-{parts}"
        for devices in (1, 8)
        for losses in ("plain", "fused")
        for parts in (1, 2)
    ),
    "8-split",
    "packed",
    "narrow",
    "finetune",
)
TIMES = (
    "time",
    "seconds",
    "_per_second",
)  # ends of names of numbers that no two runs share; MFU follows from them


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", help="a commit")
    parser.add_argument("--new", default="", help="another one; the working tree if left out")
    parser.add_argument("--only", default="", help=f"some of the cases {', '.join(CASES)}")
    parser.add_argument("--json", default="", help="write all numbers here")
    parser.add_argument(
        "--work", nargs=3, metavar=("CASE", "FOLDER", "FILE"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.work:
        case, folder, file = options.work
        Path(file).write_text(json.dumps(numbers(case, Path(folder))))
        return
    cases = options.only.split(",") if options.only else CASES
    if not options.old or set(cases) - set(CASES):
        parser.error(f"give --old=COMMIT, and as --only some of {', '.join(CASES)}")
    found: dict[str, Any] = {}
    different = 0
    with (
        tempfile.TemporaryDirectory() as temporary,
        tree(options.old) as old,
        tree(options.new) as new,
        ThreadPoolExecutor(2) as pool,
    ):
        write_texts(Path(temporary))
        for case in cases:
            jobs = [
                pool.submit(run, case, where, Path(temporary), name)
                for name, where in (("old", old), ("new", new))
            ]
            pair = [job.result() for job in jobs]
            found[case] = dict(zip(("old", "new"), pair))
            lines = differences(*pair)
            different += len(lines)
            print(
                f"{case:>10}: "
                + (
                    f"{len(pair[0])} numbers and digests are equal"
                    if not lines
                    else f"{len(lines)} of {len(pair[0])} differ"
                ),
                flush=True,
            )
            print("".join(f"{'':12}{line}\n" for line in lines[:10]), end="", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))
    sys.exit(1 if different else 0)


@contextlib.contextmanager
def tree(commit: str) -> Iterator[Path]:
    """A folder with the files of `commit`; the working tree for ""."""
    if not commit:
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "tree"
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def run(case: str, where: Path, folder: Path, name: str) -> dict[str, Any]:
    """`numbers(case)` by the package in `where`, in a process of its own."""
    file = folder / f"{case}-{name}.json"
    devices = case.partition("-")[0] if case[0].isdigit() else "1"
    environment = {
        **os.environ,
        "PYTHONPATH": str(where),
        "JAX_PLATFORMS": "cpu",
        "JAXDISTILL_PROGRESS": "0",
        # The second and third make compilation a fifth as long.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true",
        "JAX_COMPILATION_CACHE_DIR": str(folder / f"cache-{name}"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, __file__, "--work", case, str(folder / name), str(file)],
        cwd=where,
        env=environment,
        text=True,
        capture_output=True,
    )
    if done.returncode:
        sys.exit(
            f"{case} with {where}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    found: dict[str, Any] = json.loads(file.read_text())
    assert Path(found.pop("package")).is_relative_to(where), "another jaxdistill was imported"
    return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A line for each number or digest that is not the same in both."""
    return [
        f"{name}: {old.get(name, 'absent')} {new.get(name, 'absent')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def write_texts(folder: Path) -> None:
    """text.txt, documents of made-up sentences, and task.tsv, a label and a sentence in each
    row."""
    rng = random.Random(0)
    words = [
        f"{first}{last}"
        for first in ("river", "stone", "paper", "the")
        for last in ("", "s", "ing", "ed", "er")
    ]

    def sentence() -> str:
        return " ".join(rng.choices(words, k=rng.randint(4, 9))).capitalize() + "."

    documents = ["\n".join(sentence() for _ in range(rng.randint(2, 6))) for _ in range(80)]
    (folder / "text.txt").write_text("\n\n".join(documents) + "\n")
    rows = [(sentence(), ("low", "middle", "high")[rng.randrange(3)]) for _ in range(90)]
    (folder / "task.tsv").write_text(
        "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    )


def numbers(case: str, folder: Path) -> dict[str, Any]:
    """Every number and digest of a case, by name. Runs in the child."""
    import jaxdistill

    folder.mkdir(exist_ok=True)
    workdir, found = folder / case, {"package": jaxdistill.__file__}
    if case == "finetune":
        model = folder / "packed" / "stages" / "distill"
        if not model.exists():
            numbers("packed", folder)
        results = jaxdistill.finetune(
            model,
            folder.parent / "task.tsv",
            workdir,
            epochs=2,
            batch_size=16,
            learning_rate=1e-3,
            sequence_length=16,
        )
        found |= {
            name: results[name] for name in ("steps", "accuracy", "majority_accuracy", "skipped")
        }
        found["predictions"] = sha(next((workdir / "predictions" / "task").iterdir()))
        found["parameters"] = sha(workdir / "model" / "model.safetensors")
        return found | metrics(workdir)
    results = jaxdistill.train(recipe(case, folder.parent / "text.txt"), workdir)
    for name, row in results["networks"].items():
        flat = {
            **row,
            **row.get("text", {}),
        }  # older commits have the numbers of text beside the rest
        found |= {
            f"network {name}: {key}": value
            for key, value in flat.items()
            if not key.endswith(TIMES) and key != "text"
        }
    for page in sorted(workdir.glob("stages/*/stage.json")):
        held = json.loads(page.read_text())
        found |= {
            f"stage {page.parent.name}: {key}": held.get(key)
            for key in ("sha256", "layers", "best", "skipped", "examples")
        }
    return found | metrics(workdir)


def metrics(workdir: Path) -> dict[str, Any]:
    """All scalars of each step."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        f"{line['stage']}, step {line['step']}: {name}": value
        for line in lines
        for name, value in line.items()
        if not (isinstance(value, str) or name.endswith(TIMES) or name.startswith("mfu"))
    }


def sha(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def recipe(case: str, source: Path) -> Any:
    """Every kind of stage in five steps (progressive: two for each of three layers) of toy
    networks."""
    from jaxdistill import defaults

    shape: dict[str, Any] = dict(
        num_layers=3,
        hidden_size=16,
        embedding_size=8,
        num_heads=2,
        intermediate_size=24,
        max_positions=32,
    )
    config = defaults.recipe("digests")
    named = "networks" in config  # in older commits there are two, and stages say how they start
    networks = config.networks if named else config
    begins: dict[str, Any] = {"start": "copy"} if named else {}
    presets, wide = ("ib_bert_large", "mobilebert"), [{"bottleneck_size": 24}, {"num_ffn": 2}]
    wide[1] |= {"bottleneck_size": 8}
    if case == "narrow":
        presets, wide = ("bert_base", "bert_base"), [{"hidden_size": 32}, {}]
        shape["embedding_size"], begins = None, {}
    networks.teacher = defaults.network(presets[0], **{**shape, **wide[0]})
    networks.student = defaults.network(presets[1], **{**shape, **wide[1]}, **begins)
    config.data.update(
        {
            "source": str(source),
            "heldout_fraction": 0.25,
            "vocab_size": 120,
            "sequence_length": 24,
            "max_predictions": 4,
            "packing": case == "packed",
        }
    )
    config.evaluation.update({"batch_size": 16, "max_examples": 64})
    config.update({"log_every": 1, "export": False})
    config.checkpoint.every_steps = 2
    devices, losses, parts = case.split("-") if case.count("-") == 2 else ("1", "fused", "1")
    config.mesh.data = int(devices)
    if case == "8-split":
        config.mesh.update({"data": 2, "fsdp": 2, "tensor": 2})
        for model in (networks.teacher.model, networks.student.model):
            model.dtype = "bfloat16"
    config.objectives.fused = losses == "fused"

    def add(name: str, kind: str, start: str = "copy", **changes: Any) -> None:
        network = name if name in ("teacher", "student") else f"{name}_student"
        steps = 6 if kind == "progressive" else 5
        if named and network not in networks:
            networks[network] = defaults.network(like="student", start=start)
        config.stages[name] = defaults.stage(
            kind,
            network,
            **{
                **({} if named else {"start": start}),
                "steps": steps,
                "batch_size": 16,
                "accumulation": int(parts),
                "warmup_steps": 2,
                **changes,
            },
        )
        config.order = (*config.order, name)

    add("teacher", "pretrain", "random", dropout=True)
    if case == "narrow":
        add("intermediate", "intermediate", "random", layer_map=(-1, 0, 2))
        add("intermediate_in_order", "intermediate", "random")
        add("relations", "relations", "random", relation_heads=4, teacher_layer=1)
        return config
    add("distill", "distill", dropout=True, best="loss")
    if case == "packed":
        add("joint", "joint")
        return config
    add("soft", "progressive", decay="constant")
    if case == "8-split":
        add("strict", "progressive", freezing="strict")
        add("auxiliary", "auxiliary", dropout=True)
        return config
    add("strict", "progressive", freezing="strict", layer_map=(0, 0, 2))
    add("soft_tf1", "progressive", tf1_statistics=True)
    add("joint", "joint", optimizer="adamw", bias_correction=True)
    add("joint_skipping", "joint", layer_map=(0, 0, 2))
    add("joint_back", "joint", layer_map=(2, 1, 0))
    add("joint_some", "joint", layer_map=(-1, 0, 2))
    add("joint_tf1", "joint", tf1_statistics=True)
    add("auxiliary", "auxiliary", dropout=True)
    add("distill_tf1", "distill", tf1_unmasked=True, skip_above=2.0)
    add("relations", "relations", relation_heads=4, teacher_layer=1)
    add("intermediate", "intermediate", projection=False)
    add("words", "pretrain", "random", nsp=0.0, moves=("embeddings/", "layers/", "mlm/"))
    return config


if __name__ == "__main__":
    main()
