"""`makemoe.load`: a trained model as a Python object. Needs neither Lightning nor a config."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from makemoe.checkpoint.inference import load_for_inference
from makemoe.data.tokenizer import Ids, Tokenizer
from makemoe.data.windows import ConsecutiveWindows, EvaluationBatches
from makemoe.devices import find_device
from makemoe.errors import DataError, NotFiniteError, UsageError, in_python
from makemoe.model.generate import Sampler
from makemoe.model.transformer import MoETransformer
from makemoe.routing_table import RoutingTable
from makemoe.run import RunSettings, checkpoint_named
from makemoe.sampling import Growing, InOrder, grow, samples
from makemoe.sizes import check_seed, check_sizes
from makemoe.training.losses import bits_per_byte, summed_cross_entropy

WINDOWS = 64
"""Windows that are read at once; affects speed only."""


def load(
    path: str | os.PathLike[str],
    device: str | torch.device | None = None,
    trust: str | Sequence[str] = (),
    root: str | os.PathLike[str] = "checkpoints",
) -> "Model":
    """Load a model and its tokenizer from a checkpoint, without running any code in the file.

    Args:
        path: a checkpoint file; the name of a run, for its last.ckpt; or `last` or `best` of the
            newest run.
        device: such as `cpu`, `cuda:1` or `mps`; None: the first available one of cuda, mps and
            cpu.
        trust: modules, besides makemoe, whose classes the checkpoint may name.
        root: folder of all runs.

    Returns:
        The model in evaluation mode and in float32, whatever it was trained in.

    Raises:
        CheckpointError: for a file that is missing, damaged or no checkpoint, or that names classes
            of modules that are not trusted.
        UsageError: for a device that this machine does not have.
    """
    trusted = [trust] if isinstance(trust, str) else trust
    with in_python():
        place = find_device("auto" if device is None else str(device))
        found = checkpoint_named(os.fspath(path), RunSettings(root=os.fspath(root)))
        net, tokenizer = load_for_inference(found, trusted)
    return Model(net.to(place, torch.float32), tokenizer)


class Loss(NamedTuple):
    """The loss of a text.

    Attributes:
        nats_per_token: mean of -ln p over the predicted tokens.
        tokens: how many these are: all but the first.
        bits_per_byte: the same loss per byte of these tokens' text in UTF-8, to compare models
            whose tokenizers differ.
    """

    nats_per_token: float
    tokens: int
    bits_per_byte: float


class Model:
    """A model with its tokenizer.

    Args:
        net: the model; it is put in evaluation mode.
        tokenizer: the one it was trained with.

    Attributes:
        net: ids in, logits and routings out.
        tokenizer: text to ids and back.
    """

    def __init__(self, net: MoETransformer, tokenizer: Tokenizer) -> None:
        self.net, self.tokenizer = net.eval(), tokenizer

    def __repr__(self) -> str:
        net, counts = self.net, self.net.count_parameters()
        return (
            f"<makemoe.Model: {len(net.blocks)} layers, {net.top_k} of {net.num_experts} experts "
            f"per token, {counts.total:,} parameters, {counts.active:,} active; "
            f"{type(self.tokenizer).__name__} of {net.vocab_size}; on {self.device}>"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are; computations happen there."""
        return self.net.head.weight.device

    # -- sampling

    def sample(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 500,
        temperature: float = 1.0,
        sample_top_k: int | None = None,
        sample_top_p: float | None = None,
        stop: str | Sequence[str] = (),
        seed: int = 1337,
    ) -> str:
        """Continue a text, as `makemoe predict` does with the same options.

        Args:
            prompt: beginning of the text; empty: the model begins one. Of a long prompt, the model
                reads the last `block_size` tokens.
            max_new_tokens: tokens to add.
            temperature: 0 is greedy, 1 is the model's own distribution, larger is more random.
            sample_top_k: sample from that many most likely tokens only.
            sample_top_p: sample from the smallest set of most likely tokens with this total
                probability.
            stop: the text ends before this string, or before any of these.
            seed: the same seed gives the same text, whatever else is sampled.

        Returns:
            The prompt and what follows it.

        Raises:
            UsageError: for an invalid setting.
            DataError: for a character in the prompt that the tokenizer does not know.
        """
        pieces = self.stream(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            sample_top_k=sample_top_k,
            sample_top_p=sample_top_p,
            stop=stop,
            seed=seed,
        )
        return "".join(pieces)

    def stream(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 500,
        temperature: float = 1.0,
        sample_top_k: int | None = None,
        sample_top_p: float | None = None,
        stop: str | Sequence[str] = (),
        seed: int = 1337,
    ) -> Iterator[str]:
        """`sample` in pieces, as they come: first the prompt, then what new tokens complete.

        Text that may be the beginning of a `stop` text comes when that is decided. Arguments and
        errors are those of `sample`; errors come at the call, not at the first piece.
        """
        draw = partial(Sampler, temperature=temperature, top_k=sample_top_k, top_p=sample_top_p)
        output = Collected()
        growing = self._grow([prompt], 1, max_new_tokens, draw, stop, seed, output)
        return (piece for _ in growing if (piece := output.take()))

    def samples(
        self,
        prompts: str | Sequence[str] = "",
        num_samples: int = 1,
        *,
        max_new_tokens: int = 500,
        temperature: float = 1.0,
        sample_top_k: int | None = None,
        sample_top_p: float | None = None,
        stop: str | Sequence[str] = (),
        seed: int = 1337,
    ) -> list[str]:
        """Several texts, sampled together: faster than one by one, and the same texts.

        There are `num_samples` texts per prompt, prompt by prompt; the n-th of a prompt, from 0, is
        `sample` with the seed `seed` + n. All other arguments, and errors, are those of `sample`.
        """
        draw = partial(Sampler, temperature=temperature, top_k=sample_top_k, top_p=sample_top_p)
        output, several = Collected(), [prompts] if isinstance(prompts, str) else list(prompts)
        for _ in self._grow(several, num_samples, max_new_tokens, draw, stop, seed, output):
            pass
        return output.texts()

    def _grow(
        self,
        prompts: Sequence[str],
        num_samples: int,
        max_new_tokens: int,
        draw: Callable[[Sequence[int]], Sampler],
        stop: str | Sequence[str],
        seed: int,
        output: "Collected",
    ) -> Iterator[None]:
        """Check everything now; return what samples when it is iterated over."""
        check_sizes({"max_new_tokens": max_new_tokens, "num_samples": num_samples})
        check_seed(seed)
        draw([])  # refuses invalid settings
        stops = [stop] if isinstance(stop, str) else list(stop)
        if "" in stops:
            raise UsageError("stop is empty and would end every text at once: give a string")
        for prompt in filter(None, prompts):
            self._encode(prompt, least=1)

        def new_writer(texts: Sequence[Growing]) -> InOrder:
            return InOrder([text.prompt() for text in texts], stops, output)

        wanted = samples(prompts, self.tokenizer, num_samples, seed)
        total = len(prompts) * num_samples
        return grow(self.net, self.tokenizer, wanted, total, max_new_tokens, draw, new_writer)

    # -- reading

    @torch.inference_mode()
    def loss(self, text: str) -> Loss:
        """The exact loss of a text, as `makemoe validate` computes it.

        Every token but the first is predicted once, in consecutive windows of `block_size` tokens.

        Raises:
            DataError: for a character that the tokenizer does not know, or less than two tokens.
            NotFiniteError: if the model computes a loss that is not finite.
        """
        ids = self._encode(text, least=2)
        windows, nats = ConsecutiveWindows(ids, self.net.block_size), 0.0
        for batch in EvaluationBatches(len(windows), WINDOWS):
            x_BT, y_BT = (part.to(self.device) for part in windows.__getitems__(batch))
            nats += summed_cross_entropy(self.net(x_BT)[0], y_BT).item()
        per_token = nats / windows.predictions
        if not math.isfinite(per_token):
            raise NotFiniteError(
                "the loss is not finite: the weights are too large to compute with"
            )
        return Loss(per_token, windows.predictions, bits_per_byte(per_token, ids, self.tokenizer))

    @torch.inference_mode()
    def routing(self, text: str) -> RoutingTable:
        """Which experts read each token of a text, in each layer that has a router.

        The text is read as in `loss`: in consecutive windows of `block_size` tokens.

        Raises:
            DataError: for a character that the tokenizer does not know.
        """
        ids, layers = self._encode(text), list(self.net.routers())
        T = min(self.net.block_size, max(1, len(ids)))
        experts_LNK = np.zeros((len(layers), len(ids), self.net.top_k), np.int64)
        weights_LNK = np.zeros(experts_LNK.shape, np.float32)
        for begin in range(0, len(ids), WINDOWS * T):
            part = torch.from_numpy(ids[begin : begin + WINDOWS * T].astype(np.int64))
            # No token sees what comes after it, so what fills the last window changes nothing.
            x_BT = F.pad(part, (0, -len(part) % T)).view(-1, T)
            for row, routing in enumerate(self.net(x_BT.to(self.device))[1]):
                end = begin + len(part)
                experts_LNK[row, begin:end] = routing.experts_NK[: len(part)].cpu()
                weights_LNK[row, begin:end] = routing.weights_NK[: len(part)].cpu()
        decoder = self.tokenizer.decoder()
        texts = [decoder.push([id]) for id in ids.tolist()]
        if texts:
            texts[-1] += decoder.end()
        return RoutingTable(
            ids.tolist(), texts, layers, experts_LNK, weights_LNK, self.net.num_experts
        )

    def _encode(self, text: str, least: int = 0) -> Ids:
        """The ids of a text; DataError if it has unknown characters or less than `least` tokens."""
        ids = self.tokenizer.encode(text)
        if len(ids) < least:
            count = f"{len(ids)} token{'s' * (len(ids) != 1)}"
            raise DataError(f"the text {text!r} has {count}: pass one of {least} or more")
        return ids


class Collected:
    """Keeps the pieces of texts."""

    def __init__(self) -> None:
        self.pieces: list[list[str]] = []

    def begin_text(self) -> None:
        """Start the next text."""
        self.pieces.append([])

    def write(self, text: str) -> None:
        """Write more of it."""
        self.pieces[-1].append(text)

    def texts(self) -> list[str]:
        """Each text."""
        return list(map("".join, self.pieces))

    def take(self) -> str:
        """What was written to the last text since this was last called; it is kept no longer."""
        new = "".join(self.pieces[-1])
        self.pieces[-1].clear()
        return new
