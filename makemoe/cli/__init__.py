"""The command line `makemoe`: which subcommand, and how it ends.

Sampling and inspecting do not import Lightning, so a command is imported only when it is asked for.
"""

import os
import sys
from collections.abc import Sequence

from makemoe import __version__
from makemoe.errors import DISK_FAULTS, MakeMoEError

HELP = """\
makemoe {version}: character-level language models with sparse mixture-of-experts layers

usage: makemoe COMMAND [OPTIONS]

  fit       train:    makemoe fit --config configs/quickstart.yaml
                      makemoe fit --config configs/makemoe.yaml --data.corpus my.txt
            resume:   makemoe fit --ckpt_path last
  validate  exact loss on the validation split:  makemoe validate --ckpt_path best
  test      exact loss on a text:                makemoe test --ckpt_path best \
--data.test_corpus FILE
  predict   sample text:                         makemoe predict --ckpt_path last \
--prompt "ROMEO:"
  inspect   what a checkpoint holds, its balance: makemoe inspect --ckpt_path last
  runs      the runs there are: steps, best loss, whether they are running

Each has --help. --ckpt_path takes a file, the name of a run, or `last` or `best` of the newest run
in checkpoints/.
Exit status: 0 done, 1 data or checkpoint at fault, 2 usage, 3 inspect found experts dead, a router
collapsed or no finite loss, 128 + n stopped by signal n.
"""

COMMANDS = ("fit", "validate", "test", "predict", "inspect", "runs")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = run(arguments)
        sys.stdout.flush()
        return status
    except MakeMoEError as error:
        return fail(str(error), error.exit_status)
    except BrokenPipeError:
        close_output()  # whoever read it has gone
        return 1
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        if arguments[:1] != ["fit"]:  # only a fit has files of its own
            close_output()
            return fail(f"cannot write {error.filename or 'standard output'}: {error.strerror}", 1)
        return fail(
            f"cannot write {error.filename or 'to the disk'}: {error.strerror}; "
            "make room there, or choose another folder with --run.root",
            1,
        )
    except KeyboardInterrupt:
        return 130


def close_output() -> None:
    """Let what is left for standard output go, so that Python's flush at exit does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(arguments: list[str]) -> int:
    """Dispatch to the subcommand's own module."""
    # A console script does not see the folder it is called in, where a user's own router lies.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(HELP.format(version=__version__), end="")
        return 0 if arguments else 2
    if command == "--version":
        print(f"makemoe {__version__}")
        return 0
    if command == "predict":
        from makemoe.cli.predict import predict

        return predict(arguments[1:])
    if command == "inspect":
        from makemoe.cli.inspect import inspect

        return inspect(arguments[1:])
    if command == "runs":
        from makemoe.cli.runs import runs

        return runs(arguments[1:])
    if command in COMMANDS:
        from makemoe.cli.training import train

        return train(arguments)
    from makemoe.cli.parser import did_you_mean

    return fail(f"no command {command!r}{did_you_mean(command, COMMANDS)}; see makemoe --help", 2)


def fail(message: str, status: int) -> int:
    """Tell the user in one line, once over all processes."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"makemoe: error: {message}", file=sys.stderr)
    return status
