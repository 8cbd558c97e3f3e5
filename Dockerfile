# runward in a container. See deploy/README.md.
#
#   docker build -t runward .
#
# Both bases are arguments, for a registry of one's own.
ARG BUILDER=docker.io/library/rust:1.95-slim-bookworm
# With a shell and the tools that scripts expect: what jobs need is added in an image FROM this one.
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BUILDER} AS build
WORKDIR /build
# Dependencies alone first: this layer is good until the lock changes. Tests, benchmarks and examples are not in here,
# so the manifest must not name them.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN sed -i '/^\[\[\(test\|bench\|example\)\]\]/,/^$/d' Cargo.toml \
    && mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && cargo build --locked --release \
    && rm -r src
COPY config config
COPY src src
# The dummy is as new as these; cargo goes by the time.
RUN touch src/main.rs src/lib.rs && cargo build --locked --release

FROM ${BASE}
LABEL org.opencontainers.image.title="runward" \
      org.opencontainers.image.description="A daemon that supervises jobs" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin runward \
    && install -d -o runward -g runward -m 0700 /var/lib/runward
COPY --from=build /build/target/release/runward /usr/local/bin/runward
COPY config/runward.toml /etc/runward/runward.toml
# Where daemon and clients find each other; HOME is what jobs get.
ENV STATE_DIRECTORY=/var/lib/runward RUNWARD_STATE_DIR=/var/lib/runward HOME=/tmp LANG=C.UTF-8
# A number, so that Kubernetes can tell that it is not root.
USER 10001:10001
WORKDIR /tmp
VOLUME /var/lib/runward
# The first drains, a second one forces. Give it more than the drain: docker stop --time 330.
STOPSIGNAL SIGTERM
# Nothing is exposed: the API is on a unix socket in the state directory, and on loopback.
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s CMD ["runward", "health"]
# As PID 1 it reaps orphans and forwards nothing it should not: no init is needed.
ENTRYPOINT ["runward"]
CMD ["serve"]
