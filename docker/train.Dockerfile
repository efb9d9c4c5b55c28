# Training and pruning on CPUs, and the whole chain behind it.
#   docker build -f docker/train.Dockerfile -t kerf-train --build-arg PIP_OPTIONS="--extra-index-url ..." .
# PIP_OPTIONS: an index that has a CPU-only torch; without one pip takes its default torch, several GB with CUDA.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS packages
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY pyproject.toml constraints.txt ./
ARG PIP_OPTIONS=
ARG CONSTRAINTS=constraints.txt
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*p['dependencies'], *p['optional-dependencies']['train'], sep='\n')" >requirements.txt \
    && pip install ${PIP_OPTIONS} -c ${CONSTRAINTS} -r requirements.txt
COPY . .
RUN pip install ${PIP_OPTIONS} --no-deps . \
    && pip uninstall -y setuptools pip

FROM ${BASE}
# g++ links what TVM compiles
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home kerf \
    && install -d -o kerf -g kerf /out \
    && install -d /opt/kerf \
    && ln -s /out /opt/kerf/runs \
    && ln -s /out /opt/kerf/experiments
COPY --from=packages /opt/venv /opt/venv
COPY imagenet.py model_tune.py /opt/kerf/
COPY docker/benchmark.py docker/entrypoint.sh /opt/kerf/docker/
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
USER kerf
WORKDIR /opt/kerf
VOLUME /out
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5m --timeout=60s CMD test -w /out && python -c "import torch"
ENTRYPOINT ["/opt/kerf/docker/entrypoint.sh"]
CMD ["kerf-prune", "--help"]
