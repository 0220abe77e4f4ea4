"""Values that nobody expects, by name, so that a case remains plain data."""

import math
import sys
from collections.abc import Callable
from typing import Any

import torch

MARKER = "PWNED"
"""The file that every payload tries to create."""

SHELL = f"touch {MARKER}"
CALL = f'__import__("os").system("{SHELL}")'

STRANGER = f"""\
import pathlib
pathlib.Path("{MARKER}_BY_IMPORT").touch()


class Router:
    def __init__(self, *args, **kwargs):
        pathlib.Path("{MARKER}_BY_IMPORT").touch()


def call(*args, **kwargs):
    pathlib.Path("{MARKER}_BY_IMPORT").touch()
"""
"""A module in the working folder. A config may name it; a checkpoint may not."""

CLASS_PATHS = (
    *("makemoe.cli.main", "makemoe.cli.training.train", "makemoe.checkpoint.parts.os.mkdir"),
    *("makemoe.files.replacing", "makemoe.checkpoint.format.write", "makemoe.cli", "makemoe"),
    *("makemoe.model.router.Router", "makemoe.model.router.NoisyTopKRouter"),
    *("makemoe.model.experts.MLPExperts", "makemoe.training.balance.BiasBalance"),
    *("makemoe.training.balance.SwitchLoss", "makemoe.tracking.csv_logger.MetricsCSV"),
    *("makemoe.callbacks.LastCheckpoint", "makemoe.callbacks.saving.BestCheckpoint"),
    *("makemoe.tracking.mlflow.MLflow", "makemoe.nowhere.Router", "makemoe.model.router.nn.Linear"),
    *("os.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "builtins.dict", "int"),
    *("sympy.core.function.Lambda", "sympy.sympify", "torch.load", "torch.hub.load"),
    *("torch.optim.AdamW", "torch.optim.SGD", "torch.optim.LBFGS", "torch.optim.Optimizer"),
    *("torch.optim.lr_scheduler.LambdaLR", "torch.optim.lr_scheduler.SequentialLR"),
    *("torch.optim.lr_scheduler.ReduceLROnPlateau", "torch.optim.lr_scheduler.OneCycleLR"),
    *("torch.optim.swa_utils.SWALR", "torch.nn.Linear", "pathlib.Path", "logging.FileHandler"),
    *("lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.callbacks.ModelCheckpoint"),
    *("stranger.Router", "stranger.call", "stranger", "a.b", ".", "..", "a..b", "AdamW", "SGD"),
)

SYMPY = (
    "{class_path: sympy.core.function.Lambda, init_args: "
    f"{{signature: '{CALL}', expr: 2001-99-99}}}}"
)

FRAGMENTS = (
    *("[[[[", "{", "}", "[", "]]", "{a: 1, a: 2}", "? a", "|", ">", "|\n a", "@x", "`x`", "%x"),
    *("{a: &a [*a]}", "&a [*a]", "&a {b: *a}", "*a", "<<: *a", "{<<: {a: 1}}", "{<<: 5}"),
    *("!!binary x", "!!set {a}", "!!timestamp x", "!!int x", "!!float x", "!!null x", "!x y"),
    *(f"!!python/object/apply:os.system [{SHELL}]", "!!python/name:os.system"),
    *(f'!!python/object/new:os.system ["{SHELL}"]', "!!python/module:stranger"),
    *(f"!!python/object/apply:subprocess.check_call [[touch, {MARKER}]]", SYMPY),
    *("2001-99-99", "2001-01-01", "2001-01-01 25:00:00", "1:2:3", "0o9", "0x", "1_0", "~", "no"),
    *("[" * 2000, "{a: " * 600, "- " * 1500, "[" * 400 + "]" * 400, "#", "---", "--- 1\n--- 2"),
    *("\t", "\ta: 1", "a: b: c", "'", '"', '"\\0"', '"\\x00a"', '"\\ud800"', "\ufeff", "{}", "[]"),
    *("[null]", "[[], {}]", "{null: 1}", "{1: 2}", "{[1]: 2}", "{{}: 1}", "{class_path: null}"),
    *("{class_path: 5}", "{init_args: {}}", "{class_path: TopKRouter, init_args: 5}"),
    *("{class_path: TopKRouter, dict_kwargs: {a: 1}}", "{class_path: [TopKRouter]}"),
    *(f"{{class_path: {path}}}" for path in CLASS_PATHS),
    f"{{class_path: makemoe.cli.main, init_args: {{argv: [fit, --run.name, {MARKER}]}}}}",
    f"{{class_path: logging.FileHandler, init_args: {{filename: {MARKER}}}}}",
    f"{{class_path: os.system, init_args: {{command: {SHELL}}}}}",
    f"{{class_path: subprocess.Popen, init_args: {{args: [touch, {MARKER}]}}}}",
    f"{{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {{save_dir: {MARKER}}}}}",
    f"{{class_path: makemoe.callbacks.LastCheckpoint, init_args: {{folder: {MARKER}}}}}",
)

WORDS = (
    *("", " ", "\n", "\r\n", "null", "true", "false", "none", "auto", "last", "best", "x", "e.g"),
    *(
        "é",
        "😀",
        "\u202eabc",
        "\u0000",
        "\u2028",
        "\udcff",
        "\udc80\udcfe",
        "中文",
        "İ",
        "ﬀ",
        "a\u0301",
    ),
    *("\x1b[31mred\x1b[0m", "\a\b", "a\nmakemoe: error: x", "a\rb", "a" * 300, "a" * 100_000),
    *(
        "é" * 5000,
        "%s%n",
        "{}",
        "{0}",
        "$HOME",
        "$(" + SHELL + ")",
        "`" + SHELL + "`",
        "; " + SHELL,
    ),
    *(
        "~",
        "~/x",
        "-",
        "--",
        "-h",
        "--help",
        "=",
        "+",
        ".",
        "..",
        "../..",
        "/",
        "//",
        "a/b/c",
        "a/",
    ),
    *("http://127.0.0.1:9/x", "file:///etc/passwd", "s3://a/b", "C:\\x", "a:b", "a=b", "a,b", "*"),
    *("text.txt", "checkpoints", "checkpoints/tiny", "checkpoints/tiny/last.ckpt", "tiny", "bias"),
    *("checkpoints/tiny/config.yaml", "recipe.yaml", "stranger.py", "nothing.here", "relu"),
    *("/dev/zero", "/dev/full", "/dev/stdin", "/proc/x", "/proc/self/mem", "/nowhere/x"),
    *("sample", "tinyshakespeare", "cpu", "cuda", "cuda:99", "meta", "mps", "xla", "cpu:5"),
    *("16-mixed", "bf16", "64", "16-true", "position", "weight", "grouped", "padded", "loop"),
    *(CALL, f"import os; os.system('{SHELL}')", SHELL),
)

NUMBERS = (
    *("0", "1", "-1", "2", "3", "-0", "+1", "1.0", "0.5", "1.5", "-0.5", "1e-320", "0.1", "1e0"),
    *("nan", "inf", "-inf", ".nan", ".inf", "-.inf", "NaN", "Infinity", "1e30", "1e308", "1e400"),
    *(
        "10000000000",
        "-10000000000",
        "1000000",
        "2147483648",
        "9223372036854775807",
        "1_000",
        "0x10",
    ),
    *("9223372036854775808", "18446744073709551616", "9" * 30, "9" * 5000, "-" + "9" * 5000, "٣"),
    *("01", "1e", "1,5", "1 2", "--1", "5e-324", "1e-45", "99", "1j", "1" + "0" * 400),
)


def nested(depth: int, kind: type = list) -> Any:
    """A container in a container in a container."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def bomb(depth: int = 30) -> list[Any]:
    """A list that holds itself twice at each level: 2**depth values in a few objects."""
    value: list[Any] = ["a.b"]
    for _ in range(depth):
        value = [value, value]
    return value


def loop() -> list[Any]:
    """A list that holds itself."""
    value: list[Any] = []
    value.append(value)
    return value


def loop_of_keys() -> dict[str, Any]:
    """A mapping that holds itself."""
    value: dict[str, Any] = {}
    value["a"] = value
    return value


def key_of(value: Any) -> dict[Any, Any]:
    """A mapping whose key is no string."""
    return {value: value}


VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "true": lambda: True,
    "false": lambda: False,
    "0": lambda: 0,
    "1": lambda: 1,
    "-1": lambda: -1,
    "3": lambda: 3,
    "2**31": lambda: 2**31,
    "2**63": lambda: 2**63,
    "10**10": lambda: 10**10,
    "-10**10": lambda: -(10**10),
    "10**5000": lambda: 10**5000,
    "0.5": lambda: 0.5,
    "-0.5": lambda: -0.5,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "1e30": lambda: 1e30,
    "1e308": lambda: 1e308,
    "largest float": lambda: sys.float_info.max,
    "bytes": lambda: b"\0\xff",
    "complex": lambda: complex(1, 1),
    "tuple": lambda: (1, 2),
    "empty list": list,
    "empty dict": dict,
    "empty tuple": tuple,
    "set": lambda: {1, 2},
    "list": lambda: [1, "a", None],
    "dict": lambda: {"a": 1},
    "int keys": lambda: key_of(1),
    "tuple keys": lambda: key_of((1, 2)),
    "None key": lambda: key_of(None),
    "deep list": lambda: nested(1000),
    "deep dict": lambda: nested(1000, dict),
    "deeper list": lambda: nested(5000),
    "bomb": bomb,
    "list loop": loop,
    "dict loop": loop_of_keys,
    "many": lambda: ["e.g"] * 50_000,
    "many lists": lambda: [[i] for i in range(50_000)],
    "long text": lambda: "a" * 2_000_000,
    "many symbols": lambda: "".join(map(chr, range(0x4E00, 0x9000))),
    "NUL": lambda: "a\0b",
    "surrogate": lambda: "\ud800",
    "escape": lambda: "\x1b[31m\nmakemoe: error: x",
    "device": lambda: torch.device("cuda:7"),
    "dtype": lambda: torch.float16,
    "size": lambda: torch.Size([3, 4]),
    "tensor 0": lambda: torch.tensor(0.0),
    "tensor int": lambda: torch.tensor(3),
    "tensor nan": lambda: torch.full((3,), math.nan),
    "tensor empty": lambda: torch.empty(0),
    "tensor shape": lambda: torch.zeros(3, 5, 7),
    "tensor huge stride 0": lambda: torch.zeros(1).expand(10**12),
    "tensor square stride 0": lambda: torch.zeros(1).expand(10**6, 10**6),
    "tensor float64": lambda: torch.zeros(16, 16, dtype=torch.float64),
    "tensor bool": lambda: torch.zeros(16, dtype=torch.bool),
    "tensor complex": lambda: torch.zeros(16, 16, dtype=torch.complex64),
    "tensor int8": lambda: torch.zeros(16, 16, dtype=torch.int8),
    "tensor sparse": lambda: torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (16,)),
    "tensor sparse huge": lambda: torch.sparse_coo_tensor(
        torch.tensor([[0], [0]]), torch.ones(1), (10**9, 10**9)
    ),
    "tensor meta": lambda: torch.empty(16, 16, device="meta"),
    "tensor quantized": lambda: torch.quantize_per_tensor(torch.zeros(16, 16), 0.1, 0, torch.qint8),
    "parameter": lambda: torch.nn.Parameter(torch.zeros(16)),
    "storage": lambda: torch.zeros(3).untyped_storage(),
}
"""What a field of a checkpoint may be replaced by."""
