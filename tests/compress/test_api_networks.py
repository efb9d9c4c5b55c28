"""kerf.prune on networks that are not followed through, that have several inputs, or that count their channels."""

import pytest
import torch
from torch import nn

import kerf

X = torch.zeros(1, 3, 12, 12)


class Attentive(nn.Module):
    """Attention, which has no rule, between convolutions that have one."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide, self.back = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.qkv, self.out = nn.Conv2d(8, 24, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.back(self.wide(x).relu())
        q, k, v = self.qkv(x).flatten(2).mT.chunk(3, 2)
        return {"scores": self.out(nn.functional.scaled_dot_product_attention(q, k, v).mean(1)), "features": x}


def test_what_has_no_rule_stays_and_is_said_once():
    with pytest.warns(UserWarning, match="1 layer keeps all channels, in place: qkv") as caught:
        pruned = kerf.prune(net := Attentive(), "l1", example=X, sparsity=0.5)
    assert len(caught) == 1
    assert pruned.note == str(caught[0].message)
    assert pruned.widths == {"wide": (16, 8)}
    assert net(X)["features"].shape[1] == 8
    with pytest.raises(kerf.Unsupported, match="scaled_dot_product_attention"):
        kerf.prune(Attentive(), "l1", example=X, sparsity=0.5, strict=True)


def test_blocks_without_an_order_need_no_rules(recwarn):
    pruned = kerf.prune(Attentive(), "one_by_n", example=X, n=4, sparsity=0.5)
    assert set(pruned.zero_blocks) == {"wide", "back", "qkv"}
    assert not recwarn.list


def test_blocks_without_an_order_need_no_trace():
    class ByValue(Attentive):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.warns(UserWarning, match="weights are pruned without its graph"):
        pruned = kerf.prune(ByValue(), "one_by_n", example=X + 1, n=4, sparsity=0.5, full=True)
    assert set(pruned.zero_blocks) == {"wide", "back", "qkv", "out"}
    with pytest.raises(kerf.BadInput, match="cannot be traced"):
        kerf.prune(ByValue(), "one_by_n", example=X, rearrange=True)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(16, 5)

    def forward(self, left, right):
        ends = [self.b(self.a(x).relu()).relu().mean((2, 3)) for x in (left, right)]
        return self.out(torch.cat(ends, 1)), {"ends": ends}


@pytest.mark.parametrize("example", [(X, X), {"right": X, "left": X}], ids=["tuple", "dict"])
@pytest.mark.parametrize("asked", [{"method": "l1", "macs": 0.6}, {"method": "one_by_n", "rearrange": True}], ids=str)
def test_several_inputs_and_outputs(example, asked):
    pruned = kerf.prune(net := Pair(), example=example, **asked)
    assert pruned.macs < pruned.macs_dense
    assert net(X, X)[0].shape == (1, 5)


def test_a_target_that_sums_would_reach_says_so():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (
                nn.Conv2d(3, 16, 3),
                nn.Conv2d(16, 2, 1),
                nn.Conv2d(2, 16, 1),
                nn.Linear(16, 5),
            )

        def forward(self, x):
            x = self.a(x)
            return self.d((x + self.c(self.b(x))).mean((2, 3)))

    with pytest.raises(kerf.BadInput, match=r"of the MACs cannot be reached.*; residual=True \(--residual\)"):
        kerf.prune(Sum(), "l1", example=X, macs=0.5)
    assert kerf.prune(Sum(), "l1", example=X, macs=0.5, residual=True).macs > 0


def test_code_that_counts_channels_keeps_those_and_the_rest_is_pruned():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(32, 5)

        def forward(self, x):
            return self.head(nn.functional.adaptive_avg_pool2d(self.b(self.a(x)), 2).view(-1, 32))

    with pytest.warns(UserWarning, match="its code counts the channels of b, which keep all of them"):
        assert kerf.prune(Viewed(), "l1", example=X, sparsity=0.5).widths == {"a": (8, 4)}
