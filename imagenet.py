from kerf.compress.cli import main

raise SystemExit(main(program="imagenet.py"))
