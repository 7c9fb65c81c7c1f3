"""Pure functions without I/O: drawing, verifying and pruning tokens, and choosing a window.

`estimates`, `gaps`, `masks`, `text`, `theorems`, `theory` and `windows` do not import torch: the
engine's process uses them.
"""
