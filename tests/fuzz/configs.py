"""Config files: a recipe whose text has been changed as people, tools and attackers do."""

from itertools import pairwise

from hypothesis import strategies as st

from fuzz.case import Case
from fuzz.commands import start
from fuzz.folder import TINY
from fuzz.hostile import CLASS_PATHS, FRAGMENTS, NUMBERS, WORDS
from fuzz.surface import Surface

RECIPE = """\
seed: 1337
data:
  corpus: text.txt
  batch_size: 4
  eval_batch_size: 8
  eval_train_split: true
  test_corpus: null
  tokenizer: null
  num_workers: 0
model:
  block_size: 8
  n_layer: 1
  n_head: 2
  n_embd: 16
  num_experts: 3
  top_k: 2
  dropout: 0.1
  attn_dropout: null
  capacity_factor: 1.0
  drop_order: position
  dispatch: auto
  router:
    class_path: makemoe.model.router.BiasedTopKRouter
    init_args: {score: sigmoid}
  experts:
    class_path: makemoe.model.experts.MLPExperts
    init_args:
      hidden: 16
      activation: relu
  init: makemoe.model.init.KaimingNormal
  balancers:
    - class_path: makemoe.training.balance.BiasBalance
      init_args: {update_rate: 0.001, calibration_tokens: 8}
    - ZLoss
  optimizer:
    class_path: torch.optim.AdamW
    init_args: {lr: 1.0e-3, betas: [0.9, 0.95]}
  lr_scheduler:
    class_path: makemoe.training.optim.WarmupCosine
    init_args: {warmup_steps: 1, total_steps: 9}
trainer:
  accelerator: cpu
  max_steps: 2
  val_check_interval: 2
  limit_val_batches: 1
  log_every_n_steps: 1
  gradient_clip_val: 1.0
  precision: null
  logger: null
run:
  root: checkpoints
  name: null
  save_every_n_steps: 2
  sample_prompt: null
  sample_tokens: 2
  pictures: false
trust: []
"""
KEEP_SHORT = (
    *("--trainer.max_steps=2", "--trainer.val_check_interval=2", "--run.pictures=false"),
    *("--trainer.limit_val_batches=1", "--run.sample_tokens=2", "--data.corpus=text.txt"),
)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp037", "utf-7")
BOMB = "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghi"))

VALUE = st.one_of(
    *(st.sampled_from(known) for known in (NUMBERS, WORDS, FRAGMENTS, FRAGMENTS, CLASS_PATHS)),
    st.text(max_size=10),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=5,
    ).map(repr),
)
"""What may stand after a colon."""

WHOLE = (
    *("", " ", "\n", "#", "---", "...", "null", "5", "[]", "{}", "- a", "'", "a", "a:", ":", "%"),
    *("a: &a [x]\n" + BOMB, "&a [*a]", "a: &a {b: *a}", "data: &d {corpus: text.txt}\nmodel: *d"),
    *("<<: &x {seed: 1}", "seed: 1\nseed: 2", "{" * 1000, "[" * 3000, "a:\n" * 1000, "- " * 3000),
    *("".join(" " * i + "a:\n" for i in range(900)), "k: v\n" * 20_000, "? [a]\n: b", "1: 2"),
    *("null: 1", "? {a: b}\n: 1", "true: 1", "data: null", "model: []", "trainer: 5", "run: 5"),
    *("fit:\n  seed: 1", "subcommand: fit", "config: recipe.yaml", "print_config: true"),
    *("ckpt_path: checkpoints/tiny/last.ckpt", "trust: 5", "trust: {a: b}", "trust: stranger"),
    *("seed: 2001-99-99", "seed: true", "seed: [1]", "seed: null", "seed: 1.5", "seed: 1e3"),
    *("data: {corpus: null}", "data: {corpus: [a]}", "data: {corpus: {a: b}}", "data: {}"),
    *("model: {router: null}", "model: {router: {}}", "model: {lr_scheduler: {}}", "model: 5"),
    *("model: {optimizer: {}}", "model: {experts: null}", "model: {balancers: {}}", "run: {}"),
    *("model: {optimizer: null}", "model: {balancers: [null]}", "model: {balancers: null}"),
    *("trainer: {callbacks: 5}", "trainer: {logger: 5}", "trainer: {devices: []}", "trainer: {}"),
)
"""Whole files."""


def configs(surface: Surface) -> st.SearchStrategy[Case]:
    """A command with one or two config files."""
    text = st.one_of(
        changed(), changed(), changed(), changed(), st.sampled_from(WHOLE), from_defaults(surface)
    )
    return st.builds(_case, text, st.sampled_from(FORMS), encoding(), start("validate")).filter(
        lambda case: case.is_possible
    )


FORMS = ("alone", "short", "short", "short", "under", "validate", "group", "part", "twice", "print")


