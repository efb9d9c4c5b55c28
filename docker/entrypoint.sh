#!/bin/sh
# docker run IMAGE WORD ...: "benchmark", or any program of the image (kerf-tune, kerf-deploy, kerf-prune, python, sh).
set -eu
case "${1:-} ${2:-}" in
"benchmark "*)
    shift
    set -- python /opt/kerf/docker/benchmark.py "$@"
    ;;
"kerf-prune "* | *" imagenet.py")
    if ! python -c 'import importlib.util as u; raise SystemExit(u.find_spec("torch") is None)'; then
        echo "entrypoint: error: $*: pruning and training need torch, which this image lacks; use kerf-train" >&2
        exit 2
    fi
    ;;
esac
exec "$@"
