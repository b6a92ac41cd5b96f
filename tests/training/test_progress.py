"""The progress line: its words, how often it is printed, the bar on a terminal, and silence."""

import io

import pytest

from jaxdistill.training.progress import Progress


@pytest.fixture(autouse=True)
def not_silenced(monkeypatch):
    """The other tests are run with the environment variable that silences this one's subject."""
    monkeypatch.delenv("JAXDISTILL_PROGRESS", raising=False)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(total, steps, seconds, **options):
    """Lines printed by `steps` updates `seconds` apart."""
    clock, stream = Clock(), io.StringIO()
    with Progress(total, "transfer", stream=stream, clock=clock, **options) as bar:
        for step in range(steps):
            clock.now += seconds
            bar.update(1, loss=4.0 - 0.001 * step)
    return stream.getvalue().splitlines()


def test_plain_lines_every_ten_seconds():
    lines = run(720, 720, 0.125, tokens_per_unit=1024)
    assert lines[0] == "transfer 80/720 (11%) loss 3.92 8.0 it/s 8.2k tok/s ETA 1:20"
    assert len(lines) == 10  # 90 seconds and the last word
    assert lines[-1] == "transfer 720/720 (100%) loss 3.28 8.0 it/s 8.2k tok/s in 1:30"


def test_the_rate_forgets_the_compilation():
    clock, stream = Clock(), io.StringIO()
    with Progress(1000, "transfer", stream=stream, clock=clock) as bar:
        clock.now = 300.0  # the first step compiles
        bar.update()
        for _ in range(100):
            clock.now += 0.5
            bar.update()
        assert bar.rate() == pytest.approx(2.0)
        assert bar.line().endswith("ETA 7:30")


def test_a_very_fast_loop_keeps_a_short_history():
    clock = Clock()
    with Progress(None, "tokenise", stream=io.StringIO(), clock=clock) as bar:
        for _ in range(20_000):
            clock.now += 2**-10
            bar.update()
        assert bar.rate() == pytest.approx(1024) and len(bar._history) < 400


def test_resuming_counts_on_but_does_not_claim_the_speed():
    clock = Clock()
    with Progress(100, "x", initial=90, stream=io.StringIO(), clock=clock) as bar:
        for _ in range(5):
            clock.now += 1.0
            bar.update()
        assert bar.line() == "x 95/100 (95%) 1.0 it/s ETA 0:05"
        assert bar.line(final=True) == "x 95/100 (95%) 1.0 it/s in 0:05"


def test_unknown_total_other_units_and_text():
    clock = Clock()
    with Progress(None, "tokenise", unit="documents", stream=io.StringIO(), clock=clock) as bar:
        for _ in range(4):
            clock.now += 1.0
            bar.update(3000, file="a.txt", size=1_500_000.0, rate=0.00012)
        assert bar.line() == "tokenise 12,000 file a.txt size 1.5e+06 rate 0.00012 3.0k documents/s"


def test_the_time_left_of_the_whole_run():
    """Later stages in units of this one, from the first rate on; not of a loop that is the last."""
    assert run(720, 1, 12.0, later=500.0)[0] == "transfer 1/720 (0%) loss 4"  # no rate yet
    lines = run(720, 720, 0.125, later=480.0)
    assert (
        lines[0] == "transfer 80/720 (11%) loss 3.92 8.0 it/s ETA 1:20, of the run 2:20"
        and "run" not in lines[-1]
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_a_closed_terminal_ends_what_is_shown_and_nothing_else(monkeypatch, terminal):
    class Gone(io.StringIO):
        def isatty(self):
            return terminal

        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setenv("TERM", "xterm-256color")
    clock = Clock()
    with Progress(4, "distill", stream=Gone(), clock=clock) as bar:
        for _ in range(4):
            clock.now += 11.0
            bar.update(1, loss=2.5)
    assert bar.done == 4


def test_nothing_done_at_all():
    assert run(0, 0, 1.0) == ["transfer 0/0 (0%) in 0:00"]


def test_silence(monkeypatch):
    assert run(10, 10, 20.0, quiet=True) == []
    monkeypatch.setenv("JAXDISTILL_PROGRESS", "0")
    assert run(10, 10, 20.0) == []
    assert run(10, 10, 20.0, quiet=False) != []


def test_a_bar_on_a_terminal_ends_with_the_same_words(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    clock, stream = Clock(), Terminal()
    with Progress(4, "distill", stream=stream, clock=clock) as bar:
        for _ in range(4):
            clock.now += 1.0
            bar.update(1, loss=2.5)
    text = stream.getvalue()
    assert "distill 4/4 (100%) loss 2.50 1.0 it/s in 0:04" in text and "━" in text


def test_an_error_inside_the_loop_passes_through():
    with pytest.raises(RuntimeError), Progress(4, "x", stream=io.StringIO()) as bar:
        bar.update()
        raise RuntimeError
