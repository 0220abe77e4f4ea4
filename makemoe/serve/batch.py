"""Streams of tokens sampled together, which join and leave between steps (continuous batching).

All streams share one key-value cache with a row for each. The rows in use are the first ones, so
that the model computes no others: where a stream leaves, the last row moves into its place. Rows
are at different positions, and no stream sees another, so a stream is what it would be alone.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from makemoe.model.attention import LayerCache
from makemoe.model.generate import of_tokens, padded
from makemoe.model.router import Routing
from makemoe.model.transformer import MoETransformer
from makemoe.sampling import GROUP_BYTES, Choice, choices, group_size, threads_for
from makemoe.serve.drawing import Drawing, draw

PROMPT_TOKENS = 256
"""Maximum number of tokens of prompts read per step, and of contexts that are read again: all other
streams wait for it."""

LIKELIEST = 8
"""How many next tokens are told with their probabilities."""


class TokenRead(NamedTuple):
    """What the model did with a token that it read.

    Attributes:
        layers: what each layer chose; None for a dense layer.
        following: the most likely next tokens and their probabilities at temperature 1.
    """

    layers: list[Choice | None]
    following: list[tuple[int, float]]


class Score(NamedTuple):
    """How likely the model found a token.

    Attributes:
        token: its id.
        log_prob: natural logarithm of its probability at temperature 1, without cut-offs; None if
            the model saw nothing before it.
        likeliest: the most likely tokens in its place, and the same of each.
    """

    token: int
    log_prob: float | None
    likeliest: list[tuple[int, float]]


class Stream:
    """One sequence of tokens in the batch.

    Args:
        prompt: ids, not empty; of a long one, the last block_size are used.
        tokens: how many to add.
        drawing: how they are drawn.
        is_told: whether the batch tells what the model did with each token.
        scored: with each token that is drawn, tell its score with so many others; None: do not.
        scores_prompt: whether to score the prompt too.

    Attributes:
        context: the ids that the model sees, the last of which it may not have read yet.
        to_come: how many tokens are still to be drawn.
        is_read: whether the model has read all that is told.
        is_gone: whether nobody waits for it any more; may be set at any moment.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        tokens: int,
        drawing: Drawing,
        is_told: bool = False,
        scored: int | None = None,
        scores_prompt: bool = False,
    ) -> None:
        assert prompt
        assert tokens >= 1
        self.context, self.to_come = list(prompt), tokens
        self.drawing, self.is_told = drawing, is_told
        self.scored, self.scores_prompt = scored, scores_prompt
        self.is_new, self.is_behind = True, True
        self.is_read = not is_told
        self.is_gone = False

    def end(self) -> None:
        """Draw no more tokens. If the batch tells what is read, the last one is still read."""
        self.to_come = 0

    @property
    def has_ended(self) -> bool:
        """Whether its row is free for another stream."""
        return self.is_gone or (self.to_come == 0 and self.is_read)


class Step(NamedTuple):
    """What a step did.

    Attributes:
        read: what was read for the first time, of streams that are told, before what was drawn.
        scored: the scores of prompts and of what was drawn, of streams that want them.
        drawn: a new token of each stream that is not held up by the prompts of others.
        failed: streams whose logits are not finite; they have left.
    """

    read: list[tuple[Stream, list[TokenRead]]]
    scored: list[tuple[Stream, list[Score]]]
    drawn: list[tuple[Stream, int]]
    failed: list[Stream]


