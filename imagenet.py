"""Train, prune, fine-tune, export: kerf prune by its first name; see compress/cli.py, or run with --help."""

from kerf.cli import enter

if __name__ == "__main__":
    raise SystemExit(enter("kerf.compress.cli", "imagenet.py"))
