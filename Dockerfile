# What a device needs to run bundles: the base install, and Pillow for pictures; no torch.
#
#   docker build --tag mtlc .
#   docker run --rm --volume "$PWD:/work" mtlc infer bundle.mtlc picture.jpg
#   docker buildx build --platform linux/amd64,linux/arm64 --tag mtlc .
#
# --build-arg EXTRAS=images,openvino installs other extras. torch-based verbs are not meant to run here.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS wheel
WORKDIR /source
COPY pyproject.toml README.md ./
COPY mtlc mtlc
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:${PYTHON}
ARG EXTRAS=images
COPY constraints.txt /install/constraints.txt
COPY --from=wheel /wheel /install
RUN python -m pip install --no-cache-dir --constraint /install/constraints.txt "$(echo /install/*.whl)[${EXTRAS}]" \
    && rm -r /install \
    && useradd --create-home mtlc
USER mtlc
WORKDIR /work
ENTRYPOINT ["mtlc"]
CMD ["--help"]
