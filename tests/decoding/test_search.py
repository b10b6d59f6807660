"""Beam search by hand, against brute force and argmax, and one sentence against many.

Two kinds of model: a table of probabilities, whose next token depends on the last one alone, for examples that can be
followed on paper; and tiny random Transformers, where a wrong row, past or mask would be seen.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from mt.decoding import search as module
from mt.decoding.search import BATCH_SIZES, SearchConfig, compacted, next_logits, search
from mt.decoding.steps import Beams, Rules, beam_step, best_sums, greatest, greedy_step, settled, step
from mt.errors import ConfigError
from mt.model.attention import fused
from mt.model.cache import DecoderState
from mt.model.packing import ROW_MULTIPLE, SHORTEST_ROW
from mt.model.products import prepare_to_translate
from mt.model.transformer import Transformer
from tests.decoding.made_up import (
    END,
    SPECIALS,
    START,
    UNK,
    WORDS,
    assert_same,
    padded,
    random_model,
    random_sentences,
)

BOS, EOS, A, B_, C, D = range(6)  # of tables


@pytest.mark.parametrize(
    ("marks", "last", "staying", "leaving"),
    [
        ("....", False, [0, 1, 2, 3], []),
        (".x..", False, [0, 3, 2], [1]),
        ("xxxx", False, [], [0, 1, 2, 3]),
        ("x.x.", True, [], [1, 3, 0, 2]),
        ("x" + 11 * ".", False, list(range(12)), []),  # 11 have no size of their own: one of the settled fills up
        ("xx" + 10 * ".", False, [10, 11, *range(2, 10)], [0, 1]),
        ("xx" + 9 * ".", False, [0, 10, *range(2, 10)], [1]),
    ],
)
def test_settled_sentences_leave_where_the_others_are_a_batch(marks, last, staying, leaving):
    settled = torch.tensor([mark == "x" for mark in marks])
    assert tuple(part.tolist() for part in compacted(settled, last)) == (staying, leaving)


def test_there_are_few_batch_sizes():
    assert BATCH_SIZES[:14] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24]
    assert sum(size <= 1024 for size in BATCH_SIZES) == 36


@dataclass
class TableState:
    """What `search` asks of a state; a row knows its sentence's kind and nothing of its past."""

    kinds: torch.Tensor  # (B,)
    beams: int = 0
    projection: Callable | None = None

    def with_past(self, beams, max_length):
        return TableState(self.kinds, 1)

    def reorder(self, parents):
        assert len(parents) == len(self.kinds)
        assert parents.max() < self.beams
        self.beams = parents.size(1)

    def select(self, sentences):
        self.kinds = self.kinds[sentences]


class TableModel:
    """Probabilities of the next token by the sentence's kind, which is its first source id, and the last token.

    Tokens that are not named are impossible; after a token that has no row, all are alike.
    """

    config = SimpleNamespace(target_vocabulary=6)

    def __init__(self, *kinds):
        probabilities = torch.full((len(kinds), 6, 6), 1 / 6)
        for kind, rows in enumerate(kinds):
            for last, following in rows.items():
                probabilities[kind, last] = torch.tensor([following.get(token, 0.0) for token in range(6)])
        self.log_probs = probabilities.log()

    def encode(self, source, mask):
        return TableState(source[:, 0])

    def hidden(self, ids, state):
        return self.log_probs[state.kinds.repeat_interleave(state.beams), ids[:, 0]][:, None]

    def project(self, log_probs, state):
        return state.projection(log_probs) if state.projection else log_probs

    def projection_to(self, candidates):
        return lambda log_probs: log_probs[..., candidates]


def search_table(model, kinds, limits, candidates=None, **settings):
    source, config = torch.tensor(kinds)[:, None], SearchConfig(**settings)
    specials = {"bos": BOS, "eos": EOS, "forbidden": (BOS,)}
    return search([model], source, None, limits, config, candidates=candidates, **specials)


def search_all(models, sentences, limits, device="cpu", candidates=None, **settings):
    """One search over all sentences, padded."""
    source, mask = padded(sentences, device)
    return search(models, source, mask, limits, SearchConfig(**settings), candidates=candidates, **SPECIALS)


