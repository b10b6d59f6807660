# mt with CUDA:   docker build -t mt .
#                 docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" mt train --train a.de a.en --output run
#
# The base flavour, not runtime: torch's wheel brings its own cuBLAS, cuDNN and NCCL, so the image would carry them twice.
# What the base adds is the check that the driver is recent enough, with a message that says so, and the settings
# by which the container sees the GPU.  Its CUDA is that of torch 2.13's wheel on PyPI; for an older driver or GPU:
#     --build-arg CUDA_IMAGE=nvidia/cuda:12.6.3-base-ubuntu24.04
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04
# hadolint ignore=DL3006
FROM ${CUDA_IMAGE}

# The compiler and Python's headers are for Triton, by which training is compiled on a GPU.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv python3-dev gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/mt/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# torch has a layer of its own: gigabytes that only a change of constraints.txt rebuilds.
WORKDIR /src
COPY constraints.txt ./
ARG TORCH_INDEX=""
RUN python3 -m venv /opt/mt \
    && pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch

COPY pyproject.toml README.md LICENSE ./
COPY mt ./mt
COPY data/demo ./data/demo
RUN pip install -c constraints.txt '.[zst,ja,ko,plot]'

RUN useradd --create-home --uid 10001 mt \
    && install --directory --owner=mt --group=mt /work
USER 10001
WORKDIR /work
ENTRYPOINT ["mt"]
CMD ["--help"]
