"""The messages between the actors of pvlm, and the interface of a model plug-in."""
