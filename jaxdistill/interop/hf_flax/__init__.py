"""Hugging Face Flax: FlaxMobileBert… and FlaxIBBert….

The classes are transformers' own in all but name, and they run our network. They are loaded when
they are first asked for, since transformers' Flax takes seconds to import; transformers 5 has none,
and then asking is a `BadInput`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxdistill.interop.hf_flax.classes import CLASSES, load

if TYPE_CHECKING:
    from jaxdistill.interop.hf_flax.ib_bert import IBBertConfig as IBBertConfig
    from jaxdistill.interop.hf_flax.models import *  # noqa: F403
    from jaxdistill.interop.hf_flax.registration import (
        register_with_transformers as register_with_transformers,
    )

__all__ = ["CLASSES", "register_with_transformers"]


def __getattr__(name: str) -> Any:
    if name == "register_with_transformers":
        return load("registration").register_with_transformers
    if name in CLASSES:
        return getattr(load("models"), name)
    raise AttributeError(f"module 'jaxdistill.interop.hf_flax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *CLASSES})
