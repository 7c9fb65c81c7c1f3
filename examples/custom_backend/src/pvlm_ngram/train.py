"""Count n-grams: ``python -m pvlm_ngram.train captions.txt draft.json``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

from pvlm_backends.families import load_processor
from pvlm_protocols.backend import CheckpointError

from .backend import tokenizer_folder
from .model import NgramModel


def train(texts: Iterable[str], *, tokenizer: str = "bundled", order: int = 4) -> NgramModel:
    """An n-gram model of texts, over a checkpoint's tokenizer. Raises CheckpointError."""
    folder = tokenizer_folder(tokenizer)
    processor = load_processor(str(folder))
    encode = Tokenizer.from_file(str(folder / "tokenizer.json")).encode
    return NgramModel.counted(
        (encode(text, add_special_tokens=False).ids for text in texts),
        end_token=processor.end_token_ids[0],
        order=order,
        tokenizer=tokenizer,
        tokenizer_fingerprint=processor.tokenizer_fingerprint,
        vocab_size=len(processor.tokens_as_text()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pvlm_ngram.train", description="Count n-grams for drafting.")
    parser.add_argument("texts", type=Path, help="texts such as the target's answers, one a line")
    parser.add_argument("model", type=Path, help="file of the model (JSON)")
    parser.add_argument("--tokenizer", default="bundled", help="the target's checkpoint (default: the bundled one)")
    parser.add_argument("--order", type=int, default=4, help="1 + tokens of context (default: 4)")
    options = parser.parse_args()
    texts = [line.strip() for line in options.texts.read_text().splitlines() if line.strip()]
    try:
        model = train(texts, tokenizer=options.tokenizer, order=options.order)
    except CheckpointError as error:
        sys.exit(f"error: {error}")
    model.write(options.model)
    print(f"{options.model}: {len(model.counts)} contexts of up to {model.order - 1} tokens, from {len(texts)} texts")


if __name__ == "__main__":
    main()
