# The page and the HTTP interface, from a wheel in dist/ (python3 -m pip wheel --no-deps -w dist .):
#
#     docker build -t e3d_jax .                               # for CPUs
#     docker build -t e3d_jax --build-arg EXTRAS=app,gpu .    # for CUDA 13; run it with --gpus=all
#     docker run -p 127.0.0.1:7860:7860 -e E3D_TOKEN=SECRET e3d_jax
FROM python:3.11-slim
ARG EXTRAS=app
COPY dist/e3d_jax-*.whl /wheel/
RUN pip install --no-cache-dir "$(ls /wheel/*.whl)[$EXTRAS]" && useradd --create-home --uid 1000 user
USER user
EXPOSE 7860
CMD ["e3d", "app", "--host=0.0.0.0"]
