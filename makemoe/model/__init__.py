"""The model, in plain torch without Lightning: ids in, logits and routings out.

Letters in names are dimensions: B batch, T time, N = B*T tokens, D n_embd, H heads, P pairs of
numbers in a head, S positions in a cache, E experts, K top_k, C capacity, M assignments kept (at
most N*K), F hidden width of an expert, V vocabulary, L routers, d size of a head, I inputs and O
outputs of a linear layer, R rows with padding.
"""
