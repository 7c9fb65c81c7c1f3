"""Model plug-ins. Each implements `pvlm_protocols.backend.Backend` and has an entry point.

Importing a plug-in's class imports neither torch nor transformers; `Backend.load` does.
"""
