"""Entry point for `ray job submit`: the verb `nightly`, on the cluster of the job.

    ray job submit --address http://HEAD:8265 -- python /srv/rmtscan/jobs/nightly.py --config /srv/rmtscan/watch.toml

Both paths are those of the head. Name the store in the configuration by a URL: what is written beside files that
`--working-dir` uploads is lost with Ray's temporary folder.

Arguments and exit status are those of `rmtscan nightly`. Ray sets RAY_ADDRESS in a job, so the command joins the cluster of
the job.
"""

import sys

from scanner.cli.main import main

if __name__ == "__main__":
    main(["nightly", *sys.argv[1:]])
