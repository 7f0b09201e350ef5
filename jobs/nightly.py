"""Entry point for `ray job submit`: the verb `nightly`, on the cluster of the job.

    ray job submit --address http://HEAD:8265 -- python jobs/nightly.py --config watch.toml

Arguments and exit status are those of `rmtscan nightly`. Ray sets RAY_ADDRESS in a job, so the command joins
the cluster of the job.
"""

import sys

from scanner.cli.main import main

if __name__ == "__main__":
    main(["nightly", *sys.argv[1:]])
