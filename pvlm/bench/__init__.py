"""Measurements of a pair of models, for ``pvlm bench`` and ``pvlm plan``."""
