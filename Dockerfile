# The server in a container. On the CPU:
#   docker build -t leandiffusion .
# With CUDA, whose libraries come with torch (the host needs the NVIDIA driver and its container toolkit):
#   docker build -t leandiffusion:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .

FROM python:3.12-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md CHANGELOG.md LICENSE NOTICE ./
COPY src src
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /tmp/wheels
# One torch of two indexes is never a surprise: it comes from the one that was named.
RUN python -m pip install --no-cache-dir --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple \
      "$(grep '^torch==' /tmp/constraints.txt)" \
    && python -m pip install --no-cache-dir --constraint /tmp/constraints.txt "$(echo /tmp/wheels/*.whl)[serve]" \
    && rm -r /tmp/wheels /tmp/constraints.txt \
    && useradd --create-home --uid 1000 draw \
    && install --directory --owner draw /models /cache
USER 1000
# What the machine measured of itself, and models by hub id, outlive the container in this volume.
ENV LEANDIFFUSION_CACHE=/cache/leandiffusion HF_HOME=/cache/huggingface
VOLUME /cache
EXPOSE 8188
HEALTHCHECK --start-period=60s --interval=30s --timeout=10s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8188/healthz', timeout=8)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["leandiffusion"]
CMD ["serve", "--host", "0.0.0.0"]
