# Two images: `api` serves the REST API and the pages and holds no torch; `worker` runs the trials.
FROM python:3.11-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \
    MATNAS_HOME=/var/lib/matnas
# Both images write the shared volume, so both have the same user.
RUN useradd --uid 10001 --create-home matnas \
    && install --directory --owner=matnas --group=matnas "$MATNAS_HOME"
VOLUME /var/lib/matnas
WORKDIR /src
COPY pyproject.toml README.md ./
COPY models models
COPY search search
COPY service service
COPY worker worker

FROM base AS api
RUN pip install '.[s3,otel]'
USER matnas
WORKDIR /var/lib/matnas
EXPOSE 8000
CMD ["matnas", "serve"]

FROM base AS worker
RUN pip install '.[s3,otel,worker]'
USER matnas
WORKDIR /var/lib/matnas
CMD ["matnas", "worker"]
