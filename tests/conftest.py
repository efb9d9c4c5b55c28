"""Options of all tests stand in pyproject.toml; what tests share, in tests/helpers."""
