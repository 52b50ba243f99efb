"""The training of mar-tiny: masks, the hybrid loss, resuming, the export."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from ptq4arvg.models import load_model
from ptq4arvg.models.diffloss import TRAINED_STEPS, respaced_schedule
from ptq4arvg.models.registry import DATA
from tests.zoo.helpers import check_like_bundled, check_resume, seeded, train
from zoo import common, train_mar

TOKENIZER = DATA / "kl-tiny" / "tokenizer.safetensors"


def test_mar_training_resumes_exactly_and_exports(data, tmp_path, monkeypatch):
    out = check_resume(train_mar, "mar", ["mar.safetensors"], data, tmp_path, monkeypatch,
                       "--tokenizer", str(TOKENIZER))  # fmt: skip
    check_like_bundled(out / "mar.safetensors", DATA / "mar-tiny" / "transformer.safetensors")
    model = load_model("mar-tiny", weights=out / "mar.safetensors")
    noise = model.replay(torch.zeros(1, 64, 8), torch.tensor([0]))
    assert torch.isfinite(noise).all()


def test_masks_hide_most_tokens_and_no_token_twice():
    for seed in range(20):
        visible, masked = train_mar.draw_mask(5, 64, seeded(seed))
        both = torch.cat([visible, masked], 1)
        assert both.sort(1).values.eq(torch.arange(64)).all()
        assert math.ceil(0.7 * 64) <= masked.shape[1] <= 64
        assert visible.equal(visible.sort(1).values)


class Told(nn.Module):
    """A head that answers what it is told, and notes what it is shown."""

    def __init__(self, answer):
        super().__init__()
        self.net, self.answer = self, answer
        self.time_embed = lambda t: t[:, None].float()
        self.cond_embed = lambda z: 0 * z[:, :1]

    def forward(self, state, y):
        self.state, self.times = state, y[..., 0]
        return self.answer


def test_the_loss_is_the_noise_error_and_the_bound_of_the_variances():
    schedule = respaced_schedule(TRAINED_STEPS)
    tokens = torch.randn(3, 8, generator=seeded(0))
    noise = torch.randn(3, 4, 8, generator=seeded(1))
    t = torch.randint(1, TRAINED_STEPS, (3, 4), generator=seeded(2))
    answer = torch.randn(3, 4, 16, generator=seeded(3)) * 0.3
    head = Told(answer)
    error, bound = train_mar.NoiseLoss()(head, tokens, torch.zeros(3, 5), t, noise)
    predicted, logits = answer.chunk(2, -1)
    assert error.item() == pytest.approx((predicted - noise).square().mean().item(), rel=1e-6)
    assert torch.equal(head.times, t.float())

    def at(values):
        return torch.as_tensor(values)[t][..., None].double()

    kept = at(schedule.alphas_cumprod)
    state = kept.sqrt() * tokens[:, None].double() + (1 - kept).sqrt() * noise.double()
    torch.testing.assert_close(head.state, state.float(), atol=1e-6, rtol=1e-6)

    def step_back(start):
        return at(schedule.mean_of_start) * start + at(schedule.mean_of_state) * state

    least, most = at(schedule.posterior_log_variance), at(schedule.betas).log()
    own = least + (logits.double() + 1) / 2 * (most - least)
    guess = (state - (1 - kept).sqrt() * predicted.double()) / kept.sqrt()
    true = Normal(step_back(tokens[:, None].double()), (least / 2).exp())
    wanted = kl_divergence(true, Normal(step_back(guess), (own / 2).exp())).mean() / math.log(2)
    assert bound.item() == pytest.approx(wanted.item(), rel=1e-3)


def test_the_bound_teaches_the_variances_only():
    answer = torch.zeros(3, 4, 16, requires_grad=True)
    tokens, noise = torch.ones(3, 8), torch.ones(3, 4, 8)
    t = torch.full((3, 4), 500)
    _, bound = train_mar.NoiseLoss()(Told(answer), tokens, torch.zeros(3, 5), t, noise)
    bound.backward()
    of_noise, of_variance = answer.grad.chunk(2, -1)
    assert not of_noise.any() and of_variance.all()


def test_the_head_begins_as_zero_and_its_blocks_as_identities():
    model = train_mar.MAR(common.architecture("mar-tiny").config)
    train_mar.initialize_(model, 0)
    net = model.diffloss.net
    x, y = (torch.randn(2, 1, 256, generator=seeded(seed)) for seed in (0, 1))
    assert torch.equal(net.res_blocks[0](x, y), x)
    assert not net.final_layer.linear.weight.any()


def test_a_missing_tokenizer_says_how_to_get_one(data, tmp_path, capsys):
    assert train(train_mar, data, tmp_path) == 1
    error = capsys.readouterr().err
    assert "no tokenizer" in error and "zoo/train_kl.py" in error and "--tokenizer" in error
