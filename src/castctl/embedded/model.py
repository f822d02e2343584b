"""The embedded model: a tiny Qwen3, its byte-level tokenizer and its warm-up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from math import cos, pi
from pathlib import Path
from random import Random
from typing import cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from castctl.embedded import task

SLIP_SHARE = 0.65
"""Share of the carries and borrows that the warm-up's worked solutions forget without a hint."""

HINT_SHARE = 0.25
"""Share of the lessons whose prompt holds the answer and whose worked solution has no slip."""

VOCABULARY = 320
BATCH = 32
LEARNING_RATE = 4e-3
RISING_STEPS = 30

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)

_TOKENIZER_SEED, _WARMUP_SEED = 1, 2
_IGNORED = -100

Lesson = tuple[list[int], list[int]]
"""Token ids of a prompt and of its completion."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the task's own text. Every digit is a token; merges cross words."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    samples = islice(task.problems(_TOKENIZER_SEED), 2000)
    texts = (f"user\n{p.text}\nassistant\n{task.solution(p)}" for p in samples)
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """The untrained model, about 354,000 random weights."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        intermediate_size=288,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.1,  # with the usual 0.02 so small a model learns ten times slower
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_WARMUP_SEED)
        model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,  # left out, it would be 50 and not the model's own distribution
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def lessons(tokenizer: PreTrainedTokenizerFast, slip_share: float) -> Iterator[Lesson]:
    """Worked examples without end, none of them held out: hinted ones, and others with slips."""
    rng = Random(_WARMUP_SEED)

    def slips() -> bool:
        return rng.random() < slip_share

    for problem in task.problems(_WARMUP_SEED):
        if not problem.heldout:
            if rng.random() < HINT_SHARE:
                text, worked = task.hinted(problem), task.solution(problem)
            else:
                text, worked = problem.text, task.solution(problem, slips)
            messages = [{"role": "user", "content": text}]
            prompt = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
            yield cast(list[int], prompt), [*tokenizer.encode(worked), tokenizer.eos_token_id]


def warm_up(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    slip_share: float = SLIP_SHARE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Teach the model worked solutions: after a hint without slips, elsewhere with `slip_share`
    of the carries and borrows forgotten.

    The loss is the cross-entropy of the completion tokens, the stop token included.
    """

    def rate(step: int) -> float:
        return min(1, (step + 1) / RISING_STEPS) * (1 + cos(pi * step / steps)) / 2

    source = lessons(tokenizer, slip_share)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for step in range(steps):
        progress(step, steps)
        # Two passes, the short half and the long half: much less padding, the same gradient.
        batch = sorted(islice(source, BATCH), key=lambda lesson: sum(map(len, lesson)))
        count = sum(len(completion) for _, completion in batch)
        optimizer.zero_grad()
        for half in (batch[: BATCH // 2], batch[BATCH // 2 :]):
            tokens, targets = _padded(half)
            # Padding is on the right, where causal attention never looks.
            hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
            kept = targets != _IGNORED
            logits = model.lm_head(hidden[kept])
            (cross_entropy(logits, targets[kept], reduction="sum") / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    progress(steps, steps)
    model.eval()


def save(folder: Path, steps: int, progress: Callable[[int, int], None]) -> None:
    """Make the warmed-up model and write it as a Hugging Face folder.

    The weights are the same every time on one machine.
    """
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    with _few_threads():
        warm_up(model, tokenizer, steps, progress=progress)
    with _without_bars():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _padded(batch: list[Lesson]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and next-token targets, each (rows, longest - 1); prompts have no targets."""
    length = max(len(prompt) + len(completion) for prompt, completion in batch) - 1
    tokens = torch.zeros((len(batch), length), dtype=torch.long)
    targets = torch.full_like(tokens, _IGNORED)
    for row, (prompt, completion) in enumerate(batch):
        ids = torch.tensor(prompt + completion)
        tokens[row, : len(ids) - 1] = ids[:-1]
        targets[row, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
    return tokens, targets


@contextmanager
def _few_threads() -> Iterator[None]:
    """Two threads at most: for matrices this small, more of them mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' own progress bars off the terminal."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
