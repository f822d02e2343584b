"""Make a random-weight Qwen3 model with the real vocabulary size, to measure cost without a hub.

    python benchmarks/random_qwen3.py FOLDER --text gsm8k.jsonl --hidden 256 --layers 4

The tokenizer is a byte-level BPE trained on the text; ids beyond what the text yields are
filled with placeholder tokens, so that every sampled id decodes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 151_936
PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen3-1.7B": {"hidden": 2048, "inner": 6144, "layers": 28, "heads": 16, "kv_heads": 8,
                   "head_dim": 128, "spread": 0.02},
    "Qwen3-4B": {"hidden": 2560, "inner": 9728, "layers": 36, "heads": 32, "kv_heads": 8,
                 "head_dim": 128, "spread": 0.02},
    "Qwen3-8B": {"hidden": 4096, "inner": 12288, "layers": 36, "heads": 32, "kv_heads": 8,
                 "head_dim": 128, "spread": 0.02, "tied": False},
}  # fmt: skip
"""The sizes in the configurations of these models, for `make_model`, and their spread, at which
bfloat16 stays as close as it does to real weights."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(text: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `text`, padded with placeholders to `vocabulary` tokens."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=min(16384, vocabulary),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train([str(text)], trainer)
    vocab = trained.get_vocab()
    vocab |= {f"filler{i:06d}": i for i in range(len(vocab), vocabulary)}
    full = Tokenizer(models.BPE(vocab=vocab, merges=_merges(trained)))
    full.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    full.decoder = decoders.ByteLevel()
    full.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=full,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return [(left, right) for left, right in pairs]


def make_model(
    vocabulary: int = VOCABULARY,
    hidden: int = 256,
    inner: int | None = None,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    spread: float = 0.1,
    tied: bool = True,
    **config: Any,
) -> Qwen3ForCausalLM:
    """The model, the same weights of standard deviation `spread` every time; `config` goes to
    `Qwen3Config`."""
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner or 3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tied,
        initializer_range=spread,
        max_position_embeddings=32768,
        **config,
    )
    return Qwen3ForCausalLM(shape).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--inner", type=int)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    options = vars(parser.parse_args())
    folder, text = options.pop("folder"), options.pop("text")
    tokenizer = make_tokenizer(text, options["vocabulary"])
    model = make_model(
        **options, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
