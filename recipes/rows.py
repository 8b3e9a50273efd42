"""Training rows: views of token files, so that no rank holds the corpus in memory."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE

from core.recipe import MULTIPLE

BLOCK = 128  # tokens of a block of flex attention


@dataclass(frozen=True)
class Rows:
    """Texts end to end. A row is `seq_len` tokens of them (packed) or, without it, a text."""

    tokens: np.ndarray
    """Token ids, uint32 [n]."""
    offsets: np.ndarray
    """Where each text ends in `tokens`, int64 [texts]."""
    loss_mask: np.ndarray | None
    """Tokens that are trained on, bool [n]. None: all are."""
    seq_len: int | None
    """Tokens of a packed row, whatever texts they are of. None: not packed."""
    pad: int
    """Token id that fills a row's end."""
    count: int
    """Number of rows."""

    @classmethod
    def load(cls, folder: Path, seq_len: int | None, pad: int) -> "Rows":
        """Map the files that recipes.prepare has written to `folder`."""
        tokens = np.memmap(folder / "tokens.bin", np.uint32, "r")
        offsets = np.fromfile(folder / "offsets.bin", np.int64)
        mask_file = folder / "loss_mask.bin"
        loss_mask = np.memmap(mask_file, np.bool_, "r") if mask_file.exists() else None
        count = -(-len(tokens) // seq_len) if seq_len else len(offsets)
        return cls(tokens, offsets, loss_mask, seq_len, pad, count)

    def __len__(self) -> int:
        return self.count

    def first(self, count: int) -> "Rows":
        """The first `count` rows."""
        return replace(self, count=count)

    def _bounds(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each of the rows begins and ends in `tokens`."""
        if self.seq_len:
            ends = np.minimum((indices + 1) * self.seq_len, len(self.tokens))
            return indices * self.seq_len, ends
        return np.where(indices, self.offsets[indices - 1], 0), self.offsets[indices]

    @property
    def real_tokens(self) -> int:
        """Tokens of all rows, without padding."""
        if not self.count:
            return 0
        _, ends = self._bounds(np.array([self.count - 1]))
        return int(ends[0])

    def num_trained(self, indices: np.ndarray) -> int:
        """How many tokens of these rows are trained to predict the token after them."""
        begins, ends = self._bounds(indices)
        if self.loss_mask is not None:
            return sum(
                int(self.loss_mask[begin + 1 : end].sum())
                for begin, end in zip(begins, ends, strict=True)
            )
        # A text's last token predicts nothing.
        finished_texts = np.searchsorted(self.offsets, ends, "right")
        texts_ending = finished_texts - np.searchsorted(self.offsets, begins, "right")
        return int((ends - begins - texts_ending).sum())

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Tokens of each of these rows."""
        begins, ends = self._bounds(indices)
        lengths: np.ndarray = ends - begins
        return lengths

    def packed_batch(self, groups: list[np.ndarray], seq_len: int) -> dict[str, torch.Tensor]:
        """As `batch`, with the rows of a group one after another in a row of at most `seq_len`.

        Widths are powers of two, at least a block of flex attention: few shapes to compile.
        """
        packed = []
        for indices in groups:
            batch = self.batch(indices)
            is_real = batch["document"] >= 0
            # Not a text's number: a step may have one twice, and they must not see each other.
            numbers = torch.arange(len(indices))[:, None]
            batch["document"] = numbers.expand_as(is_real)
            packed.append({name: tensor[is_real] for name, tensor in batch.items()})
        longest = max(len(row["tokens"]) for row in packed)
        width = min(seq_len, max(BLOCK, 2 ** (longest - 1).bit_length()))
        fill = {"tokens": self.pad, "labels": IGNORE, "input_pos": 0, "document": -1}
        return {
            name: torch.stack(
                [
                    torch.nn.functional.pad(row[name], (0, width - len(row[name])), value=value)
                    for row in packed
                ]
            )
            for name, value in fill.items()
        }

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """The rows `indices` as int64 tensors [b, s].

        tokens: token ids, padded at the end.
        labels: shifted, so labels[t] is the token after tokens[t], also after a row's end; IGNORE
            where the text ends or the next token is not trained on.
        input_pos: positions, from 0 in each text and in each row.
        document: the number of the text that a token is of, which attention never leaves; -1 for
            padding.
        """
        begins, ends = self._bounds(indices)
        width = self.seq_len or -(-int((ends - begins).max()) // MULTIPLE) * MULTIPLE
        at = begins[:, None] + np.arange(width)
        is_real = at < ends[:, None]
        last = len(self.tokens) - 1
        after = np.minimum(at + 1, last)
        at = np.minimum(at, last)
        text = np.searchsorted(self.offsets, at, "right")
        is_trained = is_real & (after > at) & (after < self.offsets[text])
        if self.loss_mask is not None:
            is_trained &= self.loss_mask[after]
        text_begins = np.where(text, self.offsets[text - 1], 0)
        position_zero = np.maximum(text_begins, begins[:, None])
        arrays = {
            "tokens": np.where(is_real, self.tokens[at].astype(np.int64), self.pad),
            "labels": np.where(is_trained, self.tokens[after].astype(np.int64), IGNORE),
            "input_pos": np.where(is_real, at - position_zero, 0),
            "document": np.where(is_real, text, -1),
        }
        return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}
