"""Variants of a run, compared side by side; and the search for the best one.

How the data travels: the words of `makemoe compare` become variants (`variants`), whose settings
are checked, counted and timed in a process of their own (`makemoe.cli.examine`; `equal`, `twins`).
They are the plan (`plan`). Each variant and seed is a `makemoe fit` with a folder of its own
(`folder`, `runs`, `side_by_side`), whose metrics.csv becomes the data and the table (`results`,
`table`).

The trials of `makemoe sweep` are in a database (`space`, `study`, `sampler`). A worker takes one
after another (`sweeping`), has it checked (`makemoe.cli.explore`; `width`) and trains it as a
variant (`attempt`), until the best one is known (`sweep_results`).
"""
