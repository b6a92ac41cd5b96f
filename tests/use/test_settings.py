"""Settings: of the wrong type, out of range, beyond any memory, or without effect: refused before
anything is made."""

import pytest

from jaxdistill import cli, configuration, defaults, inputs, run, startup
from jaxdistill.errors import BadInput
from jaxdistill.models import preset
from jaxdistill.training import memory, sharding
from jaxdistill.workdir import flat

SHORT = ("--config.baselines=False", "--config.order=('teacher','distill')")


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Runs `train` with a setting: one line with these words, exit code 2, no workdir, no text
    read."""
    monkeypatch.setattr(inputs, "check_text", lambda _: pytest.fail("the text was looked at first"))

    def check(setting, *words, command="train", more=SHORT):
        code = cli.main(
            [command, "--config=quickstart:smoke", f"--workdir={tmp_path / 'run'}", *more, setting]
        )
        err = capsys.readouterr().err
        assert code == 2 and err.count("\n") == 1 and len(err) < 600, err
        for word in words:
            assert word in err
        assert not (tmp_path / "run").exists()

    return check


@pytest.mark.parametrize(
    "setting, words",
    [
        (
            "stages.distill.freezing=banana",
            ["no field 'freezing', a setting of progressive", "'distill' has: alpha, nsp"],
        ),
        ("stages.distill.layer_map=(9,9)", ["no field 'layer_map', a setting of progressive"]),
        ("stages.teacher.feature_map=7", ["no field 'feature_map'", "'pretrain' has: nsp"]),
        ("stages.teacher.active_multiplier=1", ["no field 'active_multiplier'"]),
        ("stages.distill.alfa=0.3", ["no field 'alfa'; did you mean 'alpha'?"]),
        ("stages.transfer.kind=distil", ["kind='distil' is unknown; did you mean 'distill'?"]),
        (
            "stages.distill.start=random",
            ["config.stages.distill has no field 'start'", "config.networks.NAME.start"],
        ),
        ("networks.teacher.start=copy", ["cannot begin with a part of itself"]),
        ("networks.student.of=teachr", ["'teachr' is no network", "did you mean 'teacher'?"]),
        ("networks.random_start.like=studnt", ["'studnt' is no network", "'student'"]),
        ("networks.random_start.like=copied_start", ["is itself like another network"]),
        ("networks.random_start.init=x", ["leave one of the two out"]),
        ("networks.random_start.model.num_layers=3", ["has no field 'model'"]),
        (
            "networks.student.start=cold",
            ["'cold' is unknown; valid: copy, extract, factorise, layers, like, random"],
        ),
        ("teacher.model.num_layers=3", ["config.networks.teacher.model.num_layers"]),
        ("student.init=x", ["another place now: config.networks.student.init"]),
        ("stages.distill.network=studnt", ["did you mean 'student'?"]),
        ("stages.distill.teacher=teachr", ["did you mean 'teacher'?"]),
        ("stages.distill.teacher=student", ["a network cannot be its own teacher"]),
        ("stages.transfer.layer_map=(0,9)", ["layer_map=(0, 9): the teacher's layers are 0 to 1"]),
        ("stages.transfer.layer_map=('a',1)", ["expected whole numbers"]),
    ],
)
def test_a_setting_that_does_nothing_is_refused(refused, setting, words):
    refused(f"--config.{setting}", *words, more=("--config.baselines=False",))


@pytest.mark.parametrize(
    "other, setting, words",
    [
        (
            "networks.teacher.init=/some/folder",
            "networks.teacher.model.num_layers=3",
            ["config.networks.teacher.init"],
        ),
        ("data.tokenizer=/some/vocab.txt", "data.vocab_size=300", ["the tokenizer is that of"]),
        ("data.heldout=other.txt", "data.heldout_fraction=0.3", ["config.data.heldout="]),
    ],
)
def test_an_override_beside_one_that_makes_it_idle(refused, other, setting, words):
    refused(
        f"--config.{setting}",
        f"config.{setting.partition('=')[0]} would do nothing",
        *words,
        more=(f"--config.{other}",),
    )


def test_every_setting_of_a_kind_changes_its_stage_and_other_kinds_refuse_it():
    from jaxdistill.methods.kinds import KINDS, build
    from jaxdistill.settings import settings_of

    other = {
        "layer_map": (1, 0),
        "freezing": "strict",
        "tf1_statistics": True,
        "projection": False,
        "relation_heads": 2,
        "teacher_layer": 0,
        "alpha": 0.25,
        "hard_labels": 0.25,
        "distance": "reverse_kl",
        "top_k": 3,
        "teachers": ("first", "second"),
        "normalize": False,
        "distilled": "all",
        "guided_layer": 1,
        "hint_layer": 1,
        "states": "last",
        "first_token": True,
    }
    needed = {
        "relations": {"teacher_layer": 1},
        "self_attention": {"teacher_layer": 1},
        "distilbert": {"teacher_layer": 1},
        "topmost": {"teacher_layer": 1},
        "patient": {"layer_map": (0, -1)},
        "soft_labels": {"distance": "top_k"},
    }
    every = {field for kind in KINDS.values() for field in settings_of(kind)}
    two = preset("bert_base").replace(num_layers=2, num_heads=1)
    assert len(every) == 35
    for name, kind in KINDS.items():
        base = {"steps": 4, **needed.get(name, {})}

        def built(name=name, base=base, **changes):
            section = defaults.stage(name, "student", **{**base, **changes})
            return build("it", section, two, ("classification",))

        for field in every:
            changes = {field: other.get(field, 0.125)}
            if name in ("patient", "distilbert") and field == "projection":
                changes = {field: True}
            if name == "topmost" and field == "teacher_layer":
                changes = {field: 2}
            if field in settings_of(kind):
                assert built(**changes) != built(), (name, field)
            else:
                with pytest.raises(BadInput, match=f"has no field '{field}', a setting of "):
                    built(**changes)


def test_a_stage_of_another_kind_keeps_what_both_have():
    transfer = defaults.stage("progressive", "student", steps=7, mean=2.0, layer_map=(1, 0))
    joint = defaults.as_kind(transfer, "joint", "config.stages.transfer")
    assert (joint.kind, joint.steps, joint.mean, joint.layer_map) == ("joint", 7, 2.0, (1, 0))
    assert joint == defaults.stage("joint", "student", steps=7, mean=2.0, layer_map=(1, 0))
    transfer.freezing = "strict"
    with pytest.raises(BadInput, match="freezing='strict' would do nothing"):
        defaults.as_kind(transfer, "joint", "config.stages.transfer")


@pytest.mark.parametrize(
    "setting, words",
    [
        ("seed=99999999999999999999", ["config.seed="]),
        ("seed=-1", ["0 to 2147483647"]),
        ("seed=banana", ["config.seed='banana'; expected a whole number"]),
        ("stages.distill.learning_rate=inf", ["expected a finite number, 0 or more"]),
        ("stages.distill.learning_rate=nan", ["expected a finite number"]),
        ("stages.distill.learning_rate=1e300", ["expected a finite number"]),
        ("stages.distill.steps=3000000000", ["expected 0 to 2147483647"]),
        ("stages.distill.warmup_steps=3000000000", ["expected 0 to 2147483647"]),
        ("stages.distill.moves=(1,)", ["expected patterns"]),
        ("stages.distill={}", ["is a section"]),
        ("order=(5,)", ["names the stage 5"]),
        ("data.vocab_size=1000000000", ["100 to 16777216"]),
        ("data.vocab_size=5", ["100 to 16777216"]),
        ("data.sequence_length=3", ["8 or more"]),
        ("data.heldout_fraction=nan", ["config.data.heldout_fraction=nan"]),
        ("export=perhaps", ["expected True or False"]),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_is_made(refused, setting, words):
    refused(f"--config.{setting}", *words)


@pytest.mark.parametrize(
    "setting, words",
    [
        (
            "stages.distill.batch_size=100000000",
            ["'distill' needs", "GiB", "hidden states", "batch_size=100000000"],
        ),
        (
            "networks.teacher.model.max_positions=2000000000",
            ["'teacher' needs", "parameters and optimizer"],
        ),
        (
            "networks.teacher.model.intermediate_size=2000000000",
            ["'teacher' needs", "parameters and optimizer"],
        ),
        ("evaluation.batch_size=800000000", ["evaluation needs", "config.evaluation.batch_size"]),
    ],
)
def test_what_no_memory_holds_is_refused_by_arithmetic(refused, setting, words):
    order = "('teacher',)" if "max_positions" in setting else "('teacher','transfer','distill')"
    refused(f"--config.{setting}", *words, more=(*SHORT[:1], f"--config.order={order}"))


def test_the_least_memory_is_a_lower_bound(monkeypatch):
    """The published recipe on eight devices of 16 GiB passes, and on eight of a twentieth of that
    does not."""
    from jaxdistill.checks import check_memory
    from jaxdistill.resolve import resolve

    config = configuration.load_config("mobilebert", ["data.source=x"])
    mesh = sharding.make_mesh(8)
    recipe = resolve(config, vocab_size=30522, feeds=inputs.outline(config), mesh=mesh)
    monkeypatch.setattr(
        memory, "room", lambda _: 95 * 2**30
    )  # the published batch is 2048 rows of 512 tokens
    check_memory(recipe, config, mesh)
    monkeypatch.setattr(memory, "room", lambda _: 2**30)
    with pytest.raises(BadInput, match="'teacher' needs .* GiB"):
        check_memory(recipe, config, mesh)


@pytest.mark.parametrize(
    "given, words",
    [("-1", "-1"), ("0,99999999999", "99999999999"), ("1.5", "whole numbers"), ("", "whole")],
)
def test_seeds_that_none_can_be(refused, given, words):
    refused(f"--seeds={given}", words, command="seeds", more=())


def test_a_seed_beside_seeds_is_refused(refused):
    refused("--config.seed=3", "--seeds=", command="seeds", more=())


def test_epochs_of_a_text_that_is_not_read_yet_are_no_mistake():
    """The stand-in for its length would make more steps than there can be."""
    from jaxdistill.data.feeds import MANY
    from jaxdistill.resolve import build_stage

    two = preset("bert_base").replace(num_layers=2)
    section = defaults.stage("pretrain", "teacher", epochs=1000.0)
    assert build_stage("it", section, MANY, two).steps == 2**31 - 1
    assert build_stage("it", section, 64, two).steps == 2000
    with pytest.raises(BadInput, match="epochs=1000.0 are 31,250,"):
        build_stage("it", section, 10**9 + 1, two)


class Reached(Exception):
    """All checks are passed, and the workdir would be made."""


ABSURD = ("banana", "-1", "99999999999999999999", "nan", "", "1e300", "0", "('a',)", "None")


@pytest.mark.slow
def test_no_absurd_value_ends_in_anything_but_a_line(tmp_path, monkeypatch):
    """Each field of the recipe takes two values of the list, in turn; it is refused in one line, or
    the run begins."""
    monkeypatch.setattr(startup, "open_workdir", lambda *_: (_ for _ in ()).throw(Reached))
    monkeypatch.setattr(inputs, "check_sources", lambda *_: None)
    fields = flat(configuration.load_config("quickstart:smoke").to_dict())
    kept = [
        name
        for name in fields
        if not name.startswith(
            ("stages.random_start", "stages.copied_start", "networks.student.model.")
        )
    ]
    refused = 0
    for i, name in enumerate(kept):
        for value in (ABSURD[i % len(ABSURD)], ABSURD[(4 * i + 3) % len(ABSURD)]):
            try:
                run.train(
                    configuration.load_config(
                        "quickstart:smoke", ["baselines=False", f"{name}={value}"]
                    ),
                    tmp_path / "run",
                )
            except BadInput as error:
                assert "\n" not in str(error) and len(str(error)) < 600, error
                refused += 1
            except Reached:
                pass
            except Exception as error:
                raise AssertionError(f"config.{name}={value!r}") from error
    assert refused > len(kept)  # most values cannot be meant
