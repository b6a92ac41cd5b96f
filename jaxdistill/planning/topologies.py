"""TPU generations as plain numbers, and names such as `v5e:16x16` as slices of them. Called by
plan, child and roofline.

Sources: Google Cloud's pages of TPU v4, v5e, v5p, v6e and TPU7x (capacity, bandwidth and peak of a
chip); for v2 and v3 Jouppi et al. 2020, "A domain-specific supercomputer for training deep neural
networks" (CACM 63/7; links of 496 and 656 Gbit/s, four a chip). The published interconnect figure
of v5e and later counts both directions; here is one."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from jaxdistill.errors import BadInput, nearest


@dataclasses.dataclass(frozen=True)
class Generation:
    """One kind of chip. Every rate is of a whole chip, which shows itself as `devices_a_chip` JAX
    devices.

    `memory`: bytes of HBM. `flops`: peak dense bfloat16 FLOP/s. `memory_rate`: HBM bytes/s.
    `link_rate`: bytes/s that the chip can send over all of its links. `clock`: cycles/s. `pod`: the
    chips of the largest slice there is. `options`: what the topology needs beside its name so that
    its devices are those of a real slice."""

    name: str
    devices_a_chip: int
    memory: float
    flops: float
    memory_rate: float
    link_rate: float
    clock: float
    dimensions: int
    pod: int
    options: tuple[tuple[str, Any], ...] = ()


GIB, GB, TERA = 2.0**30, 1e9, 1e12
# Two cores of a v4 or v5p chip are one device (megacore); of v2, v3 and TPU7x each core is one.
# Clocks of v2 to v5p are peak / FLOPs per cycle of their matrix units. Those of v6e and TPU7x are
# not published: they are chosen so that the compiler's estimate of a bfloat16 product of 8192 x
# 8192 matrices comes out at 90 % of the peak, as it does on average for the others (87 to 100 %).
GENERATIONS: dict[str, Generation] = {
    g.name: g
    for g in (
        Generation("v2", 2, 16 * GIB, 45 * TERA, 700 * GB, 248 * GB, 0.70e9, 2, 256),
        Generation("v3", 2, 32 * GIB, 123 * TERA, 900 * GB, 328 * GB, 0.94e9, 2, 1024),
        Generation(
            "v4",
            1,
            32 * GIB,
            275 * TERA,
            1228 * GB,
            300 * GB,
            1.05e9,
            3,
            4096,
            (("chip_config_name", "megacore"),),
        ),
        Generation("v5e", 1, 16 * GIB, 197 * TERA, 819 * GB, 200 * GB, 1.50e9, 2, 256),
        Generation("v5p", 1, 95 * GIB, 459 * TERA, 2765 * GB, 600 * GB, 1.75e9, 3, 8960),
        Generation("v6e", 1, 32 * GIB, 918 * TERA, 1638 * GB, 400 * GB, 2.24e9, 2, 256),
        Generation("tpu7x", 2, 192 * GIB, 2307 * TERA, 7380 * GB, 600 * GB, 2.46e9, 3, 9216),
    )
}
EXAMPLES = {2: "4x4", 3: "2x2x1"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: so many chips of one generation, in this shape."""

    name: str
    generation: Generation
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        return self.chips * self.generation.devices_a_chip

    def options(self) -> dict[str, Any]:
        """Keywords of `get_topology_desc` beside the name. Hosts hold 2 x 2 chips unless the slice
        is smaller."""
        options = dict(self.generation.options)
        if any(size % 2 for size in self.shape[:2]):
            options["chips_per_host_bounds"] = (1, 1, 1)
        return options


def find(name: str) -> Topology:
    """ "v5e:16x16" -> the slice. Raises `BadInput` that lists the known generations."""
    kind, _, text = name.strip().partition(":")
    if kind not in GENERATIONS:
        examples = " or ".join(f"{g}:{EXAMPLES[GENERATIONS[g].dimensions]}" for g in ("v5e", "v5p"))
        raise BadInput(
            f"topology {name!r} is of no known TPU generation; {nearest(kind, GENERATIONS)}; "
            f"write GENERATION:CHIPSxCHIPS, as {examples}"
        )
    generation = GENERATIONS[kind]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", text):
        raise BadInput(
            f"topology {name!r} has no shape; write the chips of each dimension, as "
            f"{kind}:{EXAMPLES[generation.dimensions]}"
        )
    found = Topology(f"{kind}:{text}", generation, tuple(int(size) for size in text.split("x")))
    if (
        found.chips > generation.pod or math.prod(found.shape[generation.dimensions :]) > 1
    ):  # libtpu would take it
        raise BadInput(
            f"topology {name!r} is no slice of {kind}, whose pods have {generation.pod:,} chips in "
            f"{generation.dimensions} dimensions; write one such as {kind}:{EXAMPLES[generation.dimensions]}"
        )
    return found


def find_all(texts: list[str]) -> list[Topology]:
    """Every slice named in `texts`, each of which may hold several names with commas."""
    names = [name for text in texts for name in text.split(",") if name.strip()]
    if not names:
        raise BadInput(
            f"plan needs --topology=NAME, as v5e:16x16; known generations: {', '.join(GENERATIONS)}"
        )
    return [find(name) for name in dict.fromkeys(names)]
