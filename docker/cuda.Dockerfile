# Training and pruning on NVIDIA GPUs, and the whole chain behind it. Needs the NVIDIA container toolkit:
#   docker build -f docker/cuda.Dockerfile -t kerf-cuda .
#   docker run --gpus all -v "$PWD/out:/out" kerf-cuda python imagenet.py --data_set digits
#   docker run --gpus all -v "$PWD/out:/out" kerf-cuda scripts/gpu/bench_gpu.sh /out/gpu_kit
# torch's own wheels bring cuBLAS, cuDNN and NCCL, so the "base" flavour with the CUDA runtime is enough.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04

FROM ${BASE}
# g++ links what TVM compiles
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv \
    && useradd --uid 10001 --create-home kerf \
    && install -d -o kerf -g kerf /out \
    && install -d /opt/kerf \
    && ln -s /out /opt/kerf/runs \
    && ln -s /out /opt/kerf/experiments
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/kerf
COPY pyproject.toml constraints.txt ./
ARG PIP_OPTIONS=
ARG CONSTRAINTS=constraints.txt
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*p['dependencies'], *p['optional-dependencies']['train'], *p['optional-dependencies']['cuda'], sep='\n')" \
        >requirements.txt \
    && pip install ${PIP_OPTIONS} -c ${CONSTRAINTS} -r requirements.txt
COPY . .
RUN pip install ${PIP_OPTIONS} --no-deps .
USER kerf
VOLUME /out
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5m --timeout=60s CMD test -w /out && python -c "import torch; assert torch.cuda.is_available()"
ENTRYPOINT ["/opt/kerf/docker/entrypoint.sh"]
CMD ["kerf-prune", "--help"]
