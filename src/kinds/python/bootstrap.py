"""Runs the coroutine of a `python` job in an asyncio.Runner, as asyncio.run would.

Beside this file is the request. SIGINT is blocked until the job's own code runs, so that no interrupt meets this.
The syntax is old: a Python that is too old must get as far as to say so.
"""
import json
import os
import sys

OLDEST = (3, 11)
HERE = os.path.dirname(os.path.abspath(__file__))
# The names that tracebacks show.
SOURCE = "<job>"
MODULE = "__job__"
# As in the daemon, which checks them: here they make a better message.
RESULT_LIMIT = 64 * 1024
TRACEBACK_LIMIT = 16 * 1024
MESSAGE_LIMIT = 4 * 1024
# What a shell reports of a program that Ctrl-C has ended.
INTERRUPTED = 130
FAILED = 1
# Raised by the job itself, these say what a cancellation says.
CANCELLATIONS = ["asyncio.exceptions.CancelledError", "KeyboardInterrupt"]


class Refused(Exception):
    """The job is not one that can be run, or its result none that can be kept."""

    def __init__(self, kind, message):
        super(Refused, self).__init__(message)
        self.kind = kind


def tell(failure):
    """Leaves for the daemon what went wrong."""
    for key, text in failure.items():
        # Lone surrogates are no UTF-8.
        failure[key] = text.encode("utf-8", "backslashreplace").decode("utf-8")
    with open(os.path.join(HERE, "failure"), "w") as file:
        json.dump(failure, file)


def complain(message):
    if sys.stderr is not None:
        sys.stderr.write("runward: " + message + "\n")


def too_old():
    wanted = ".".join(str(number) for number in OLDEST)
    found = ".".join(str(number) for number in sys.version_info[:3])
    message = (
        "%s is Python %s, and a python job needs %s or later: install one, for example with "
        "`apt-get install python3`, or name one in `interpreter`" % (sys.executable, found, wanted)
    )
    tell({"kind": "start_failed", "message": message})
    complain(message)
    return FAILED


def runward_module():
    """The module `runward` that a job can import."""
    import contextvars
    import types

    variables = {}
    absent = object()

    def var(name):
        """The ContextVar of this name: always the same one. What the main task sets, the next run sees."""
        if not isinstance(name, str) or not name or any(c.isspace() or c in "=<\0" for c in name):
            raise ValueError("%r is no name of a variable: it has no spaces, `=`, `<` or NUL" % (name,))
        return variables.get(name) or variables.setdefault(name, contextvars.ContextVar(name))

    def context():
        """The variables that are set here, by name."""
        found = {name: variable.get(absent) for name, variable in list(variables.items())}
        return types.MappingProxyType({name: value for name, value in found.items() if value is not absent})

    module = types.ModuleType("runward", "The context variables of a runward job.")
    module.var = var
    module.context = context
    module.__all__ = ["context", "var"]
    sys.modules["runward"] = module
    return variables


def load_source(source):
    import linecache
    import types

    # Where tracebacks find the lines; without a time it is never thrown out.
    linecache.cache[SOURCE] = (len(source), None, source.splitlines(True), SOURCE)
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    exec(compile(source, SOURCE, "exec", dont_inherit=True), module.__dict__)
    if not hasattr(module, "main"):
        raise Refused("start_failed", "the source defines no `main`; it needs `async def main(): ...`")
    return "main", module.main


def load_target(target):
    import functools
    import importlib

    module, path = target.split(":")
    found = importlib.import_module(module)
    try:
        return path, functools.reduce(getattr, path.split("."), found)
    except AttributeError:
        raise Refused("start_failed", "the module `%s` has no `%s`" % (module, path))


def coroutine_of(name, function, context, request):
    import inspect

    coroutine = context.run(function, *request["args"], **request["kwargs"])
    if inspect.isasyncgen(coroutine):
        message = "`%s` is an asynchronous generator: it has a `yield`; return the result instead" % name
        raise Refused("start_failed", message)
    if not inspect.iscoroutine(coroutine):
        returned = type(coroutine).__name__
        message = "`%s` is not asynchronous, it returned a value of the type %s; write `async def`" % (name, returned)
        raise Refused("start_failed", message)
    return coroutine


def keep_context(path, variables, before, context):
    """Leaves for the next run what the main task has set."""
    lines = []
    for name, variable in list(variables.items()):
        value = context.get(variable)
        text = None if value is None else str(value)
        if text == before.get(name):
            continue
        if text is None:
            lines.append(name)
        elif "\n" not in text:
            lines.append("%s=%s" % (name, text))
        else:
            end = "END"
            while end in text.split("\n"):
                end += "_"
            lines += ["%s<<%s" % (name, end), text, end]
    if lines:
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write("\n".join(lines) + "\n")


