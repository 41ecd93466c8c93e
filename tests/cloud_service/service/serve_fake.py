"""``zo-cloud serve`` with jobs that a program of the tests does: settings as JSON and the program are the arguments."""

import sys
from pathlib import Path

from cloud_service.app import job_launcher, serve
from cloud_service.settings import Settings
from shared.errors import ZoError

if __name__ == "__main__":
    command = (sys.executable, str(Path(__file__).with_name(sys.argv[2])))
    try:
        settings = Settings.model_validate_json(sys.argv[1])
        serve(settings, job_launcher(settings, command))
    except ZoError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
