"""The tasks of the Celery worker."""

import os
import subprocess

from celery import Celery

app = Celery("tasks", broker=os.environ["RIVALS_REDIS"], backend=os.environ["RIVALS_REDIS"])


@app.task
def run(argv):
    return subprocess.run(argv).returncode
