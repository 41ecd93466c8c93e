"""``zo-cloud serve`` with the fake work of ``fake_job.py``: the settings come as JSON in the first argument."""

import sys
from pathlib import Path

from cloud_service.app import job_launcher, serve
from cloud_service.settings import Settings
from shared.errors import ZoError

if __name__ == "__main__":
    command = (sys.executable, str(Path(__file__).with_name("fake_job.py")))
    try:
        settings = Settings.model_validate_json(sys.argv[1])
        serve(settings, job_launcher(settings, command))
    except ZoError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
