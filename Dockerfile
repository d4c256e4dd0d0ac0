# The page in a container. On a CPU:
#   docker build -t talk2dino . && docker run -p 7860:7860 talk2dino
# On an NVIDIA GPU, with the published model:
#   docker build -t talk2dino --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 .
#   docker run --gpus all -p 7860:7860 talk2dino talk2dino app --model vitb --server_name 0.0.0.0
ARG BASE=python:3.12-slim
FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends fonts-dejavu-core \
    && (command -v python3 || apt-get install -y --no-install-recommends python3 python3-venv) \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/talk2dino
COPY requirements.lock .
RUN pip install --no-cache-dir -r requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
WORKDIR /work
EXPOSE 7860
CMD ["talk2dino", "app", "--model", "toy", "--server_name", "0.0.0.0"]
