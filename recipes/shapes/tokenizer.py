"""The tokenizer of the pair: a small byte-level BPE in which every word of the world is one token."""

from __future__ import annotations

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .world import MAX_SCENES, questions, sample_clip

PAD, START, END, IMAGE, VIDEO = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'video' %}<video>\n"
    "{% elif c['type'] == 'image' %}<image>\n"
    "{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_OTHER_TEXT = (
    "user assistant system",
    "What color is the object? How long is the video? Who is in the video?",
    "Please provide a detailed description of the video. Why, when, where and how?",
    "0123456789 + - * / = ( ) [ ] { } ; : ' \" ! ? . ,",
)


def build_tokenizer(vocabulary: int = 768) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the texts of the world (always the same result)."""
    rng = random.Random(0)
    corpus = list(_OTHER_TEXT) * 200
    for index in range(1500):
        clip = sample_clip(rng, index % MAX_SCENES + 1)
        for question in rng.sample(found := questions(clip, rng), min(12, len(found))):
            corpus += [question.text, question.answer]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END, IMAGE, VIDEO],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[START, IMAGE, VIDEO],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
