"""Speed, measured: `python -m benchmarks.attack_throughput` and its neighbours."""
