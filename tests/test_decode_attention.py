"""Attention of one new token a row is transformers' own, written out in its "eager" attention."""

from types import SimpleNamespace

import pytest
import torch
from grpo_math.generation import decode_attention as ours
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

FLOAT, HALF = torch.float32, torch.bfloat16


@pytest.fixture
def elsewhere(monkeypatch):
    """The calls that were left to transformers."""
    calls, theirs = [], ours.sdpa_attention_forward
    monkeypatch.setattr(ours, "sdpa_attention_forward", lambda *a, **k: calls.append(k) or theirs(*a, **k))
    return calls


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize(
    ("rows", "heads", "shared_by", "size", "columns", "scaling", "dtype", "queries"),
    [
        (1, 1, 1, 4, 1, None, FLOAT, 1),
        (5, 4, 1, 32, 37, None, FLOAT, 1),
        (3, 2, 7, 64, 50, None, FLOAT, 1),
        (4, 8, 4, 16, 9, 0.3, FLOAT, 1),
        (3, 2, 7, 64, 50, None, HALF, 1),
        (3, 2, 2, 16, 20, 0.5, FLOAT, 5),
    ],
)
def test_it_equals_the_attention_written_out(
    rows, heads, shared_by, size, columns, scaling, dtype, queries, mask, elsewhere
):
    torch.manual_seed(rows)
    query = torch.randn(rows, heads * shared_by, queries, size, dtype=dtype)
    key, value = (torch.randn(rows, heads, columns + 6, size, dtype=dtype)[:, :, 2:-4] for _ in range(2))
    seen = torch.rand(rows, 1, queries, columns) < 0.6
    seen[..., -1] = True
    hidden = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)
    module = SimpleNamespace(num_key_value_groups=shared_by, training=False, is_causal=False)
    scale = size**-0.5 if scaling is None else scaling
    expected, _ = eager_attention_forward(module, query, key, value, None if mask == "none" else hidden, scaling=scale)
    given = {"none": None, "bool": seen, "float": hidden}[mask]
    whole = [torch.cat([part, torch.full_like(part, 1e9)], dim=2) for part in (key, value)]
    roomy = [ours.leave_room(part[:, :, :columns], part) for part in whole]
    for keys_and_values in ([key, value], roomy, [key, roomy[1]], [roomy[0], value]):
        found, weights = ours.decode_attention(module, query, *keys_and_values, given, scaling=scaling)
        assert found.shape == (rows, queries, heads * shared_by, size) and weights is None
        torch.testing.assert_close(found, expected, **({"rtol": 2e-2, "atol": 2e-2} if dtype == HALF else {}))
    assert bool(elsewhere) == (queries > 1)


@pytest.mark.parametrize("option", [{"dropout": 0.1}, {"position_bias": torch.zeros(1, 2, 1, 6)}])
def test_what_it_does_not_know_is_left_to_transformers(option, elsewhere):
    query, key = torch.randn(3, 2, 1, 4), torch.randn(3, 2, 6, 4)
    ours.decode_attention(SimpleNamespace(num_key_value_groups=1), query, key, key, None, **option)
    assert [set(option) <= set(call) for call in elsewhere] == [True]


def test_it_is_in_use_only_within_its_context():
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(ValueError, match="on the way"), ours.fast_attention():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is ours.decode_attention
        raise ValueError("on the way")
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
