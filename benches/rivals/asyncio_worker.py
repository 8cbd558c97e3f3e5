"""A program that runs processes with asyncio, told by lines what to do; each is answered by a line of JSON.

many COUNT AT_A_TIME ARGV...   runs so many      hold COUNT ARGV...   starts so many      one ARGV...   runs one
"""

import asyncio
import json
import sys
import time

now, spawn, held = time.perf_counter, asyncio.create_subprocess_exec, []


async def limited(slots, argv):
    async with slots:
        await (await spawn(*argv)).wait()


async def do(verb, *words):
    began = now()
    if verb == "many":
        slots = asyncio.Semaphore(int(words[1]))
        await asyncio.gather(*(limited(slots, words[2:]) for _ in range(int(words[0]))))
        return []
    if verb == "hold":
        times = []
        for _ in range(int(words[0])):
            began = now()
            held.append(await spawn(*words[1:]))
            times.append(now() - began)
        return times
    process = await spawn(*words)
    submitted = now() - began
    await process.wait()
    return submitted, now() - began


async def main():
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        print(json.dumps(await do(*line.decode().split())), flush=True)


asyncio.run(main())
