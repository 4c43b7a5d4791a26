ARG PYTHON_IMAGE=python:3.11.16-slim-bookworm@sha256:528257d48c1da0dcecc2e725d1ae34498d60c965f1241e39cd6a85a8859bdf84

FROM ${PYTHON_IMAGE} AS build
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/fedmed && python -m venv /opt/inventory
COPY deploy/images/server.lock deploy/images/inventory.lock /build/
RUN pip --python /opt/fedmed/bin/python install --require-hashes --no-deps --only-binary :all: -r /build/server.lock \
    && pip --python /opt/fedmed/bin/python install --only-binary :all: --index-url "${TORCH_INDEX}" "torch==${TORCH}" \
    && /opt/inventory/bin/pip install --require-hashes --no-deps --only-binary :all: -r /build/inventory.lock
COPY pyproject.toml README.md LICENSE /source/
COPY common /source/common
COPY strategies /source/strategies
COPY client /source/client
COPY server /source/server
COPY simulations /source/simulations
RUN pip --python /opt/fedmed/bin/python install --no-deps --no-build-isolation --no-index /source \
    && /opt/inventory/bin/cyclonedx-py environment --output-reproducible --of JSON -o /opt/fedmed/sbom.cdx.json /opt/fedmed/bin/python

FROM ${PYTHON_IMAGE}
RUN pip uninstall --yes --root-user-action=ignore setuptools wheel pip \
    && groupadd --gid 10001 fedmed \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fedmed \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/fedmed
COPY --from=build /opt/fedmed /opt/fedmed
ENV PATH=/opt/fedmed/bin:$PATH \
    FEDMED_HOME=/var/lib/fedmed \
    HOME=/tmp \
    USER=fedmed \
    GIT_PYTHON_REFRESH=quiet \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="fedmed server" \
      org.opencontainers.image.description="What a coordinator runs: one port for sites, and the commands of runs" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
WORKDIR /var/lib/fedmed
VOLUME ["/var/lib/fedmed"]
EXPOSE 8443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=15s --start-period=120s --retries=4 CMD ["fedmed", "health"]
ENTRYPOINT ["fedmed"]
CMD ["serve"]
