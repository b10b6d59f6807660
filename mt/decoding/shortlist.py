"""Which target pieces a batch of sentences may be translated to: a part of the vocabulary is searched faster."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shortlist:
    """Ids of target pieces: those that translate each source piece, and those that may come up in any translation."""

    translations: Tensor  # (source vocabulary, N)
    always: Tensor  # (A,) `</s>` among them

    def candidates(self, source: Tensor) -> Tensor:
        """The pieces (C,), sorted, that translations of source ids (B, S) are made of."""
        named = self.translations[source.unique()].flatten()
        return torch.cat((named, self.always)).bincount().nonzero().squeeze(1)
