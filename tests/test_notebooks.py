"""The notebooks in colab/: stripped, pinned, and executed top to bottom in toy size on the CPU,
without a network."""

import ast
import importlib
import os
import pathlib
import re
import tomllib

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import write_text

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "colab"
NAMES = (
    "quickstart",
    "use_a_student_in_transformers",
    "mobilebert_tpu",
)  # the second uses the run of the first
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
TAG = f"v{PROJECT['version']}"


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def tagged(book, tag):
    return [cell.source for cell in book.cells if tag in cell.metadata.get("tags", ())]


def test_these_are_all():
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.ipynb" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_stripped(name):
    book = read(name)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert all(set(cell.metadata) <= {"tags"} for cell in book.cells) and set(book.metadata) <= {
        "kernelspec",
        "language_info",
        "colab",
        "accelerator",
    }
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 50_000


@pytest.mark.parametrize("name", NAMES)
def test_what_each_says_and_installs(name):
    book = read(name)
    top = book.cells[0].source
    badge = (
        f"(https://colab.research.google.com/github/{REPOSITORY.removeprefix('https://github.com/')}/blob/{TAG}/colab/"
        f"{name}.ipynb)"
    )
    assert badge in top and badge in (ROOT / "README.md").read_text()
    assert (
        "**What you get.**" in top
        and "**How long it takes**" in top
        and "No account is needed" in top
    )
    assert (
        all(re.search(rf"^\| {kind}", top, re.M) for kind in ("CPU", "GPU", "TPU"))
        and "@@" not in top
    )
    (install,), (parameters,) = tagged(book, "install"), tagged(book, "parameters")
    assert f'@ git+{REPOSITORY}@{TAG}"' in install and 'find_spec("google.colab")' in install
    assert "JAXDISTILL_SMOKE" in parameters
    others = [
        cell.source
        for cell in book.cells
        if cell.cell_type == "code" and cell.source not in (install, parameters)
    ]
    assert not re.search(r"environ|%pip|!pip|login|google\.colab\b(?!.*import)", "\n".join(others))
    # A notebook shows; what it shows is in the package.
    trees = [ast.parse(source) for source in others]
    functions = [
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    ]
    assert functions == (
        ["step", "loss", "predict"] if name == "use_a_student_in_transformers" else []
    )
    assert (
        any("hardware()" in source for source in others)
        and sum("Image(" in source for source in others) >= 1
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_each_calls_is_there(name):
    """The notebooks that run only now and then do not outlive a name of ours."""
    known, called = {}, 0
    for cell in read(name).cells:
        if cell.cell_type != "code" or "install" in cell.metadata.get("tags", ()):
            continue
        nodes = list(ast.walk(ast.parse(cell.source)))
        for node in nodes:
            if isinstance(node, ast.Import):
                ours = [alias.name for alias in node.names if alias.name == "jaxdistill"]
                known |= {ours: importlib.import_module(ours) for ours in ours}
            elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "jaxdistill":
                for alias in node.names:
                    known[alias.name] = getattr(
                        importlib.import_module(node.module), alias.name, None
                    ) or importlib.import_module(f"{node.module}.{alias.name}")
        for node in nodes:
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in known:
                assert hasattr(known[node.value.id], node.attr), f"{node.value.id}.{node.attr}"
                called += 1
    assert called > 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    write_text(folder / "text.txt", documents=800)
    return folder


# By hand: each compiles anew in a process of its own. What they call is tested above, and by the README's test.
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_top_to_bottom(name, folder, monkeypatch):
    monkeypatch.setenv("JAXDISTILL_SMOKE", "1")
    monkeypatch.setenv("JAXDISTILL_SOURCE", str(folder / "text.txt"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(
        "XLA_FLAGS", re.sub(r"device_count=\d+", "device_count=1", os.environ["XLA_FLAGS"])
    )  # compiles faster
    for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(switch, "1")
    monkeypatch.setenv("no_proxy", "*")
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    book = read(name)
    book.cells = [cell for cell in book.cells if "install" not in cell.metadata.get("tags", ())]
    NotebookClient(
        book, timeout=600, startup_timeout=300, resources={"metadata": {"path": os.fspath(folder)}}
    ).execute()
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    plots = [cell for cell in code if "Image(" in cell.source]
    assert all(
        "image/png" in output.data
        for cell in plots
        for output in cell.outputs
        if output.output_type == "execute_result"
    )
    assert (
        len(plots)
        == {"quickstart": 3, "use_a_student_in_transformers": 1, "mobilebert_tpu": 3}[name]
    )
