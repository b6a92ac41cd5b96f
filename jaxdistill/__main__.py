"""`jaxdistill` and `python -m jaxdistill`: memory is set up and signals are listened to before anything
else is imported, then the command line."""

import sys

from jaxdistill import allocation, signals


def main() -> int:
    """As `jaxdistill.cli.main`, from the first import on: Ctrl-C there is one line too."""
    try:
        allocation.reuse_freed_memory()  # first: the listener is a thread
        signals.listen()
        from jaxdistill import cli

        return cli.main()
    except KeyboardInterrupt:  # while that was imported
        signals.ignore()
        code = signals.CODES.get(signals.asked or 0, 130)
        signals.say(signals.line(code))
        return code


if __name__ == "__main__":
    sys.exit(main())
