# Two stages: Debian builds, distroless runs. Both are Debian 12, whose Python is 3.11, so what the first compiles the
# second can load; it is also built with profile-guided optimisation (docs/benchmarks.md).
#
# Run it so (every right it does not need taken away; only /data is ever written):
#   docker run --read-only --cap-drop=ALL --security-opt=no-new-privileges -v estat-data:/data -p 8080:8080 \
#     -e AWS_REGION=… -e RAW_BUCKET=… estat-ingest
#
# Stopping: SIGTERM starts the drain, which ends within DRAIN_TIMEOUT (25 s). Fargate sends SIGKILL `stopTimeout` after SIGTERM,
# 30 s unless the task definition says otherwise: keep DRAIN_DELAY + DRAIN_TIMEOUT below it (docs/shutdown.md).
FROM debian:12-slim AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-pip \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY requirements.lock ./
RUN python3 -m pip install --no-cache-dir --disable-pip-version-check --require-hashes --no-deps --no-compile --only-binary=:all: --target=/app -r requirements.lock
COPY ingest /app/ingest
# Compiled here, because the root file system is read-only there, and not by pip, because compileall leaves a fresh .pyc alone: pip's
# are checked by time stamp, these by nothing (unchecked hash). The base image has the standard library as source alone, so that each
# start and each health check would compile it; it is checked by the hash of its source, because the base may be a patch release apart.
RUN export PYTHONPYCACHEPREFIX=/pycache \
 && python3 -m compileall -q -j 0 --invalidation-mode checked-hash \
      -x '/(ensurepip|idlelib|lib2to3|pydoc_data|test|tkinter|turtledemo|unittest)/' /usr/lib/python3.11 \
 && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /app \
 && mkdir -p /data/dlq /data/objects

FROM gcr.io/distroless/python3-debian12:nonroot
COPY --from=build --chown=root:root /app /app
COPY --from=build --chown=root:root /pycache /pycache
# A named volume, and Fargate's, takes the owner of the folder it covers: nonroot (65532).
COPY --from=build --chown=65532:65532 /data /data
ENV PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONPYCACHEPREFIX=/pycache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HTTP_ADDR=:8080 \
    DLQ_DIR=/data/dlq \
    STORE_DIR=/data/objects
WORKDIR /data
VOLUME /data
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
# It asks as the settings are (on ADMIN_ADDR if there is one), in 30 ms of CPU, and asks /health, not /ready: a task that drains is not
# a task to be killed.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s --retries=3 CMD ["/usr/bin/python3", "-m", "ingest", "health"]
ENTRYPOINT ["/usr/bin/python3", "-m", "ingest"]
CMD ["serve"]
