"""FlaxMobileBert… and FlaxIBBert…: our networks as classes of transformers' Flax. Imports
transformers' Flax (seconds).

They load, save, shard, convert and report as FlaxBert… do, by transformers' own code; what runs is
`module`. Reached through `jaxdistill.interop.hf_flax`, or through transformers itself after
`jaxdistill.register_with_transformers()`.

Where they differ from FlaxBert…: outputs are float32 whatever the `dtype` of matrix products;
attention maps are those before dropout; rows longer than the position table and ids outside the
vocabulary are an error; nothing pickled is opened; a call is compiled even outside of `jax.jit`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath
from flax.core import freeze, unfreeze
from transformers.modeling_flax_utils import FlaxPreTrainedModel
from transformers.models.mobilebert.configuration_mobilebert import MobileBertConfig

from jaxdistill.errors import BadInput
from jaxdistill.interop import configs, convert, hf_msgpack, own_format, pretrained, weight_files
from jaxdistill.interop.hf_flax import tree as tree_lib
from jaxdistill.interop.hf_flax.ib_bert import IBBertConfig
from jaxdistill.interop.hf_flax.module import EncoderModule
from jaxdistill.interop.hf_torch import read_json

PICKLED = (".bin", ".pt", ".pth", ".pkl")


class _FlaxEncoder(FlaxPreTrainedModel):
    """What all classes share. `kind`: a key of `module.KINDS`. `module_class`: the Linen module of
    a class, which lies beside it under the name that transformers' own would have
    (FlaxMobileBertModule, FlaxMobileBertForMaskedLMModule)."""

    config_class: Any = None
    module_class: Any = EncoderModule
    kind = "Model"
    _missing_keys: set[Any]  # the parent's: what the last load did not find

    def __init_subclass__(cls, **keys: Any) -> None:
        super().__init_subclass__(**keys)
        if (
            cls.__module__ != __name__
        ):  # a user's own class has its parent's module, or one of its own
            return
        name = cls.__name__.removesuffix("Model") + "Module"
        cls.module_class = type(
            name,
            (EncoderModule,),
            {
                "__annotations__": {"kind": str},
                "kind": cls.kind,
                "__module__": __name__,
                "__doc__": EncoderModule.__doc__,
            },
        )
        globals()[name] = cls.module_class

    def __init__(
        self,
        config: Any,
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
        gradient_checkpointing: bool = False,
        add_pooling_layer: bool = True,
        **kwargs: Any,
    ) -> None:
        module = self.module_class(
            config=config,
            dtype=dtype,
            add_pooling_layer=add_pooling_layer,
            gradient_checkpointing=gradient_checkpointing,
            **kwargs,
        )
        super().__init__(
            config, module, input_shape=input_shape, seed=seed, dtype=dtype, _do_init=_do_init
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        dtype: Any = jnp.float32,
        *model_args: Any,
        **kwargs: Any,
    ) -> Any:
        """As in every class of transformers, but that nothing pickled is opened: `from_pt` reads
        safetensors.

        Raises `BadInput` for a local folder of another kind of model, or with two files of
        different weights, for damaged weights, numbers that are not finite, and where there is only
        a pickle."""
        given = os.path.expanduser(str(pretrained_model_name_or_path))
        folder = epath.Path(given) / (kwargs.get("subfolder") or "")
        if "config" not in kwargs:
            _check_kind(cls, folder)
        if (folder / "config.json").exists():
            pretrained.check_weights(folder)
        pickled = (
            pretrained.has_only_pickles(folder) if folder.is_dir() else given.endswith(PICKLED)
        )
        # Without from_pt transformers takes PyTorch's safetensors too, knows Flax's when they lie
        # there as well, and never asks the Hub for a pickle. Only a file that is given by itself
        # may have any name.
        from_pt = (
            bool(kwargs.pop("from_pt", False))
            and given.endswith(".safetensors")
            and os.path.isfile(given)
        )
        try:
            if not pickled:
                return _finite(
                    _load(
                        super().from_pretrained,
                        given,
                        dtype,
                        *model_args,
                        from_pt=from_pt,
                        **kwargs,
                    ),
                    given,
                )
        except safetensors.SafetensorError as error:
            raise BadInput(
                f"{given} cannot be read as safetensors ({error}); it is damaged or cut short: fetch or export it "
                "again"
            ) from error
        except NotImplementedError as error:  # theirs: "coming soon"
            raise BadInput(
                f"{given} has its safetensors in shards, which transformers' Flax does not read; "
                "`jaxdistill export --model=DIR --out=NEW` writes them whole"
            ) from error
        except OSError as error:
            if "from_pt=True" not in str(error):  # theirs: there is a pickle, ask for it
                raise
        raise BadInput(pretrained.only_pickles(given))

    @classmethod
    def load_flax_weights(cls, resolved_archive_file: str) -> Any:
        """Their tree; `BadInput` for a damaged or hostile msgpack file. Called by
        `from_pretrained`."""
        if resolved_archive_file.endswith(".safetensors"):
            return super().load_flax_weights(resolved_archive_file)
        return hf_msgpack.read_tree(epath.Path(resolved_archive_file))

    @classmethod
    def load_flax_sharded_weights(cls, shard_files: Sequence[str]) -> Any:
        """The same of shards."""
        return hf_msgpack.read_trees([epath.Path(file) for file in shard_files])

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """As in every class of transformers, but that weights saved there before go: what is left
        is one model.

        Weights of another kind of file (safetensors, msgpack) stay if they are the same.
        """
        folder = epath.Path(os.path.expanduser(str(save_directory)))
        before = weight_files.snapshot(folder)
        super().save_pretrained(str(folder), *args, **kwargs)
        if before:
            weight_files.supersede(folder, before, pretrained.largest_weights(folder))

    def enable_gradient_checkpointing(self) -> None:
        """From now on the backward pass keeps nothing of a block but its input, and computes the
        rest again."""
        self._module = self.module.clone(gradient_checkpointing=True)

    def init_weights(self, rng: jax.Array, input_shape: tuple[int, ...], params: Any = None) -> Any:
        """Fresh parameters as a tree; with `params`, those, and fresh ones for the keys that
        loading found missing."""
        shape = (
            input_shape
            if self.kind != "ForMultipleChoice" or len(input_shape) == 3
            else (1, *input_shape)
        )
        fresh = self.module.init({"params": rng}, jnp.zeros(shape, jnp.int32), return_dict=False)[
            "params"
        ]
        if params is None:
            return fresh
        flat, given = (flax.traverse_util.flatten_dict(unfreeze(tree)) for tree in (fresh, params))
        given |= {key: flat[key] for key in self._missing_keys}
        self._missing_keys = set()
        return freeze(flax.traverse_util.unflatten_dict(given))

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        params: Any = None,
        dropout_rng: jax.Array | None = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """int[B, L] each ([B, C, L] for multiple choice) -> the output class, or its fields as a
        tuple.

        `params` default to the model's own. `train` turns dropout on, whose key is `dropout_rng`.
        `head_mask` [A] or [N, A]: 0 for a head that is to be silent. The last three default to the
        config's."""
        config = self.config
        return self.module.apply(
            {"params": unfreeze(params or self.params)},
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            deterministic=not train,
            output_attentions=config.output_attentions
            if output_attentions is None
            else output_attentions,
            output_hidden_states=config.output_hidden_states
            if output_hidden_states is None
            else output_hidden_states,
            return_dict=config.return_dict if return_dict is None else return_dict,
            rngs=None if dropout_rng is None else {"dropout": dropout_rng},
        )


