"""Balance of finished runs, side by side: `python -m benchmarks.routing checkpoints/NAME ...`.

Prints Markdown, from each run's `last.ckpt` on the validation split of its own corpus: exact loss,
balance, and how much the character determines the choice of experts. `MaxVio with dropout`
is the mean over layers on the same text in training mode, with dropout, router noise and the biases
of training. `MaxVio uncalibrated` is that in evaluation mode with the biases of training.
"""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.scripts import Options, folder_of_run, run
from makemoe.checkpoint.format import read
from makemoe.checkpoint.inference import load_for_inference
from makemoe.cli.evaluation import corpus_of, reading_of, validation_text
from makemoe.cli.inspect import evaluate
from makemoe.data.windows import ConsecutiveWindows
from makemoe.model.router import BiasedTopKRouter
from makemoe.tracking.csv_logger import read_columns
from makemoe.training.affinity import SymbolCounts
from makemoe.training.memory import keep_freed_memory

PROG = "python -m benchmarks.routing"
COLUMNS = (
    "run",
    "val loss, end",
    "val loss, best",
    "MaxVio, mean of layers",
    "MaxVio, worst layer",
    "MaxVio uncalibrated",
    "MaxVio with dropout",
    "dead experts",
    "entropy of loads / ln E",
    "entropy of a token / ln E",
    "first weight",
)
OF_LAYER = "character decides"


def lines(folder: Path) -> tuple[str, str]:
    """The line of a run in the table of runs and in the table of layers."""
    path = str(folder / "last.ckpt")
    net, tokenizer = load_for_inference(path)
    checkpoint = read(path)
    how = reading_of(path, checkpoint, None)
    text = validation_text(corpus_of(path, checkpoint, None), tokenizer, "error", *how)
    windows = ConsecutiveWindows(text.ids, net.block_size)
    L, E = len(net.routers()), net.num_experts
    symbols = SymbolCounts(L, net.vocab_size, E)
    loss, stats = evaluate(net, windows, "cpu", symbols)
    figures = stats.figures()
    _, as_trained = evaluate(net.train(), windows, "cpu")
    biased = [r for r in net.routers().values() if isinstance(r, BiasedTopKRouter)]
    for router in biased:
        router.eval_shift_E.zero_()
    _, uncalibrated = evaluate(net.eval(), windows, "cpu")
    best = min(v for v in read_columns(folder / "metrics.csv")["val_loss"] if v == v)
    cells = (
        folder.name,
        f"{loss:.4f}",
        f"{best:.4f}",
        f"{figures['max_vio'].mean():.3f}",
        f"{figures['max_vio'].max():.3f}",
        f"{uncalibrated.figures()['max_vio'].mean():.3f}" if biased else "",
        f"{as_trained.figures()['max_vio'].mean():.3f}",
        f"{round(float(figures['dead'].sum()) * E)} of {L * E}",
        f"{figures['load_entropy'].mean():.3f}",
        f"{figures['token_entropy'].mean():.2f}",
        f"{figures['first_weight'].mean():.2f}",
    )
    told = [f"{share:.2f}" for share in decided_by_symbol(symbols.compute()).tolist()]
    return markdown(cells), markdown((folder.name, *told))


def decided_by_symbol(counts_LVE: Tensor) -> Tensor:
    """Mutual information of symbol and expert divided by the entropy of the expert, (L,).

    1: the symbol determines the expert; 0: it has no influence (Shannon 1948).
    """
    joint_LVE = counts_LVE / counts_LVE.sum((1, 2), keepdim=True)
    expert_LE, symbol_LV = joint_LVE.sum(1), joint_LVE.sum(2)
    entropies = [-torch.xlogy(p, p).flatten(1).sum(1) for p in (expert_LE, symbol_LV, joint_LVE)]
    of_expert, of_symbol, of_both = entropies
    return (of_expert + of_symbol - of_both) / of_expert


def markdown(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print both tables."""
    parser = Options(PROG, description="Print tables of the balance of finished runs, in Markdown.")
    parser.add_argument("runs", metavar="RUN", type=folder_of_run, nargs="+", help="its folder")
    folders = parser.parse_args().runs
    torch.set_num_threads(1)
    keep_freed_memory()
    runs, layers = zip(*map(lines, folders), strict=True)
    print(markdown(COLUMNS), "|---" * len(COLUMNS) + "|", *runs, sep="\n")
    numbers = tuple(str(layer) for layer in range(layers[0].count("|") - 2))
    print()
    print(markdown((f"{OF_LAYER}, layer", *numbers)), "|---" * (len(numbers) + 1) + "|", sep="\n")
    print(*layers, sep="\n")


if __name__ == "__main__":
    run(PROG, main)
