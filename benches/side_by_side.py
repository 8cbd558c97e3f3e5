"""Measures asyncio.Runner; one figure a line, in seconds. Driven by side_by_side.rs."""

import asyncio
import os
import signal
import sys
import time


async def main():
    return 42


def each(work, times):
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def new_run_close():
    with asyncio.Runner() as runner:
        runner.run(main())


def signal_to_cancelled():
    sent = 0.0

    async def wait():
        nonlocal sent
        loop = asyncio.get_running_loop()

        def send():
            nonlocal sent
            sent = time.perf_counter()
            os.kill(os.getpid(), signal.SIGINT)

        # From another thread, while the loop sleeps, as for runward.
        loop.run_in_executor(None, lambda: (time.sleep(0.005), send()))
        try:
            await loop.create_future()
        except asyncio.CancelledError:
            return time.perf_counter() - sent

    with asyncio.Runner() as runner:
        return runner.run(wait())


for line in sys.stdin:
    match line.strip():
        case "new+run+close":
            print(each(new_run_close, 50), flush=True)
        case "run on an open one":
            with asyncio.Runner() as runner:
                runner.run(main())
                print(each(lambda: runner.run(main()), 500), flush=True)
        case "signal to Cancelled":
            print(signal_to_cancelled(), flush=True)
