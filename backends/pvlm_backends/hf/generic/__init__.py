"""Models that pvlm has no family for: prompts by the checkpoint's own processor, passes as transformers' `generate`."""
