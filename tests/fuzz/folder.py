"""The folder a case runs in: prepared once, copied for each, and compared afterwards."""

import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import NamedTuple

from fuzz.hostile import STRANGER

TINY = (
    "--data.corpus=text.txt",
    "--data.batch_size=4",
    "--model.n_layer=1",
    "--model.n_embd=16",
    "--model.n_head=2",
    "--model.block_size=8",
    "--model.num_experts=3",
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_val_batches=1",
    "--run.sample_tokens=2",
    "--run.pictures=false",
)
RUNS = {
    "tiny": (
        "--model.router=NoisyTopKRouter",
        "--model.init=GPT2Normal",
        "--model.lr_scheduler=WarmupCosine",
        "--model.lr_scheduler.warmup_steps=1",
        "--model.lr_scheduler.total_steps=9",
    ),
    "bias": (
        "--model.router=BiasedTopKRouter",
        "--model.optimizer=SGD",
        "--model.optimizer.lr=0.1",
        "--model.optimizer.momentum=0.9",
        "--model.balancers+=BiasBalance",
        "--model.balancers.calibration_tokens=64",
        "--model.balancers+=SwitchLoss",
        "--model.averaging=ExponentialAverage",
        "--data.eval_train_split=true",
    ),
}
"""The runs in each folder, and how they were started."""

EXPORT = ["export", "--ckpt_path=tiny", "--to=plain", "--format=safetensors"]
"""How the folder for `import` is made."""

VERSE = "Who bears the lamp along the weir?\nA miller, late, with flour-white hair.\n"
OWNER = 65534  # nobody: what root runs the cases as


class Entry(NamedTuple):
    """What lies at a path: its kind, a digest of its content, when it was written (ns)."""

    kind: int
    digest: str
    written_ns: int


def plain_files(folder: Path) -> None:
    """What is there before anything was trained."""
    folder.mkdir(parents=True)
    (folder / "text.txt").write_text(VERSE * 20)
    (folder / "other.txt").write_text(VERSE[:40] * 3)
    (folder / "prompt.txt").write_text("A miller")
    (folder / "stranger.py").write_text(STRANGER)


def fresh(prepared: Path, work: Path) -> None:
    """A new copy of the prepared folder at `work`."""
    remove(work)
    shutil.copytree(prepared, work, symlinks=True)


def remove(folder: Path) -> None:
    """Remove a folder, whatever permissions a case has set in it."""
    for path, _, _ in os.walk(folder):
        os.chmod(path, 0o755)
    shutil.rmtree(folder, ignore_errors=True)


def hand_over(folder: Path) -> None:
    """Give a folder to the user that cases run as, if that is another than us."""
    if os.geteuid() != 0:
        return
    for path, names, files in os.walk(folder):
        os.chown(path, OWNER, OWNER)
        for name in names + files:
            os.chown(os.path.join(path, name), OWNER, OWNER, follow_symlinks=False)


def snapshot(folder: Path) -> dict[str, Entry]:
    """Every path below a folder, and what is there."""
    found = {}
    for path, names, files in os.walk(folder):
        for name in names + files:
            whole = os.path.join(path, name)
            found[os.path.relpath(whole, folder)] = _entry(whole)
    return found


def _entry(path: str) -> Entry:
    status = os.lstat(path)
    digest = ""
    if stat.S_ISREG(status.st_mode) and status.st_size < 1 << 28:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    elif stat.S_ISLNK(status.st_mode):
        digest = os.readlink(path)
    return Entry(stat.S_IFMT(status.st_mode), digest, status.st_mtime_ns)
