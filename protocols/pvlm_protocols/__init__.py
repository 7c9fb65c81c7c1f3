"""What the actors of pvlm say to each other, and what a model plug-in implements."""
