"""What has to be done to a module before it is a file. With deploy/export.py all of `deploy` that imports torch."""
