"""Which experts read each token of a text, as a table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from makemoe.errors import MissingPackageError

if TYPE_CHECKING:
    from pandas import DataFrame


class TokenRouting(NamedTuple):
    """What one layer decided for one token.

    Attributes:
        position: of the token in the text, from 0.
        token: its id.
        text: what it completes; empty if it ends inside its first character.
        layer: number of the layer, from 0.
        experts: the chosen experts, largest weight first.
        weights: the weight of each one's output.
    """

    position: int
    token: int
    text: str
    layer: int
    experts: tuple[int, ...]
    weights: tuple[float, ...]


class RoutingTable(Sequence[TokenRouting]):
    """Which experts read each token: one row per token and layer, token by token.

    Attributes:
        tokens: ids of the N tokens.
        texts: what each of them completes; all together are the text.
        layers: numbers of the L layers that have a router; a dense layer has no rows.
        experts_LNK: the chosen experts, largest weight first, int64.
        weights_LNK: their weights, float32.
        num_experts: experts per layer E.
    """

    def __init__(
        self,
        tokens: list[int],
        texts: list[str],
        layers: list[int],
        experts_LNK: NDArray[np.int64],
        weights_LNK: NDArray[np.float32],
        num_experts: int,
    ) -> None:
        self.tokens, self.texts, self.layers = tokens, texts, layers
        self.experts_LNK, self.weights_LNK = experts_LNK, weights_LNK
        self.num_experts = num_experts

    def __repr__(self) -> str:
        K = self.experts_LNK.shape[-1]
        return (
            f"<RoutingTable: {len(self.tokens):,} tokens in {len(self.layers)} layers, "
            f"{K} of {self.num_experts} experts each>"
        )

    def __len__(self) -> int:
        return len(self.tokens) * len(self.layers)

    @overload
    def __getitem__(self, index: int) -> TokenRouting: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenRouting]: ...
    def __getitem__(self, index: int | slice) -> TokenRouting | list[TokenRouting]:
        found = range(len(self))[index]
        return self._row(found) if isinstance(found, int) else list(map(self._row, found))

    def _row(self, number: int) -> TokenRouting:
        n, row = divmod(number, len(self.layers))
        return TokenRouting(
            n,
            self.tokens[n],
            self.texts[n],
            self.layers[row],
            tuple(self.experts_LNK[row, n].tolist()),
            tuple(self.weights_LNK[row, n].tolist()),
        )

    def shares_LNE(self) -> NDArray[np.float32]:
        """The weight of every expert, float32; 0 for those that were not chosen."""
        shares_LNE = np.zeros((*self.experts_LNK.shape[:2], self.num_experts), np.float32)
        np.put_along_axis(shares_LNE, self.experts_LNK, self.weights_LNK, axis=-1)
        return shares_LNE

    def to_pandas(self) -> "DataFrame":
        """The rows as a pandas.DataFrame with the columns of `TokenRouting`.

        Raises:
            MissingPackageError: if pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise MissingPackageError("to_pandas() needs pandas: pip install pandas") from error
        return DataFrame(list(self), columns=list(TokenRouting._fields))
