"""One answer: from a request to text, tokens and statistics."""
