# The first stage builds the wheel and installs it with every dependency pinned by hash; the second only runs it.
FROM python:3.13-slim AS build
WORKDIR /build
RUN python -m venv /opt/gateway
COPY requirements.lock ./
RUN /opt/gateway/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY policies policies
COPY gateway gateway
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
 && /opt/gateway/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
 && /opt/gateway/bin/pip check

FROM python:3.13-slim
RUN useradd --system --uid 10001 --create-home --home-dir /gateway gateway \
 && install --directory --owner=gateway /gateway/data
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH PYTHONUNBUFFERED=1 GATEWAY_HOST=0.0.0.0 GATEWAY_STORE=sqlite:////gateway/data/gateway.db
# Policies mounted at /gateway/policies are the ones in force.
WORKDIR /gateway
USER gateway
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('GATEWAY_PORT', '8080')), timeout=2); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["gateway"]
CMD ["serve"]