def _case(text: str, form: str, encoded: tuple[str, bool], evaluation: list[str]) -> Case:
    name, cut = encoded
    content = text.encode(name, "surrogatepass" if name.startswith("utf") else "replace")
    spec = {"hex": (content[: len(content) // 2] if cut else content).hex()}
    argv = {
        "alone": ["fit", "--config=odd.yaml"],
        "short": ["fit", "--config", "odd.yaml", *KEEP_SHORT],
        "under": ["fit", "-c", "odd.yaml", *TINY],
        "validate": ["validate", "--config", "odd.yaml", *evaluation],
        "group": ["fit", *TINY, "--model", "odd.yaml", *TINY],
        "part": ["fit", *TINY, "--model.router", "odd.yaml"],
        "twice": ["fit", "--config=odd.yaml", "--config=odd.yaml", *KEEP_SHORT],
        "print": ["fit", "--config=odd.yaml", "--print_config"],
    }[form]
    return Case("configs", argv, {"odd.yaml": spec})


def encoding() -> st.SearchStrategy[tuple[str, bool]]:
    """Nearly always UTF-8 and whole."""
    return st.integers(0, 24).map(
        lambda n: (ENCODINGS[n] if n < len(ENCODINGS) else "utf-8", n == 24)
    )


def changed() -> st.SearchStrategy[str]:
    """The recipe after one to three changes."""
    change = st.tuples(
        st.sampled_from(sorted(CHANGES)), st.integers(0, RECIPE.count("\n") - 1), VALUE
    )
    return st.lists(change, min_size=1, max_size=3).map(_apply)


def _apply(changes: list[tuple[str, int, str]]) -> str:
    lines = RECIPE.splitlines()
    for name, at, value in changes:
        lines = CHANGES[name](lines, at % max(1, len(lines)), value)
    return "\n".join(lines) + "\n"


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _block(lines: list[str], at: int) -> int:
    """Where what belongs to a line ends."""
    end = at + 1
    while end < len(lines) and _indent(lines[end]) > _indent(lines[at]):
        end += 1
    return end


def _replace(lines: list[str], at: int, value: str) -> list[str]:
    key = lines[at].partition(":")[0]
    return [*lines[:at], f"{key}: {value}", *lines[_block(lines, at) :]]


def _duplicate(lines: list[str], at: int, value: str) -> list[str]:
    end = _block(lines, at)
    return [*lines[:end], *lines[at:end], *lines[end:]]


def _again(lines: list[str], at: int, value: str) -> list[str]:
    key = lines[at].partition(":")[0]
    end = _block(lines, at)
    return [*lines[:end], f"{key}: {value}", *lines[end:]]


def _rename(lines: list[str], at: int, value: str) -> list[str]:
    _, colon, rest = lines[at].partition(":")
    return [*lines[:at], " " * _indent(lines[at]) + value + colon + rest, *lines[at + 1 :]]


def _alias(lines: list[str], at: int, value: str) -> list[str]:
    """The first line's value under a name, and that name elsewhere."""
    key = lines[at].partition(":")[0]
    return [f"trust: &x {value[:50]}", *lines[:at], f"{key}: *x", *lines[_block(lines, at) :]]


CHANGES = {
    "replace": _replace,
    "replace once more": _replace,
    "replace and again": _replace,
    "delete": lambda lines, at, value: lines[:at] + lines[_block(lines, at) :],
    "duplicate": _duplicate,
    "again": _again,
    "rename": _rename,
    "alias": _alias,
    "insert": lambda lines, at, value: [*lines[:at], value, *lines[at:]],
    "tab": lambda lines, at, value: [*lines[:at], "\t" + lines[at], *lines[at + 1 :]],
    "indent": lambda lines, at, value: [*lines[:at], "   " + lines[at], *lines[at + 1 :]],
    "outdent": lambda lines, at, value: [*lines[:at], lines[at].lstrip(), *lines[at + 1 :]],
    "key": lambda lines, at, value: [
        *lines[:at],
        " " * _indent(lines[at]) + "unknown: " + value,
        *lines[at:],
    ],
    "tag": lambda lines, at, value: [
        *lines[:at],
        lines[at].replace(":", f": {value[:60] if value.startswith('!') else '!!str'}", 1),
        *lines[at + 1 :],
    ],
}
"""What may happen to a file's lines: each takes the lines, one of them and a value."""


def from_defaults(surface: Surface) -> st.SearchStrategy[str]:
    """Any setting there is, with any value."""
    names = sorted(name for name in surface.defaults if "." in name)
    return st.lists(st.tuples(st.sampled_from(names), VALUE), min_size=1, max_size=3).map(
        lambda pairs: "".join(
            f"{group}:\n  {name}: {value}\n"
            for (group, _, name), value in ((key.partition("."), v) for key, v in pairs)
        )
    )
