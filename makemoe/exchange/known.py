"""The architectures of transformers that have counterparts here."""

from makemoe.exchange.counterpart import Counterpart
from makemoe.exchange.glm4_moe import Glm4Moe
from makemoe.exchange.mixtral import Mixtral
from makemoe.exchange.qwen3_moe import Qwen3Moe

KNOWN: tuple[Counterpart, ...] = (Mixtral(), Qwen3Moe(), Glm4Moe())
"""All of them; of several that lack as little, the first is named as the nearest."""
