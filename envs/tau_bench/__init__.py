"""Customers of a shop and of an airline, and tools over their databases (docs/environments/tau_bench.md)."""
