"""Small recipes as files, for tests that go through the command line."""

from jaxdistill import cli

RECIPE = """
from tests.conftest import tiny_config

def get_config(variant=""):
    config = tiny_config({source!r})
    config.export = True
    config.order = ("teacher", "transfer", "distill")
    return config
"""


def recipe(path, source):
    """Writes the recipe of the fixture `finished`, on another text, to `path`; returns it."""
    path.write_text(RECIPE.format(source=str(source)))
    return path


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of one command."""
    capsys.readouterr()
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def assert_one_line(code, err, *words, exit_code=2):
    """One clear line on standard error that holds `words`."""
    assert code == exit_code and err.startswith("jaxdistill: ") and err.count("\n") == 1, err
    for word in words:
        assert str(word) in err


def contents(folder):
    """{path below the folder: bytes} of all its files."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
