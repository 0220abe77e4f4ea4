"""Checkpoints with hostile fields, and with damaged bytes."""

from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from fuzz.case import Case
from fuzz.damage import PICKLES
from fuzz.fields import ADDED, paths
from fuzz.folder import RUNS
from fuzz.hostile import CLASS_PATHS, FRAGMENTS, MARKER, SHELL, VALUES, WORDS

FILE = "odd.ckpt"
ARGUMENTS = (
    *({}, {"argv": ["fit", "--run.name", MARKER]}, {"command": SHELL}, {"args": ["touch", MARKER]}),
    *(
        {"filename": MARKER},
        {"save_dir": MARKER},
        {"folder": MARKER},
        {"path": MARKER},
        {"x": None},
    ),
    {"lr_lambda": "stranger.call"},
    {"lr_lambda": "{class_path: stranger.Router}"},
    {"schedulers": [{"class_path": "stranger.Router"}], "milestones": []},
    {"score": "stranger.Router", "top_k": 10**12, "n_embd": 10**10},
    {"activation": "os.system", "hidden": 10**10},
    {"vocabulary": ["a", "b"]},
    {"vocabulary": 5},
    {"warmup_steps": -(10**10), "total_steps": 0, "final_share": float("nan")},
    {"update_rate": 1e308, "calibration_tokens": 10**12},
    {"calibration_tokens": -1, "weight": float("nan")},
    {"lr": "1e-3", "betas": "[0.9, 0.9]"},
    {"lr": 1e308, "betas": (2, 2), "eps": -1},
)
PART = st.builds(
    lambda path, arguments: {"class_path": path, "init_args": arguments},
    st.sampled_from(CLASS_PATHS),
    st.sampled_from(ARGUMENTS),
)
PLAIN = st.one_of(
    st.sampled_from(FRAGMENTS),
    st.sampled_from(WORDS),
    st.sampled_from(CLASS_PATHS),
    PART,
    PART.map(lambda part: [part]),
    st.integers(),
    st.floats(),
    st.text(max_size=10),
    st.lists(st.integers(-5, 5), max_size=4),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)
EVALUATIONS = (
    ("predict", "--ckpt_path", FILE, "--max_new_tokens", "5", "--temperature", "0"),
    ("inspect", "--ckpt_path", FILE, "--data.corpus", "text.txt"),
    ("inspect", "--ckpt_path", FILE, "--json"),
    ("validate", "--ckpt_path", FILE),
    ("test", "--ckpt_path", FILE, "--data.test_corpus", "other.txt"),
)
COMPARED = ("predict", "validate", "test")
TORN = (
    *("flip", "truncate", "append", "prepend", "double", "swap", "overwrite", "insert", "remove"),
    "empty",
)
RESUME = ("fit", "--ckpt_path", FILE, "--run.name", "mine")
USES = (*EVALUATIONS, *EVALUATIONS, RESUME, RESUME, (*RESUME, "--trainer.max_steps", "4"))


def hostile_fields(prepared: Path) -> st.SearchStrategy[Case]:
    """One field or two of a checkpoint replaced, added or removed."""
    places = {run: _places(prepared, run) for run in RUNS}
    return st.one_of(*(_fields(run, *known) for run, known in sorted(places.items())))


def _places(prepared: Path, run: str) -> tuple[list[Any], list[Any]]:
    """Places that hold settings, and all places; each weight alone would drown the rest."""
    path = prepared / "checkpoints" / run / "last.ckpt"
    every = [list(place) for place in paths(torch.load(path, weights_only=True))]
    rooms = ("makemoe", "hyper_parameters", "datamodule_hyper_parameters")
    return [place for place in every if place[0] in rooms], every


