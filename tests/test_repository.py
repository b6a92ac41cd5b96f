"""What holds for the repository as a whole: lint, types, README's map, packaging, a light
import."""

import ast
import graphlib
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from jaxdistill.cli_commands import COMMANDS, FORMER_COMMANDS

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "jaxdistill"


@pytest.mark.parametrize(
    "command", [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)], ids=" ".join
)
def test_clean(command):
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_map_names_every_room_and_file():
    """The map is either exact or a trap: every module is named by its file, or by its room."""
    block = re.search(r"## Map\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    files = {
        path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"
    }
    for file in files:
        in_a_line = file.parts[0] == "data"  # a room described in a line
        assert in_a_line or file.name in block, file
    for name in re.findall(r"(\w+)\.py", block):
        assert (
            any(path.stem == name for path in PACKAGE.rglob("*.py"))
            or (ROOT / "benchmarks" / f"{name}.py").exists()
        ), name
    scripts = {path.name for path in (ROOT / "launch").glob("*.sh")}
    assert scripts == set(re.findall(r"\w+\.sh", block))


def test_every_command_that_is_written_of_is_there():
    """README, docs, notebooks, scripts and messages do not outlive a command or option of ours."""
    places = (
        "*.md",
        "docs/*.md",
        "colab/*.ipynb",
        "launch/*.sh",
        "configs/*.py",
        "jaxdistill/**/*.py",
    )
    found = 0
    for file in (file for place in places for file in ROOT.glob(place)):
        known = {*COMMANDS, *(FORMER_COMMANDS if file.name == "cli_commands.py" else ())}
        mentions = re.findall(
            r"""(?:[`']|\]}" |^run |^)jaxdistill ([a-z]+)\b([^`\n]*)""", file.read_text(), re.M
        )
        for command, rest in mentions:
            assert command in known, f"{file}: jaxdistill {command}"
            options = set(re.findall(r"--([a-z_0-9]+)", rest)) - {"help"}
            unknown = options - COMMANDS[command].options.keys() if command in COMMANDS else set()
            assert not unknown, f"{file}: jaxdistill {command} --{min(unknown)}"
            found += 1
    assert found > 30


def test_every_module_is_packaged():
    """Explicit package lists forget new folders: the wheel would lack them."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("*.py")}
    assert set(packages) == folders | {"jaxdistill.configs"}


def test_an_import_never_goes_up():
    """The floors of the house: what a room may import of the others (`resolve` is plain data, above
    training)."""
    below = {
        "kernels": set(),
        "models": set(),
        "data": set(),
        "objectives": {"kernels", "models"},
        "students": {"models"},
        "forward": {"models", "objectives"},
        "methods": {"models", "objectives", "forward"},
        "training": {"models", "objectives", "forward", "methods"},
        "evaluation": {"models", "objectives", "methods", "training", "data"},
        "interop": {"models"},
        "planning": {
            "models",
            "objectives",
            "students",
            "methods",
            "training",
            "interop",
            "resolve",
            "recipe",
            "checks",
            "data",
            "configuration",
        },
    }
    for room, allowed in below.items():
        for file in (PACKAGE / room).rglob("*.py"):
            for name in re.findall(r"(?:from|import) jaxdistill\.(\w+)", file.read_text()):
                assert name in allowed | {room, "errors", "registry", "settings"}, (
                    f"{file.relative_to(ROOT)} imports jaxdistill.{name}"
                )


def imported(file):
    """The modules of ours that a file imports, at its top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").partition(".")[0] == "jaxdistill"
        ):
            folder = ROOT.joinpath(*node.module.split("."))
            inside = {
                name.name
                for name in node.names
                if (folder / f"{name.name}.py").exists()
                or (folder / name.name / "__init__.py").exists()
            }
            found |= {f"{node.module}.{name}" for name in inside}
            if inside != {name.name for name in node.names}:
                found.add(node.module)
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("jaxdistill.")}
    return found


def test_no_import_goes_round_in_a_circle():
    """A module stands on others that do not stand on it, at its top or in a function."""
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in PACKAGE.rglob("*.py")
    }
    graphlib.TopologicalSorter(
        {name: imported(file) - {name} for name, file in modules.items() if name != "jaxdistill"}
    ).prepare()


def test_import_is_light():
    """Under two seconds, and no TensorFlow, PyTorch, transformers or jax before they are needed."""
    code = (
        "import sys, time; start = time.perf_counter(); import jaxdistill; took = time.perf_counter() - start; "
        "print(took, [m for m in ('tensorflow', 'torch', 'transformers', 'jax') if m in sys.modules])"
    )
    took, heavy = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split(" ", 1)
    assert float(took) < 2 and heavy.strip() == "[]"


def test_every_public_name_resolves():
    import jaxdistill

    for name in jaxdistill.__all__:
        assert getattr(jaxdistill, name) is not None
        assert (
            callable(getattr(jaxdistill, name)) or name == "__version__"
        )  # a module of the same name would hide it


def test_nothing_unpickles():
    for file in PACKAGE.rglob("*.py"):
        found = re.search(
            r"\bpickle\.load|allow_pickle=True|torch\.load\(|joblib\.load|trust_remote_code=True",
            file.read_text(),
        )
        assert not found, f"{file}: {found}"
