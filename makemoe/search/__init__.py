"""Variants of a run, trained side by side and compared.

How the data travels: the words of `makemoe compare` become variants (`variants`), whose settings
are checked, counted and timed in a process of their own (`makemoe.cli.examine`; `equal`, `twins`).
They are the plan (`plan`). Each variant and seed is a `makemoe fit` with a folder of its own
(`folder`, `runs`, `side_by_side`), whose metrics.csv becomes the data and the table (`results`,
`table`).
"""
