"""What the benchmarks build on OpenRLHF: their stopwatch on both sides, and the flags of their variants."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF is not installed: bash tools/setup.sh")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    for name in ("common", "sides", "levers"):
        sys.modules.pop(name, None)


def test_a_side_without_phases_reports_its_memory(load):
    """Stock's actors have a peak alone; ours also know it by phase."""
    timed = load("sides").Timed()
    timed.start()
    plain = timed.report()
    assert plain["forward"] == plain["fit"] == 0 and plain["memory_mib"] > 10
    timed.rank = SimpleNamespace(memory=SimpleNamespace(whole={"training": 1e9}))
    assert timed.report()["memory_mib"] == 1e9


def test_the_variants_of_levers_are_flags(load, tmp_path):
    sides, levers = load("sides"), load("levers")
    flags = sides.common_flags(ROOT / "examples" / "tiny_base", 16, "fp32")
    for name, extra in levers.VARIANTS.items():
        args = sides.our_args([*flags, *(flag.format(n=4) for flag in extra)], tmp_path / name)
        assert args.ds.packing_samples == (name != "padded_micro_batches")
        assert args.orz.fixed_micro_batches == (name == "padded_micro_batches")


def test_stock_is_given_our_zero_and_its_own(load, tmp_path):
    sides = load("sides")
    flags = sides.common_flags(ROOT / "examples" / "tiny_base", 16, "bf16")
    both = [sides.our_args(flags, tmp_path), *(sides.stock_args(flags, how, 16) for how in ("padded:1", "packed:9"))]
    assert {(args.ds.zero_stage, args.ds.grad_accum_dtype) for args in both} == {(1, "fp32")}
    own = sides.stock_args(flags, "packed:512:zero2", 16).ds
    assert (own.zero_stage, own.grad_accum_dtype, own.packing_samples) == (2, None, True)


def test_stocks_engine_makes_the_folder_of_its_sockets(load, tmp_path, monkeypatch):
    """Ours makes it, too, but may start later."""
    import vllm
    from packaging import version

    monkeypatch.setenv("VLLM_RPC_BASE_PATH", str(tmp_path / "scratch" / "ipc"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # as in an engine's process
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    engine = load("sides").StockEngine
    engine._configure_vllm_env(object.__new__(engine), version, vllm, False)
    assert (tmp_path / "scratch" / "ipc").is_dir()
