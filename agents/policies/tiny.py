"""The embedded default policy: a Llama of about a million parameters and a tokenizer made from the environment's text.

It is an ordinary Hugging Face model and tokenizer, saved and loaded as a folder like any other; in the form of Qwen3,
which is a Llama that normalises queries and keys. Positions turn slowly, and keys begin equal to queries: both teach
it sooner to find a thing by its name far back in the episode.

What makes it learn within minutes on two cores is the tokenizer:

- A numbered thing ("drawer 3") is one token. To name a thing that was seen, the model copies one token.
- An action's verb and the thing that it names ("take mug 2") are one token. Under a mask, that token is allowed only
  where the thing can be taken. The model has to know what it wants, and not whether it is there.
- A phrase that the environment uses between names ("You arrive at") is one token, which makes episodes short. So is
  what actions name in brackets ("click[navy blue]").

Any other text still encodes without loss, in words or else in bytes.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from agents.prompts import ACT

logger = logging.getLogger(__name__)

BOS, EOS = "<bos>", "<eos>"  # an episode begins, an action ends; between them `ACT` asks for the action
ENTITY = r" ?[a-z]+ \d+"
WORD = r" ?\w+| ?[^\w\s]+|\s+"
MOST_WORDS = 2**16  # that are tokens; the rarer ones are spelled in bytes
ROPE_THETA = 1e6  # most pairs of dimensions turn less than once in an episode, and tell names whatever their distance


def build_tokenizer(
    texts: Iterable[str],
    named: Iterable[str] = (),
    actions: Iterable[str] = (),
    min_phrase: int = 20,
    max_phrases: int = 200,
) -> PreTrainedTokenizerFast:
    """A lossless tokenizer whose tokens are the names, the frequent phrases and the words of `texts`.

    `named` are more names: one token each, the same wherever they stand as words of their own, except that those beyond
    ASCII stay in words.

    `actions` are actions of the environment. A verb and a name with which one begins are one token, at the beginning of
    a text.

    A phrase is what stands between two names of a line (or a name and an end of the line) at least `min_phrase`
    times. Lines without any name bring words only: they are sentences, and a task must stay readable by its words.
    """
    names: Counter[str] = Counter()
    phrases: Counter[str] = Counter()
    words: Counter[str] = Counter()
    actions = sorted(set(actions))
    for line in (line for text in [*texts, *actions] for line in text.splitlines(keepends=True)):
        between = re.split(ENTITY + r"\b", line.rstrip("\n"))
        if len(between) > 1:
            names.update(re.findall(ENTITY + r"\b", line))
            phrases.update(part for part in between if len(part) > 1)
        for part in [*between, "\n", "\n\n"]:
            words.update(re.findall(WORD, part))
    frequent = [p for p, count in phrases.most_common(max_phrases) if count >= min_phrase]
    frequent.sort(key=lambda p: (-len(p), p))
    if len(words) > MOST_WORDS:
        logger.warning("the %d rarest of %d words have no token of their own", len(words) - MOST_WORDS, len(words))
    kept = [word for word, _ in words.most_common(MOST_WORDS)]
    commands = {found[0] for action in actions if (found := re.match(r"[a-z ]+? [a-z]+ \d+\b", action))}
    kinds = sorted({command.rsplit(" ", 1)[0] for command in commands}, key=lambda kind: (-len(kind), kind))
    # A phrase is one only where a name or the end of the text follows, as where it was found.
    pattern = "|".join(re.escape(p) for p in frequent)
    pattern = (f"(?:{pattern})(?= ?[a-z]+ \\d+\\b|$)|" if frequent else "") + f"{ENTITY}\\b|{WORD}"
    if kinds:
        pattern = f"\\A(?:{'|'.join(kinds)}) \\d+\\b|{pattern}"
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary: dict[str, int] = {}
    specials = [BOS, EOS, ACT]
    for token in [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]:
        vocabulary[token] = len(vocabulary)
    numbered = sorted(_all_numbers([name for name, _ in names.most_common(MOST_WORDS)]))
    for piece in [*numbered, *frequent, *sorted(kept), *sorted(_all_numbers(commands))]:
        token = "".join(part for part, _ in to_bytes.pre_tokenize_str(piece))
        vocabulary.setdefault(token, len(vocabulary))
    # Without merges, and with whole pieces looked up first, BPE is a word list that falls back to bytes.
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    # The decoder takes a character beyond ASCII for a byte.
    tokenizer.add_tokens([AddedToken(n, single_word=True, normalized=False) for n in sorted(set(named)) if n.isascii()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, additional_special_tokens=[ACT]
    )


def _all_numbers(names: Iterable[str]) -> set[str]:
    """The names seen, those of the same kind with a smaller number, and one more: " drawer 3" brings " drawer 1" to 4.

    "take mug 2" is of the kind "take mug".

    A kind seen with numbers up to n comes with n + 1 in some game that was not read; then it should not be spelled.
    """
    largest: dict[str, int] = {}
    for name in names:
        kind, number = name.rsplit(" ", 1)
        if len(number) <= 2:  # a longer number is an amount, not a name
            largest[kind] = max(largest.get(kind, 1), int(number))
    return {f"{kind} {i}" for kind, top in largest.items() for i in range(1, top + 2)}


def build_model(
    vocabulary: int, *, width: int, layers: int, heads: int, feed_forward: int, context: int, seed: int
) -> Qwen3ForCausalLM:
    """A freshly initialised model in float32; `seed` fixes its weights without touching the global generator."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).eval()
    # A token begins by attending to what is like it: Trockman and Kolter, arXiv 2305.09828.
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    return model


