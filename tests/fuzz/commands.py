"""Command lines: real options with right and wrong values, typos, repetitions, files."""

from itertools import chain

from hypothesis import strategies as st

from fuzz.case import Case
from fuzz.files import SPECIAL
from fuzz.folder import TINY
from fuzz.hostile import CLASS_PATHS, FRAGMENTS, NUMBERS, WORDS
from fuzz.surface import Surface

CHEAP = ("--max_new_tokens=5", "--temperature=0")
FILE_OPTIONS = (
    *("ckpt_path", "prompt_file", "trace", "config", "data.corpus", "data.test_corpus"),
    *("run.root", "run.name", "trainer.default_root_dir", "to", "from"),
)
FOCUS_STRIDE = 97
RAW = st.one_of(
    st.text(max_size=12),
    st.binary(min_size=1, max_size=8).map(lambda b: b.decode("utf-8", "surrogateescape")),
)
WRONG = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(NUMBERS),
    st.sampled_from(WORDS),
    st.sampled_from(WORDS),
    st.sampled_from(FRAGMENTS),
    st.sampled_from(CLASS_PATHS),
    st.integers(-(10**12), 10**12).map(str),
    st.floats().map(str),
    RAW,
)


def commands(surface: Surface, number: int) -> st.SearchStrategy[Case]:
    """A command line, often of a command that would succeed but for one or two things.

    The number decides which options come first, so that in time every one does.
    """
    # The stride mixes commands; it is prime, so that nothing is left out.
    pairs = [pair for name in sorted(surface.options) for pair in _pairs(surface, name)]
    focus = [pairs[(number * 7 + k) * FOCUS_STRIDE % len(pairs)] for k in range(7)]
    about = st.sampled_from(focus).flatmap(lambda pair: _command(surface, *pair))
    others = (_special(surface), _anything(surface), _output(surface))
    return st.one_of(about, about, about, about, about, *others).filter(
        lambda case: case.is_possible
    )


def _pairs(surface: Surface, command: str) -> list[tuple[str, str]]:
    """A command's options; those that all training commands share once, those of few more often."""
    options = surface.options[command]
    if command in ("validate", "test"):
        options = [option for option in options if option.count(".") < 2]
    return [(command, option) for option in options] * (1 if len(options) > 40 else 4)


def start(command: str) -> st.SearchStrategy[list[str]]:
    """Arguments with which a command would succeed, and soon."""
    run = st.sampled_from(["last", "checkpoints/tiny/last.ckpt", "checkpoints/bias/last.ckpt"])
    evaluation = run.map(lambda path: ["--ckpt_path", path])
    if command == "fit":
        return st.one_of(
            st.just(list(TINY)),
            st.just(list(TINY)),
            evaluation.map(lambda given: [*given, "--trainer.max_steps=4"]),
        )
    if command == "predict":
        return evaluation.map(lambda given: [*given, *CHEAP])
    if command == "export":
        return evaluation.map(lambda given: [*given, "--to=new", "--format=safetensors"])
    if command == "consolidate":
        return evaluation.map(lambda given: [*given, "--to=new.ckpt"])
    if command == "import":
        return st.just(["--from=plain", "--to=new.ckpt"])
    return evaluation if command in ("inspect", "validate", "test") else st.just([])


def _command(surface: Surface, command: str, option: str) -> st.SearchStrategy[Case]:
    more = st.one_of(
        st.just([]), st.just([]), st.lists(setting(surface, command), min_size=1, max_size=2)
    )
    return st.builds(
        lambda begin, form, others, first: Case(
            "commands",
            [command, *chain(*([form, *others, begin] if first else [begin, form, *others]))],
        ),
        start(command),
        _form(surface, option),
        more,
        st.integers(0, 4).map(lambda n: n == 0),
    )


def setting(surface: Surface, command: str) -> st.SearchStrategy[list[str]]:
    """One option as it is typed: with a value that is right, wrong or missing."""
    return st.sampled_from(surface.options[command]).flatmap(lambda name: _form(surface, name))


def _form(surface: Surface, option: str) -> st.SearchStrategy[list[str]]:
    right = surface.right(option)
    value = st.one_of(WRONG, WRONG, WRONG, st.sampled_from(right)) if right else WRONG
    return st.one_of(
        value.map(lambda v: [f"--{option}", v]),
        value.map(lambda v: [f"--{option}={v}"]),
        value.map(lambda v: [f"--{option}={v}"]),
        st.tuples(value, value).map(lambda vs: [f"--{option}={v}" for v in vs]),
        value.map(lambda v: [f"--{option}+={v}"]),
        value.map(lambda v: [f"--{option}+", v]),
        value.map(lambda v: [f"--{option}.init_args.x={v}"]),
        st.just([f"--{option}"]),
        st.just([f"--{option}="]),
        st.just([f"--{option}.help"]),
        _typo(option).map(lambda typo: [f"--{typo}=1"]),
        value.map(lambda v: [f"-{option}", v]),
    )


def _typo(word: str) -> st.SearchStrategy[str]:
    at = st.integers(0, len(word))
    return st.one_of(
        at.map(lambda n: word[:n] + word[n + 1 :]),
        at.map(lambda n: word[:n] + "x" + word[n:]),
        at.map(lambda n: word[:n] + word[n + 1 : n + 2] + word[n : n + 1] + word[n + 2 :]),
        at.map(lambda n: word[:n]),
        st.just(word.upper()),
        st.just(word.replace("_", "-")),
        RAW.map(lambda raw: word + raw),
    )


def _special(surface: Surface) -> st.SearchStrategy[Case]:
    """Where a file is expected, something else."""

    def of(command: str) -> st.SearchStrategy[Case]:
        places = [name for name in FILE_OPTIONS if name in surface.options[command]]
        return st.builds(
            lambda begin, option, kind, inside: Case(
                "commands",
                [command, *begin, f"--{option}=odd{'/x' * inside}"],
                {"odd": {"special": kind}},
            ),
            start(command),
            st.sampled_from(places),
            st.sampled_from(sorted(SPECIAL)),
            st.integers(0, 5).map(lambda n: n == 0),
        )

    named = [
        name
        for name in sorted(surface.options)
        if any(option in surface.options[name] for option in FILE_OPTIONS)
    ]
    return st.sampled_from(named).flatmap(of)


def _output(surface: Surface) -> st.SearchStrategy[Case]:
    """A command that would succeed, if it could write what it says."""
    words = st.sampled_from([["--help"], ["--version"], [], ["--help_all"], ["--print_config"]])

    def of(command: str) -> st.SearchStrategy[Case]:
        return st.builds(
            lambda arguments, output: Case("commands", [command, *arguments], output=output),
            st.one_of(start(command), start(command), words),
            st.sampled_from(["full", "closed", "gone"]),
        )

    return st.sampled_from([*sorted(surface.options), "--help"]).flatmap(of)


def _anything(surface: Surface) -> st.SearchStrategy[Case]:
    """Words in no order that makes sense."""
    options = sorted({f"--{o}" for known in surface.options.values() for o in known})
    word = st.one_of(WRONG, st.sampled_from(options), st.sampled_from(sorted(surface.options)))
    command = st.one_of(
        st.sampled_from(sorted(surface.options)),
        st.sampled_from(sorted(surface.options)).flatmap(_typo),
        st.sampled_from(["", "-h", "--help", "--version", "help", "train", "--", "-", "fit "]),
        word,
    )
    return st.builds(
        lambda first, rest: Case("commands", [first, *rest]), command, st.lists(word, max_size=4)
    )