class FlaxMobileBertPreTrainedModel(_FlaxEncoder):
    """MobileBERT, and every student of MobileBERT's family: what PyTorch's MobileBert… classes
    hold."""

    config_class: Any = MobileBertConfig
    base_model_prefix = "mobilebert"


class FlaxMobileBertModel(FlaxMobileBertPreTrainedModel):
    """The encoder and its pooler."""


class FlaxMobileBertForPreTraining(FlaxMobileBertPreTrainedModel):
    """With the heads for masked words and for the next sentence."""

    kind = "ForPreTraining"


class FlaxMobileBertForMaskedLM(FlaxMobileBertPreTrainedModel):
    """With the head for masked words, whose output table is the word table."""

    kind = "ForMaskedLM"


class FlaxMobileBertForNextSentencePrediction(FlaxMobileBertPreTrainedModel):
    """With the head that says whether the second sentence follows the first (0) or not (1)."""

    kind = "ForNextSentencePrediction"


class FlaxMobileBertForSequenceClassification(FlaxMobileBertPreTrainedModel):
    """With a projection of the pooled first token to `num_labels` outputs."""

    kind = "ForSequenceClassification"


class FlaxMobileBertForTokenClassification(FlaxMobileBertPreTrainedModel):
    """With a projection of every token to `num_labels` outputs."""

    kind = "ForTokenClassification"


class FlaxMobileBertForQuestionAnswering(FlaxMobileBertPreTrainedModel):
    """With a score for every token as the start, and as the end, of the answer."""

    kind = "ForQuestionAnswering"


class FlaxMobileBertForMultipleChoice(FlaxMobileBertPreTrainedModel):
    """With one score a choice; inputs are [B, C, L]."""

    kind = "ForMultipleChoice"