class SharedWords:
    """Tokens of several words share a part of their embedding with all tokens that hold one of these words.

    " laptop 1" is one token. By itself it has nothing to do with " laptop", as which a goal asks for it, nor with
    " laptop 2": a model would have to learn that name by name. So an embedding begins as the sum of a part of its own
    and a part of each of its words, and `follow` trains these parts beside it. The model stays a plain one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, weight: torch.nn.Parameter, seed: int) -> None:
        """`weight` [V, E] is the embedding, which gets its parts here: as large as before, `seed` fixes them."""
        words: dict[str, int] = {}
        places: list[tuple[int, int]] = []  # token, word
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], skip_special_tokens=True)
        for token, text in enumerate(texts):
            places += [(token, words.setdefault(word, len(words))) for word in sorted(set(re.findall(r"\w+", text)))]
        self.weight = weight
        self.holds = torch.sparse_coo_tensor(  # [V, W]: 1 where a token holds a word
            torch.tensor(places, dtype=torch.long).reshape(-1, 2).T,
            torch.ones(len(places)),
            (len(weight), len(words)),
            check_invariants=True,
        ).to(weight.device)
        self.steps = torch.nn.Parameter(torch.zeros(len(words), weight.shape[1], device=weight.device))
        with torch.no_grad():
            parts = torch.empty(self.steps.shape)
            parts.normal_(std=float(weight.std()), generator=torch.Generator().manual_seed(seed))
            weight.add_(self.holds @ parts.to(weight.device))
            weight.div_((1 + self.holds.sum(1).to_dense()).sqrt()[:, None])

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Have `optimizer`, which trains the embedding, train the words' parts of it too, by its own rule."""
        optimizer.add_param_group({"params": [self.steps]})
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    @torch.no_grad()
    def _before(self, *_: object) -> None:
        if self.weight.grad is not None:
            self.steps.grad = self.holds.T @ self.weight.grad

    @torch.no_grad()
    def _after(self, *_: object) -> None:
        """Add what the step changed of the parts to all tokens that hold them."""
        self.weight.add_(self.holds @ self.steps)
        self.steps.zero_()


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """How many ids the tokenizer has, rounded up to a multiple of 8 for the kernels."""
    return -(-len(tokenizer) // 8) * 8
