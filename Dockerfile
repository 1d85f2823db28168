# hydraft in a container, as a user without root's rights.
#   CPU:  docker build -t hydraft .
#   CUDA: docker build -t hydraft:cuda --build-arg BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04 .
# Its pip installs torch built for CUDA by default, which runs on CPUs too; PIP_EXTRA_INDEX_URL selects another build.
ARG BASE=ubuntu:24.04
FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# A compiler and libaio, since DeepSpeed's ops are compiled; ssh for runs on several hosts.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libaio-dev make openssh-client python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 --shell /bin/bash hydraft && install -d -o hydraft /opt/hydraft /opt/hydraft/source /work
USER 10001
ENV PATH=/opt/hydraft/venv/bin:$PATH
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /opt/hydraft/source
COPY --chown=hydraft . .

# The tested versions, then the package itself; the ops that this machine can use are compiled now.
RUN python3 -m venv /opt/hydraft/venv \
    && pip install --no-cache-dir -r requirements.txt \
    && pip install --no-cache-dir --no-deps . \
    && hydraft ops

# Runs are written below the working directory: mount a folder there.
WORKDIR /work
ENTRYPOINT ["hydraft"]
CMD ["--help"]