class FlaxIBBertPreTrainedModel(_FlaxEncoder):
    """The inverted-bottleneck teacher. No class of PyTorch holds it, so there is no `from_pt` and
    no `from_flax`."""

    config_class: Any = IBBertConfig
    base_model_prefix = "ib_bert"

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        dtype: Any = jnp.float32,
        *model_args: Any,
        **kwargs: Any,
    ) -> Any:
        """As in every class of transformers, and also from a folder of our own format, as
        `jaxdistill` saves a teacher.

        Raises `BadInput` if that folder holds another network.
        """
        folder = str(pretrained_model_name_or_path)
        if not _is_own_format(folder):
            return super().from_pretrained(folder, dtype, *model_args, **kwargs)
        with tempfile.TemporaryDirectory() as local:
            _rewrite(folder, local)
            loaded = super().from_pretrained(local, dtype, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.config._name_or_path = folder
        return loaded


class FlaxIBBertModel(FlaxIBBertPreTrainedModel):
    """The encoder and its pooler."""


class FlaxIBBertForPreTraining(FlaxIBBertPreTrainedModel):
    """With the heads for masked words and for the next sentence."""

    kind = "ForPreTraining"


class FlaxIBBertForMaskedLM(FlaxIBBertPreTrainedModel):
    """With the head for masked words, whose output table is the word table."""

    kind = "ForMaskedLM"


class FlaxIBBertForNextSentencePrediction(FlaxIBBertPreTrainedModel):
    """With the head that says whether the second sentence follows the first (0) or not (1)."""

    kind = "ForNextSentencePrediction"


class FlaxIBBertForSequenceClassification(FlaxIBBertPreTrainedModel):
    """With a projection of the pooled first token to `num_labels` outputs."""

    kind = "ForSequenceClassification"


class FlaxIBBertForTokenClassification(FlaxIBBertPreTrainedModel):
    """With a projection of every token to `num_labels` outputs."""

    kind = "ForTokenClassification"


class FlaxIBBertForQuestionAnswering(FlaxIBBertPreTrainedModel):
    """With a score for every token as the start, and as the end, of the answer."""

    kind = "ForQuestionAnswering"


class FlaxIBBertForMultipleChoice(FlaxIBBertPreTrainedModel):
    """With one score a choice; inputs are [B, C, L]."""

    kind = "ForMultipleChoice"


def _load(load: Any, given: str, *args: Any, **kwargs: Any) -> Any:
    """`load` as it is, with PyTorch's safetensors and `_do_init=False` too: transformers needs
    parameters to put them in."""
    try:
        return load(given, *args, **kwargs)
    except ValueError as error:
        if kwargs.get("_do_init", True) or "_do_init=False" not in str(error):
            raise
    model = load(given, *args, **{**kwargs, "_do_init": True})
    params, model._params, model._is_initialized = model.params, None, False
    return model, params


def _finite(loaded: Any, where: str) -> Any:
    """What was loaded, a model or (model, params); `BadInput` for numbers that are not finite."""
    params = loaded[1] if isinstance(loaded, tuple) else loaded.params
    flat = flax.traverse_util.flatten_dict(unfreeze(params), sep="/")
    convert.check_finite(
        {name: x for name, x in flat.items() if isinstance(x, (jax.Array, np.ndarray))}, where
    )
    return loaded


def _check_kind(cls: Any, folder: epath.Path) -> None:
    """Raises `BadInput` if a local folder holds no model, or another kind than the class `cls`."""
    if not folder.is_dir():
        return
    values, wanted = pretrained.read_values(folder), cls.config_class.model_type
    kind = values.get("model_type")
    if kind not in (wanted, None):
        advice = "take the class of its kind"
        if kind == own_format.MODEL_TYPE:
            advice = configs.what_to_do(own_format.read_config(values, str(folder)))
        raise BadInput(
            f"{folder} holds a model of type {kind!r}, but {cls.__name__} is for {wanted!r}; {advice}"
        )


def _is_own_format(folder: str) -> bool:
    path = epath.Path(folder).expanduser() / "config.json"
    return path.exists() and read_json(path).get("model_type") == own_format.MODEL_TYPE


def _rewrite(folder: str, local: str) -> None:
    """A folder of our own format as the folder that `FlaxIBBert….save_pretrained` would write."""
    model, params = pretrained.from_pretrained(folder)
    IBBertConfig.from_own_format(
        read_json(epath.Path(folder).expanduser() / "config.json"), folder
    ).save_pretrained(local)
    prefix = IBBertConfig.model_type if model.config.heads else None
    tree = flax.traverse_util.unflatten_dict(tree_lib.to_tree(model.config, params, prefix))
    (epath.Path(local) / hf_msgpack.WEIGHTS).write_bytes(
        flax.serialization.msgpack_serialize(jax.device_get(tree))
    )
