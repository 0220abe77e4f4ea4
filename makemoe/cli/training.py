"""`makemoe fit`, `validate` and `test`: LightningCLI, with settings taken from checkpoints."""

import logging
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, ReduceLROnPlateau
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.utilities.exceptions import SIGTERMException

import makemoe.data.bpe
import makemoe.training.muon
import makemoe.training.optim  # noqa: F401  its classes can be named without their module
from makemoe import process
from makemoe.callbacks import Conclusion, StepProgress, StopOnSignal
from makemoe.callbacks.conclusion import go_on
from makemoe.checkpoint.format import Checkpoint, read
from makemoe.checkpoint.held import Reader
from makemoe.checkpoint.lightning_io import SafeCheckpointIO
from makemoe.claim import OwnFolder
from makemoe.cli import others
from makemoe.cli.beside import TellCheckpoint, as_list, beside_training, is_said, strangers
from makemoe.cli.checks import check_callbacks, check_settings, count_devices
from makemoe.cli.evaluation import blaming_checkpoint, loss_line
from makemoe.cli.held import Hidden, check_names_text, check_resumable, checked_settings
from makemoe.cli.help import DESCRIPTIONS, SHOWN_HELP
from makemoe.cli.located import leaving_out_model, without_model
from makemoe.cli.parser import which_model
from makemoe.cli.products import check_eps, check_products, dtype_of
from makemoe.cli.sizes import SizedCLI, count_processes
from makemoe.cli.strategies import check_processes
from makemoe.cli.strict_parser import TrainingParser
from makemoe.cli.strict_yaml import load_yaml
from makemoe.cli.together import check_alike, how_to_resume, learn_address, own_run, watch_others
from makemoe.cli.unchanged import refuse_changed
from makemoe.data.datamodule import TextDataModule
from makemoe.data.windows import EvaluatedText
from makemoe.devices import mixing_all_bits
from makemoe.errors import DataError, UsageError
from makemoe.parallel import Sharded
from makemoe.run import RunSettings, find_checkpoint
from makemoe.training.memory import keep_freed_memory
from makemoe.training.module import LanguageModel
from makemoe.training.resuming import begin_with, is_weights_alone
from makemoe.training.steps import count_steps

TRAINER_DEFAULTS = {
    # Count steps, not epochs: batches never end.
    "max_epochs": -1,
    "max_steps": 5000,
    "val_check_interval": 500,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    # Both samplers already split the data between processes.
    "use_distributed_sampler": False,
}


def train(arguments: Sequence[str]) -> int:
    """Run `fit`, `validate` or `test` and return the exit status."""
    quieten()
    keep_freed_memory()
    try:
        learn_address()
        with OwnFolder() as folder, others.Others(folder.release, partial(how_to_resume, folder)):
            cli = TrainingCLI(arguments, folder)
            return status_of(cli)
    except SIGTERMException:  # whose own exit status is 0
        return 128 + signal.SIGTERM


def status_of(cli: "TrainingCLI") -> int:
    """Return the exit status of a command that has ended; print how to resume a stopped run."""
    stopped_by, folder = cli.stop.received, cli.folder.path
    # Only the first process reports; Lightning kills it if another ends with a nonzero status.
    if stopped_by is None or not cli.trainer.is_global_zero:
        return 0
    if folder is not None:
        at = f"stopped at step {cli.trainer.global_step}"
        command = go_on(folder / "last.ckpt", strangers(cli.settings))
        print(f"{stopped_by.name}: {at}; to resume: {command}", file=sys.stderr)
    return 128 + stopped_by


