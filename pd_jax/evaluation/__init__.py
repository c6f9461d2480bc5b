"""What is measured: rows of samples, a teacher before it teaches, regressions."""