def log_prob(models, source, ids):
    """The teacher-forced log-probability of target ids and `</s>`, by the mean of the models' probabilities."""
    device = models[0].output_weight.device
    target = torch.tensor([[START, *ids]], device=device)
    each = [model.decode(target, model.encode(torch.tensor([source], device=device))) for model in models]
    probabilities = torch.stack([logits[0].double().softmax(-1) for logits in each]).mean(0)
    return sum(probabilities[i, token].log().item() for i, token in enumerate([*ids, END]))


def every_hypothesis(models, source, limit):
    """The log-probability of every translation of less than `limit` words."""
    hypotheses = itertools.chain(*(itertools.product(WORDS, repeat=length) for length in range(limit)))
    return {ids: log_prob(models, source, ids) for ids in hypotheses}


def argmax_loop(model, source, limit):
    """Greedy search without a cache: reread everything for each token."""
    state, ids = model.encode(torch.tensor([source], device=model.output_weight.device)), []
    while len(ids) + 1 < limit:
        logits = model.decode(torch.tensor([[START, *ids]], device=model.output_weight.device), state)[0, -1]
        logits[list(SPECIALS["forbidden"])] = -torch.inf
        if logits.argmax() == END:
            break
        ids.append(int(logits.argmax()))
    return ids


def rules(limits, forbidden=(BOS,), length_penalty=1.0, wanted=1, beams=2):
    return Rules(
        eos=EOS,
        forbidden=torch.tensor(forbidden),
        length_penalty=length_penalty,
        beams=beams,
        wanted=wanted,
        scored=True,
        limits=torch.tensor(limits),
        shortest_limit=min(limits),
    )


def logs(*rows):
    return torch.tensor(rows).log()


BEFORE = Beams(  # two sentences, two beams each, one token so far; the second has one that ended at once
    scores=logs([0.6, 0.4], [0.5, 0.3]),
    tokens=torch.tensor([[A, B_], [A, B_]]),
    parents=torch.zeros(2, 2, dtype=torch.long),
    ended=torch.tensor([[-math.inf, -math.inf], [-2.0, -math.inf]]),
    ended_scores=torch.tensor([[-math.inf, -math.inf], [-2.0, -math.inf]]),
    ended_lengths=torch.tensor([[0, 0], [1, 0]]),
    ended_parents=torch.zeros(2, 2, dtype=torch.long),
    settled=torch.tensor([False, False]),
)
NEXT = logs(  # (B, K, V): probabilities of <s>, </s>, a, b
    [[0.2, 0.4, 0.3, 0.1], [0.1, 0.1, 0.1, 0.7]],
    [[0.1, 0.15, 0.5, 0.25], [0.1, 0.4, 0.2, 0.3]],
)


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_a_step_by_hand(shift):
    """Candidates: b of beam 1 .28, </s> of 0 .24, a of 0 .18; and a of 0 .25, b of 0 .125, </s> of 1 .12, third."""
    after = step(BEFORE, [NEXT + shift], 1, rules([9, 9]))  # logits are log-probabilities up to a constant
    torch.testing.assert_close(after.scores, logs([0.28, 0.18], [0.25, 0.125]))
    assert after.tokens.tolist() == [[B_, A], [A, B_]]
    assert after.parents.tolist() == [[1, 0], [0, 0]]
    torch.testing.assert_close(after.ended[0, 0].item(), math.log(0.24) / 2)
    torch.testing.assert_close(after.ended_scores[0, 0].item(), math.log(0.24))
    assert (after.ended_lengths[0, 0], after.ended_parents[0, 0]) == (2, 0)
    assert after.ended[0, 1] == after.ended[1, 1] == -math.inf
    assert (after.ended[1, 0], after.ended_lengths[1, 0]) == (-2.0, 1)  # </s> third among two beams: not ended


def test_a_step_at_the_limit_of_one_sentence_ends_that_one_alone():
    after = step(BEFORE, [NEXT.clone()], 1, rules([2, 3], length_penalty=0.0))
    torch.testing.assert_close(after.ended[0], logs(0.6 * 0.4, 0.4 * 0.1))
    assert after.ended_parents[0].tolist() == [0, 1]
    assert (after.scores[0] == -math.inf).all()
    torch.testing.assert_close(after.scores[1], logs(0.25, 0.125))
    assert after.settled.tolist() == [True, False]


