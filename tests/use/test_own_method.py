"""The method in docs/methods.md: a user's file with a loss, a head, a forward and a kind of stage."""

import json
import pathlib
import re

import jax
import pytest

import jaxdistill
from jaxdistill import cli, registry
from jaxdistill.configuration import load_config
from jaxdistill.errors import BadInput
from jaxdistill.methods.kinds import KINDS
from jaxdistill.models.heads import HEADS
from jaxdistill.objectives.terms import LOSSES
from jaxdistill.planning import child
from tests.conftest import write_text

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "methods.md"


@pytest.fixture
def recipe(tmp_path, tables):
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.S).group(1)
    assert code.count("\n") < 60
    file = tmp_path / "bag_of_words.py"
    file.write_text(code)
    return file


def test_it_trains_resumes_and_is_exported_from_one_file(recipe, tmp_path, capsys):
    text, workdir = write_text(tmp_path / "text.txt"), tmp_path / "run"
    call = ["train", f"--config={recipe}:smoke", f"--workdir={workdir}"]
    call += [f"--config.data.source={text}", "--config.data.heldout_fraction=0.25"]
    call += ["--config.data.vocab_size=120", "--config.stages.bags.shown=0.4"]
    assert cli.main(call) == 0
    results = json.loads((workdir / "results.json").read_text())
    assert results["networks"]["student"]["steps"] == 4
    assert "heads" in results["export"]["reason"]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["raw/bag_of_words"] for line in lines if "raw/bag_of_words" in line]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert json.loads((workdir / "config.json").read_text())["code"] == str(recipe)
    model, params = jaxdistill.from_pretrained(str(workdir / "student"))
    assert model.config.heads == ("mlm", "bag") and "bag" in params
    capsys.readouterr()
    assert cli.main(call) == 0  # again: nothing to do
    # Its workdir is read without its code: by networks, not by kinds.
    del KINDS["bags"], LOSSES["bag_of_words"]
    found = jaxdistill.evaluate(str(workdir), str(text), cache=tmp_path / "cache")
    assert found["mlm_loss"] > 0
    del HEADS["bag"]
    with pytest.raises(BadInput, match="'bag' is unknown.*once jaxdistill.load_config has read"):
        jaxdistill.evaluate(str(workdir), str(text), cache=tmp_path / "cache")


def test_its_settings_are_checked_like_any_others(recipe, tmp_path, capsys):
    call = ["train", f"--config={recipe}:smoke", f"--workdir={tmp_path / 'run'}"]
    for setting, words in (
        ("shwon=0.3", "has no field 'shwon'; did you mean 'shown'?"),
        ("shown=1.5", "config.stages.bags.shown=1.5; expected 0 to 1"),
        ("alpha=0.5", "no field 'alpha', a setting of auxiliary, distill"),
    ):
        assert cli.main([*call, f"--config.stages.bags.{setting}"]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_stored_recipe_runs_no_file_by_itself(recipe, tmp_path, monkeypatch):
    config = load_config(f"{recipe}:smoke")
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps(config.to_dict()))
    assert load_config(stored).stages.bags.shown == 0.5  # its file was named in this process
    monkeypatch.setattr(registry, "_added", set())
    with pytest.raises(BadInput, match=f"name its file by --config={recipe}"):
        load_config(stored)


def test_the_process_that_plans_runs_its_code_too(recipe, monkeypatch, capsys):
    config = load_config(f"{recipe}:smoke").to_dict()
    for table, name in ((KINDS, "bags"), (LOSSES, "bag_of_words"), (HEADS, "bag")):
        del table[name]  # another process has not read the file
    monkeypatch.setattr(child, "devices_of", lambda _: jax.devices()[:4])
    monkeypatch.setattr(child, "plan_stage", lambda config, recipe, stage, *_: {"is": stage.name})
    child.main({"topology": "v5e:2x2", "config": config, "stages": [], "fit": False})
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["is"] == "bags"


def test_a_name_means_one_thing(recipe, tmp_path):
    load_config(f"{recipe}:smoke")
    load_config(f"{recipe}:smoke")  # the same file replaces its own rows
    other = tmp_path / "other.py"
    other.write_text(recipe.read_text())
    with pytest.raises(BadInput, match=f"line .*'bag' is there already, from {recipe}"):
        load_config(f"{other}:smoke")
    other.write_text(recipe.read_text().replace('"bag_of_words", terms.Loss', '"mlm", terms.Loss'))
    with pytest.raises(BadInput, match="'bag' is there already"):
        load_config(f"{other}:smoke")
    with pytest.raises(BadInput, match="loss 'mlm' is there already, from jaxdistill"):
        LOSSES.register("mlm", LOSSES["nsp"])
