"""The command line `makemoe`: subcommands and exit statuses.

Sampling and inspecting do not need Lightning, and help does not need torch, so each command is
imported only when it is used.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from makemoe import __version__
from makemoe.cli import interrupts
from makemoe.cli.help import DESCRIPTIONS
from makemoe.errors import UsageError

HELP = """\
makemoe {version}: small language models with sparse mixture-of-experts layers

usage: makemoe COMMAND [OPTIONS]

  fit       train:    makemoe fit --config quickstart --data.corpus my.txt
            resume:   makemoe fit --ckpt_path last
  validate  exact loss on the validation split:  makemoe validate --ckpt_path best
  test      exact loss on a text:                makemoe test --ckpt_path best \
--data.test_corpus FILE
  predict   sample text:                         makemoe predict --ckpt_path last \
--prompt "ROMEO:"
  serve     a page that shows the experts at work: makemoe serve --ckpt_path last
  inspect   contents of a checkpoint, expert load: makemoe inspect --ckpt_path last
  export    a folder that transformers loads:    makemoe export --ckpt_path best --to DIR
  import    a checkpoint from such a folder:     makemoe import --from DIR
  consolidate  pieces to one file:               makemoe consolidate --ckpt_path last --to FILE
  compare   variants in one table:  makemoe compare --config quickstart --vary model.top_k=1,2
  plan      memory, bytes and time on many devices: makemoe plan --config quickstart --devices 64
  sweep     search options for the lowest loss:  makemoe sweep --config laptop --config sweep
  runs      list of all runs: steps, best loss, whether they are running
  completion  a script that completes all this in bash, zsh or fish

Each command has --help. --ckpt_path takes a file, the name of a run, or `last` or `best` for the
newest run in checkpoints/.
Exit status: 0 success, 1 data or checkpoint error, 2 usage error, 3 inspect found dead experts,
collapsed routers or a loss that is not finite, 70 a bug in makemoe, 128 + n stopped by signal n.
"""

COMMANDS = (
    *("fit", "validate", "test", "predict", "serve", "inspect", "export", "import", "consolidate"),
    *("compare", "plan", "sweep", "runs", "completion"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status.

    Args:
        argv: the command and its options. If omitted, the process belongs to makemoe, which then
            reads its arguments and handles its signals and standard streams.
    """
    if argv is not None:
        return attempt(list(argv))
    interrupts.begin()
    try:
        return attempt(sys.argv[1:], streams_are_ours=True)
    finally:
        interrupts.end()


def attempt(arguments: list[str], streams_are_ours: bool = False) -> int:
    """Run one subcommand, report what it raises, and return the exit status."""
    # Not at the top: as few imports as possible before Ctrl-C is handled.
    from makemoe.cli.failures import fail, tell
    from makemoe.cli.streams import close_output, open_closed, show_any_text

    try:
        # Training writes files, and prints the rest to standard error.
        if streams_are_ours and open_closed() and arguments[:1] != ["fit"]:
            return fail("standard output is closed: leave it open, or redirect it to a file", 1)
        if streams_are_ours:
            show_any_text()
        try:
            status = run(arguments)
        except SystemExit as ended:  # argparse, after printing help
            status = ended.code if isinstance(ended.code, int) else 0
        sys.stdout.flush()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or interrupts.received:
            status = interrupts.status()
        else:
            return tell(error, arguments)
    if interrupts.received:
        status = interrupts.status()
        try:
            sys.stdout.flush()
        except OSError:
            with suppress(OSError):
                close_output()
    return status


def run(arguments: list[str]) -> int:
    """Dispatch to the subcommand's module. Until it is imported, there is nothing to clean up."""
    see_working_folder()
    if os.environ.get("MAKEMOE_DEBUG", "0") in ("", "0"):
        # When a connection fails, torch prints a stack of C++ functions; the error says it as well.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(HELP.format(version=__version__), end="")
        return 0 if arguments else 2
    if command == "--version":
        print(f"makemoe {__version__}")
        return 0
    if command in DESCRIPTIONS and not {"-h", "--help"}.isdisjoint(arguments):
        from makemoe.cli.signatures import short_help

        print(short_help(command), end="")
        return 0
    if command == "predict":
        from makemoe.cli.options import predict_options

        options = predict_options(arguments[1:])
        from makemoe.cli.predict import predict

        interrupts.work()
        return predict(options)
    if command == "serve":
        from makemoe.cli.options import serve_options

        options = serve_options(arguments[1:])
        from makemoe.cli.serve import serve

        interrupts.work()
        return serve(options)
    if command == "inspect":
        from makemoe.cli.options import inspect_options

        options = inspect_options(arguments[1:])
        from makemoe.cli.inspect import inspect

        interrupts.work()
        return inspect(options)
    if command == "export":
        from makemoe.cli.options import export_options

        options = export_options(arguments[1:])
        from makemoe.cli.exchange import export

        interrupts.work()
        return export(options)
    if command == "import":
        from makemoe.cli.options import import_options

        options = import_options(arguments[1:])
        from makemoe.cli.exchange import take_in

        interrupts.work()
        return take_in(options)
    if command == "consolidate":
        from makemoe.cli.options import consolidate_options

        options = consolidate_options(arguments[1:])
        from makemoe.cli.consolidate import consolidate

        interrupts.work()
        return consolidate(options)
    if command == "compare":
        from makemoe.cli.compare import compare

        interrupts.work()
        return compare(arguments[1:])
    if command == "plan":
        from makemoe.cli.plan import plan

        interrupts.work()
        return plan(arguments[1:])
    if command == "sweep":
        from makemoe.cli.sweep import sweep

        interrupts.work()
        return sweep(arguments[1:])
    if command == "runs":
        from makemoe.cli.runs import runs

        return runs(arguments[1:])
    if command == "completion":
        from makemoe.cli.completion import completion

        return completion(arguments[1:])
    if command in COMMANDS:
        from makemoe.cli.training import train

        interrupts.work()
        return train(arguments)
    from makemoe.cli.parser import did_you_mean

    raise UsageError(
        f"unknown command {command!r}{did_you_mean(command, COMMANDS)}; see makemoe --help"
    )


def see_working_folder() -> None:
    """Put the working folder on the import path, so that a user's own router there is found.

    A console script does not have it there.
    """
    try:
        folder = os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the working folder has been removed: change to another one") from error
    if folder not in sys.path:
        sys.path.append(folder)
