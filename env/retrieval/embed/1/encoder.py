# SPDX-License-Identifier: Apache-2.0
"""Texts as vectors: word pieces by byte-pair encoding, and the mean of their vectors.

The vectors and the word pieces are those of the package wordllama, which trained them so that texts of like meaning get
like vectors. Nothing but numpy is needed.
"""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np

VECTORS, PIECES = "l2_supercat_256.safetensors", "l2_supercat_tokenizer_config.json"
SPACE = "\u2581"  # what a space is written as before a text is cut
WORD = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")


class Encoder:
    """The embedding model."""

    def __init__(self, folder):
        """Read both files."""
        data = Path(folder, VECTORS).read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")  # a safetensors file: length of the header, header, numbers
        shape = json.loads(data[8:begin])["embedding.weight"]["shape"]
        self.vectors = np.frombuffer(data, np.float16, offset=begin).reshape(shape)
        model = json.loads(Path(folder, PIECES).read_text(encoding="utf-8"))["model"]
        self.numbers = model["vocab"]
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(model["merges"])}

    def encode(self, text):
        """Return the vector of a text, of length 1."""
        numbers = self.tokenize(text)
        mean = self.vectors[numbers].astype(np.float32).mean(axis=0)
        return mean / np.linalg.norm(mean)

    def tokenize(self, text):
        """Return the numbers of a text's word pieces; what is no piece goes byte by byte."""
        numbers = []
        for word in WORD.findall(SPACE + text.replace(" ", SPACE)):
            for piece in self.pieces(word):
                known = self.numbers.get(piece)
                numbers += [self.numbers[f"<0x{byte:02X}>"] for byte in piece.encode()] if known is None else [known]
        return numbers

    def pieces(self, word):
        """Return the pieces of a word: its letters, of which the most usual neighbours are joined again and again."""
        pieces = list(word)
        while len(pieces) > 1:
            ranks = [self.ranks.get(pair, len(self.ranks)) for pair in pairwise(pieces)]
            if (best := min(ranks)) == len(self.ranks):
                break
            place = ranks.index(best)
            pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
        return pieces
