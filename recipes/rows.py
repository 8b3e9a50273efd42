"""Training rows: views of token files that recipes.prepare has written once; no rank holds the corpus in memory."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE

from core.recipe import MULTIPLE


@dataclass(frozen=True)
class Rows:
    """Texts end to end as token ids, uint32 [n]; text k ends before `ends[k]`.

    Packed (`seq_len` given) a row is the next `seq_len` tokens, whatever texts they are of; else a row is a text.
    `said`, bool [n], marks the tokens that are trained on; none: all are. `pad` fills what is left of a row.
    """

    tokens: np.ndarray
    ends: np.ndarray
    said: np.ndarray | None
    seq_len: int | None
    pad: int
    count: int

    @classmethod
    def of(cls, folder: Path, seq_len: int | None, pad: int) -> "Rows":
        """The rows of a prepared folder."""
        tokens = np.memmap(folder / "tokens.bin", np.uint32, "r")
        ends = np.fromfile(folder / "ends.bin", np.int64)
        said = np.memmap(folder / "said.bin", np.bool_, "r") if (folder / "said.bin").exists() else None
        return cls(tokens, ends, said, seq_len, pad, -(-len(tokens) // seq_len) if seq_len else len(ends))

    def __len__(self) -> int:
        return self.count

    def first(self, count: int) -> "Rows":
        """The first `count` rows alone."""
        return replace(self, count=count)

    def _bounds(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each of the rows begins and ends in `tokens`."""
        if self.seq_len:
            return which * self.seq_len, np.minimum((which + 1) * self.seq_len, len(self.tokens))
        return np.where(which, self.ends[which - 1], 0), self.ends[which]

    @property
    def real_tokens(self) -> int:
        """Tokens of all rows, without padding."""
        return int(self._bounds(np.array([self.count - 1]))[1][0]) if self.count else 0

    def trained(self, which: np.ndarray) -> int:
        """How many tokens of these rows are trained to predict the one after them."""
        begin, end = self._bounds(which)
        if self.said is not None:
            return sum(int(self.said[b + 1 : e].sum()) for b, e in zip(begin, end, strict=True))
        last = np.searchsorted(self.ends, end, "right") - np.searchsorted(self.ends, begin, "right")
        return int((end - begin - last).sum())

    def batch(self, which: np.ndarray) -> dict[str, torch.Tensor]:
        """The named rows, int64 [b, s]: tokens, labels, input_pos, document.

        `labels` are shifted: labels[t] is what follows tokens[t], also after a row's end; IGNORE where the text ends or
        nothing is trained. `input_pos` starts at 0 with each text and each row. `document` numbers the text that a
        token is of; attention never leaves it. Padding has number -1.
        """
        begin, end = self._bounds(which)
        width = self.seq_len or -(-int((end - begin).max()) // MULTIPLE) * MULTIPLE
        at = begin[:, None] + np.arange(width)
        real = at < end[:, None]
        last = len(self.tokens) - 1
        at, after = np.minimum(at, last), np.minimum(at + 1, last)
        text = np.searchsorted(self.ends, at, "right")
        follows = real & (after > at) & (after < self.ends[text])
        if self.said is not None:
            follows &= self.said[after]
        starts = np.maximum(np.where(text, self.ends[text - 1], 0), begin[:, None])
        arrays = {
            "tokens": np.where(real, self.tokens[at].astype(np.int64), self.pad),
            "labels": np.where(follows, self.tokens[after].astype(np.int64), IGNORE),
            "input_pos": np.where(real, at - starts, 0),
            "document": np.where(real, text, -1),
        }
        return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}