def _fields(run: str, settings: list[Any], every: list[Any]) -> st.SearchStrategy[Case]:
    place = st.one_of(
        st.sampled_from(settings),
        st.sampled_from(settings),
        st.sampled_from(every),
        st.sampled_from([list(added) for added in ADDED]),
    )
    edit = st.one_of(
        st.tuples(st.just("named"), place, st.sampled_from(sorted(VALUES))),
        st.tuples(st.just("named"), place, st.sampled_from(sorted(VALUES))),
        st.tuples(st.just("plain"), place, PLAIN),
        st.tuples(st.just("plain"), place, PLAIN),
        st.tuples(st.just("delete"), place),
    ).map(list)
    return st.builds(
        lambda use, edits: Case("fields", list(use), {FILE: {"checkpoint": run, "edits": edits}}),
        st.sampled_from(USES),
        st.lists(edit, min_size=1, max_size=2),
    )


def damaged_bytes() -> st.SearchStrategy[Case]:
    """Other bytes in the file; what is accepted must be the same model."""
    at = st.integers(0, 10**7)
    some = st.binary(min_size=1, max_size=16).map(bytes.hex)
    flip = st.lists(at, min_size=1, max_size=8).map(lambda bits: ["flip", *bits])
    op = st.one_of(
        flip,
        flip,
        flip,
        at.map(lambda n: ["truncate", n]),
        st.sampled_from(["00", "00" * 4096, "504b0506" + "00" * 18]).map(lambda b: ["append", b]),
        some.map(lambda b: ["append", b]),
        some.map(lambda b: ["prepend", b]),
        st.just(["double"]),
        st.builds(lambda a, b, n: ["swap", a, b, n], at, at, st.sampled_from([1, 64, 4096])),
        st.builds(lambda a, b: ["overwrite", a, b], at, some),
        st.builds(lambda a, b: ["insert", a, b], at, some),
        st.builds(lambda a, n: ["remove", a, n], at, st.integers(1, 5000)),
        st.just(["empty"]),
    )
    repack = st.one_of(
        st.just(["deflate"]),
        st.builds(
            lambda e, n: ["bomb", e, n],
            st.sampled_from(["data.pkl", "data/0", "version", "byteorder"]),
            st.sampled_from([1, 64, 1024]),
        ),
        st.sampled_from(sorted(PICKLES)).map(lambda name: ["pickle", name]),
        st.sampled_from(sorted(PICKLES)).map(lambda name: ["pickle", name]),
        st.builds(lambda a, b: ["edit pickle", a, b], at, some),
        st.builds(lambda a, b: ["edit pickle", a, b], at, some),
        st.builds(
            lambda e, b: ["entry", e, b], st.sampled_from(["data.pkl", "/0", "byteorder"]), some
        ),
        st.sampled_from(["data.pkl", "/0", "/5", "byteorder", "version", ".data/"]).map(
            lambda suffix: ["without", suffix]
        ),
        st.sampled_from(["../x", "/x", "code/__torch__.py", "constants.pkl", "a" * 60_000]).map(
            lambda name: ["more", name]
        ),
        st.sampled_from([["data.pkl", "evil.pkl"], ["byteorder", "byteorde\0"]]).map(
            lambda names: ["rename", *names]
        ),
        st.just(["legacy"]),
        st.sampled_from(sorted(PICKLES)).map(lambda name: ["raw", name]),
    )
    return st.builds(
        _damaged,
        st.sampled_from(sorted(RUNS)),
        st.one_of(
            st.lists(op, min_size=1, max_size=2),
            st.lists(op, min_size=1, max_size=1),
            repack.map(lambda one: [one]),
            repack.map(lambda one: [one, ["seal"]]),
        ),
        st.sampled_from((EVALUATIONS[0], EVALUATIONS[0], *EVALUATIONS, RESUME)),
    )


def _damaged(run: str, ops: list[Any], use: tuple[str, ...]) -> Case:
    case = Case("bytes", list(use), {FILE: {"damaged": run, "ops": ops}})
    # What was packed anew is another checkpoint; what was torn or flipped pretends to be this one.
    if all(op[0] in TORN for op in ops):
        case.original = [FILE, run]
        if use[0] in COMPARED:
            case.reference = [part.replace(FILE, f"checkpoints/{run}/last.ckpt") for part in use]
    return case
