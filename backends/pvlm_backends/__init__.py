"""Model plug-ins: each implements `pvlm_protocols.backend.Backend` and is found by its entry point.

Importing a plug-in's class imports neither torch nor transformers; `Backend.load` does.
"""
