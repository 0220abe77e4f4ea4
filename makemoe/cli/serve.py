"""`makemoe serve`: a page and a JSON endpoint that sample from a checkpoint."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

import torch

from makemoe.checkpoint.inference import load_for_inference
from makemoe.devices import find_device
from makemoe.errors import MissingPackageError, UsageError
from makemoe.machine import cores
from makemoe.run import RunSettings, find_checkpoint, tell_checkpoint
from makemoe.serve.limits import Limits
from makemoe.training.memory import keep_freed_memory

TOKEN_VARIABLE = "MAKEMOE_TOKEN"
"""Environment variable with the token: an option can be seen by all users of the machine."""


def serve(options: argparse.Namespace) -> int:
    """Load a checkpoint and serve it until Ctrl-C or SIGTERM.

    Args:
        options: those of `serve_options`.
    """
    try:
        from makemoe.serve import server
        from makemoe.serve.app import Served, application
        from makemoe.serve.engine import Engine
        from makemoe.serve.guard import Guard
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "h11"):
            raise
        raise MissingPackageError(
            "makemoe serve needs the packages starlette and uvicorn: pip install 'makemoe[serve]'"
        ) from None
    limits = Limits(
        rows=options.max_streams,
        waiting=options.max_waiting,
        max_tokens=options.max_new_tokens,
        prompt=options.max_prompt,
        seconds=options.timeout,
    )
    token = read_token(options)
    device = find_device(options.device)
    # Before the model is loaded: a port that is taken is told at once.
    with server.listening(options.host, options.port) as listener:
        path = find_checkpoint(options.ckpt_path, RunSettings(root=options.root))
        net, tokenizer = load_for_inference(path, options.trust)
        tell_checkpoint(path)
        keep_freed_memory()
        leave_a_core()
        # As in `predict`: in bf16 a text would depend on what is sampled beside it.
        net.to(device, torch.float32)

        async def run() -> None:
            engine = Engine(net, tokenizer, limits)
            created = int(os.stat(path).st_mtime)
            served = Served(engine, model_name(path), created, options.log)
            hosts, origins = [options.host, *options.allow_host], options.allow_origin
            guard = Guard(application(served), hosts, origins, token)
            say_where(server.url_of(listener), server.is_local(listener), token)
            await server.serve(server.new_server(guard, engine), listener)

        asyncio.run(run())
    return 0


def leave_a_core() -> None:
    """Compute with one thread less than there are cores, unless the user has said how many.

    Sending texts takes a core, and so do clients on this machine. After each operation all threads
    wait for the last one: for one without a core, they wait long.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() >= cores() > 1:
        torch.set_num_threads(cores() - 1)


def read_token(options: argparse.Namespace) -> str | None:
    """The token that clients have to know, if any."""
    token = os.environ.get(TOKEN_VARIABLE) if options.token is None else options.token
    if token is None:
        return None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("--token is empty or has other characters than letters, digits and signs")
    return str(token)


def model_name(path: str) -> str:
    """The name of the model: that of its run, or else of the file."""
    file = Path(path).resolve()
    return file.parent.name if file.stem in ("last", "best") else file.stem


def say_where(url: str, is_local: bool, token: str | None) -> None:
    """Say on standard error where the page is, and who can reach it."""
    if not is_local and token is None:
        print(
            "makemoe: warning: other machines can reach this server, and it has no password: "
            "use --token, or --host 127.0.0.1",
            file=sys.stderr,
        )
    what = " (the page asks for the token)" * (token is not None)
    print(f"makemoe: serving at {url}{what}; Ctrl-C ends it", file=sys.stderr, flush=True)
