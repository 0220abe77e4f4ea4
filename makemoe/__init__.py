"""Character-level language models with sparse mixture-of-experts layers."""

__version__ = "0.1.0"
