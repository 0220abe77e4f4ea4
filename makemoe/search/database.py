"""Optuna and its database: opened, closed, and its errors in one line."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from makemoe.errors import DataError, MissingPackageError, UsageError

if TYPE_CHECKING:
    from sqlalchemy import Engine

BEFORE_HOST = re.compile("(://[^:/]*:)[^@]*@")
IN_QUERY = re.compile("([?&][a-z_]*passw(?:or)?d=)[^&]*", re.IGNORECASE)
"""Passwords where SQLAlchemy reads them: they may have characters that end a host elsewhere."""

PATIENCE_S = 60
"""How long a worker waits for a database file that others write, in seconds."""


def library() -> ModuleType:
    """Optuna, which then prints warnings only; MissingPackageError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise MissingPackageError(
            "makemoe sweep needs the package optuna: pip install 'makemoe[sweep]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextmanager
def database(url: str) -> Iterator[Any]:
    """The database of a URL, whose connections are closed at the end."""
    waits = {"connect_args": {"timeout": PATIENCE_S}} if url.startswith("sqlite") else {}
    try:
        opened = library().storages.RDBStorage(url, engine_kwargs=waits)
    except ImportError as error:
        raise MissingPackageError(
            f"--storage {hidden(url)} needs a driver that is not installed ({error}): for "
            "PostgreSQL, pip install 'psycopg[binary]' and begin the URL with postgresql+psycopg://"
        ) from error
    try:
        if opened.engine.dialect.name == "sqlite":
            lock_from_the_beginning(opened.engine)
        yield opened
    finally:
        opened.remove_session()
        opened.engine.dispose()


def lock_from_the_beginning(engine: "Engine") -> None:
    """Let transactions of SQLite lock the file when they begin.

    Optuna reads a trial's state and then sets it. Other databases lock the row for that; in
    SQLite, which cannot, two workers took the same trial.
    """
    from sqlalchemy import event

    # Otherwise the driver begins transactions by itself, before the first change.
    event.listen(engine, "connect", lambda made, _: setattr(made, "isolation_level", None))
    event.listen(engine, "begin", lambda begun: begun.exec_driver_sql("BEGIN IMMEDIATE"))
    engine.dispose()  # connections that are open already


def see(url: str) -> None:
    """Raise the error of a database that cannot be reached."""
    with reaching(url), database(url):
        pass


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn errors of a search into errors of one line, which does not hold a password."""
    optuna = library()
    from sqlalchemy import exc

    try:
        yield
    except ImportError as error:  # some samplers import a package when they first propose
        raise MissingPackageError(
            f"the sampler or pruner needs a package that is not installed ({error})"
        ) from error
    except (exc.ArgumentError, exc.NoSuchModuleError) as error:
        raise UsageError(
            f"--storage {hidden(url)} is not the URL of a database, such as sqlite:///sweep.db or "
            "postgresql+psycopg://user:password@host/name"
        ) from error
    except (optuna.exceptions.StorageInternalError, exc.SQLAlchemyError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        why = str(getattr(cause, "orig", cause)).strip().partition("\n")[0]
        raise DataError(f"--storage {hidden(url)} cannot be used: {why}") from error


def hidden(url: str) -> str:
    """A URL without its password."""
    return IN_QUERY.sub(r"\1***", BEFORE_HOST.sub(r"\1***@", url))


def without_passwords(arguments: Sequence[str]) -> list[str]:
    """A command line whose `--storage` has no password."""
    words: list[str] = []
    for word in arguments:
        if words[-1:] == ["--storage"]:
            words.append(hidden(word))
        elif word.startswith("--storage="):
            words.append("--storage=" + hidden(word.partition("=")[2]))
        else:
            words.append(word)
    return words
