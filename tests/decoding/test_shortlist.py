"""Candidates of a batch: what its pieces name, and what is always there."""

import torch

from mt.decoding.shortlist import Shortlist

SHORTLIST = Shortlist(torch.tensor([[3, 3], [7, 4], [4, 9], [9, 3]]).int(), torch.tensor([3, 5]).int())


def test_candidates_are_what_the_pieces_of_all_sentences_name_each_once_in_order():
    assert SHORTLIST.candidates(torch.tensor([[1, 2], [1, 0]])).tolist() == [3, 4, 5, 7, 9]
    assert SHORTLIST.candidates(torch.tensor([[3]])).tolist() == [3, 5, 9]


def test_what_comes_up_in_any_translation_is_always_there():
    assert SHORTLIST.candidates(torch.tensor([[0]])).tolist() == [3, 5]
