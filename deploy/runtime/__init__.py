"""Bundles on the machine that runs them. No compiler, no torch."""
