"""Latency, throughput, memory and accuracy of a user's own model, engine and video."""
