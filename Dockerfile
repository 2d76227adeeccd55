# syntax=docker/dockerfile:1
# An image that trains.
#   docker build -t dreamer .                                            on CPU
#   docker build -t dreamer --build-arg ACCELERATOR=cuda13 .             on NVIDIA GPUs
#   docker build -t dreamer --build-arg EXTRAS=classic,minigrid .        with other suites: the extras of pyproject.toml
#   mkdir -p runs && docker run --rm -it --init [--gpus all] -v "$PWD/runs:/dreamer/runs" dreamer train quickstart
# Build with --build-arg UID="$(id -u)" if your user id is not 1000, so that the runs belong to you.
# Your own environment: -v "$PWD/my_lab:/dreamer/my_lab" and --env my_lab.envs:make. Add -v dreamer-state:/state to keep the
# key that seals your runs; without it a later container needs --trust to resume them.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
# An extra of jax: cpu, cuda13 (driver 580 or newer), cuda12 (driver 525 or newer), tpu. CUDA comes with the wheels.
ARG ACCELERATOR=cpu
ARG EXTRAS=classic
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PATH=/opt/dreamer/bin:$PATH
WORKDIR /src
RUN python -m venv /opt/dreamer
# Dependencies come first: this layer is built again only when pyproject.toml or an argument changes.
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = filter(None, '${EXTRAS}'.split(',')); \
print(*p['dependencies'], *(line for name in extras for line in p['optional-dependencies'][name]), sep='\n')" \
    > requirements.txt \
    && pip install -r requirements.txt "jax[${ACCELERATOR}]"
COPY setup.cfg README.md LICENSE ./
COPY dreamer dreamer
COPY envs envs
COPY experiments experiments
RUN pip install --no-deps .

FROM python:${PYTHON}-slim-bookworm
ARG UID=1000
# These libraries draw MuJoCo environments without a screen: MUJOCO_GL=egl on a GPU, osmesa on a CPU.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libgl1 libosmesa6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --no-log-init --create-home --uid "${UID}" dreamer \
    && mkdir -p /dreamer/runs /state \
    && chown -R dreamer:dreamer /dreamer /state
COPY --from=build /opt/dreamer /opt/dreamer
ENV PATH=/opt/dreamer/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_STATE_HOME=/state
USER ${UID}
WORKDIR /dreamer
ENTRYPOINT ["dreamer"]
CMD ["--help"]
