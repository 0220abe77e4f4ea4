"""Models for other programs, and models from them: folders that transformers reads and writes.

A `Blueprint` says in plain values what a model computes. A `Counterpart` is an architecture of
transformers that can compute it: it writes the blueprint as a config.json, reads it from one, and
names the tensors that hold each weight. Neither transformers nor Lightning is imported.
"""
