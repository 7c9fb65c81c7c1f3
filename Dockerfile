# The server. For GPUs: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 and `docker run --gpus all`.
# This file has not been run yet: the project has had no Docker daemon.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /src
COPY constraints.txt ./
RUN pip install --constraint constraints.txt --index-url "${TORCH_INDEX}" torch
COPY . .
RUN pip install --constraint constraints.txt ".[serve]" && rm -rf /src/*

RUN useradd --create-home --uid 10001 pvlm
USER pvlm
WORKDIR /home/pvlm
RUN mkdir .cache

EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["pvlm", "serve", "--host", "0.0.0.0", "--log-json"]
