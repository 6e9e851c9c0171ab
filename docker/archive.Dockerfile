# The simulated archive (`twistd coverart-archive`) as a container: for docker/verify.sh and demos.

ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE}
COPY setup.cfg pyproject.toml README.md LICENSE /src/
COPY coverart /src/coverart
COPY twisted /src/twisted
RUN python -m venv /opt/archive \
    && /opt/archive/bin/pip install --no-cache-dir '/src[simulator]' \
    && /opt/archive/bin/twistd --help >/dev/null
ENV PATH=/opt/archive/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65534:65534
WORKDIR /tmp
EXPOSE 8190-8195
CMD ["twistd", "--nodaemon", "--pidfile=", "coverart-archive", "--interface=0.0.0.0", "--hostname=archive", "--seed=4", "--releases=500", "--variants=16"]
