# docker build --tag promptfleet .
# With CUDA, as PyPI builds torch: docker build --tag promptfleet --build-arg TORCH_INDEX=https://pypi.org/simple .
FROM python:3.11-slim-bookworm

ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=quickstart,gguf,generation,report,serve

ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
WORKDIR /opt/promptfleet
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY launcher ./launcher
COPY model_parallel ./model_parallel
COPY prompt_tuning ./prompt_tuning
RUN pip install --index-url "$TORCH_INDEX" "torch==$TORCH" \
    && pip install --use-pep517 --constraint constraints.txt ".[$EXTRAS]"
COPY configs ./configs
COPY examples ./examples

RUN useradd --create-home --uid 1000 promptfleet && install --directory --owner promptfleet /runs
USER promptfleet
ENTRYPOINT ["promptfleet"]
CMD ["--help"]