def test_no_live_hypothesis_is_lost_to_one_that_ends():
    start = Beams.start(1, 2, BOS, torch.device("cpu"))
    after = step(start, [logs([[0.0, 0.5, 0.3, 0.2]]).view(1, 1, 4)], 0, rules([9]))
    torch.testing.assert_close(after.scores, logs([0.3, 0.2]))
    assert after.tokens.tolist() == [[A, B_]]
    torch.testing.assert_close(after.ended, torch.tensor([[math.log(0.5), -math.inf]]))


def test_the_better_of_two_that_ended_stands_first():
    logits = logs([[0.0, 0.1, 0.5, 0.4]] * 2, [[0.0, 0.9, 0.05, 0.05]] * 2)
    after = step(BEFORE, [logits], 1, rules([9, 9]))
    torch.testing.assert_close(after.ended[1], torch.tensor([math.log(0.5 * 0.9) / 2, math.log(0.3 * 0.9) / 2]))
    assert after.ended_lengths[1].tolist() == [2, 2]  # the one at -2.0 had to leave


@pytest.mark.parametrize("beam", [1, 3])
def test_a_search_that_takes_sentences_one_by_one_finds_the_same(device, monkeypatch, beam):
    model, sentences = random_model(3, device), random_sentences(7)
    limits = [2 * len(ids) + 3 for ids in sentences]
    together = search_all([model], sentences, limits, device, beam=beam)
    monkeypatch.setitem(module.CHUNK_ELEMENTS, device.type, 1)
    monkeypatch.setattr(module, "FEWEST_ROWS", 1)
    assert_same(search_all([model], sentences, limits, device, beam=beam), together)


@pytest.mark.parametrize("V", [1, 7, 16, 17, 200, 1000, 1025])
@pytest.mark.parametrize("K", [1, 5])
def test_the_largest_sums_are_those_of_a_plain_sort(device, V, K):
    generator = torch.Generator().manual_seed(V)
    scores, logits = torch.randn(3, K, generator=generator), torch.randn(3, K, V, generator=generator)
    logits[..., :2] = -math.inf
    scores[1, 0] = -math.inf
    sums = (scores[..., None] + logits).flatten(1)  # (B, K*V)
    best, where = (each.cpu() for each in best_sums(scores.to(device), logits.to(device), 2 * K))
    plain = sums.sort(descending=True).values[:, : 2 * K]
    known = plain.size(1)  # where there are fewer sums than wanted
    assert torch.equal(best[:, :known], plain)
    assert (best[:, known:] == -math.inf).all()
    found = best > -math.inf
    assert torch.equal(sums.gather(1, where)[found], best[found])
    assert all(len(set(row[real].tolist())) == int(real.sum()) for row, real in zip(where, found, strict=True))


@pytest.mark.parametrize("V", [1, 7, 16, 17, 200, 1000, 1025])
def test_the_greatest_is_found_wherever_it_stands(device, V):
    """In every group and outside of all; of three sentences at a time, the second of which has one choice only."""
    for start in range(0, V, 3):
        places = torch.tensor([[start], [V - 1 - start], [(7 * start) % V]])
        logits = torch.randn(3, 1, V, generator=torch.Generator().manual_seed(start)).clamp(max=2.9)
        logits[1] = -math.inf
        logits.scatter_(-1, places[..., None], 3.0)
        assert torch.equal(greatest(logits.to(device)).cpu(), places)


def test_a_greedy_step_is_a_step_of_one_beam(device):
    """Four sentences: the first ends at once, two at their limits, the last never."""
    generator = torch.Generator().manual_seed(3)
    obeyed = rules([2, 3, 4, 9], beams=1)
    obeyed = replace(obeyed, limits=obeyed.limits.to(device), forbidden=obeyed.forbidden.to(device))
    greedy = scored = Beams.start(4, 1, BOS, device)
    for length in range(4):
        logits = torch.randn(4, 1, 7, generator=generator).to(device)
        logits[0, :, EOS], logits[1:, :, EOS] = 9.0, -9.0
        live = ~scored.settled
        scored = beam_step(scored, list(logits.clone().split(3)), length, obeyed)
        greedy = greedy_step(greedy, list(logits.clone().split(3)), length, replace(obeyed, scored=False))
        going_on = live & ~scored.settled
        assert torch.equal(greedy.tokens[going_on], scored.tokens[going_on])
        for name in ("settled", "ended_lengths", "ended_parents"):
            assert torch.equal(getattr(greedy, name), getattr(scored, name))
        assert torch.equal(greedy.ended > -math.inf, scored.ended > -math.inf)
    assert scored.settled.tolist() == [True, True, True, False]
    assert scored.ended_lengths.flatten().tolist() == [1, 3, 4, 0]


