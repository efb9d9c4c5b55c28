# Deployment on CPUs: compile, tune, verify, race and run networks. No torch.
#   docker build -f docker/cpu.Dockerfile -t kerf-cpu .
# The first stages need torch, once, to make the networks that are raced. PIP_OPTIONS passes options to pip, for
# instance an index that has a CPU-only torch; without one pip takes its default, several GB that are not kept.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# what is needed, apart from the sources: a changed source does not install everything again
COPY pyproject.toml constraints.txt ./
ARG PIP_OPTIONS=
ARG CONSTRAINTS=constraints.txt
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        >requirements.txt \
    && pip install ${PIP_OPTIONS} -c ${CONSTRAINTS} -r requirements.txt

FROM build AS networks
ARG PIP_OPTIONS=
ARG CONSTRAINTS=constraints.txt
RUN pip install ${PIP_OPTIONS} -c ${CONSTRAINTS} torch torchvision onnxscript safetensors scikit-learn
COPY . .
RUN pip install ${PIP_OPTIONS} --no-deps . \
    && python docker/export_networks.py /networks

FROM build AS packages
ARG PIP_OPTIONS=
ARG CONSTRAINTS=constraints.txt
# --build-arg PEERS=openvino adds an engine to race against, and 180 MB
ARG PEERS=
RUN test -z "${PEERS}" || pip install ${PIP_OPTIONS} -c ${CONSTRAINTS} ${PEERS}
COPY . .
RUN pip install ${PIP_OPTIONS} --no-deps . \
    && pip uninstall -y setuptools pip

FROM ${BASE}
# g++ links what TVM compiles; the compilers proper, 130 MB, are never called, as TVM hands over object files
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 \
    && rm -rf /var/lib/apt/lists/* /usr/lib/gcc/*/*/cc1 /usr/lib/gcc/*/*/cc1plus /usr/lib/gcc/*/*/lto1 /usr/bin/*lto-dump* \
    && useradd --uid 10001 --create-home kerf \
    && install -d -o kerf -g kerf /out \
    && install -d /opt/kerf \
    && ln -s /out /opt/kerf/runs \
    && ln -s /out /opt/kerf/experiments
COPY --from=networks /networks /opt/kerf/networks
COPY --from=packages /opt/venv /opt/venv
COPY model_tune.py /opt/kerf/
COPY docker/benchmark.py docker/entrypoint.sh /opt/kerf/docker/
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
USER kerf
WORKDIR /opt/kerf
VOLUME /out
STOPSIGNAL SIGINT
# light, so that it does not disturb a race: the runtime loads and results can be written
HEALTHCHECK --interval=5m --timeout=30s CMD test -w /out && python -c "import kerf.deploy.runtime.session"
ENTRYPOINT ["/opt/kerf/docker/entrypoint.sh"]
CMD ["benchmark"]
