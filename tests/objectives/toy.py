"""A tokenizer whose tokens can be foretold, and what the tests of objectives share with it."""

import numpy as np

from transformer_jax.types import Drawing, Encoding

ROLES = {"pad": 0, "bos": 1, "eos": 2, "unk": 3, "cls": 4, "sep": 5, "mask": 6}
FIRST_ID, VOCAB_SIZE = 7, 2000


class ToyTokenizer:
    """Words end at white space and are cut into tokens of at most three characters.

    A token's id is its place among the different tokens seen so far. The last ``num_sentinels`` ids
    are the sentinels, falling, as T5 has them.
    """

    vocab_size = VOCAB_SIZE

    def __init__(
        self, num_sentinels: int = 100, roles: tuple[str, ...] = tuple(ROLES), parts: dict | None = None
    ):
        self.sentinels = tuple(VOCAB_SIZE - 1 - i for i in range(num_sentinels))
        self.roles = roles
        self.parts = parts or {}
        self.targets = self
        self.known: list[str] = []

    def encode(self, text: str) -> np.ndarray:
        return self.encode_with_places(text).ids

    def encode_whole(self, text: str) -> np.ndarray:
        return np.append(self.encode(text), np.int32(ROLES["eos"]))

    def encode_with_places(self, text: str) -> Encoding:
        rows, place = [], 0
        for number, word in enumerate(text.split()):
            begin = text.index(word, place)
            place = begin + len(word)
            for start in range(begin, place, 3):
                stop = min(start + 3, place)
                token = text[start:stop]
                if token not in self.known:
                    self.known.append(token)
                rows.append((FIRST_ID + self.known.index(token), number, start, stop))
        return Encoding(*np.array(rows, np.int32).reshape(-1, 4).T)

    def template(self, num_texts: int) -> tuple[np.ndarray, ...]:
        """As ``parts`` has it, by roles; by default "<cls> a <sep> b <sep>"."""
        parts = self.parts.get(num_texts, [["cls"], *[["sep"]] * num_texts])
        return tuple(np.array([self.id_of(role) for role in part], np.int32) for part in parts)

    def id_of(self, role: str) -> int:
        if role not in self.roles:
            raise ValueError(f"the tokenizer has no {role} token")
        return ROLES[role]

    def tokens(self, ids) -> list[str]:
        """What is written for ids: special ones as <role> or <X0>, <X1>, …"""
        names = {i: f"<{role}>" for role, i in ROLES.items()}
        names |= {i: f"<X{n}>" for n, i in enumerate(self.sentinels)}
        return [names[i] if i in names else self.known[i - FIRST_ID] for i in map(int, ids)]


def draw(tokenizer, max_length, seed=0, other=None, train=True) -> Drawing:
    """A drawing whose other example is always ``other``."""
    return Drawing(np.random.default_rng(seed), max_length, tokenizer, lambda: other, train)


def padded(examples, length):
    """A batch by hand: one example a row, padded to ``length``, and a last row with none."""
    rows = len(examples) + 1
    batch = {}
    for key, value in examples[0].items():
        if key.startswith("_"):
            continue
        if key not in ("inputs", "targets") and not key.startswith(("inputs_", "targets_")):
            empty = np.full_like(value, 0 if value.dtype == np.uint8 else -1)
            batch[key] = np.stack([*(example[key] for example in examples), empty])
            continue
        batch[key] = np.zeros((rows, length), np.int32)
        for row, example in enumerate(examples):
            batch[key][row, : len(example[key])] = example[key]
    for side in {"inputs", "targets"} & set(examples[0]):
        lengths = np.array([*(len(example[side]) for example in examples), 0])[:, None]
        places = np.arange(length)[None, :]
        batch[f"{side}_segments"] = (places < lengths).astype(np.int32)
        batch[f"{side}_positions"] = np.where(places < lengths, places, 0).astype(np.int32)
    return batch


def log_softmax(logits):
    """In float64, over the last axis."""
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def floats(sums):
    return {name: float(value) for name, value in sums.items()}
