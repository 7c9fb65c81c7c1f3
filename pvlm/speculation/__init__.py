"""How tokens are drawn, verified and pruned, and how wide a window should be: pure functions, without I/O.

`settings`, `masks`, `theory`, `estimates` and `windows` do not import torch: the engine's process uses them.
"""
