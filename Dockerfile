# The web service; `docker build -t ride-duration .`, `docker run -p 9696:9696 ride-duration`. Another door is the same image with
# its category and its command: `docker build -t ride-duration-batch --build-arg CATEGORIES=batch .`
FROM python:3.13-slim AS build
RUN pip install --no-cache-dir 'pipenv>=2026.7' && python -m venv /opt/venv
WORKDIR /build
COPY Pipfile Pipfile.lock ./
ARG CATEGORIES=
RUN VIRTUAL_ENV=/opt/venv PIPENV_VERBOSITY=-1 pipenv sync --categories "packages $CATEGORIES" \
 # pip is no use at run time, nor is what numpy needs to build extensions and to test itself
 && rm -rf /opt/venv/lib/python3.*/site-packages/pip* /opt/venv/bin/pip* \
 && find /opt/venv -type d \( -name tests -o -name include \) -prune -exec rm -rf {} +

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent app
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY ride_duration ride_duration
COPY web web
COPY batch batch
COPY streaming streaming
COPY registry registry
COPY models models
COPY predict.py client.py gunicorn.conf.py model.bin ./
# compiled once here, since the user below may not write; 10001 by number, so that a cluster can see it isn't root
RUN python -m compileall -q ride_duration web batch streaming registry predict.py client.py
USER 10001
EXPOSE 9696
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ.get(\"PORT\", 9696)}/readyz', timeout=2)"]
# exec form: gunicorn is process 1 and gets SIGTERM itself
CMD ["gunicorn", "predict:app"]
