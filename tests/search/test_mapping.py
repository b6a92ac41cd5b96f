"""The search for a layer map over recipes: what it evaluates, keeps, refuses, and how it goes on."""

import json
import os
import pathlib
import queue

import pytest
from ml_collections import ConfigDict

from jaxdistill import commands, defaults, run
from jaxdistill.configuration import load_config
from jaxdistill.data.tokenizers import train_wordpiece
from jaxdistill.errors import BadInput, TrainingStopped
from jaxdistill.search import mapping
from tests.conftest import tiny_config, write_text
from tests.use.recipes import assert_one_line
from tests.use.recipes import run as run_command

SIX, THREE = dict(num_layers=6), dict(num_layers=3)
GOAL = (0, 3, 5)


def fitness_of(layer_map):
    return 1 - sum(abs(a - b) for a, b in zip(layer_map, GOAL)) / 20


def recipe(folder, **changes):
    """A student of 3 layers that follows 6, and a task after it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{'good' if i % 2 else 'bad'} text {i}\t{i % 2}\n" for i in range(24))
    (folder / "task.tsv").write_text("text\tlabel\n" + rows)
    config = tiny_config(write_text(folder / "text.txt"))
    for name in ("random_start", "copied_start"):
        del config.networks[name], config.stages[name]
    config.networks.teacher.model.num_layers = 6
    config.networks.student.model.num_layers = 3
    config.networks.learner = defaults.network(
        like="student", start="layers", of="student", layers=(0, 1, 2), heads=("task",)
    )
    config.feeds.task = defaults.task(
        "classification", source=str(folder / "task.tsv"), sequence_length=16, header="yes"
    )
    config.stages.follow = defaults.stage(
        "intermediate", "student", steps=2, layer_map=GOAL, batch_size=8
    )
    config.stages.learn = defaults.stage("finetune", "learner", feed="task", steps=2, batch_size=8)
    config.order = ("teacher", "follow", "learn")
    settings = dict(population=8, elites=2, generations=4)
    config.search = defaults.mapping_search("follow", **{**settings, **changes})
    return config


class Pretended:
    """In place of `train`: how good a map is, without a network. Ends like a killed process after `most`."""

    def __init__(self, most=10**9):
        self.most, self.runs = most, []

    def __call__(self, config, folder):
        if len(self.runs) == self.most:
            raise KeyboardInterrupt
        assert config.objectives.traced_maps and not config.export
        self.runs.append((config.stages.follow.layer_map, config.seed))
        pathlib.Path(folder).mkdir(parents=True)
        score = fitness_of(config.stages.follow.layer_map) - config.seed / 100
        return {"networks": {"learner": {"task": {"accuracy": score}}}}


def lines_of(workdir):
    return [each._replace(seconds=0, compiled=0) for each in mapping.read(workdir)]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """(config, workdir, results, what was run) of a whole search."""
    folder = tmp_path_factory.mktemp("searched")
    config, train = recipe(folder), Pretended()
    return config, folder / "run", mapping.search(config, folder / "run", train=train), train


def test_what_it_finds_and_writes(searched):
    config, workdir, results, train = searched
    lines = mapping.read(workdir)
    assert [each.map for each in lines] == [each for each, _ in train.runs]
    assert len({each.map for each in lines}) == len(lines) == results["evaluations"]
    for each in lines:
        assert each.fitness == each.scores["task"] == pytest.approx(fitness_of(each.map))
    best = max(lines, key=lambda each: each.fitness)
    assert tuple(results["best_map"]) == best.map and results["fitness"] == best.fitness > 0.85
    winner = load_config(workdir / "best.json")
    assert winner.stages.follow.layer_map == best.map and not winner.search
    assert winner.objectives.traced_maps == config.objectives.traced_maps
    assert {file.name for file in (workdir / "plots").iterdir()} == {"search.png", "best_map.png"}
    assert not list((workdir / "evaluations").iterdir())
    again = mapping.search(config, workdir, train=Pretended(0))  # nothing is left to do
    assert again == results


@pytest.mark.parametrize("stopped", [0, 3, 9])
def test_a_killed_search_goes_on(searched, stopped, tmp_path):
    """It loses what was under way, and ends as if nothing had been; a torn line is made anew."""
    config, workdir, results, whole = searched
    train = Pretended(stopped)
    with pytest.raises(KeyboardInterrupt):
        mapping.search(config, tmp_path / "run", train=train)
    kept = mapping.read(tmp_path / "run")
    assert len(kept) == stopped
    with (tmp_path / "run" / mapping.LINES).open("a") as file:
        file.write('{"generation": 0, "ma')
    rest = Pretended()
    found = mapping.search(config, tmp_path / "run", train=rest)
    assert lines_of(tmp_path / "run") == lines_of(workdir)
    assert train.runs + rest.runs == whole.runs
    assert found["best_map"] == results["best_map"]


def test_seeds_teachers_and_budget(tmp_path):
    """Every map is run with every seed; scores are parts of the teacher's; a budget counts what was done."""
    config = recipe(tmp_path, seeds=(0, 2), teacher_scores={"task": 0.5})
    train = Pretended()
    mapping.search(config, tmp_path / "run", train=train, budget=3)
    assert [seed for _, seed in train.runs] == [0, 2] * 3
    for each in mapping.read(tmp_path / "run"):
        assert each.scores["task"] == pytest.approx(fitness_of(each.map) - 0.01)
        assert each.fitness == pytest.approx(each.scores["task"] / 0.5)
    found = mapping.search(config, tmp_path / "run", train=train, budget=5)
    assert found["evaluations"] == 5 and len(train.runs) == 10
    assert mapping.search(config, tmp_path / "run", train=train, budget=2)["evaluations"] == 5


