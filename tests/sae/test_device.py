"""Which device is taken where none is named."""

from __future__ import annotations

import sys

import pytest

from interp_embed.sae.device import best_device, sees_gpu


@pytest.mark.parametrize("there", [True, False])
def test_a_gpu_is_taken_where_there_is_one(monkeypatch, there):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert sees_gpu() is there
    assert best_device() == ("cuda:0" if there else "cpu")


def test_without_torch_it_is_the_cpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert sees_gpu() is False
    assert best_device() == "cpu"