def quieten() -> None:
    """Silence Lightning's messages about itself, and its warnings that do not apply here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Silenced: advice about slow data loading; the folder of a resumed run not being empty; advice
    # about callbacks when evaluating; deprecation warnings about Lightning's own calls to torch;
    # defaults of Lightning's callbacks that jsonargparse cannot write as text, such as a device;
    # that logits must not be changed in place.
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
    warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.utilities\._pytree")
    warnings.filterwarnings("ignore", message=r"\s*Unable to serialize instance")
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    # A failure in TensorBoard's writer thread is raised again at the next log call: skip it.
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if type(failed.thread).__name__ != "_AsyncWriterThread":
            before(failed)

    threading.excepthook = hook


# Two names have two classes each. jsonargparse passes over local classes, so that the names alone
# mean the other ones: Lightning's ReduceLROnPlateau goes by other metrics than the loss, and
# torch's Muon takes neither stacks of matrices nor vectors, which every model here has.
ReduceLROnPlateau.__qualname__ = "lightning.<locals>.ReduceLROnPlateau"
torch.optim.Muon.__qualname__ = "torch.<locals>.Muon"


class TrainingCLI(SizedCLI):
    """Settings in order of precedence: the user's, the checkpoint's, the defaults."""

    def __init__(self, arguments: Sequence[str], folder: OwnFolder) -> None:
        self.arguments, self.folder = list(arguments), folder
        self.checkpoint_step: int | None = None
        self.held: dict[str, Any] = {}
        self.read_already: dict[str, Checkpoint] = {}
        self.begins_with: str | None = None
        self.stop = StopOnSignal()
        settings: dict[str, Any] = {
            "save_config_callback": None,
            "trainer_defaults": TRAINER_DEFAULTS,
            "seed_everything_default": 1337,
            "parser_class": TrainingParser,
            "parser_kwargs": {"prog": "makemoe"},
            "auto_configure_optimizers": False,
        }
        with blaming_checkpoint(lambda: self.settings.ckpt_path, lambda key: self.settings[key]):
            super().__init__(LanguageModel, TextDataModule, args=list(arguments), **settings)

    # -- parsing

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands, and the arguments of Trainer's methods that are not options."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "verbose", "weights_only"},
            "test": {"model", "dataloaders", "datamodule", "verbose", "weights_only"},
        }

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        kwargs |= {"description": DESCRIPTIONS[subcommand]}
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        assert isinstance(parser, TrainingParser)
        parser.shorten_help(f"makemoe {subcommand}", SHOWN_HELP[subcommand])
        if subcommand == "fit":
            parser.add_argument("--allow_changed", action="store_true")
        return parser

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add one --seed for everything."""
        parser.add_argument("--seed", type=int, default=self.seed_everything_default)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's settings, and link settings that follow from others."""
        parser.add_class_arguments(RunSettings, "run")
        parser.add_argument("--trust", action="append", default=[])
        parser.link_arguments("seed", "model.seed")
        parser.link_arguments("seed", "data.seed")
        parser.link_arguments("model.block_size", "data.block_size")
        parser.link_arguments("data.vocab_size", "model.vocab_size", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; if a checkpoint is named, parse again with its settings as the defaults."""
        assert isinstance(args, list)
        # --print_config ends the program, so it waits until the checkpoint's settings are applied.
        wanted = [a for a in args if a.startswith("--print_config")]
        plain = [a for a in args if a not in wanted]
        named = self.parse_alone(parser, plain)
        settings, command = self.settings, self.config.subcommand
        if command == "fit" and (own := own_run(self.folder, args, settings.run.root)):
            settings.ckpt_path = own
        if settings.ckpt_path is None:
            if command != "fit":
                raise which_model(command)
            if wanted:
                parser.parse_args(args)  # which prints, and exits
            return
        run = RunSettings(**settings.run.as_dict())
        name = self.config_name(True) if command == "fit" else None
        path = others.of_first(
            "ckpt_path", lambda: find_checkpoint(str(settings.ckpt_path), run, name)
        )
        checkpoint = read(path)
        self.checkpoint_step = checkpoint.get("global_step", 0)
        subparser = self._subcommand_parsers[command]
        unsaid = parser.parse_args([command])[command]
        options = {action.dest for action in subparser._actions}
        said = {
            key: key in named
            or settings.get(key) != unsaid.get(key)
            or is_said(self.arguments, f"--{key}")
            for key in options
        }
        if command == "fit" and is_weights_alone(checkpoint):
            self.begins_with = path
        elif command == "fit":
            check_resumable(checkpoint, path, said)
        check_names_text(checkpoint, path, said)
        held = checked_settings(checkpoint, Reader(path, settings.trust), said)
        self.held = held
        hidden = Hidden()
        defaults = {key: subparser.get_default(key) for key in held}
        subparser.set_defaults({key: hidden.hide(value) for key, value in held.items()})
        self.config = parser.parse_args(plain)
        subparser.set_defaults(defaults)
        hidden.reveal(self.config[command])
        check_settings(self.settings)
        self.settings.ckpt_path = None if self.begins_with else path
        # The weights are of the same file as the settings, even if a run replaces it meanwhile.
        self.read_already[path] = checkpoint
        if wanted:
            self.print_config(wanted[-1].partition("=")[2].split(","))

    def parse_alone(self, parser: LightningArgumentParser, arguments: Sequence[str]) -> set[str]:
        """Parse without a checkpoint's settings, which may need them: then without the model's.

        Returns:
            The options of the model that were left out.
        """
        try:
            self.config = parser.parse_args(arguments)
            return set()
        except UsageError as error:
            others, named = without_model(arguments)
            with leaving_out_model() as in_files, suppress(UsageError):
                self.config = parser.parse_args(others)
                if self.settings.ckpt_path is not None:
                    return named | in_files
            raise error

    def print_config(self, flags: Sequence[str]) -> NoReturn:
        """Print the settings, including a checkpoint's, and exit."""
        subparser = self._subcommand_parsers[self.config.subcommand]
        text = subparser.dump(
            self.settings,
            skip_none="skip_null" in flags,
            skip_default="skip_default" in flags,
            with_comments="comments" in flags,
        )
        print(text, end="")
        raise SystemExit(0)

    @property
    def settings(self) -> Namespace:
        """The subcommand's parsed settings."""
        settings: Namespace = self.config[self.config.subcommand]
        return settings

    def run_name(self) -> str:
        """A run name derived from the first config file, or from the weights it begins with."""
        weights = None if self.begins_with is None else Path(self.begins_with).stem
        return self.config_name() or weights or "run"

    def config_name(self, of_what_is_trained: bool = False) -> str | None:
        """A run name derived from the first config file.

        Args:
            of_what_is_trained: leave out files that only say where and how a run is trained: they
                have settings of the trainer alone, such as ddp.yaml.
        """
        for file in self.settings.get("config") or ():
            path = Path(str(file)).absolute()
            settings = load_yaml(path.read_text(encoding="utf-8")) if of_what_is_trained else {}
            if settings.keys() != {"trainer"}:
                return path.parent.name if path.stem == "config" else path.stem
        return None

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning lets the checkpoint override the flags; see parse_arguments."""

    def _set_seed(self) -> None:
        seed = self.settings.seed
        if not 0 <= seed < 1 << 63:
            raise UsageError(f"--seed {seed}: invalid seed; use 0 to 2**63 - 1")
        torch.manual_seed(mixing_all_bits(seed))

    # -- building

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A Trainer with our checkpoint format; for fit, with loggers and callbacks."""
        if self.begins_with is not None:
            begin_with(self.read_already[self.begins_with], self.model)
        trainer = self._get(self.config_init, "trainer")
        check_callbacks(as_list(trainer.callbacks))
        self.check_steps()
        trainer.plugins = [
            *as_list(trainer.plugins),
            SafeCheckpointIO(self.subcommand == "fit", self.read_already),
        ]
        text = None if self.subcommand == "test" else self.datamodule
        check_alike(self.settings, text, self.checkpoint_step)
        trainer.devices = count_devices(trainer)
        check_processes(trainer, count_processes(trainer))
        check_products(self.model.net, str(trainer.precision))
        if isinstance(trainer.strategy, Sharded):
            processes = count_processes(trainer) * trainer.num_nodes
            trainer.strategy.check(self.model.net, processes, trainer.precision)
            if dtype_of(str(trainer.precision)) == torch.float64:
                # Lightning refuses the name with this strategy, but not what it stands for.
                trainer.plugins = [DoublePrecision(), *as_list(trainer.plugins)]
                trainer.precision = None
        if process.is_slurm():
            # Lightning would save at SIGUSR1 inside the signal handler, where processes deadlock.
            trainer.plugins.append(SLURMEnvironment(auto_requeue=False))
        callbacks: list[Callback] = []
        if self.subcommand != "fit":
            trainer.overfit_batches = 0.0  # how it was trained, which a checkpoint tells
        if type(trainer.val_check_interval) is int:
            trainer.check_val_every_n_epoch = None  # 1 is the same: steps count, not epochs
        if (used := self.begins_with or self.settings.ckpt_path) is not None:
            step = None if self.begins_with else self.checkpoint_step
            callbacks.append(TellCheckpoint(used, step))
        if self.subcommand != "fit" or trainer.fast_dev_run or trainer.barebones:
            trainer.logger = False
            trainer.enable_checkpointing = False
        else:
            callbacks += beside_training(self, trainer)
        if self.subcommand == "fit" and not trainer.barebones:
            callbacks.append(
                Conclusion(self.stop, self.settings.ckpt_path, strangers(self.settings))
            )
        if trainer.enable_progress_bar is not False and not trainer.barebones:
            callbacks.append(StepProgress())
        try:
            built = self._instantiate_trainer(trainer, callbacks)
        except (MisconfigurationException, ImportError, TypeError, ValueError) as error:
            raise UsageError(f"--trainer: {' '.join(str(error).split())}") from error
        watch_others(built)
        count_steps(built)
        return built

    def check_start(self, run: RunSettings) -> None:
        """Raise the errors that would stop the run at its start, before its folder exists."""
        trainer = self.settings.trainer
        check_eps(self.model.try_optimizer(trainer.max_steps), str(trainer.precision))
        self.model.averaged.check(trainer.max_steps)
        _ = self.datamodule.ids
        checkpoint = self.read_already.get(str(self.settings.ckpt_path))
        if checkpoint is not None and not self.settings.allow_changed:
            refuse_changed(checkpoint, self.held, self.settings, self.datamodule.fingerprint)
        tokenizer = self.datamodule.tokenizer
        if run.sample_prompt is None and tokenizer.end_of_text is None:
            run.sample_prompt = tokenizer.beginning()
        try:
            tokenizer.prompt(run.sample_prompt or "")
        except DataError as error:
            raise DataError(f"--run.sample_prompt: {error}") from error

    # -- running

    def _run_subcommand(self, subcommand: str) -> None:
        """Run; some of Lightning's settings are checked only once the data is there."""
        try:
            super()._run_subcommand(subcommand)
        except MisconfigurationException as error:
            raise UsageError(f"--trainer: {' '.join(str(error).split())}") from error

    def validate(self, **kwargs: Any) -> None:
        """Print the exact validation loss in one line."""
        figures = self.trainer.validate(verbose=False, **kwargs)
        self.report(figures, self.datamodule.validated_texts)

    def test(self, **kwargs: Any) -> None:
        """Print the exact loss on a text in one line."""
        figures = self.trainer.test(verbose=False, **kwargs)
        self.report(figures, self.datamodule.tested_texts)

    def report(self, figures: list[Any], texts: dict[str, EvaluatedText]) -> None:
        """Print the losses, one per line, with the texts they were measured on."""
        for name, value in {k: v for f in figures for k, v in f.items()}.items():
            if self.trainer.is_global_zero and name in texts:
                print(loss_line(name, value, texts[name], self.datamodule.tokenizer))