def keep_result(path, result):
    if result is None:
        return
    try:
        text = json.dumps(result, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except Exception as error:
        detail = str(error) or type(error).__name__
        raise Refused("bad_result", "the result can't be written as JSON: %s" % detail)
    if len(text) > RESULT_LIMIT:
        message = "the result is %d bytes of JSON, and %d can be kept: write it to a file and return the path"
        raise Refused("bad_result", message % (len(text), RESULT_LIMIT))
    with open(path + ".new", "wb") as file:
        file.write(text)
    os.replace(path + ".new", path)


def qualified(kind):
    if kind.__module__ in ("builtins", MODULE):
        return kind.__qualname__
    return "%s.%s" % (kind.__module__, kind.__qualname__)


def is_ours(traceback):
    """Whether a frame is one of this file, or of what it calls to run the coroutine."""
    import asyncio.base_events
    import asyncio.events
    import asyncio.runners
    import importlib

    callers = [asyncio.runners, asyncio.base_events, asyncio.events, importlib]
    name = traceback.tb_frame.f_code.co_filename
    return name in [__file__] + [caller.__file__ for caller in callers] or name.startswith("<frozen importlib")


def report(error):
    """Tells of an exception as Python does, from the first frame of the job's own code."""
    import traceback

    frames = error.__traceback__
    while frames is not None and is_ours(frames):
        frames = frames.tb_next
    error = error.with_traceback(frames)
    lines = "".join(traceback.format_exception(error))
    try:
        message = str(error)
    except Exception:
        message = "(its text can't be told)"
    kind = qualified(type(error))
    tell(
        {
            "kind": "cancelled" if kind in CANCELLATIONS else "exception",
            "exception": kind,
            "message": message[:MESSAGE_LIMIT] or kind,
            "traceback": lines[-TRACEBACK_LIMIT:],
        }
    )
    if sys.excepthook is not sys.__excepthook__:
        sys.excepthook(type(error), error, frames)
    elif sys.stderr is not None:
        # The hook of Python itself does not know the lines of a source that is in no file.
        sys.stderr.write(lines)


def raised_by_job(error):
    """Whether the job has raised this KeyboardInterrupt itself."""
    import asyncio.runners

    innermost = error.__traceback__
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    return innermost.tb_frame.f_code.co_filename != asyncio.runners.__file__


def waking_runner(debug):
    """An asyncio.Runner whose loop wakes for every signal.

    Python only notes a signal that comes just before the loop waits, or on another thread: it would be heeded when the
    loop wakes for something else, which may be never. And 3.11 may forget to look for one that comes as it takes its lock.
    """
    import asyncio
    import contextlib
    import signal
    import socket

    @contextlib.contextmanager
    def waking():
        read, write = socket.socketpair()
        with read, write:
            read.setblocking(False)
            write.setblocking(False)

            def heed():
                # Left over by a run that ended early, it comes once more.
                with contextlib.suppress(BlockingIOError):
                    read.recv(4096)
                # Changes nothing, and looks for signals.
                signal.pthread_sigmask(signal.SIG_BLOCK, ())

            try:
                with asyncio.Runner(debug=debug) as runner:
                    runner.get_loop().add_reader(read, heed)
                    signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
                    yield runner
            finally:
                signal.set_wakeup_fd(-1)

    return waking()


def run():
    import contextvars
    import signal

    path = os.path.join(HERE, "request")
    with open(path, encoding="utf-8") as file:
        request = json.load(file)
    os.unlink(path)
    result_path, context_path = os.environ["RUNWARD_RESULT"], os.environ["RUNWARD_CONTEXT"]
    interrupt = {signal.SIGINT}
    variables = runward_module()
    before = {}
    for name in request["variables"]:
        before[name] = os.environb[name.encode("utf-8")].decode("utf-8", "surrogateescape")
        variables[name] = contextvars.ContextVar(name)
        variables[name].set(before[name])
    context = contextvars.copy_context()

    if sys.path and os.path.abspath(sys.path[0]) == HERE:
        # Modules are found as for `python -c`.
        sys.path[0] = ""
    sys.argv = [request.get("target") or SOURCE]
    if sys.stdout is not None:
        # Whoever follows the output sees each line at once.
        sys.stdout.reconfigure(line_buffering=True)
    raised = None
    try:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupt)
            if "source" in request:
                name, function = load_source(request["source"])
            else:
                name, function = load_target(request["target"])
            coroutine = coroutine_of(name, function, context, request)
            with waking_runner(request["debug"]) as runner:
                try:
                    result = runner.run(coroutine, context=context)
                except KeyboardInterrupt as error:
                    if raised_by_job(error):
                        raised = error
                    raise
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, interrupt)
            keep_context(context_path, variables, before, context)
        keep_result(result_path, result)
        return 0
    except SystemExit:
        raise
    except KeyboardInterrupt as error:
        if error is raised:
            report(error)
        return INTERRUPTED
    except Refused as refused:
        tell({"kind": refused.kind, "message": str(refused)})
        complain(str(refused))
        return FAILED
    except BaseException as error:
        report(error)
        return FAILED
    finally:
        # Nothing of the job is left to be cancelled: from here an interrupt ends the process.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupt)


if __name__ == "__main__":
    sys.exit(run() if sys.version_info >= OLDEST else too_old())
