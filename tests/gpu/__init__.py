"""Tests that need NVIDIA GPUs. `make test-gpu` runs them and writes `gpu-report.json`; elsewhere they are skipped."""