class Batch:
    """The streams that are sampled together.

    Args:
        net: in evaluation mode and in float32.
        rows: maximum number of streams; fewer if the cache would take too much memory.

    Attributes:
        size: maximum number of streams.
        streams: by row of the cache.
        joining: new streams, in their order, whose prompts are still to be read.
        behind: streams that have filled their context and go on with its later half, which is still
            to be read again. They and new ones do not wait for each other.
    """

    def __init__(self, net: MoETransformer, rows: int) -> None:
        assert not net.training
        self.net, self.size = net, min(rows, group_size(net, 1))
        self.cache = net.new_cache(self.size)
        self.layers = list(net.routers())
        self.prompt_tokens = min(PROMPT_TOKENS, GROUP_BYTES // (4 * net.vocab_size))
        self.streams: list[Stream] = []
        self.joining: deque[Stream] = deque()
        self.behind: deque[Stream] = deque()

    def __len__(self) -> int:
        return len(self.streams) + len(self.joining)

    def join(self, stream: Stream) -> None:
        """Take up a stream; there must be a free row."""
        assert len(self) < self.size
        stream.context = stream.context[-self.net.block_size :]
        self.joining.append(stream)

    @torch.inference_mode()
    def step(self) -> Step:
        """Add a token to every stream, except to those whose prompt does not fit this step."""
        self.leave()
        step = Step([], [], [], [])
        with threads_for(len(self), self.net):
            ready: list[Stream] = []
            parts = [self.read_tokens(ready, step)]
            parts += [self.read_contexts(q, ready, step) for q in (self.joining, self.behind)]
            logits_BV = torch.cat([part for part in parts if part is not None]) if ready else None
            if logits_BV is not None:
                self.draw(logits_BV, ready, step)
        return step

    def leave(self) -> None:
        """Free the rows of streams that have ended."""
        # Looked at once: a client may hang up at any moment, also in the midst of this.
        ended = {id(one) for one in (*self.joining, *self.streams) if one.has_ended}
        for queue in (self.joining, self.behind):
            left = [stream for stream in queue if id(stream) not in ended]
            if len(left) < len(queue):
                queue.clear()
                queue.extend(left)
        row = 0
        while row < len(self.streams):
            if id(self.streams[row]) not in ended:
                row += 1
                continue
            last = self.streams.pop()
            if row < len(self.streams):
                self.streams[row] = last
                for layer in self.cache:
                    for kept in layer:
                        kept[row] = kept[len(self.streams)]

    def read_tokens(self, ready: list[Stream], step: Step) -> Tensor | None:
        """Let the model read the last token of each stream; return the logits after them, (B, V).

        Args:
            ready: gets these streams.
            step: gets what was read.
        """
        size = self.net.block_size
        for stream in self.streams:
            if not stream.is_behind and len(stream.context) > size:
                # As in `generate.steps`: the cache is rebuilt once per size / 2 tokens.
                stream.context = stream.context[-max(1, size // 2) :]
                stream.is_behind = True
                self.behind.append(stream)
        rows = [row for row, stream in enumerate(self.streams) if not stream.is_behind]
        if not rows:
            return None
        # Rows that are behind compute too; what they write into the cache is overwritten.
        ids_B1 = torch.tensor([stream.context[-1:] for stream in self.streams])
        starts = [len(stream.context) - 1 for stream in self.streams]
        used = [LayerCache(*(kept[: len(starts)] for kept in layer)) for layer in self.cache]
        logits_BTV, routings = self.net(ids_B1.to(self.net.head.weight.device), used, starts)
        logits_BV: Tensor = logits_BTV[:, -1]
        told = [row for row in rows if self.streams[row].is_told]
        if told:
            parts = of_tokens(routings, told)
            for row, read in zip(told, self.tell(logits_BV[told], parts), strict=True):
                step.read.append((self.streams[row], [read]))
        ready += [self.streams[row] for row in rows]
        return logits_BV if len(rows) == len(starts) else logits_BV[rows]

    def read_contexts(self, queue: deque[Stream], ready: list[Stream], step: Step) -> Tensor | None:
        """Write contexts into the cache, as many as fit a step; return the logits after each.

        Args:
            queue: the streams whose contexts are to be read.
            ready: gets those whose contexts were.
            step: gets what was read.
        """
        streams: list[Stream] = []
        T = 0
        while queue:
            T = max(T, len(queue[0].context))
            if streams and (len(streams) + 1) * T > self.prompt_tokens:
                break
            streams.append(queue.popleft())
        if not streams:
            return None
        ids_BT = padded([stream.context for stream in streams])
        part = self.net.new_cache(len(streams))
        device = self.net.head.weight.device
        logits_BTV, routings = self.net(ids_BT.to(device), part, [0] * len(streams))
        T = ids_BT.shape[1]
        for i, stream in enumerate(streams):
            length = len(stream.context)
            row = len(self.streams) if stream.is_new else self.streams.index(stream)
            for whole, piece in zip(self.cache, part, strict=True):
                for kept, new in zip(whole, piece, strict=True):
                    # All of the row: masked values count nothing, unless they are not finite.
                    kept[row] = new[i]
            if stream.is_told:
                begin = 0 if stream.is_new else length - 1
                tokens = of_tokens(routings, slice(i * T + begin, i * T + length))
                step.read.append((stream, self.tell(logits_BTV[i, begin:length], tokens)))
            if stream.is_new and stream.scores_prompt:
                first, *rest = stream.context
                found = scores(logits_BTV[i, : length - 1], rest, stream.scored or 0)
                step.scored.append((stream, [Score(first, None, []), *found]))
            if stream.is_new:
                self.streams.append(stream)
            stream.is_new = stream.is_behind = False
        ready += streams
        last = [len(stream.context) - 1 for stream in streams]
        logits_BV: Tensor = logits_BTV[range(len(streams)), last]
        return logits_BV

    def draw(self, logits_BV: Tensor, ready: list[Stream], step: Step) -> None:
        """Draw a token of each stream that has any to come."""
        for stream in ready:
            stream.is_read = stream.to_come == 0 or not stream.is_told
        rows = [row for row, stream in enumerate(ready) if stream.to_come]
        if not rows:
            return
        drawn = draw(logits_BV[rows], [ready[row].drawing for row in rows])
        scored = [
            (row, token)
            for row, token in zip(rows, drawn, strict=True)
            if token is not None and ready[row].scored is not None
        ]
        if scored:
            which, tokens = zip(*scored, strict=True)
            others = [ready[row].scored or 0 for row in which]
            found = scores(logits_BV[list(which)], tokens, max(others))
            for row, score, count in zip(which, found, others, strict=True):
                own = score._replace(likeliest=score.likeliest[:count])
                step.scored.append((ready[row], [own]))
        for row, token in zip(rows, drawn, strict=True):
            stream = ready[row]
            if token is None:
                stream.is_gone = True
                step.failed.append(stream)
                continue
            stream.context.append(token)
            stream.to_come -= 1
            step.drawn.append((stream, token))

    def tell(self, logits_NV: Tensor, routings: list[Routing]) -> list[TokenRead]:
        """What the model did with N tokens."""
        found = dict(zip(self.layers, map(choices, routings), strict=True))
        following = likeliest(logits_NV.softmax(-1), LIKELIEST)
        depth = range(len(self.net.blocks))
        return [
            TokenRead([found[layer][n] if layer in found else None for layer in depth], pairs)
            for n, pairs in enumerate(following)
        ]


def scores(logits_NV: Tensor, tokens: Sequence[int], others: int) -> list[Score]:
    """The scores of N tokens, each with so many others.

    Args:
        logits_NV: of the model, where each token follows.
        tokens: their ids.
        others: how many of the most likely tokens to name.
    """
    log_probs_NV = logits_NV.log_softmax(-1)
    ids_N1 = torch.tensor(tokens, device=log_probs_NV.device)[:, None]
    own = log_probs_NV.gather(1, ids_N1)[:, 0].tolist()
    return [Score(*one) for one in zip(tokens, own, likeliest(log_probs_NV, others), strict=True)]


def likeliest(values_NV: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """The tokens with the largest values in each row, at most `count`, and these values."""
    values, ids = values_NV.topk(min(count, values_NV.shape[-1]))
    rows = zip(ids.tolist(), values.tolist(), strict=True)
    return [list(zip(*row, strict=True)) for row in rows]