@pytest.mark.parametrize(
    ("live", "ended", "length_penalty", "wanted", "expected"),
    [
        ([-3.0, -4.0], [-0.29, -math.inf], 1.0, 1, True),  # at best -3 / 10
        ([-3.0, -4.0], [-0.31, -math.inf], 1.0, 1, False),
        ([-4.0, -3.0], [-0.31, -math.inf], 1.0, 1, False),  # the best live one counts, wherever it stands
        ([-3.0, -4.0], [-0.29, -math.inf], 1.0, 2, False),  # a second one is wanted
        ([-3.0, -4.0], [-0.40, -0.50], 1.0, 1, True),  # as many have ended as there are beams
        ([-3.0, -4.0], [-2.99, -math.inf], 0.0, 1, True),
        ([-3.0, -4.0], [-3.01, -math.inf], 0.0, 1, False),
        ([-math.inf, -math.inf], [-9.0, -math.inf], 1.0, 2, True),  # nothing lives
    ],
)
def test_a_sentence_is_settled_when_nothing_live_can_be_ranked_higher(live, ended, length_penalty, wanted, expected):
    found = settled(torch.tensor([live]), torch.tensor([ended]), rules([10], (), length_penalty, wanted))
    assert found.tolist() == [expected]


@pytest.mark.parametrize(
    ("length_penalty", "expected"),
    [
        (0.0, [[], [A], [B_, C, D]]),  # -1.20, -1.71, -1.93
        (0.3, [[], [B_, C, D], [A]]),  # -1.20, -1.93 / 1.52 = -1.27, -1.71 / 1.23 = -1.39
        (0.45, [[B_, C, D], [], [A]]),  # -1.93 / 1.87 = -1.03, -1.20, -1.71 / 1.37 = -1.25
        (0.6, [[B_, C, D], [A], []]),  # -1.93 / 2.30 = -0.84, -1.71 / 1.52 = -1.13, -1.20
        (1.0, [[B_, C, D], [A], []]),  # -1.93 / 4 = -0.48, -1.71 / 2 = -0.86, -1.20
    ],
)
def test_the_length_penalty_ranks_by_this_table(length_penalty, expected):
    """Three hypotheses: .301 in one token, .3 x .6 = .180 in two, .399 x .363 = .145 in four."""
    three = {
        BOS: {EOS: 0.301, A: 0.3, B_: 0.399},
        A: {EOS: 0.6, BOS: 0.4},  # <s> is forbidden: what goes there is lost
        B_: {C: 1.0},
        C: {D: 1.0},
        D: {EOS: 0.363, BOS: 0.637},
    }
    found = search_table(TableModel(three), [0], [9], beam=3, nbest=3, length_penalty=length_penalty)[0]
    assert [hypothesis.ids for hypothesis in found] == expected
    by_length = {len(hypothesis.ids): hypothesis.score for hypothesis in found}
    assert by_length == pytest.approx({0: math.log(0.301), 1: math.log(0.3 * 0.6), 3: math.log(0.399 * 0.363)})


def test_fewer_hypotheses_are_returned_where_no_more_exist():
    found = search_table(TableModel({BOS: {EOS: 0.7, A: 0.3}, A: {EOS: 1.0}}), [0], [6], beam=4, nbest=4)[0]
    assert [hypothesis.ids for hypothesis in found] == [[], [A]]


def test_at_the_limit_the_end_is_forced_and_its_log_probability_counted():
    endless = TableModel({last: {EOS: 0.01, A: 0.99} for last in (BOS, A)})
    best = search_table(endless, [0], [4], beam=1)[0][0]
    assert best.ids == [A, A, A]
    assert best.score == pytest.approx(3 * math.log(0.99) + math.log(0.01), abs=1e-5)


