"""What a kind of derived feed is given, and what it returns. Called by every kind, and by derived."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from etils import epath
from jax.sharding import Mesh

from jaxdistill.data.feeds import Reader, Shape, Share
from jaxdistill.models import Params


class Making(NamedTuple):
    """What a derived feed may be made with: the network's parameters, the mesh, how many rows at a time, the
    tokenizer, where to keep what is made of a part by its name, and the fingerprint to keep it under."""

    params: Params
    mesh: Mesh
    batch_size: int
    share: Share
    tokenizer: Any
    path: Callable[[str], epath.Path]
    fingerprint: str


class Derivation(NamedTuple):
    """A derived feed as known at start-up. `row`: what it adds to a row of its base; `read`: the base's
    reader and a `Making` -> its own, made or found; `digest`: of what it is made of beside rows and
    parameters; `layers`: the teacher's layers that taps are of, in their order; `rows`: how many training
    rows it has, of how many of its base."""

    row: Mapping[str, Shape]
    read: Callable[[Reader, Making], Reader]
    digest: str = ""
    layers: tuple[int, ...] = ()
    rows: Callable[[int], int] = lambda rows: rows
