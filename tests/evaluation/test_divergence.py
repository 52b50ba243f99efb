"""The first token that differs, in every family with ids, against planted differences."""

import pytest
import torch

from ptq4arvg.evaluation import divergence
from ptq4arvg.evaluation.divergence import FirstDivergence, first_divergence
from ptq4arvg.models.registry import build_model
from ptq4arvg.sampling import Sampler
from tests.models.tiny import TINY

LABELS = torch.tensor([0, 3, 1])


@pytest.fixture(scope="module", params=["var", "rar", "par"])
def models(request):
    return [build_model(request.param, TINY[request.param], seed=0) for _ in range(2)]


class From:
    """Replaces what a model chooses, from token ``at`` of image ``image`` on."""

    def __init__(self, model, image, at):
        self.sample_ids, self.image, self.at = model.sample_ids, image, at

    def __call__(self, labels, choose, **options):
        seen = 0

        def other(logits, step):
            nonlocal seen
            count, seen = logits.shape[1], seen + logits.shape[1]
            if seen - count <= self.at < seen:
                logits = logits.clone()
                # The most likely token there can no longer be chosen.
                row = logits[self.image, self.at - seen + count]
                row[row.argmax()] = -1e9
            return choose(logits, step)

        return self.sample_ids(labels, choose=other, **options)


def test_equal_models_do_not_diverge(models):
    reference, model = models
    found = first_divergence(reference, model, LABELS, seed=1)
    assert found.first == (found.tokens,) * 3
    assert (found.mean, found.equal) == (1, 1)


@pytest.mark.parametrize("at", [0, 5, 9])
def test_the_planted_token_is_found_in_generation_order(models, at, monkeypatch):
    reference, model = models
    monkeypatch.setattr(model, "sample_ids", From(model, 1, at))
    seen = []
    found = first_divergence(
        reference, model, LABELS, greedy=True, progress=lambda *a: seen.append(a)
    )
    assert found.first == (found.tokens, at, found.tokens)
    assert found.equal == pytest.approx(2 / 3)
    assert found.mean == pytest.approx((2 + at / found.tokens) / 3)
    assert seen == [("first divergence", 3, 3)]


def test_batches_give_what_the_whole_gives(models):
    reference, _ = models
    other = build_model(reference.name, TINY[reference.family], seed=1)
    found = first_divergence(reference, other, LABELS, seed=2, batch_size=2)
    assert found == first_divergence(reference, other, LABELS, seed=2)
    assert found.mean < 1


def test_both_models_draw_from_the_stream_of_the_image_with_the_given_guidance(models, monkeypatch):
    reference, model = models
    streams, guidance = [], []

    def sampler(images, seed, top_k, top_p, index):
        streams.append((images, seed, top_k, top_p, index))
        return Sampler(images, seed, top_k, top_p, index)

    def sample_ids(labels, cfg, choose):
        guidance.append(cfg)
        return type(model).sample_ids(model, labels, cfg=cfg, choose=choose)

    monkeypatch.setattr(divergence, "Sampler", sampler)
    monkeypatch.setattr(model, "sample_ids", sample_ids)
    first_divergence(reference, model, LABELS, seed=4, cfg=2.5, top_k=7, top_p=0.9, batch_size=2)
    assert streams == 2 * [(2, 4, 7, 0.9, 0)] + 2 * [(1, 4, 7, 0.9, 2)]
    assert guidance == [2.5, 2.5]


def test_continuous_tokens_are_an_error():
    model = build_model("mar", TINY["mar"], seed=0)
    with pytest.raises(ValueError, match="tokens of mar are continuous"):
        first_divergence(model, model, LABELS)


@pytest.mark.parametrize("family", TINY)
def test_models_say_whether_their_tokens_are_continuous(family):
    model = build_model(family, TINY[family], seed=0)
    assert model.sample_rows(LABELS[:1]).is_floating_point() == model.continuous


def test_figures_of_known_indices():
    found = FirstDivergence((0, 10, 5, 10), 10)
    assert (found.mean, found.equal) == (0.625, 0.5)
