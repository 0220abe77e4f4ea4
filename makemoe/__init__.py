"""Language models of characters, bytes or sub-words with sparse mixture-of-experts layers.

import makemoe
model = makemoe.load("best.ckpt")
print(model.sample("ROMEO:", max_new_tokens=100, temperature=0.8))
"""

__version__ = "0.1.0"
__all__ = ["Model", "load"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from makemoe.api import Model, load
else:

    def __getattr__(name: str) -> object:
        """Import torch only when a model is wanted: the command line needs it seldom."""
        if name not in __all__:
            raise AttributeError(f"module 'makemoe' has no attribute {name!r}")
        from makemoe import api

        return getattr(api, name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
