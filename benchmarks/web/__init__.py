"""What the web service costs, beside others: `python -m benchmarks.web`."""
