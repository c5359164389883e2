"""Experiments: a TOML file (config) becomes a folder of results (run), and several folders one table (compare)."""
