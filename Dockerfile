# The builder resolves and installs; the image that runs takes the finished environment and has no pip cache, no
# sources and no build tools. Both stages share one base, so that the environment's Python is where it expects it.
FROM python:3.13-slim-bookworm AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY . .
RUN pip wheel --wheel-dir /wheels . \
 && python -m venv --without-pip /opt/onepx \
 && pip --python /opt/onepx/bin/python install --no-index --find-links /wheels onepx

FROM python:3.13-slim-bookworm
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="onepx" \
      org.opencontainers.image.description="A multi-tenant tracking pixel service" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="Apache-2.0"
# A fixed number, so that the owner of a mounted folder can be set from outside the container.
RUN groupadd --system --gid 10001 onepx \
 && useradd --system --uid 10001 --gid onepx --home-dir /data --shell /usr/sbin/nologin onepx \
 && install -d -o onepx -g onepx -m 0700 /data
COPY --from=builder /opt/onepx /opt/onepx
ENV PATH=/opt/onepx/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ONEPX_DATA_DIR=/data \
    ONEPX_HOST=0.0.0.0 \
    ONEPX_PORT=8000
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
# An answer other than 200 raises, and python exits with 1.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['ONEPX_PORT'] + '/healthz', timeout=4)"]
CMD ["onepx", "serve"]
