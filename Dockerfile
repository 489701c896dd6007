# docker build --target agent -t whip-agent .     the side-car: no mitmproxy in it
# docker build --target proxy -t whip-proxy .     mitmproxy with the addon, and the broker
#
# Both run as user 10001, with a read-only root file system: docker run --read-only
# (the proxy writes mitmproxy's CA to the volume /var/lib/whip, and nothing anywhere else).

FROM python:3.13-slim AS source
WORKDIR /src
COPY pyproject.toml README.md ./
COPY whip_core ./whip_core
COPY client_agent ./client_agent
COPY whip_addon ./whip_addon

FROM source AS build-agent
RUN python -m venv --without-pip /opt/whip \
 && python -m pip --python /opt/whip/bin/python install --no-cache-dir .

FROM source AS build-proxy
RUN python -m venv --without-pip /opt/whip \
 && python -m pip --python /opt/whip/bin/python install --no-cache-dir '.[proxy]'

FROM python:3.13-slim AS base
ENV PATH=/opt/whip/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001

FROM base AS agent
COPY --from=build-agent /opt/whip /opt/whip
# The port of --metrics-listen, which is on loopback unless it is changed. Not /readyz: an agent
# whose broker is away is well, and what restarts the unhealthy would not help it.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9465/healthz', timeout=2)"]
ENTRYPOINT ["whip", "client"]

FROM base AS proxy
COPY --from=build-proxy /opt/whip /opt/whip
ENV HOME=/var/lib/whip
VOLUME /var/lib/whip
EXPOSE 8080 8000 50051
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/healthz', timeout=2)"]
ENTRYPOINT ["whip", "proxy"]
