"""Beam search for few sentences on CUDA: a step of it is one graph, captured once and launched at every token.

A step is many small kernels.  For few rows, launching them one by one should take longer than running them (not yet
measured), and a person who waits for one line waits for that.  A graph is launched at once, but it reads and writes the
same memory each time: so nothing grows here and no sentence leaves, and a search is laid out for lengths that are
rounded up, and is kept for the next lines.

Shapes: as in `search.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mt.decoding.search import History, Hypothesis, SearchConfig, next_logits, rules_for
from mt.decoding.steps import Beams, Rules, step
from mt.model.cache import DecoderState, FixedState
from mt.model.transformer import Transformer

# Sentences x longest translation of a search, each of which has memory of its own.  Larger batches are worth launching
# kernels for, and gain by the sentences that leave.
MOST_TARGET_TOKENS = 512
MOST_KEPT = 16  # searches
SOURCE_MULTIPLE, TARGET_MULTIPLE = 16, 32  # what lengths are rounded up to, so that few searches serve all sentences
ASK_EVERY = 2  # steps: asking whether all have finished waits for the device, not asking wastes steps
WARM_UP = 3  # steps before capture, in which libraries get ready


class FixedSearch:
    """A search over B sentences whose tensors all stay where they are, so that its step can be captured."""

    def __init__(
        self,
        models: Sequence[Transformer],
        encoded: Sequence[DecoderState],
        rules: Rules,
        bos: int,
        source_length: int,
        max_length: int,
    ) -> None:
        """Room for sentences like those encoded, of so many source and target tokens at most."""
        device, B = rules.limits.device, len(rules.limits)
        self.models = models
        self.states = [FixedState(each, rules.beams, source_length, max_length) for each in encoded]
        self.rules = replace(rules, shortest_limit=0)  # the next sentences have other limits
        self.first = Beams.start(B, rules.beams, bos, device, rows=rules.beams)
        self.beams = Beams(*(each.clone() for each in tensors(self.first)))
        self.history = History(max_length, B, rules.beams, device)
        self.length = torch.zeros(1, dtype=torch.long, device=device)
        self.next: Callable[[], None] = self.advance

    def load(self, encoded: Sequence[DecoderState], limits: Sequence[int]) -> None:
        """Begin anew, with other sentences."""
        for state, its in zip(self.states, encoded, strict=True):
            state.load(its)
        self.rules.limits.copy_(torch.tensor(limits), non_blocking=True)
        self.put(self.first)
        self.length.zero_()

    def put(self, beams: Beams) -> None:
        for mine, new in zip(tensors(self.beams), tensors(beams), strict=True):
            mine.copy_(new)

    def advance(self) -> None:
        """One step: of the search, of its history and of the states."""
        parts = next_logits(self.models, self.beams.tokens, self.states, len(self.beams.tokens))
        beams = step(self.beams, parts, self.length, self.rules)
        self.history.append(beams, self.length)
        if self.rules.beams > 1:
            for state in self.states:
                state.reorder(beams.parents)
        self.put(beams)
        self.length += 1

    def capture(self, stream: torch.cuda.Stream) -> None:
        """From now on launch a step as one graph; what is being searched for is lost."""
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.advance()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self.advance()
        self.next = graph.replay

    def search(self, encoded: Sequence[DecoderState], limits: Sequence[int]) -> list[list[Hypothesis]]:
        """The best hypotheses of each sentence, best first."""
        self.load(encoded, limits)
        for length in range(1, max(limits) + 1):
            self.next()
            if length % ASK_EVERY == 0 and bool(self.beams.settled.all()):  # sync
                break
        every = torch.arange(len(limits), device=self.length.device)
        return self.history.hypotheses(self.beams, every, self.rules)


def tensors(beams: Beams) -> list[Tensor]:
    return [getattr(beams, name) for name in beams.__slots__]


class CapturedSearches:
    """`search` for few sentences at a time, by graphs that are captured when first needed and kept.

    On the CPU, where there are no graphs, steps are taken one by one: the slow twin.  Under autocast models must have
    been through `mt.model.products.prepare_to_translate`: weights that autocast casts are gone when a graph reads them
    again.
    """

    def __init__(
        self, models: Sequence[Transformer], config: SearchConfig, *, bos: int, eos: int, forbidden: Sequence[int]
    ) -> None:
        self.models, self.config = models, config
        self.bos, self.eos, self.forbidden = bos, eos, forbidden
        self.kept: dict[tuple[int, int, int], FixedSearch] = {}  # by sentences and lengths
        self.stream: torch.cuda.Stream | None = None  # that all are captured on

    def takes(self, limits: Sequence[int]) -> bool:
        """Whether sentences with these limits are few and short enough."""
        return len(limits) * rounded_up(max(limits), TARGET_MULTIPLE) <= MOST_TARGET_TOKENS

    @torch.inference_mode()
    def search(self, source: Tensor, mask: Tensor | None, limits: Sequence[int]) -> list[list[Hypothesis]]:
        """See `mt.decoding.search.search`."""
        encoded = [model.encode(source, mask) for model in self.models]
        lengths = rounded_up(source.size(1), SOURCE_MULTIPLE), rounded_up(max(limits), TARGET_MULTIPLE)
        extent = (len(source), *lengths)
        if extent not in self.kept:
            if len(self.kept) == MOST_KEPT:
                # All at once: the first to go takes the cuBLAS workspace of the stream along (pytorch/pytorch#193402).
                self.kept.clear()
            rules = rules_for(self.config, limits, self.eos, self.forbidden, source.device)
            search = FixedSearch(self.models, encoded, rules, self.bos, *lengths)
            if source.is_cuda:
                self.stream = self.stream or torch.cuda.Stream()
                search.capture(self.stream)
            self.kept[extent] = search
        return self.kept[extent].search(encoded, limits)


def rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
