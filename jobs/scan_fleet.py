"""Entry point for `ray job submit`: the verb `scan` for a file of references, on the cluster of the job.

    ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/scan_fleet.py models.txt --store s3://bucket/results

The first argument is the file, one reference a line, as for `rmtscan scan --from`; the others and the exit status are those of
`rmtscan scan`. Ray sets RAY_ADDRESS in a job, so the command joins the cluster of the job.
"""

import sys

from scanner.cli.main import main

if __name__ == "__main__":
    main(["scan", "--from", *sys.argv[1:]])