def test_each_sentence_has_a_limit_of_its_own():
    endless = TableModel({last: {EOS: 0.01, A: 0.99} for last in (BOS, A)})
    found = search_table(endless, [0] * 5, [4, 1, 7, 2, 1], beam=1)
    assert [len(hypotheses[0].ids) for hypotheses in found] == [3, 0, 6, 1, 0]


def test_a_forbidden_id_is_never_produced_and_its_probability_given_to_no_other():
    model = TableModel({BOS: {BOS: 0.9, A: 0.1}, A: {BOS: 0.5, EOS: 0.3, A: 0.2}})
    one, two = search_table(model, [0], [3], beam=2, nbest=2, length_penalty=0.0)[0]
    assert (one.ids, two.ids) == ([A], [A, A])
    assert one.score == pytest.approx(math.log(0.1 * 0.3), abs=1e-5)
    assert two.score == pytest.approx(math.log(0.1 * 0.2 * 0.3), abs=1e-5)


@pytest.mark.parametrize("beam", [1, 2])
def test_what_a_settled_sentence_gets_does_not_wait_for_the_others(beam):
    """Searched on, kind 0 would find `a </s>` or `a a </s>`, ranked above the last of the K that had ended."""
    short = {BOS: {EOS: 0.4, A: 0.35, B_: 0.25}, A: {EOS: 0.5, A: 0.5}, B_: {EOS: 0.9, B_: 0.1}}
    endless = {last: {EOS: 0.01, A: 0.99} for last in (BOS, A)}
    model = TableModel(short, endless)
    alone = search_table(model, [0], [10], beam=beam, nbest=beam)
    # The nine that go on have no size of their own: the settled one stays among them.
    beside = search_table(model, [1] * 4 + [0] + [1] * 5, [10] * 10, beam=beam, nbest=beam)
    assert beside[4] == alone[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0])
