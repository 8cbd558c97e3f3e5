"""The scenarios of runner_differential.rs for asyncio.Runner: `python3 runner_differential.py NAME`
prints the trace of one, an event a line."""

import asyncio
import contextvars
import logging
import os
import signal
import sys
import threading
import time


def event(text):
    print(text, flush=True)


def interrupt_when(condition):
    """Sends this process a SIGINT from another thread once `condition` holds."""

    def wait():
        while not condition():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def ended(work):
    try:
        event(f"value {work()}")
    except KeyboardInterrupt:
        event("interrupted")
    except asyncio.CancelledError:
        event("cancelled")
    except RuntimeError as error:
        event("closed" if "closed" in str(error) else "loop running")
    except Exception as error:
        event(f"error {error}")


def return_():
    async def main():
        await asyncio.sleep(0)
        return 42

    ended(lambda: asyncio.run(main()))


def raise_():
    async def main():
        await asyncio.sleep(0)
        raise ValueError("spam")

    ended(lambda: asyncio.run(main()))


def waiting(body):
    """Runs `body`, and interrupts it once it waits."""
    state = {"waits": False}

    def mark():
        state["waits"] = True

    interrupt_when(lambda: state["waits"])
    with asyncio.Runner() as runner:
        ended(lambda: runner.run(body(mark)))
        ended(lambda: runner.run(again()))


async def again():
    return "again"


def cancel_during_sleep():
    async def main(mark):
        try:
            mark()
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            event("told")
            await asyncio.sleep(0.001)
            event("cleaned up")
            raise

    waiting(main)


def swallow():
    async def main(mark):
        try:
            mark()
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            event("told")
        return "swallowed"

    waiting(main)


def interrupt_and_cancel():
    async def main(mark):
        try:
            mark()
            await asyncio.sleep(3600)
        finally:
            asyncio.current_task().cancel()

    waiting(main)


def error_in_clean_up():
    async def main(mark):
        try:
            mark()
            await asyncio.sleep(3600)
        finally:
            raise ValueError("clean-up")

    waiting(main)


def second_interrupt_in_a_tight_loop():
    async def main(mark):
        task = asyncio.current_task()
        mark()
        # The sleeps of no time let CPython hear a signal that comes just when the lock is taken: it can miss it else.
        while task.cancelling() == 0:
            time.sleep(0)
        event("first")
        interrupt_when(lambda: True)
        while True:
            time.sleep(0)

    waiting(main)


def left_over_tasks():
    async def left_over():
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            event("left over told")
            await asyncio.sleep(0.001)
            event("left over cleaned up")
            raise ValueError("left over")

    async def main():
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: event(f"handler {context['exception']}")
        )
        task = asyncio.create_task(left_over())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        event("main returns")
        return task.done()

    with asyncio.Runner() as runner:
        ended(lambda: str(runner.run(main())).lower())
        event("closing")
    event("closed")


def generator_left_open():
    kept = []

    async def numbers():
        try:
            yield 1
        finally:
            event("generator told")
            await asyncio.sleep(0.001)
            event("generator cleaned up")

    async def main():
        kept.append(numbers())
        return await anext(kept[0])

    with asyncio.Runner() as runner:
        ended(lambda: runner.run(main()))
        event("closing")
    event("closed")


def nested_run():
    async def inner():
        return "inner"

    async def main():
        coroutine = inner()
        try:
            ended(lambda: asyncio.run(coroutine))
        finally:
            coroutine.close()
        return "outer"

    ended(lambda: asyncio.run(main()))


def use_after_close():
    runner = asyncio.Runner()
    runner.close()
    event("closed unused")
    ended(lambda: runner.run(again()))
    runner.close()
    runner.close()
    late = again()
    ended(lambda: runner.run(late))
    late.close()
    ended(runner.get_loop)


def context_across_runs():
    var = contextvars.ContextVar("var", default=0)

    async def main(value):
        async def child():
            var.set(var.get() + 100)
            return var.get()

        old = var.get()
        var.set(value)
        event(f"child {await asyncio.create_task(child())}")
        return old

    with asyncio.Runner() as runner:
        ended(lambda: runner.run(main(1)))
        ended(lambda: runner.run(main(2)))
        other = contextvars.Context()
        ended(lambda: runner.run(main(3), context=other))
        event(f"other {other[var]}")
        ended(lambda: runner.run(main(4)))
    event(f"outside {var.get()}")


def debug_slow_task():
    class Log(logging.Handler):
        def emit(self, record):
            if "took" in record.getMessage():
                event("slow")

    logger = logging.getLogger("asyncio")
    logger.propagate = False
    logger.addHandler(Log())

    async def main(busy):
        until = time.monotonic() + busy
        while time.monotonic() < until:
            pass
        return "done"

    with asyncio.Runner(debug=True) as runner:
        runner.get_loop().slow_callback_duration = 0.05
        ended(lambda: runner.run(main(0.06)))
    with asyncio.Runner(debug=False) as runner:
        runner.get_loop().slow_callback_duration = 0.05
        ended(lambda: runner.run(main(0.06)))


name = sys.argv[1]
globals()[name if name in globals() else name + "_"]()
