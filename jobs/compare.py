"""Entry point for `ray job submit`: the verb `compare`, on the cluster of the job.

    ray job submit --address http://HEAD:8265 -- python jobs/compare.py BASE TUNED --store s3://bucket/results

Arguments and exit status are those of `rmtscan compare`. Ray sets RAY_ADDRESS in a job, so the command joins
the cluster of the job.
"""

import sys

from scanner.cli.main import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
