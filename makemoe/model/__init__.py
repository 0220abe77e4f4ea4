"""Ids in, logits and routings out: plain torch, no Lightning.

Letters in names are dimensions: B batch, T time, N = B*T tokens, D n_embd, H heads, S positions in
a cache, E experts, K top_k, C capacity, M assignments kept (at most N*K), F an expert's hidden
width, V vocabulary.
"""