def test_the_vocabulary_is_the_given_tokenizers(tmp_path):
    """And not that of one that would be trained here, which these networks could not hold."""
    config = recipe(tmp_path)
    train_wordpiece([(tmp_path / "text.txt").read_text()], 100).save_pretrained(tmp_path / "words")
    config.data.update({"tokenizer": str(tmp_path / "words"), "vocab_size": 8192})
    for name in ("teacher", "student"):
        config.networks[name].model.vocab_size = 200
    found = mapping.search(config, tmp_path / "run", train=Pretended(), budget=1)
    assert found["evaluations"] == 1


@pytest.mark.parametrize("how", ["stopped", "nan"])
def test_a_map_that_diverges_is_worth_nothing(how, tmp_path):
    """And the search goes on."""

    class Diverges(Pretended):
        def __call__(self, config, folder):
            found = super().__call__(config, folder)
            if len(self.runs) == 2 and how == "stopped":
                raise TrainingStopped("20 updates in a row were skipped")
            if len(self.runs) == 2:
                found["networks"]["learner"]["task"]["accuracy"] = float("nan")
            return found

    found = mapping.search(recipe(tmp_path), tmp_path / "run", train=Diverges(), budget=5)
    assert [each.fitness == mapping.FAILED for each in mapping.read(tmp_path / "run")] == [
        False,
        True,
    ] + 3 * [False]
    assert found["evaluations"] == 5 and found["fitness"] > 0


def test_every_worker_has_a_device_of_its_own(monkeypatch):
    numbers = queue.Queue()
    for name in ("TPU_VISIBLE_CHIPS", "TPU_CHIPS_PER_PROCESS_BOUNDS", "TPU_PROCESS_BOUNDS"):
        monkeypatch.delenv(name, raising=False)
    for given, seen in (("", "01"), ("4,7", "47")):
        for number, device in enumerate(seen):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
            numbers.put(number)
            mapping._take_device(numbers)
            assert os.environ["CUDA_VISIBLE_DEVICES"] == device
            assert os.environ.pop("TPU_VISIBLE_CHIPS") == str(number)
    for name in ("TPU_CHIPS_PER_PROCESS_BOUNDS", "TPU_PROCESS_BOUNDS"):
        monkeypatch.delenv(name)


