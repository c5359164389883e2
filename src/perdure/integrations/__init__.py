"""Perdure inside other people's tools: one file each, imported by its own name; none is needed for the others."""
