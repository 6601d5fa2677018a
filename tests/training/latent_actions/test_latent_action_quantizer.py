"""The codebook: nearest codes, straight-through gradients, revival."""

from __future__ import annotations

import math

import pytest
import torch

from training.latent_actions.quantizer import Codebook, perplexity, shares, usage


def codebook(vectors: list[list[float]], beta: float = 0.25) -> Codebook:
    book = Codebook(len(vectors), len(vectors[0]), beta)
    with torch.no_grad():
        book.vectors.copy_(torch.tensor(vectors))
    return book


def test_a_latent_becomes_the_nearest_code() -> None:
    book = codebook([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    quantized = book(torch.tensor([[[0.9, 0.2], [0.1, 0.1], [0.2, 3.0]]]))
    assert quantized.codes.tolist() == [[1, 0, 2]]
    assert quantized.latents.tolist() == [[[1, 0], [0, 0], [0, 1]]]


def test_gradients_pass_straight_to_the_encoder_and_the_loss_pulls_both_ways() -> None:
    book = codebook([[0.0], [10.0]])
    latents = torch.tensor([[[1.0]]], requires_grad=True)
    quantized = book(latents)
    assert quantized.loss.item() == pytest.approx(1.25)  # (1 - 0)^2 of the code, a quarter of it for the commitment
    (gradient,) = torch.autograd.grad(quantized.latents.sum() * 3, latents, retain_graph=True)
    assert gradient.item() == 3
    quantized.loss.backward()
    assert book.vectors.grad is not None and book.vectors.grad.flatten().tolist() == [-2, 0]
    assert latents.grad is not None and latents.grad.item() == pytest.approx(0.5)


def test_a_codebook_starts_at_latents_of_a_batch() -> None:
    book = Codebook(4, 2, 0.25)
    rows = torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(0))
    book.revive(rows, torch.Generator().manual_seed(1))
    for vector in book.vectors:
        assert (rows[0] == vector).all(-1).any()


def test_a_code_that_nobody_uses_revives_and_those_in_use_stay() -> None:
    book = codebook([[0.0], [100.0]])
    book.share.fill_(0.5)
    generator = torch.Generator().manual_seed(0)
    latents = torch.tensor([[[0.5], [-0.5]]])
    steps = 0
    while book.vectors[1].item() == 100:
        book.revive(latents, generator)
        book.count(book.nearest(latents))
        steps += 1
        assert steps < 200
    assert book.vectors[0].item() == 0
    assert book.vectors[1].item() in (0.5, -0.5)
    assert set(book.nearest(latents).flatten().tolist()) == {0, 1}


def test_revival_is_a_function_of_its_generator() -> None:
    rows = torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(0))
    books = [Codebook(4, 2, 0.25) for _ in range(2)]
    for book in books:
        torch.rand(1)  # what others draw from the default generator
        book.revive(rows, torch.Generator().manual_seed(3))
    assert torch.equal(books[0].vectors, books[1].vectors)


def test_usage_and_perplexity_of_known_shares() -> None:
    share = shares(torch.tensor([[0, 0], [1, 1]]), 4)
    assert share.tolist() == [0.5, 0.5, 0, 0]
    assert usage(share).item() == 0.5
    assert perplexity(share).item() == pytest.approx(2)
    assert perplexity(torch.tensor([0.75, 0.25])).item() == pytest.approx(
        math.exp(-0.75 * math.log(0.75) + 0.25 * math.log(4))
    )