def test_the_maps_are_those_of_the_networks(searched):
    _, workdir, _, _ = searched
    maps = [each.map for each in mapping.read(workdir)]
    assert all(len(each) == 3 and max(each) < 6 for each in maps) and max(map(max, maps)) == 5


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda c: setattr(c, "search", ConfigDict()), "this recipe has no search"),
        (lambda c: c.search.update({"stage": "folow"}), "search.stage='folow' .*did you mean 'follow'"),
        (lambda c: c.search.update({"stage": "teacher"}), "of kind 'pretrain', which has no layer_map"),
        (lambda c: c.search.update({"elites": 8}), "elites=8 leaves no place in a population of 8"),
        (lambda c: c.search.update({"mutation": 1.5}), "config.search.mutation=1.5; expected"),
        (lambda c: c.update({"order": ("teacher", "follow")}), "no stage after 'follow' learns a task"),
        (lambda c: c.search.teacher_scores.update({"tusk": 1.0}), "'tusk' is no task that is learned"),
        (lambda c: c.stages.follow.update({"layer_map": (0, 1)}), "layer_map"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched(change, said, tmp_path):
    config = recipe(tmp_path)
    change(config)
    with pytest.raises(BadInput, match=said):
        mapping.search(config, tmp_path / "run", train=Pretended())
    assert not (tmp_path / "run").exists()


def test_a_setting_that_there_is_not():
    with pytest.raises(
        BadInput, match="mapping_search has no setting 'popuation'; did you mean 'population'"
    ):
        defaults.mapping_search("follow", popuation=3)


def test_another_recipe_and_another_folder_are_refused(searched, tmp_path):
    config, workdir, _, _ = searched
    other = config.copy_and_resolve_references()
    other.stages.follow.steps = 3
    before = (workdir / mapping.LINES).read_bytes()
    with pytest.raises(BadInput, match="search with another recipe .unlike: stages"):
        mapping.search(other, workdir, train=Pretended())
    assert (workdir / mapping.LINES).read_bytes() == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty and holds no search"):
        mapping.search(config, tmp_path, train=Pretended())


def test_the_command(tmp_path, capsys, monkeypatch):
    """One line at the end, and one for each mistake."""
    monkeypatch.setattr(run, "train", Pretended())
    config = recipe(tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps(config.to_dict()))
    ask = (
        "search",
        "mapping",
        f"--config={tmp_path / 'recipe.json'}",
        f"--workdir={tmp_path / 'run'}",
    )
    code, out, _ = run_command(capsys, *ask, "--budget=4")
    assert code == 0 and out.startswith("best layer map of stage 'follow': (")
    assert out.rstrip().endswith(f"train it by --config={tmp_path / 'run' / 'best.json'}")
    code, out, _ = run_command(capsys, *ask, "--budget=4", "--json")
    assert code == 0 and json.loads(out)["evaluations"] == 4
    code, _, err = run_command(capsys, *ask, "--budget=0")
    assert_one_line(code, err, "budget=0: expected 1 or more")
    code, _, err = run_command(capsys, "search", *ask[2:])
    assert_one_line(code, err, "mapping")
    code, _, err = run_command(capsys, "search", "students", *ask[2:])
    assert_one_line(code, err, "students", "mapping")


@pytest.mark.slow
def test_maps_share_their_programs(tmp_path):
    """Real runs: what the first map compiled serves the others."""
    config = recipe(tmp_path)
    commands.search_mapping(config, tmp_path / "run", budget=3)
    compiled = [each.compiled for each in mapping.read(tmp_path / "run")]
    assert compiled[0] > 0 and compiled[1:] == [0, 0]


@pytest.mark.slow
def test_workers_find_what_one_process_finds(tmp_path):
    """Two at a time, in whatever order they end."""
    config = recipe(tmp_path)
    config.search.update({"population": 4, "elites": 1, "generations": 2})
    runs = {}
    for workers in (1, 2):
        commands.search_mapping(config, tmp_path / f"run{workers}", workers=workers)
        runs[workers] = sorted(each[:3] for each in lines_of(tmp_path / f"run{workers}"))
    assert runs[1] == runs[2]
