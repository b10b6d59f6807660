"""Muon: orthogonal matrices beside singular values, steps beside those of PyTorch, and what it leaves to AdamW."""

import pytest
import torch

from mt.model.config import ModelConfig
from mt.model.transformer import Transformer
from mt.training.checkpoint import load_optimizer, optimizer_tensors, weights
from mt.training.muon import Muon, hidden_matrices, orthogonal
from mt.training.optimizer import OptimizerConfig, make_optimizer

RATE = 0.01


@pytest.fixture
def model():
    torch.manual_seed(1)
    return Transformer(
        ModelConfig(
            width=16, heads=2, feed_forward=24, encoder_layers=1, decoder_layers=2, dropout=0.0, max_positions=8,
            source_vocabulary=11, target_vocabulary=11, share_embeddings=True,
        )
    )  # fmt: skip


def make_muon(model, **changes):
    settings = {"method": "muon", "peak_learning_rate": RATE, "schedule": "constant", "warmup_steps": 0}
    return make_optimizer(model, OptimizerConfig(**settings | changes))


def give_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 20), (2, 20, 6)])
def test_a_matrix_keeps_its_singular_vectors_and_its_singular_values_come_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    assert values.max() / values.min() > 1.5
    seen = left.mT @ orthogonal(matrices) @ right.mT  # diagonal where the vectors are the same
    diagonal = torch.diagonal(seen, dim1=1, dim2=2)
    assert diagonal.min() > 0.5
    assert diagonal.max() < 1.3
    assert (seen - torch.diag_embed(diagonal)).abs().max() < 0.05  # bfloat16


def test_every_projection_is_a_matrix_and_keys_and_values_are_two(model):
    matrices = hidden_matrices(model)
    named = {name: matrices[parameter] for name, parameter in weights(model).items() if parameter in matrices}
    assert {name for name, parameter in weights(model).items() if parameter.ndim > 1} - set(named) == {
        "target_embedding.weight"
    }
    assert {name for name, count in named.items() if count == 2} == {name for name in named if "key_value" in name}


def test_steps_are_those_of_pytorch(model):
    """Of its Muon for each matrix by itself, and of its AdamW for everything else."""
    optimizer = make_muon(model, weight_decay=1.0)
    settings = {"lr": RATE, "weight_decay": 1.0}
    copies = {
        name: [torch.nn.Parameter(part.detach().clone()) for part in parameter.chunk(optimizer.matrices[parameter])]
        for name, parameter in weights(model).items()
        if parameter in optimizer.matrices
    }
    plain = torch.optim.Muon(
        [p for parts in copies.values() for p in parts], adjust_lr_fn="match_rms_adamw", **settings
    )
    rest = {name: p.detach().clone() for name, p in weights(model).items() if name not in copies}
    for parameter in rest.values():
        parameter.requires_grad_()
    groups = [
        {"params": [p for p in rest.values() if p.ndim > 1]},
        {"params": [p for p in rest.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-9, **settings)
    for seed in range(3):
        give_gradients(model, seed)
        for name, parameter in weights(model).items():
            if name in rest:
                rest[name].grad = parameter.grad.clone()
            else:
                for copy, part in zip(copies[name], parameter.grad.chunk(len(copies[name])), strict=True):
                    copy.grad = part.clone()
        for each in (optimizer, plain, adamw):
            each.step()
    for name, parameter in weights(model).items():
        expected = torch.cat(list(copies[name])) if name in copies else rest[name]
        # Three steps of entries of about 0.2 RATE: within a bfloat16's error of them.
        torch.testing.assert_close(parameter, expected, atol=3 * 0.05 * 0.2 * RATE, rtol=1e-5)


def test_where_the_step_is_not_taken_nothing_changes(model):
    optimizer = make_muon(model)
    give_gradients(model, 1)
    optimizer.step()
    before = {name: tensor.clone() for name, tensor in (weights(model) | optimizer_tensors(model, optimizer)).items()}
    give_gradients(model, 2)
    for parameter in model.parameters():
        parameter.grad[0] = torch.nan
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    after = weights(model) | optimizer_tensors(model, optimizer)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_a_restored_optimizer_goes_on_bit_for_bit(model):
    optimizer = make_muon(model)
    give_gradients(model, 1)
    optimizer.step()
    again = make_muon(model)
    load_optimizer(model, again, {name: tensor.clone() for name, tensor in optimizer_tensors(model, optimizer).items()})
    start = {name: tensor.detach().clone() for name, tensor in weights(model).items()}
    results = []
    for each in (optimizer, again):
        with torch.no_grad():
            for name, parameter in weights(model).items():
                parameter.copy_(start[name])
        give_gradients(model, 2)
        each.step()
        results.append({name: tensor.detach().clone() for name, tensor in weights(model).items()})
    assert all(torch.equal(results[0][name], tensor) for name, tensor in results[1].items())


def test_adamw_is_what_is_used_unless_muon_is_asked_for(model):
    assert isinstance(make_muon(model), Muon)
    assert type(make_muon(model, method="adamw")) is torch.optim.AdamW
