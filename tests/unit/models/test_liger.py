"""Liger's kernel gives the log-probs and gradients of our chunks; Triton's interpreter runs it on a CPU."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from openrlhf_orz.models import log_prob_head

CODE = """
import torch
from openrlhf_orz.models.log_prob_head import liger, liger_log_probs, log_probs_and_entropy
assert liger() is not None, "this liger-kernel is too old: its gradients know no weights of tokens"
generator = torch.Generator().manual_seed(0)
hidden, weight = (torch.randn(n, 16, generator=generator).requires_grad_() for n in (37, 101))
labels, by_token = torch.randint(101, (37,), generator=generator), torch.randn(37, generator=generator)
found = liger_log_probs(hidden, weight, labels)
expected = log_probs_and_entropy(hidden, weight, labels, elements=1000)[0]
torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
gradients = [torch.autograd.grad((x * by_token).sum(), (hidden, weight)) for x in (found, expected)]
torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)
"""


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("liger_kernel", "triton"))),
    reason="liger-kernel or triton is not installed (on CPU neither is): pip install liger-kernel triton",
)
def test_liger_equals_chunks():
    env = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_where_it_serves(monkeypatch):
    """On CUDA, for log-probs alone at temperature 1, and not with a weight that ZeRO-3 has gathered."""
    monkeypatch.setattr(log_prob_head, "liger", lambda: object())
    hidden, weight = type("Cuda", (), {"is_cuda": True})(), torch.zeros(2, 2)
    serves = log_prob_head.liger_serves
    assert serves(hidden, weight, 1.0, False)
    assert not serves(hidden, weight, 0.6, False) and not serves(hidden, weight, 1.0, True)
    assert not serves(torch.zeros(2, 2), weight, 1.0, False)
    weight.ds_id = 0
    assert not serves(hidden, weight, 1.0, False)
