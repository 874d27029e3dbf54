"""Speed, side by side in one run, on the sandbox: ``python -m benchmarks --help``."""