def test_with_enough_beams_search_is_exhaustive(device, seed, length_penalty):
    """All 31 translations of at most two of five words, and two more sentences in the batch."""
    model, sentences = random_model(seed, device), random_sentences(3, seed)
    found = search_all([model], sentences, [3, 3, 2], device, beam=40, nbest=6, length_penalty=length_penalty)
    for source, limit, hypotheses in zip(sentences, [3, 3, 2], found, strict=True):
        every = every_hypothesis([model], source, limit)
        ranked = sorted((score / (len(ids) + 1) ** length_penalty for ids, score in every.items()), reverse=True)
        assert [each.normalized_score for each in hypotheses] == pytest.approx(ranked[:6], abs=1e-4)
        for each in hypotheses:
            assert each.score == pytest.approx(every[tuple(each.ids)], abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scored", [True, False])
def test_one_beam_is_a_plain_argmax_loop(device, seed, scored):
    model, sentences = random_model(seed, device), random_sentences(4, seed)
    limits = [7, 9, 11, 13]
    found = search_all([model], sentences, limits, device, beam=1, scored=scored)
    expected = [argmax_loop(model, source, limit) for source, limit in zip(sentences, limits, strict=True)]
    assert [hypotheses[0].ids for hypotheses in found] == expected
    assert all(math.isnan(hypotheses[0].score) != scored for hypotheses in found)


def test_one_beam_of_several_models_needs_no_scores_either(device):
    models, sentences = [random_model(seed, device) for seed in range(3)], random_sentences(6, 1)
    with_scores, without = (
        search_all(models, sentences, [15] * 6, device, beam=1, scored=scored) for scored in (True, False)
    )
    assert [each[0].ids for each in without] == [each[0].ids for each in with_scores]


def test_several_beams_have_scores_whether_they_are_asked_for_or_not():
    model, sentences = random_model(1), random_sentences(3, 1)
    asked, not_asked = (
        search_all([model], sentences, [9] * 3, "cpu", beam=2, scored=scored) for scored in (True, False)
    )
    assert asked == not_asked


@pytest.mark.parametrize("seed", range(3))
def test_hypotheses_are_sorted_distinct_within_their_limits_and_made_of_words(device, seed):
    model, sentences = random_model(seed, device), random_sentences(6, seed)
    limits = [3, 5, 7, 9, 11, 13]
    found = search_all([model], sentences, limits, device, beam=5, nbest=5)
    for limit, hypotheses in zip(limits, found, strict=True):
        assert len({tuple(each.ids) for each in hypotheses}) == len(hypotheses) == 5
        ranks = [each.normalized_score for each in hypotheses]
        assert ranks == sorted(ranks, reverse=True)
        assert all(len(each.ids) < limit and set(each.ids) <= set(WORDS) for each in hypotheses)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_teacher_forced_log_probabilities(device, seed):
    model, sentences = random_model(seed, device), random_sentences(6, seed)
    found = search_all([model], sentences, [12] * 6, device, beam=4, nbest=4, length_penalty=0.6)
    for source, hypotheses in zip(sentences, found, strict=True):
        for each in hypotheses:
            assert each.score == pytest.approx(log_prob([model], source, each.ids), abs=1e-4)
            assert each.normalized_score == pytest.approx(each.score / (len(each.ids) + 1) ** 0.6, rel=1e-5)


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("candidates", [None, [START, END, 5, 6, 8]])
@pytest.mark.parametrize("beam", [1, 4])
def test_scores_in_bfloat16_are_nearly_teacher_forced_ones(device, beam, candidates, positions):
    """Whatever is found: beams that stray into each other's past, or sentences into each other's rows, lie far off."""
    model, sentences = random_model(0, device, positions=positions), random_sentences(11, 3)
    limits = [2 * len(ids) + 5 for ids in sentences]
    among = None if candidates is None else torch.tensor(candidates)
    forced = model if candidates is None else Narrow(model, candidates)
    with torch.autocast(device.type, torch.bfloat16):
        found = search_all([model], sentences, limits, device, among, beam=beam, nbest=beam)
        for source, hypotheses in zip(sentences, found, strict=True):
            assert len(hypotheses) == beam
            for each in hypotheses:
                expected = log_prob([forced], source, each.ids)
                assert each.score == pytest.approx(expected, abs=0.05 * (len(each.ids) + 1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("beam", [1, 4])
def test_a_batch_of_many_equals_one_at_a_time(device, seed, beam):
    model, sentences = random_model(seed, device), random_sentences(11, seed)
    limits = [2 * len(ids) + 5 for ids in sentences]
    many = search_all([model], sentences, limits, device, beam=beam, nbest=beam)
    alone = [
        search_all([model], [ids], [limit], device, beam=beam, nbest=beam)[0]
        for ids, limit in zip(sentences, limits, strict=True)
    ]
    assert_same(many, alone)


@pytest.mark.parametrize("ask_every", [3, 1000])
def test_when_finished_sentences_leave_the_batch_changes_nothing(device, monkeypatch, ask_every):
    model, sentences = random_model(3, device), random_sentences(11, 3)
    limits = [2 * len(ids) + 5 for ids in sentences]
    monkeypatch.setitem(module.ASK_EVERY, device.type, 1)
    at_once = search_all([model], sentences, limits, device, beam=3, nbest=2)
    monkeypatch.setitem(module.ASK_EVERY, device.type, ask_every)
    assert_same(search_all([model], sentences, limits, device, beam=3, nbest=2), at_once)
    assert len({len(hypotheses[0].ids) for hypotheses in at_once}) > 3  # they did finish at different steps


def test_sentences_leave_when_they_have_finished_and_the_search_ends_with_the_last(monkeypatch):
    """Of four sentences two end with their first token and two with their third; all might have fifty."""
    model = TableModel({BOS: {EOS: 1.0}}, {BOS: {A: 1.0}, A: {B_: 1.0}, B_: {EOS: 1.0}})
    rows, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, state: rows.append(len(ids)) or hidden(ids, state))
    found = search_table(model, [0, 1, 0, 1], [50] * 4, beam=1)
    assert [hypotheses[0].ids for hypotheses in found] == [[], [A, B_], [], [A, B_]]
    assert rows == [4, 2, 2]


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
@pytest.mark.parametrize("beam", [1, 4])
def test_nobody_waits_for_a_token(device, monkeypatch, beam, positions):
    """What CUDA is told to do at each token asks for no answer; elsewhere all that is seen is that it is done."""
    model, sentences, done = random_model(3, device, positions=positions), random_sentences(5, 3), []

    def watched(function):
        def call(*given, **more):
            done.append(function.__name__)
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*given, **more)
            finally:
                if device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")

        return call

    monkeypatch.setitem(module.ASK_EVERY, device.type, 1000)
    parts = [(Transformer, "hidden"), (module, "step"), (module.History, "append"), (DecoderState, "reorder")]
    for place, name in parts:
        monkeypatch.setattr(place, name, watched(getattr(place, name)))
    search_all([model], sentences, [9] * 5, device, beam=beam)
    assert done == [name for place, name in parts if beam > 1 or place is not DecoderState] * 8 + [
        name for place, name in parts if place is not DecoderState
    ]


@pytest.mark.parametrize("beam", [1, 3])
def test_where_kernels_want_aligned_rows_they_are_given_no_others(device, monkeypatch, beam):
    """As CUDA's do, which would copy a bias with other rows in every layer at every token."""
    monkeypatch.setitem(ROW_MULTIPLE, device.type, 8)
    monkeypatch.setitem(SHORTEST_ROW, device.type, 1)
    model, sentences = random_model(1, device), random_sentences(6)
    limits, steps = [12] * 6, []

    def watched(queries, keys, values, bias, causal, dropout):
        if bias is not None:
            assert [stride % 8 for stride in bias.stride()[:-1]] == [0] * (bias.dim() - 1)
            steps.append(bias.shape)
        return fused(queries, keys, values, bias, causal, dropout)

    for layer in (*model.encoder, *model.decoder):
        for attention in (layer.self_attention, getattr(layer, "cross_attention", layer.self_attention)):
            attention.kernel = watched
    found = search_all([model], sentences, limits, device, beam=beam)
    assert len(steps) > 12
    monkeypatch.undo()
    assert_same(found, search_all([random_model(1, device)], sentences, limits, device, beam=beam))


def test_an_ensemble_of_a_model_and_itself_equals_the_model(device):
    model, sentences = random_model(3, device), random_sentences(5, 3)
    one = search_all([model], sentences, [12] * 5, device, beam=3, nbest=3)
    assert_same(search_all([model, model], sentences, [12] * 5, device, beam=3, nbest=3), one)


def test_an_ensemble_is_the_mean_of_probabilities(device):
    models, sentences = [random_model(seed, device) for seed in (0, 3, 5)], random_sentences(2, 1)
    found = search_all(models, sentences, [3, 3], device, beam=40, nbest=5)
    for source, hypotheses in zip(sentences, found, strict=True):
        every = every_hypothesis(models, source, 3)
        ranked = sorted((score / (len(ids) + 1) for ids, score in every.items()), reverse=True)
        assert [each.normalized_score for each in hypotheses] == pytest.approx(ranked[:5], abs=1e-4)
        assert [each.score for each in hypotheses] == pytest.approx([every[tuple(each.ids)] for each in hypotheses])


def test_logits_of_an_ensemble_by_hand():
    one, other = TableModel({BOS: {EOS: 0.5, A: 0.5}}), TableModel({BOS: {EOS: 0.1, A: 0.9}})
    states = [TableState(torch.tensor([0]), beams=1) for _ in range(2)]
    [logits] = next_logits([one, other], torch.tensor([[BOS]]), states, at_once=1)
    torch.testing.assert_close(logits.softmax(-1), torch.tensor([[[0.0, 0.3, 0.7, 0.0, 0.0, 0.0]]]))


def assert_nearly_equal(found, expected):
    """The same ids, scores to 1e-5."""
    assert [[each.ids for each in hypotheses] for hypotheses in found] == [
        [each.ids for each in hypotheses] for hypotheses in expected
    ]
    for ours, theirs in zip(found, expected, strict=True):
        assert [each.score for each in ours] == pytest.approx([each.score for each in theirs], abs=1e-5)
        ranks = [each.normalized_score for each in theirs]
        assert [each.normalized_score for each in ours] == pytest.approx(ranks, abs=1e-5)


@pytest.mark.parametrize("beam", [1, 5])
@pytest.mark.parametrize("precision", ["", "fp32", "int8"])
def test_among_the_whole_vocabulary_the_same_is_found(device, precision, beam):
    if precision and device.type == "cuda":
        pytest.skip("packed and 8-bit products are the CPU's")
    model, sentences = random_model(3, device), random_sentences(11, 3)
    prepare_to_translate(model, precision)
    limits = [2 * len(ids) + 5 for ids in sentences]
    expected = search_all([model], sentences, limits, device, beam=beam, nbest=beam)
    among = search_all([model], sentences, limits, device, torch.arange(9), beam=beam, nbest=beam)
    assert_nearly_equal(among, expected)


class Narrow:
    """A model for which all but some tokens are impossible."""

    def __init__(self, model, candidates):
        self.model, self.candidates, self.encode = model, candidates, model.encode
        self.hidden, self.config, self.output_weight = model.hidden, model.config, model.output_weight

    def decode(self, ids, state):
        return self.project(self.hidden(ids, state), state)

    def project(self, hidden, state):
        logits = self.model.project(hidden, state)
        narrowed = torch.full_like(logits, -torch.inf)
        narrowed[..., self.candidates] = logits[..., self.candidates]
        return narrowed


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("candidates", [[START, END, 5, 6, 8], [UNK, END, 4, 7], [END, 6]])
def test_among_candidates_the_same_is_found_as_where_all_else_is_impossible(device, candidates, beam, count):
    models, sentences = [random_model(seed, device) for seed in (3, 5)[:count]], random_sentences(11, 3)
    limits = [2 * len(ids) + 5 for ids in sentences]
    expected = search_all(
        [Narrow(model, candidates) for model in models], sentences, limits, device, beam=beam, nbest=beam
    )
    found = search_all(models, sentences, limits, device, torch.tensor(candidates), beam=beam, nbest=beam)
    assert_nearly_equal(found, expected)
    assert {token for hypotheses in found for each in hypotheses for token in each.ids} <= {*candidates} & {*WORDS}
    whole = search_all(models, sentences, limits, device, beam=beam)
    assert [hypotheses[0].ids for hypotheses in found] != [hypotheses[0].ids for hypotheses in whole]


def test_probabilities_add_up_to_one_over_the_candidates_forbidden_ones_included():
    model = TableModel({BOS: {BOS: 0.4, EOS: 0.1, A: 0.2, B_: 0.3}, A: {EOS: 0.5, B_: 0.5}})
    among = torch.tensor([BOS, EOS, A])
    one, two = search_table(model, [0], [4], among, beam=3, nbest=2, length_penalty=0.0)[0]
    assert (one.ids, two.ids) == ([A], [])
    assert one.score == pytest.approx(math.log(0.2 / 0.7), abs=1e-5)  # and then </s> for certain
    assert two.score == pytest.approx(math.log(0.1 / 0.7), abs=1e-5)


def test_at_the_limit_the_end_is_forced_among_candidates_too():
    endless = TableModel({last: {EOS: 0.01, A: 0.99} for last in (BOS, A)})
    best = search_table(endless, [0], [4], torch.tensor([EOS, A, D]), beam=1)[0][0]
    assert best.ids == [A, A, A]
    assert best.score == pytest.approx(3 * math.log(0.99) + math.log(0.01), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam": 0}, "beam 0 is below 1"),
        ({"beam": 3, "nbest": 4}, "4 best hypotheses of 3 beams cannot be returned"),
        ({"nbest": 0}, "0 best hypotheses of 5 beams cannot be returned"),
        ({"length_penalty": -0.1}, "length penalty -0.1 is not between 0 and 10"),
        ({"length_penalty": 10.1}, "length penalty 10.1 is not between 0 and 10"),
        ({"length_penalty": math.nan}, "length penalty nan is not between 0 and 10"),
        ({"max_length_ratio": math.inf}, "max_length_ratio inf and max_length_offset 10 set no usable limit"),
        ({"max_length_ratio": 1e308}, "max_length_ratio 1e\\+308 and max_length_offset 10 set no usable limit"),
        ({"max_length_ratio": -1.0}, "max_length_ratio -1 and max_length_offset 10 set no usable limit"),
        ({"max_length_offset": 0}, "max_length_ratio 2 and max_length_offset 0 set no usable limit"),
    ],
)
def test_a_search_that_cannot_be_run_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SearchConfig(**settings)


def test_the_length_limit_grows_with_the_source():
    config = SearchConfig(max_length_ratio=1.5, max_length_offset=4)
    assert [config.max_target_tokens(tokens) for tokens in (1, 2, 5)] == [5, 7, 11]
